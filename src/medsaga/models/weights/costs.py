"""What training a model costs, as ``benchmarks/memory/models.py`` has found and written it down in ``costs.json``.

Planning a model takes seconds and timing it minutes, so that a list of models cannot do it each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from medsaga import files

FILE = Path(__file__).with_name("costs.json")


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """The size of a model, and what a step takes: one image, nine classes, GaLore of rank 64, blocks computed again.

    Attributes:
        parameters: of the whole model, as published, with four masks.
        peak_memory_bytes_512px: the planner's, with images of 512 px, bf16 weights and 8-bit state.
        peak_memory_bytes_1024px: the same with images of 1024 px.
        relative_step_time: ViT-B's is 1: CPU time in float32 with images of 512 px; None where it has not been taken.
    """

    parameters: int
    peak_memory_bytes_512px: int
    peak_memory_bytes_1024px: int
    relative_step_time: float | None


@cache
def training_costs() -> dict[str, TrainingCost]:
    """Return the costs of all keys of ``ENCODERS``."""
    return {name: TrainingCost(**cost) for name, cost in files.read_json(FILE).items()}
