"""Stochastic gradient descent with momentum, as DAE-Former's recipe has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from medsaga.memory.meta import keyed_generator
from medsaga.optim.accumulation import AccumulatingOptimizer, scaled
from medsaga.optim.rounding import precisely
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

    def _tasks(self) -> Iterator[Callable[[], None]]:
        for group in self.param_groups:
            arrived = [weight for weight in group["params"] if weight.grad is not None]
            for bucket in self._buckets(arrived, lambda weight: self.state[weight].get("step", 0)):
                yield partial(self._move, bucket, group)

    def _move(self, weights: Sequence[Tensor], group: dict[str, Any]) -> None:
        """Update some weights in as many operations as one of them takes."""
        states, storage = [self.state[weight] for weight in weights], Storage(32, group["state_on_host"])
        step = states[0].get("step", 0) + 1
        precision, device = precision_of(weights[0]), weights[0].device
        generator = keyed_generator(device, group["seed"], self._places[weights[0]], step)
        gradients = scaled([weight.grad for weight in weights if weight.grad is not None], self._factor, precision)
        with precisely(weights, precision, generator) as values:
            torch._foreach_add_(gradients, values, alpha=group["weight_decay"])
            if step == 1:
                moved = list(torch._foreach_mul(gradients, 1))
            else:
                moved = list(torch._foreach_mul(storage.read_all(states, "momentum", weights[0]), group["momentum"]))
                torch._foreach_add_(moved, gradients)
            stored = storage.stored_all("momentum", moved)
            torch._foreach_add_(values, moved, alpha=-group["lr"])
        for weight, state, new in zip(weights, states, stored, strict=True):
            state.update(new, step=step)
            weight.grad = None
