"""Comparing methods on the same cases: the grid of runs, its statistics, and the pages that show them."""
