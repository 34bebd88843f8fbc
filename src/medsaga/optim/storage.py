"""How the optimizer's state lies in memory between two steps: in 32 or 8 bits, on the device or on the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medsaga.optim.quantise import dequantise, quantise

KINDS = {"exp_avg": "signed", "exp_avg_sq": "root", "basis_left": "linear", "basis_right": "linear"}
"""The code of each tensor in 8 bits: see `medsaga.optim.quantise`."""
LEAST_QUANTISED = 4096
"""Smaller tensors stay in float32: they cost nothing, and norms and biases are the most sensitive (8-bit optimizers,
arXiv 2110.02861, do the same)."""


@dataclass(frozen=True)
class Storage:
    """Writes tensors into a state and reads them from it.

    In 32 bits on the device, what is read is the stored tensor itself.

    Attributes:
        bits: 32 or 8.
        on_host: keep them in the host's memory, and on the device only while they are used.
    """

    bits: int
    on_host: bool

    def read(self, state: dict[str, Any], name: str, weight: Tensor) -> Tensor | None:
        """Return a tensor of the state of a weight, on the weight's device; None if it is not there."""
        stored = state.get(name)
        if stored is None:
            return None
        scales = state.get(scales_of(name))
        if scales is None:
            return stored.to(weight.device)
        return dequantise(stored.to(weight.device), scales.to(weight.device), KINDS[name], precision_of(weight))

    def read_moments(self, state: dict[str, Any], weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return ``exp_avg`` and ``exp_avg_sq``."""
        return self.read(state, "exp_avg", weight), self.read(state, "exp_avg_sq", weight)

    def stored_moments(self, exp_avg: Tensor, exp_avg_sq: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return what a state has of both moments, rounded at random: rounded to the nearest, they would not decay."""
        return self.stored("exp_avg", exp_avg, generator) | self.stored("exp_avg_sq", exp_avg_sq, generator)

    def stored(self, name: str, value: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return what a state has of a tensor; in 8 bits it is rounded, stochastically with a generator.

        It is for the caller to put into the state, when all else that is needed has been allocated.
        """
        home = torch.device("cpu") if self.on_host and not value.is_meta else value.device
        if self._quantises(value):
            codes, scales = quantise(value, KINDS[name], generator)
            return {name: codes.to(home), scales_of(name): scales.to(home)}
        return {name: value.to(home)}

    def keeps_as_is(self, weight: Tensor) -> bool:
        """Whether a weight's moments lie beside it in 32 bits: what is read is what is stored."""
        return not self.on_host and not self._quantises(weight)

    def _quantises(self, value: Tensor) -> bool:
        return self.bits == 8 and value.numel() >= LEAST_QUANTISED


def precision_of(tensor: Tensor) -> torch.dtype:
    """Return the dtype of all arithmetic with a weight and its gradients: float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


def scales_of(name: str) -> str:
    """Return what the scales of a tensor in 8 bits are called in a state."""
    return f"{name}_scales"
