"""The values that fill in what the user and the recipe leave open.

``benchmarks/starter`` has the sweep and the single runs that they were chosen by; they are the same for all data. A run
has few steps when the cases are few, so that warm-up and the refresh of GaLore's subspace are tied to its length.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from medsaga.config import Precision, ResolvedSettings, Settings
from medsaga.methods import method_named
from medsaga.recipes import with_recipe

METHOD = "medsaga"
DEFAULTS: dict[str, Any] = {
    "steps": 250,
    "batch_size": 4,
    "encoder_lr": 5e-4,
    "decoder_lr": 5e-4,
    "weight_decay": 0.1,
    "optimizer": "adamw",
    "dice_weight": 0.8,
    "dice_form": "linear",
    "loss_resolution": "image",
    "max_gradient_norm": 1.0,
    "rank": 64,
    "galore": "default",
    "augmentation": "fewshot",
}
"""For every model and method that has no value of its own."""
MODEL_DEFAULTS: dict[str, dict[str, Any]] = {"tiny": {"encoder_lr": 2e-3, "decoder_lr": 2e-3}}
"""For models that have values of their own: small ones learn faster at higher rates."""
REFRESHES_PER_RUN = 20
EVALUATIONS_PER_RUN = 10
WARMUP_SHARE = 0.1


RECOMPUTED = ("vit_b", "vit_l", "vit_h")
"""Models whose blocks are computed again in backward unless the user says otherwise: activations outweigh them."""


@dataclass(frozen=True)
class DeviceDefaults:
    """What suits the device of a run when neither the user nor the recipe says.

    Attributes:
        precision: of the weights.
        state_bits: of the optimizer's state.
    """

    precision: Precision
    state_bits: Literal[8, 32]


def fill_in(settings: Settings, *, defaults: DeviceDefaults, image_size: int | None = None) -> ResolvedSettings:
    """Return the settings with every open training field filled in.

    What the user gives comes first, then the recipe, then the method's own values, then the model's, then the common
    ones.

    Args:
        settings: as the user gave them, with the name of an architecture as the model, or none.
        defaults: what suits the device.
        image_size: side in pixels, used when neither the user nor the recipe says; None is the model's own.

    Raises:
        InputError: there is no such method or recipe.
    """
    settings = with_recipe(settings)
    given = {name: value for name, value in dataclasses.asdict(settings).items() if value is not None}
    for name in ("precision", "checkpointing"):
        if given[name] == "auto":
            del given[name]
    method = method_named(given.setdefault("method", METHOD))
    model = given.setdefault("model", method.architectures[0])
    own_size = image_size or method.image_sizes(model)[-1]
    common = dataclasses.asdict(defaults) | DEFAULTS | MODEL_DEFAULTS.get(model, {})
    merged = {"image_size": own_size, **common, **method.defaults, **given}
    steps = merged["steps"]
    merged.setdefault("refresh_every", max(1, steps // REFRESHES_PER_RUN))
    merged.setdefault("warmup", max(1, round(WARMUP_SHARE * steps)))
    merged.setdefault("evaluate_every", max(1, steps // EVALUATIONS_PER_RUN))
    merged.setdefault("micro_batch_size", merged["batch_size"])
    merged.setdefault("checkpointing", "blocks" if merged["model"] in RECOMPUTED else "none")
    merged["warmup"] = min(merged["warmup"], steps)
    return ResolvedSettings(**merged)
