"""Optimizers: AdamW on gradients that are projected to a low rank as they arrive."""

from medsaga.optim.galore import PRESETS, GaLoreAdamW

__all__ = ["PRESETS", "GaLoreAdamW"]
