"""What becomes of gradients that are projected: on arrival, weight for weight, they are made small.

A hook on each projected weight runs as soon as backward has made its gradient: it adds the projected gradient to a
small accumulator and frees the full one. Linear layers of many tokens hand the two factors of their gradient over
instead, and no full one is ever made (`medsaga.models.linear`). So full gradients live for one layer at a time, if at
all, and accumulation over micro-batches, clipping by the global norm and the test for finite gradients all work on the
accumulators.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from medsaga.memory.meta import keyed_generator
from medsaga.models.linear import give_factors
from medsaga.optim.accumulation import AccumulatingOptimizer
from medsaga.optim.arrival import Arrived, FactoredGradient, Gradient, WholeGradient, factors_are_shorter
from medsaga.optim.groups import check_group
from medsaga.optim.projection import as_matrix, matrix_shape, projected_sides, sketch_width
from medsaga.optim.storage import Storage, precision_of


class ProjectingOptimizer(AccumulatingOptimizer):
    """Projects the gradients of groups with a ``rank`` as they arrive, and sketches them where a basis is due.

    What is done with what has arrived is for a subclass. Settings of a group, beside those of every optimizer:
    ``rank``, ``projection``, ``refresh_every``, ``refresh`` and ``state_bits`` (`medsaga.optim.galore`).
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self._arrived: dict[Tensor, Arrived] = {}
        self._positions: dict[Tensor, int] = {}
        self._hooks: list[RemovableHandle] = []
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, and hooks to its parameters if it is projected."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        check_group(group)
        for weight in group["params"] if group["rank"] is not None else []:
            self._positions[weight] = len(self.param_groups) - 1
            self._hooks.append(weight.register_post_accumulate_grad_hook(self._project_on_arrival))
            give_factors(weight, _Factors(self, weight))

    def projected_parameters(self) -> int:
        """Return the number of weights (elements) whose gradients are projected."""
        return sum(weight.numel() for group, weight in self._weights() if group["rank"] is not None)

    def accumulators(self) -> list[Tensor]:
        """Return all that the hooks have kept since the last step: low-rank gradients and sketches, as they are."""
        kept = (tensor for arrived in self._arrived.values() for tensor in vars(arrived).values())
        return [tensor for tensor in kept if tensor is not None]

    def arrived(self, weight: Tensor) -> list[Tensor]:
        """Return what has been kept of one weight's gradients since the last step."""
        kept = (weight.grad, *vars(self._arrived.get(weight, Arrived())).values())
        return [tensor for tensor in kept if tensor is not None]

    def kept_gradient(self, weight: Tensor) -> Tensor | None:
        """Return what the next update of a weight is made from: its projected gradient, or else the full one."""
        low_rank = self._arrived.get(weight, Arrived()).low_rank
        return weight.grad if low_rank is None else low_rank

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """Return the L2 norm of all that has arrived: low-rank gradients and the gradients of unprojected weights.

        A weight without a basis counts with its sketch, whose norm estimates that of its gradient. A gradient that is
        not finite makes the norm so, and so does a sketch. In exact mode the norm of a refresh step is that of the full
        gradients.
        """
        norm = super().gradient_norm()
        for arrived in self._arrived.values():
            for sketch in (arrived.sketch_left, arrived.sketch_right):
                if sketch is not None:
                    # A sketch adds up more than a projection, and may overflow alone: 0 times infinity is no number.
                    norm = norm + 0 * sketch.sum(dtype=norm.dtype).to(norm.device)
        return norm

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop gradients, accumulators and sketches."""
        super().zero_grad(set_to_none)
        self._arrived.clear()

    def close(self) -> None:
        """Remove the hooks: backward leaves full gradients in ``.grad`` again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for weight in self._positions:
            give_factors(weight, None)

    def _gradients(self) -> Iterator[Tensor]:
        """What has arrived for each weight, in the order of the weights."""
        for _, weight in self._weights():
            arrived = self._arrived.get(weight, Arrived())
            for gradient in (weight.grad, arrived.low_rank, arrived.sketch_left, arrived.sketch_right):
                if gradient is not None:
                    yield gradient
                    break

    def _expected(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        """Return a tensor without values like the one that the next update of a weight is made from."""
        if group["rank"] is None or keeps_full(self.state[weight], group):
            return super()._expected(weight, group)
        m, n = matrix_shape(weight.shape)
        rank = min(group["rank"], m, n)
        left, right = projected_sides(m, n, group["projection"])
        shape = (rank if left else m, rank if right else n)
        return torch.empty(shape, dtype=precision_of(weight), device="meta")

    @torch.no_grad()
    def _project_on_arrival(self, weight: Tensor) -> None:
        """Keep what is wanted of a gradient that backward has made, and free it."""
        if weight.grad is None or keeps_full(self.state[weight], self._group_of(weight)):
            return  # it came in factors, or it accumulates: step() takes the basis from it
        self.take(weight, WholeGradient(as_matrix(weight.grad).to(precision_of(weight))))
        weight.grad = None

    @torch.no_grad()
    def take(self, weight: Tensor, gradient: Gradient) -> None:
        """Keep what is wanted of a projected weight's gradient: its projection, and sketches where they are due."""
        group, state = self._group_of(weight), self.state[weight]
        arrived = self._arrived.setdefault(weight, Arrived())
        if has_basis(state):
            arrived.add(gradient, *self._bases(weight, group))
        if self._sketches_now(state, group):
            # They depend on the seed, the weight and the step alone, so that every micro-batch meets the same random
            # columns and a resumed run makes the same basis.
            key = (weight.device, group["seed"], self._places[weight], self._sketch_number(state))
            like = torch.empty((), dtype=precision_of(weight), device=weight.device)
            arrived.add_sketches(gradient, group["rank"], group["projection"], partial(keyed_generator, *key), like)

    def _group_of(self, weight: Tensor) -> dict[str, Any]:
        return self.param_groups[self._positions[weight]]  # not kept: load_state_dict() makes others

    def wants_factors(self, weight: Tensor, tokens: int) -> bool:
        """Whether what is wanted of a weight's gradient takes less arithmetic from factors with so many rows."""
        group, state = self._group_of(weight), self.state[weight]
        if keeps_full(state, group):
            return False
        m, n = matrix_shape(weight.shape)
        rank = min(group["rank"], m, n)
        columns = rank if has_basis(state) else 0
        if self._sketches_now(state, group):
            columns += max(sketch_width(rank, size) for size in (m, n))
        return factors_are_shorter(tokens, m, n, columns)

    def _sketches_now(self, state: dict[str, Any], group: dict[str, Any]) -> bool:
        """Whether the gradients of this step are sketched: there is no basis yet, or the next update is its last."""
        is_last = (state.get("step", 0) + 1) % group["refresh_every"] == 0
        return is_sketched(group) and (not has_basis(state) or is_last)

    def _sketch_number(self, state: dict[str, Any]) -> int:
        """Return what the random columns of a sketch depend on beside the weight and the seed."""
        number: int = state.get("step", 0)
        return number

    def _bases(self, weight: Tensor, group: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """The left and the right basis of one weight, on its device."""
        state, storage = self.state[weight], storage_of(group)
        return storage.read(state, "basis_left", weight), storage.read(state, "basis_right", weight)


class _Factors:
    """Takes the gradient of one weight in factors, for the optimizer."""

    def __init__(self, optimizer: ProjectingOptimizer, weight: Tensor) -> None:
        # Weakly: an optimizer that nobody has any more need not be closed for its weights to be free of it.
        self._optimizer, self._weight = weakref.ref(optimizer), weakref.ref(weight)

    def wants(self, tokens: int) -> bool:
        optimizer, weight = self._optimizer(), self._weight()
        return optimizer is not None and weight is not None and optimizer.wants_factors(weight, tokens)

    def take(self, grad_output: Tensor, inputs: Tensor) -> None:
        optimizer, weight = self._optimizer(), self._weight()
        assert optimizer is not None
        assert weight is not None
        optimizer.take(weight, FactoredGradient(grad_output, inputs, precision_of(weight)))


def storage_of(group: dict[str, Any]) -> Storage:
    """Return how the state of a group lies in memory."""
    return Storage(group["state_bits"], group["state_on_host"])


def is_sketched(group: dict[str, Any]) -> bool:
    """Whether the bases of a group come from sketches."""
    return group["rank"] is not None and group["refresh"] == "sketch"


def keeps_full(state: dict[str, Any], group: dict[str, Any]) -> bool:
    """Whether the full gradient of a projected weight stays in this step."""
    return not is_sketched(group) and state.get("step", 0) % group["refresh_every"] == 0


def has_basis(state: dict[str, Any]) -> bool:
    """Whether the state of a weight has a basis."""
    return "basis_left" in state or "basis_right" in state
