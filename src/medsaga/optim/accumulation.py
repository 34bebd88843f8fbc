"""What the training loop asks of an optimizer: it accumulates gradients over micro-batches, clips them, and steps.

optimizer.zero_grad()
for micro_batch in micro_batches:
loss(micro_batch).backward()
norm = optimizer.clip_gradients(1.0)
if norm.isfinite():                              # else the step is skipped, and nothing has been damaged
optimizer.step()
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from medsaga.optim.storage import precision_of


class AccumulatingOptimizer(torch.optim.Optimizer):
    """An optimizer whose accumulated gradient is scaled and clipped without being touched before ``step()``.

    State is plain tensors and numbers; ``load_state_dict`` restores it to the same bits, whatever the type of the
    weights. Settings of a group that every optimizer has: ``lr``, ``weight_decay``, ``state_on_host``, ``seed``.

    The update of one weight happens as a whole or not at all: what it needs is allocated before anything changes. When
    memory runs out in ``step()``, calling it again goes on with the weight at which it stopped.

    Attributes:
        updated: how far a ``step()`` has come that has not come to its end: it grows with every update.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self._places: dict[Tensor, int] = {}
        self._factor: Tensor | float = 1.0
        self.updated = 0
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
        norms = [torch.linalg.vector_norm(gradient, dtype=precision_of(gradient)) for gradient in self._gradients()]
        if not norms:
            return torch.zeros(())
        return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms])) * self._factor

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
        for group, weight in itertools.islice(self._weights(), self.updated, None):
            self._update(weight, group)
            self.updated += 1
        self._update_the_rest()
        self.updated = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all that has arrived."""
        super().zero_grad(set_to_none)
        self._factor = 1.0
        self.updated = 0

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

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        """Update one weight, if its gradient has arrived; as a whole, or not at all if memory runs out.

        It may leave weights to ``_update_the_rest``.
        """
        raise NotImplementedError

    def _update_the_rest(self) -> None:
        """Update what ``_update`` has left out; called again when memory has run out, it goes on where it stopped."""

    def _expected(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        """Return a tensor without values like the one that the next update of a weight is made from."""
        return torch.empty(weight.shape, dtype=weight.dtype, device="meta")

    def _weights(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Each weight with its group."""
        return ((group, weight) for group in self.param_groups for weight in group["params"])

    def _gradients(self) -> Iterator[Tensor]:
        """What has arrived for each weight, in the order of the weights."""
        return (weight.grad for _, weight in self._weights() if weight.grad is not None)
