"""AdamW whose gradients are projected to a low rank as they arrive (GaLore, arXiv 2403.03507).

A hook on each projected weight runs as soon as backward has made its gradient: it adds the projected gradient to a
small accumulator and frees the full one. Linear layers of many tokens hand the two factors of their gradient over
instead, and no full one is ever made (`medsaga.models.linear`). So full gradients live for one layer at a time, if at
all, and accumulation over micro-batches, clipping by the global norm and the test for finite gradients all work on the
accumulators.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from medsaga.memory.meta import keyed_generator, value_of
from medsaga.models.linear import give_factors
from medsaga.optim.accumulation import AccumulatingOptimizer
from medsaga.optim.adamw import adamw_direction, is_simple, update_together, update_weight
from medsaga.optim.arrival import Arrived, FactoredGradient, Gradient, WholeGradient, factors_are_shorter
from medsaga.optim.groups import check_group
from medsaga.optim.projection import (
    as_matrix,
    exact_bases,
    matrix_shape,
    project,
    project_back,
    projected_sides,
    rotate_moments,
    sketch_basis,
    sketch_width,
)
from medsaga.optim.storage import Storage, precision_of


class GaLoreAdamW(AccumulatingOptimizer):
    """AdamW on low-rank projections of the gradients, which are projected as they arrive.

    A parameter group with a ``rank`` is projected; its parameters are matrices, or convolution kernels seen as
    (out, in * kh * kw). A group without one is plain AdamW. Every argument below is also a key of a parameter group.

    The basis of each matrix changes every ``refresh_every`` updates, in one of two ways:

    - ``refresh="sketch"``: in the last step before the change, the hook also adds up a linear sketch of the
      gradient, from which the next basis is made. No full gradient is ever kept. The first bases come from a
      backward pass for calibration: ``calibrate()`` makes them and drops all gradients without moving any weight;
      ``step()`` does the same as long as ``needs_calibration()``.
    - ``refresh="exact"``: what GaLore's authors do. In the first step with a new basis, the full gradient stays in
      ``.grad`` and ``step()`` takes the basis from its SVD. Full gradients exist in those steps only, and it is their
      norm that enters ``gradient_norm()``.

    The optimizer's arithmetic is float32 (float64 for float64 weights), whatever the weights are; what comes in factors
    (`medsaga.optim.arrival`) is multiplied in their own type. Weights of fewer bits are written with stochastic
    rounding (`medsaga.optim.rounding`). Moments and bases are kept in 32 or 8 bits.
    ``step()`` uses up what has arrived, for most weights; call ``zero_grad()`` after it as usual. State: ``step``,
    ``exp_avg``, ``exp_avg_sq``, and for projected weights ``basis_left`` (m, r), ``basis_right`` (n, r) or both; those
    that are kept in 8 bits have ``..._scales`` beside them (`medsaga.optim.storage`).
    Accumulators and sketches are not state: save between steps. Gradients must be whole when backward makes them:
    several processes add up ``all_arrived()`` instead of averaging gradients as DistributedDataParallel does.

    Args:
        params: parameters or parameter groups, as for any optimizer.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay, on the full weight.
        rank: rank of the projection, capped by the matrix; None for plain AdamW.
        projection: ``std`` (the shorter side, as GaLore does), ``left``, ``right`` or ``two_sided``.
        refresh_every: how many updates a basis lasts.
        scale: factor of the projected update (alpha in the paper).
        refresh: ``sketch`` or ``exact``.
        moments: on a change of basis, ``rotate`` the moments into it, or ``keep`` them as GaLore's authors do.
        state_bits: 32, or 8 for moments and bases in a quarter of the memory.
        state_on_host: keep the state in the host's memory; one weight's state is on the device at a time.
        seed: seed of the sketches' random columns and of stochastic rounding.

    Raises:
        InputError: a setting is out of range, or a projected parameter is no matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rank: int | None = None,
        projection: str = "std",
        refresh_every: int = 50,
        scale: float = 1.0,
        refresh: str = "sketch",
        moments: str = "rotate",
        state_bits: int = 32,
        state_on_host: bool = False,
        seed: int = 0,
    ) -> None:
        adamw = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        subspace = {"rank": rank, "projection": projection, "scale": scale, "moments": moments}
        refreshing = {"refresh_every": refresh_every, "refresh": refresh, "seed": seed}
        storage = {"state_bits": state_bits, "state_on_host": state_on_host}
        self._arrived: dict[Tensor, Arrived] = {}
        self._positions: dict[Tensor, int] = {}
        self._hooks: list[RemovableHandle] = []
        super().__init__(params, adamw | subspace | refreshing | storage)

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

    def needs_calibration(self) -> bool:
        """Return whether there are weights to project by sketches and none of them has a basis yet."""
        sketched = [weight for group, weight in self._weights() if _is_sketched(group)]
        return bool(sketched) and not any(_has_basis(self.state[weight]) for weight in sketched)

    @torch.no_grad()
    def calibrate(self) -> bool:
        """Make bases from the sketches that have arrived, and drop all gradients. No weight moves.

        Returns:
            whether bases were made; not when ``gradient_norm()`` is not finite.
        """
        if finite := math.isfinite(value_of(self.gradient_norm(), otherwise=1.0)):
            # All bases or, if memory runs out, none: with some, there would be no second calibration.
            made = {
                weight: self._from_sketches(weight, self._arrived[weight], group)
                for group, weight in self._weights()
                if weight in self._arrived
            }
            for weight, bases in made.items():
                self.state[weight].update(bases)
        self.zero_grad()
        return finite

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

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every weight whose gradient has arrived. As long as ``needs_calibration()``, calibrate instead."""
        if self.needs_calibration():
            self.calibrate()
            return
        super().step(closure)

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
        if group["rank"] is None or _keeps_full(self.state[weight], group):
            return super()._expected(weight, group)
        m, n = matrix_shape(weight.shape)
        rank = min(group["rank"], m, n)
        left, right = projected_sides(m, n, group["projection"])
        shape = (rank if left else m, rank if right else n)
        return torch.empty(shape, dtype=precision_of(weight), device="meta")

    @torch.no_grad()
    def _project_on_arrival(self, weight: Tensor) -> None:
        """Keep what is wanted of a gradient that backward has made, and free it."""
        if weight.grad is None or _keeps_full(self.state[weight], self._group_of(weight)):
            return  # it came in factors, or it accumulates: step() takes the basis from it
        self.take(weight, WholeGradient(as_matrix(weight.grad).to(precision_of(weight))))
        weight.grad = None

    @torch.no_grad()
    def take(self, weight: Tensor, gradient: Gradient) -> None:
        """Keep what is wanted of a projected weight's gradient: its projection, and sketches where they are due."""
        group, state = self._group_of(weight), self.state[weight]
        arrived = self._arrived.setdefault(weight, Arrived())
        if _has_basis(state):
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
        if _keeps_full(state, group):
            return False
        m, n = matrix_shape(weight.shape)
        rank = min(group["rank"], m, n)
        columns = rank if _has_basis(state) else 0
        if self._sketches_now(state, group):
            columns += max(sketch_width(rank, size) for size in (m, n))
        return factors_are_shorter(tokens, m, n, columns)

    def _sketches_now(self, state: dict[str, Any], group: dict[str, Any]) -> bool:
        """Whether the gradients of this step are sketched: there is no basis yet, or the next update is its last."""
        is_last = (state.get("step", 0) + 1) % group["refresh_every"] == 0
        return _is_sketched(group) and (not _has_basis(state) or is_last)

    def _sketch_number(self, state: dict[str, Any]) -> int:
        """Return what the random columns of a sketch depend on beside the weight and the seed."""
        number: int = state.get("step", 0)
        return number

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        """Update one weight, if its gradient has arrived, unless it is among those that are updated together."""
        if group["rank"] is not None:
            self._step_projected(weight, group)
        elif weight.grad is not None and not self._is_with_the_rest(weight, group):
            self._move(weight, weight.grad.to(precision_of(weight)) * self._factor, group)

    def _is_with_the_rest(self, weight: Tensor, group: dict[str, Any]) -> bool:
        """Whether a weight is updated together with others, by one call."""
        state = self.state.get(weight, {})  # a weight that is not updated gets none
        return group["rank"] is None and _storage(group).keeps_as_is(weight) and is_simple(weight, state)

    def _update_the_rest(self) -> None:
        for group in self.param_groups:
            alike: dict[tuple[torch.device, int], list[Tensor]] = {}
            for weight in group["params"]:
                if self._is_with_the_rest(weight, group):
                    step = self.state[weight].get("step", 0) + 1
                    alike.setdefault((weight.device, step), []).append(weight)
            for (_, step), weights in alike.items():
                update_together(weights, self.state, step, group, self._factor)
                self.updated += len(weights)

    def _step_projected(self, weight: Tensor, group: dict[str, Any]) -> None:
        """Update one projected weight, and change its basis when that is due."""
        arrived = self._arrived.setdefault(weight, Arrived())
        if weight.grad is not None:  # exact refresh: the basis comes before the update
            gradient = as_matrix(weight.grad).to(precision_of(weight))
            rank = min(group["rank"], *gradient.shape)
            bases = exact_bases(gradient, rank, projected_sides(*matrix_shape(weight.shape), group["projection"]))
            low_rank = project(gradient, *bases)
            self.state[weight].update(self._with_bases(weight, *bases, group))
            # From here on, what is left to do is as if the gradient had been projected on arrival.
            arrived.low_rank, weight.grad = low_rank, None
        if arrived.low_rank is not None:
            self._move(weight, arrived.low_rank * self._factor, group)
            arrived.low_rank = None
        self.state[weight].update(self._from_sketches(weight, arrived, group))
        del self._arrived[weight]

    def _move(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Update one weight by AdamW's direction for its gradient, full or low-rank."""
        state, storage = self.state[weight], _storage(group)
        step = state.get("step", 0) + 1
        generator = keyed_generator(weight.device, group["seed"], self._places[weight], step, "update")
        exp_avg, exp_avg_sq = (
            torch.zeros_like(gradient) if moment is None else moment for moment in storage.read_moments(state, weight)
        )
        direction, exp_avg, exp_avg_sq = adamw_direction(
            gradient, exp_avg, exp_avg_sq, step, group["betas"], group["eps"]
        )
        stored = storage.stored_moments(exp_avg, exp_avg_sq, generator)
        del exp_avg, exp_avg_sq
        scale = 1.0
        if group["rank"] is not None:
            direction = project_back(direction, *self._bases(weight, group))
            scale = group["scale"]
        update_weight(weight, direction, group["lr"], scale, group["weight_decay"], generator)
        state.update(stored, step=step)

    def _bases(self, weight: Tensor, group: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """The left and the right basis of one weight, on its device."""
        state, storage = self.state[weight], _storage(group)
        return storage.read(state, "basis_left", weight), storage.read(state, "basis_right", weight)

    def _from_sketches(self, weight: Tensor, arrived: Arrived, group: dict[str, Any]) -> dict[str, Tensor]:
        """What changes in the state of one weight with the bases of its sketches; nothing where it has none."""
        rank = min(group["rank"], *matrix_shape(weight.shape))
        left = None if arrived.sketch_left is None else sketch_basis(arrived.sketch_left, rank)
        right = None if arrived.sketch_right is None else sketch_basis(arrived.sketch_right, rank)
        return {} if left is None and right is None else self._with_bases(weight, left, right, group)

    def _with_bases(
        self, weight: Tensor, left: Tensor | None, right: Tensor | None, group: dict[str, Any]
    ) -> dict[str, Tensor]:
        """What changes in the state of one weight with new bases: these, and the moments in them."""
        state, storage = self.state[weight], _storage(group)
        stored: dict[str, Tensor] = {}
        if "exp_avg" in state and group["moments"] == "rotate":
            generator = keyed_generator(weight.device, group["seed"], self._places[weight], state["step"], "rotate")
            old_left, old_right = self._bases(weight, group)
            change_left = None if left is None or old_left is None else left.T @ old_left
            change_right = None if right is None or old_right is None else right.T @ old_right
            exp_avg, exp_avg_sq = storage.read_moments(state, weight)
            assert exp_avg is not None
            assert exp_avg_sq is not None
            rotated = rotate_moments(exp_avg, exp_avg_sq, change_left, change_right, state["step"], group["betas"])
            stored = storage.stored_moments(*rotated, generator)
        for name, basis in (("basis_left", left), ("basis_right", right)):
            if basis is not None:
                stored |= storage.stored(name, basis)
        return stored


class _Factors:
    """Takes the gradient of one weight in factors, for the optimizer."""

    def __init__(self, optimizer: GaLoreAdamW, weight: Tensor) -> None:
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


def _storage(group: dict[str, Any]) -> Storage:
    return Storage(group["state_bits"], group["state_on_host"])


def _is_sketched(group: dict[str, Any]) -> bool:
    return group["rank"] is not None and group["refresh"] == "sketch"


def _keeps_full(state: dict[str, Any], group: dict[str, Any]) -> bool:
    """Whether the full gradient of a projected weight stays in this step."""
    return not _is_sketched(group) and state.get("step", 0) % group["refresh_every"] == 0


def _has_basis(state: dict[str, Any]) -> bool:
    return "basis_left" in state or "basis_right" in state
