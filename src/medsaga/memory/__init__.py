"""Counting memory while code runs, and running it on tensors that have none."""
