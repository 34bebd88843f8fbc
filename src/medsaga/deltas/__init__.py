"""Delta files: what a run has changed in the weights that it started from, small enough to send.

Nothing is imported here, so that the command line can tell such a file from a run without torch.
"""
