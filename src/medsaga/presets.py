"""The recipes that fill in what a user leaves open.

``default`` is our own; ``benchmarks/few_shot`` has what it gives from random weights, and a sweep is still to come.
``paper`` is the recipe of MedSAGa (arXiv 2407.15042) and its public code. A run has few steps when the cases are few,
so that warm-up and the refresh of GaLore's subspace are tied to its length.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from medsaga.config import Precision, ResolvedSettings, Settings

RECIPES: dict[str, dict[str, Any]] = {
    "default": {
        "steps": 400,
        "batch_size": 8,
        "encoder_lr": 5e-4,
        "decoder_lr": 5e-4,
        "rank": 64,
        "augmentation": "fewshot",
    },
    "paper": {
        "steps": 3000,
        "batch_size": 12,
        "encoder_lr": 5e-3,
        "decoder_lr": 5e-3,
        "rank": 4,
        "refresh_every": 200,
        "warmup": 250,
        "augmentation": "samed",
        "precision": "fp32",
        "state_bits": 32,
        "image_size": 240,
    },
}
REFRESHES_PER_RUN = 20
EVALUATIONS_PER_RUN = 10
WARMUP_SHARE = 0.1


RECOMPUTED = ("vit_b", "vit_l", "vit_h")
"""Models whose blocks are computed again in backward unless the user says otherwise: activations outweigh them."""


@dataclass(frozen=True)
class DeviceDefaults:
    """What suits the device of a run when neither the user nor the preset says.

    Attributes:
        precision: of the weights.
        state_bits: of the optimizer's state.
    """

    precision: Precision
    state_bits: Literal[8, 32]


def fill_in(settings: Settings, *, image_size: int, defaults: DeviceDefaults) -> ResolvedSettings:
    """Return the settings with every open training field filled in from the preset.

    Args:
        settings: as the user gave them, with a model of `medsaga.models.sam.ARCHITECTURES`.
        image_size: the model's own side in pixels, used when neither the user nor the preset says.
        defaults: what suits the device.
    """
    recipe = RECIPES[settings.preset]
    given = {name: value for name, value in dataclasses.asdict(settings).items() if value is not None}
    for name in ("precision", "checkpointing"):
        if given[name] == "auto":
            del given[name]
    merged = {"image_size": image_size, **dataclasses.asdict(defaults), **recipe, **given}
    steps = merged["steps"]
    merged.setdefault("refresh_every", max(1, steps // REFRESHES_PER_RUN))
    merged.setdefault("warmup", max(1, round(WARMUP_SHARE * steps)))
    merged.setdefault("evaluate_every", max(1, steps // EVALUATIONS_PER_RUN))
    merged.setdefault("micro_batch_size", merged["batch_size"])
    merged.setdefault("checkpointing", "blocks" if merged["model"] in RECOMPUTED else "none")
    merged["warmup"] = min(merged["warmup"], steps)
    return ResolvedSettings(**merged)
