"""The values of settings that neither the user nor a recipe gives.

``benchmarks/starter`` has the sweep and the single runs that they were chosen by; they are the same for all data. A run
has few steps when the cases are few, so that warm-up and the refresh of GaLore's subspace are tied to its length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from medsaga.device import choose_device
from medsaga.models.encoders import encoder_spec, is_architecture
from medsaga.settings.options import Precision

METHOD = "medsaga"
DEFAULTS: dict[str, Any] = {
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
    "projection": "std",
    "augmentation": "fewshot",
    "binary": False,
    "fold": 0,
    "seed": 0,
    "axis": "auto",
    "neighbours": 0,
    "intensity": "auto",
    "state_on_host": False,
    "protocol": "mm",
}
"""For every model and method that has no value of its own."""
MODEL_DEFAULTS: dict[str, dict[str, Any]] = {"lite": {"encoder_lr": 1e-3, "decoder_lr": 2e-3}}
"""For models that have values of their own: small ones learn faster at higher rates."""
STEPS, STEPS_OF_LARGE_IMAGES = 800, 400
"""Optimizer steps of a run; fewer where a step takes seconds."""
LARGE = 320
"""Side in pixels above which images are large: beyond the sizes of models that train on a CPU."""
REFRESHES_PER_RUN = 20
EVALUATIONS_PER_RUN = 10
WARMUP_SHARE = 0.1


@dataclass(frozen=True)
class DeviceDefaults:
    """What suits the device of a run when neither the user nor the recipe says.

    Attributes:
        precision: of the weights.
        state_bits: of the optimizer's state.
    """

    precision: Precision
    state_bits: Literal[8, 32]


GPU = DeviceDefaults("bf16", 8)
OLDER_GPU = DeviceDefaults("fp16", 8)


def defaults_for(device: torch.device) -> DeviceDefaults:
    """Return the settings that suit a device when the user leaves them open.

    On a GPU memory is scarce and half precision fast; GPUs before Ampere have float16 only. On CPUs and MPS float32
    is the safe choice, and rounding the optimizer's state would cost more time than its memory is worth.
    """
    if device.type != "cuda":
        return DeviceDefaults("fp32", 32)
    with torch.cuda.device(device):
        return GPU if torch.cuda.is_bf16_supported(including_emulation=False) else OLDER_GPU


def planned_defaults(name: str) -> DeviceDefaults:
    """Return the settings that suit a device of another machine too: ``cuda`` where there is none is a GPU with bf16.

    Raises:
        InputError: the name is unknown.
    """
    if name.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        return GPU
    return defaults_for(choose_device(name))


def derived(merged: dict[str, Any]) -> dict[str, Any]:
    """Return the values that follow from others of a run, where nothing else gives them.

    Args:
        merged: has ``model``, ``image_size`` and ``batch_size``, and ``steps`` if something gives them.
    """
    steps = merged.get("steps", STEPS if merged["image_size"] <= LARGE else STEPS_OF_LARGE_IMAGES)
    return {
        "steps": steps,
        "refresh_every": max(1, steps // REFRESHES_PER_RUN),
        "warmup": max(1, round(WARMUP_SHARE * steps)),
        "evaluate_every": max(1, steps // EVALUATIONS_PER_RUN),
        "micro_batch_size": merged["batch_size"],
        "checkpointing": "blocks" if _recomputes(merged["model"]) else "none",
    }


def _recomputes(model: str) -> bool:
    """Whether the blocks of a model are computed again in backward unless the user says otherwise."""
    return is_architecture(model) and encoder_spec(model).recomputed
