"""Optimizers: AdamW on gradients that are projected to a low rank as they arrive."""

from medsaga.optim.galore import GaLoreAdamW
from medsaga.optim.groups import PRESETS

__all__ = ["PRESETS", "GaLoreAdamW"]
