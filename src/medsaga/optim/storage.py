"""How the optimizer's state lies in memory between two steps: in 32 or 8 bits, on the device or on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medsaga.optim.quantise import dequantise_all, quantise_all

KINDS = {"exp_avg": "signed", "exp_avg_sq": "root", "basis_left": "linear", "basis_right": "linear"}
"""The code of each tensor in 8 bits: see `medsaga.optim.quantise`."""
LEAST_QUANTISED = 4096
"""Smaller tensors stay in float32: they cost nothing, and norms and biases are the most sensitive (8-bit optimizers,
arXiv 2110.02861, do the same)."""


@dataclass(frozen=True)
class Storage:
    """Writes tensors into the states of weights and reads them from there.

    Where several weights are taken at once, they are of one type and on one device, and their tensors of a name are all
    in 8 bits or none.

    In 32 bits on the device, what is read is the stored tensor itself.

    Attributes:
        bits: 32 or 8.
        on_host: keep them in the host's memory, and on the device only while they are used.
    """

    bits: int
    on_host: bool

    def read(self, state: dict[str, Any], name: str, weight: Tensor) -> Tensor | None:
        """Return a tensor of the state of a weight, on the weight's device; None if it is not there."""
        return self.read_all([state], name, weight)[0] if name in state else None

    def read_all(self, states: Sequence[dict[str, Any]], name: str, weight: Tensor) -> list[Tensor]:
        """Return the tensor of this name of each state, on the weight's device; what lies on the host is copied."""
        if scales_of(name) in states[0]:
            stored = [(state[name], state[scales_of(name)]) for state in states]
            return dequantise_all(stored, KINDS[name], precision_of(weight), weight.device)
        return [state[name].to(weight.device, copy=self.on_host) for state in states]

    def stored_moments(
        self, exp_avgs: Sequence[Tensor], exp_avg_sqs: Sequence[Tensor], generator: torch.Generator
    ) -> list[dict[str, Tensor]]:
        """Return what states have of both moments, rounded at random: rounded to the nearest, they would not decay."""
        first = self.stored_all("exp_avg", exp_avgs, generator)
        second = self.stored_all("exp_avg_sq", exp_avg_sqs, generator)
        return [one | other for one, other in zip(first, second, strict=True)]

    def stored(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """Return what a state has of a tensor; in 8 bits it is rounded to the nearest."""
        return self.stored_all(name, [value])[0]

    def stored_all(
        self, name: str, values: Sequence[Tensor], generator: torch.Generator | None = None
    ) -> list[dict[str, Tensor]]:
        """Return what states have of these tensors; in 8 bits they are rounded, stochastically with a generator.

        It is for the caller to put into the states, when all else that is needed has been allocated.
        """
        home = torch.device("cpu") if self.on_host and not values[0].is_meta else values[0].device
        if self.quantises(values[0]):
            stored = quantise_all(values, KINDS[name], generator)
            return [{name: codes.to(home), scales_of(name): scales.to(home)} for codes, scales in stored]
        return [{name: value.to(home)} for value in values]

    def keeps_as_is(self, weight: Tensor) -> bool:
        """Whether a weight's moments lie beside it in 32 bits: what is read is what is stored."""
        return not self.on_host and not self.quantises(weight)

    def quantises(self, value: Tensor) -> bool:
        """Whether a tensor is stored in 8 bits."""
        return self.bits == 8 and value.numel() >= LEAST_QUANTISED


def precision_of(tensor: Tensor) -> torch.dtype:
    """Return the dtype of all arithmetic with a weight and its gradients: float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


def scales_of(name: str) -> str:
    """Return what the scales of a tensor in 8 bits are called in a state."""
    return f"{name}_scales"
