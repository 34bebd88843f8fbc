"""Scoring predictions against the truth."""
