"""The settings of parameter groups: the two ways to do GaLore, and what is allowed."""

from __future__ import annotations

from typing import Any

from medsaga.errors import InputError
from medsaga.optim.projection import PROJECTIONS

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # What galore-torch does, with the scale of its README: MedSAGa names none.
    "reference": {"scale": 0.25, "refresh": "exact", "moments": "keep"},
}
"""How projected groups of either way differ from the arguments' defaults; rank and interval are the run's settings."""

CHOICES: dict[str, tuple[Any, ...]] = {
    "projection": PROJECTIONS,
    "refresh": ("sketch", "exact"),
    "moments": ("rotate", "keep"),
    "state_bits": (32, 8),
}


def check_group(group: dict[str, Any]) -> None:
    """Raise InputError where a parameter group cannot be used."""
    positive = "a number above 0"
    for name, good, expected in (
        ("lr", group["lr"] >= 0, "a number of at least 0"),
        ("betas", 0 <= group["betas"][0] < 1 and 0 < group["betas"][1] < 1, "two numbers above 0 and below 1"),
        ("eps", group["eps"] > 0, positive),
        ("weight_decay", group["weight_decay"] >= 0, "a number of at least 0"),
        ("rank", group["rank"] is None or group["rank"] >= 1, "a whole number of at least 1"),
        ("refresh_every", group["refresh_every"] >= 1, "a whole number of at least 1"),
        ("scale", group["scale"] > 0, positive),
        *((name, group[name] in values, "one of " + ", ".join(map(str, values))) for name, values in CHOICES.items()),
    ):
        if not good:
            raise InputError(name, expected=expected, found=repr(group[name]), do="Change this setting.")
    for weight in group["params"]:
        if group["rank"] is not None and (weight.dim() < 2 or not weight.requires_grad):
            raise InputError(
                "parameter groups",
                expected="trainable matrices or convolution kernels in a group with a rank",
                found=f"a parameter of shape {tuple(weight.shape)}, requires_grad={weight.requires_grad}",
                do="Put it into a group without a rank.",
            )
