"""Weights: the names that are known, finding and reading files, fitting them to a model, and writing our own.

Nothing is imported here, so that `medsaga weights list` needs no torch.
"""
