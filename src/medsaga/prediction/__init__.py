"""Segmenting new images with a trained model, and what is written of it."""
