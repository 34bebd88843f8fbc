"""Stochastic gradient descent with momentum, as DAE-Former's recipe has it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from medsaga.memory.meta import keyed_generator
from medsaga.optim.accumulation import AccumulatingOptimizer
from medsaga.optim.rounding import write_weight
from medsaga.optim.storage import Storage, precision_of


class MomentumSGD(AccumulatingOptimizer):
    """``b = momentum b + g + weight_decay w``; ``w = w - lr b``, as ``torch.optim.SGD``.

    Arithmetic is float32 whatever the weights are; weights of fewer bits are written with stochastic rounding. The
    momentum is kept in float32, because nothing here was measured with less.

    Args:
        params: parameters or parameter groups; every argument below is also a key of a group.
        lr: learning rate.
        momentum: decay of the sum of gradients.
        weight_decay: coupled: it enters the gradient.
        state_on_host: keep the momentum in the host's memory.
        seed: of the stochastic rounding.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        state_on_host: bool = False,
        seed: int = 0,
    ) -> None:
        descent = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, descent | {"state_on_host": state_on_host, "seed": seed})

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        if weight.grad is None:
            return
        state, storage = self.state[weight], Storage(32, group["state_on_host"])
        step = state.get("step", 0) + 1
        precise = weight.to(precision_of(weight))
        gradient = weight.grad.to(precise.dtype) * self._factor
        gradient.add_(precise, alpha=group["weight_decay"])
        momentum = storage.read(state, "momentum", weight)
        momentum = gradient.clone() if momentum is None else momentum.mul(group["momentum"]).add_(gradient)
        stored = storage.stored("momentum", momentum)
        generator = keyed_generator(weight.device, group["seed"], self._places[weight], step)
        write_weight(weight, torch.add(precise, momentum, alpha=-group["lr"]), generator)
        state.update(stored, step=step)
