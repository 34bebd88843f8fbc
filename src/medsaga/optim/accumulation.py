"""What the training loop asks of an optimizer: it accumulates gradients over micro-batches, clips them, and steps.

optimizer.zero_grad()
for micro_batch in micro_batches:
loss(micro_batch).backward()
norm = optimizer.clip_gradients(1.0)
if norm.isfinite():                              # else the step is skipped, and nothing has been damaged
optimizer.step()
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from medsaga.optim.buckets import buckets
from medsaga.optim.rows import Row


class AccumulatingOptimizer(torch.optim.Optimizer):
    """An optimizer whose accumulated gradient is scaled and clipped without being touched before ``step()``.

    State is plain tensors and numbers; ``load_state_dict`` restores it to the same bits, whatever the type of the
    weights. Settings of a group that every optimizer has: ``lr``, ``weight_decay``, ``state_on_host``, ``seed``.

    A step is made of tasks, one after the other, each of which happens as a whole or not at all: what it needs is
    allocated before anything changes, and what it has used up of the gradients is gone. When memory runs out in
    ``step()``, calling it again goes on with the task at which it stopped.

    Attributes:
        done: how many tasks are done of a ``step()`` that has not come to its end.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self._places: dict[Tensor, int] = {}
        self._factor: Tensor | float = 1.0
        self.done = 0
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group."""
        super().add_param_group(param_group)
        for weight in self.param_groups[-1]["params"]:
            self._places[weight] = len(self._places)

    def projected_parameters(self) -> int:
        """Return the number of weights (elements) whose gradients are projected."""
        return 0

    def needs_calibration(self) -> bool:
        """Return whether a backward pass and ``calibrate()`` have to come before the first step."""
        return False

    def calibrate(self) -> bool:
        """Use a first gradient up to prepare; no weight moves. Return whether that could be done."""
        return True

    def state_tensors(self) -> Iterator[tuple[list[Tensor], bool]]:
        """Yield the state of each weight, and whether it is kept on the host."""
        for group, weight in self._weights():
            tensors = [value for value in self.state.get(weight, {}).values() if isinstance(value, Tensor)]
            yield tensors, group["state_on_host"]

    def arrived(self, weight: Tensor) -> list[Tensor]:
        """Return what has been kept of one weight's gradients since the last step."""
        return [] if weight.grad is None else [weight.grad]

    def all_arrived(self) -> Iterator[Tensor]:
        """Yield what has been kept of all gradients since the last step: sums, which processes may add up."""
        return (tensor for _, weight in self._weights() for tensor in self.arrived(weight))

    def kept_gradient(self, weight: Tensor) -> Tensor | None:
        """Return what the next update of a weight is made from, as far as it has arrived: its gradient, as kept."""
        return weight.grad

    def expected_gradients(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each weight that has been updated before, and what `kept_gradient` will be, on the meta device."""
        for group, weight in self._weights():
            if "step" in self.state.get(weight, {}):
                yield weight, self._expected(weight, group)

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """Return the L2 norm of all that has arrived. A gradient that is not finite makes the norm so."""
        gradients = list(self._gradients())
        if not gradients:
            return torch.zeros(())
        return torch.linalg.vector_norm(torch.stack(norms_of(gradients))) * self._factor

    @torch.no_grad()
    def scale_gradients(self, factor: Tensor | float) -> None:
        """Multiply all that has arrived, for instance by one over the scale of the loss.

        ``step()`` does it, in float32: the gradients of float16 weights would vanish.
        """
        self._factor = self._factor * factor

    @torch.no_grad()
    def clip_gradients(self, max_norm: float) -> Tensor:
        """Scale all that has arrived so that ``gradient_norm()`` is at most ``max_norm``; return the norm before."""
        norm = self.gradient_norm()
        self.scale_gradients((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every weight whose gradient has arrived."""
        assert closure is None, "what the optimizer steps on has arrived before"
        for task in self._tasks():
            task()
            self.done += 1
        self.done = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all that has arrived."""
        super().zero_grad(set_to_none)
        self._factor = 1.0
        self.done = 0

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state as it was saved, and drop what has arrived."""
        super().load_state_dict(state_dict)
        # torch has cast the state to the dtype of the weights, which may be narrower: take it as saved.
        saved = (number for group in state_dict["param_groups"] for number in group["params"])
        for number, (group, weight) in zip(saved, self._weights(), strict=True):
            home = torch.device("cpu") if group["state_on_host"] else weight.device
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    self.state[weight][name] = value.to(home, copy=True)
        self.zero_grad()

    def close(self) -> None:
        """Leave the weights as any other weights: nothing happens any more when a gradient arrives."""

    def _tasks(self) -> Iterator[Callable[[], None]]:
        """Yield what is left to do in this step; a task is done before the next one is asked for."""
        raise NotImplementedError

    def _expected(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        """Return a tensor without values like the one that the next update of a weight is made from."""
        return torch.empty(weight.shape, dtype=weight.dtype, device="meta")

    def _buckets(self, weights: Iterable[Tensor], kind: Callable[[Tensor], Hashable]) -> list[list[Tensor]]:
        """Deal weights out among `medsaga.optim.buckets.buckets`."""
        return buckets(weights, kind, trained_elements=sum(weight.numel() for _, weight in self._weights()))

    def _weights(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Each weight with its group."""
        return ((group, weight) for group in self.param_groups for weight in group["params"])

    def _gradients(self) -> Iterator[Tensor]:
        """What has arrived for each weight, in the order of the weights."""
        return (weight.grad for _, weight in self._weights() if weight.grad is not None)


def norms_of(tensors: list[Tensor]) -> list[Tensor]:
    """Return the L2 norm of each, in float32 at least, on the device of the first: those of one type in one call."""
    norms: dict[int, Tensor] = {}
    alike: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for place, tensor in enumerate(tensors):
        alike.setdefault((tensor.dtype, tensor.device), []).append(place)
    for (dtype, _), places in alike.items():
        precision = torch.promote_types(dtype, torch.float32)
        found = torch._foreach_norm([tensors[place] for place in places], 2, dtype=precision)
        norms |= {place: norm.to(tensors[0].device) for place, norm in zip(places, found, strict=True)}
    return [norms[place] for place in range(len(tensors))]


def scaled(gradients: list[Tensor], factor: Tensor | float, precision: torch.dtype) -> list[Tensor]:
    """Return gradients of one type on one device times a factor, in a precision and in memory of their own."""
    if gradients[0].dtype != precision:
        row = Row.of(gradients)
        gradients = row.split(row.join(gradients, precision, gradients[0].device))
    return list(torch._foreach_mul(gradients, factor))
