"""AdamW whose gradients are projected to a low rank as they arrive (GaLore, arXiv 2403.03507)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from medsaga.memory.meta import keyed_generator, value_of
from medsaga.optim.accumulation import scaled
from medsaga.optim.adamw import adamw_directions, is_simple, update_together, update_weights
from medsaga.optim.arrival import Arrived
from medsaga.optim.projecting import ProjectingOptimizer, has_basis, is_sketched, storage_of
from medsaga.optim.projection import (
    as_matrix,
    exact_bases,
    matrix_shape,
    project,
    project_back,
    projected_sides,
    rotate_moments,
    sketch_basis,
)
from medsaga.optim.storage import precision_of, scales_of


class GaLoreAdamW(ProjectingOptimizer):
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
    rounding (`medsaga.optim.rounding`). Moments and bases are kept in 32 or 8 bits. Small weights are updated many at a
    time (`medsaga.optim.buckets`). ``step()`` uses up what has arrived; call ``zero_grad()`` after it as usual.

    State: ``step``, ``exp_avg``, ``exp_avg_sq``, and for projected weights ``basis_left`` (m, r), ``basis_right``
    (n, r) or both; those that are kept in 8 bits have ``..._scales`` beside them (`medsaga.optim.storage`).
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
        state_on_host: keep the state in the host's memory; that of one bucket of weights is on the device at a time.
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
        super().__init__(params, adamw | subspace | refreshing | storage)

    def needs_calibration(self) -> bool:
        """Return whether there are weights to project by sketches and none of them has a basis yet."""
        sketched = [weight for group, weight in self._weights() if is_sketched(group)]
        return bool(sketched) and not any(has_basis(self.state[weight]) for weight in sketched)

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
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every weight whose gradient has arrived. As long as ``needs_calibration()``, calibrate instead."""
        if self.needs_calibration():
            self.calibrate()
            return
        super().step(closure)

    def _tasks(self) -> Iterator[Callable[[], None]]:
        for group, weight in self._weights():
            if group["rank"] is not None and weight.grad is not None:  # exact refresh
                yield partial(self._take_basis, weight, group)
        for group in self.param_groups:
            alike: dict[tuple[torch.device, int], list[Tensor]] = {}
            others = []
            for weight in group["params"]:
                if self._is_simple(weight, group):
                    alike.setdefault((weight.device, self._steps(weight)), []).append(weight)
                elif self.kept_gradient(weight) is not None:
                    others.append(weight)
            for (_, step), weights in alike.items():
                yield partial(update_together, weights, self.state, step + 1, group, self._factor)
            for weights in self._buckets(others, partial(self._kind, group)):
                yield partial(self._move, weights, group)
        for group, weight in self._weights():
            if weight in self._arrived:
                yield partial(self._refresh, weight, group)

    def _is_simple(self, weight: Tensor, group: dict[str, Any]) -> bool:
        state = self.state.get(weight, {})  # a weight that is not updated gets none
        return group["rank"] is None and storage_of(group).keeps_as_is(weight) and is_simple(weight, state)

    def _steps(self, weight: Tensor) -> int:
        """How many updates a weight has had."""
        steps: int = self.state.get(weight, {}).get("step", 0)
        return steps

    def _kind(self, group: dict[str, Any], weight: Tensor) -> tuple[int, bool, bool]:
        """What weights of one bucket have in common: their step, and how their moments are and will be stored."""
        gradient = self.kept_gradient(weight)
        assert gradient is not None
        return self._steps(weight), scales_of("exp_avg") in self.state[weight], storage_of(group).quantises(gradient)

    def _take_basis(self, weight: Tensor, group: dict[str, Any]) -> None:
        """Make the basis of one weight from its full gradient, and project this, as if it had been on arrival."""
        assert weight.grad is not None
        gradient = as_matrix(weight.grad).to(precision_of(weight))
        rank = min(group["rank"], *gradient.shape)
        bases = exact_bases(gradient, rank, projected_sides(*matrix_shape(weight.shape), group["projection"]))
        low_rank = project(gradient, *bases)
        self.state[weight].update(self._with_bases(weight, *bases, group))
        self._arrived.setdefault(weight, Arrived()).low_rank = low_rank
        weight.grad = None

    def _move(self, weights: Sequence[Tensor], group: dict[str, Any]) -> None:
        """Update weights of one bucket by AdamW's directions for their gradients, full or low-rank."""
        first, states, storage = weights[0], [self.state[weight] for weight in weights], storage_of(group)
        step = self._steps(first) + 1
        generator = keyed_generator(first.device, group["seed"], self._places[first], step, "update")
        kept = [gradient for gradient in map(self.kept_gradient, weights) if gradient is not None]
        gradients = scaled(kept, self._factor, precision_of(first))
        if step == 1:
            exp_avgs, exp_avg_sqs = ([torch.zeros_like(each) for each in gradients] for _ in range(2))
        else:
            exp_avgs, exp_avg_sqs = (storage.read_all(states, name, first) for name in ("exp_avg", "exp_avg_sq"))
        directions, exp_avgs, exp_avg_sqs = adamw_directions(
            gradients, exp_avgs, exp_avg_sqs, step, group["betas"], group["eps"]
        )
        stored = storage.stored_moments(exp_avgs, exp_avg_sqs, generator)
        del gradients, exp_avgs, exp_avg_sqs
        scale = 1.0
        if group["rank"] is not None:
            for place, weight in enumerate(weights):
                directions[place] = project_back(directions[place], *self._bases(weight, group))
            scale = group["scale"]
        update_weights(weights, directions, group["lr"], scale, group["weight_decay"], generator)
        for weight, state, new in zip(weights, states, stored, strict=True):
            state.update(new, step=step)
            weight.grad = None
            if weight in self._arrived:
                self._arrived[weight].low_rank = None

    def _refresh(self, weight: Tensor, group: dict[str, Any]) -> None:
        """Change the basis of one weight if it has sketches."""
        self.state[weight].update(self._from_sketches(weight, self._arrived[weight], group))
        del self._arrived[weight]

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
        state, storage = self.state[weight], storage_of(group)
        stored: dict[str, Tensor] = {}
        if "exp_avg" in state and group["moments"] == "rotate":
            generator = keyed_generator(weight.device, group["seed"], self._places[weight], state["step"], "rotate")
            old_left, old_right = self._bases(weight, group)
            change_left = None if left is None or old_left is None else left.T @ old_left
            change_right = None if right is None or old_right is None else right.T @ old_right
            exp_avg, exp_avg_sq = (storage.read_all([state], name, weight)[0] for name in ("exp_avg", "exp_avg_sq"))
            exp_avg, exp_avg_sq = rotate_moments(
                exp_avg, exp_avg_sq, change_left, change_right, state["step"], group["betas"]
            )
            (stored,) = storage.stored_moments([exp_avg], [exp_avg_sq], generator)
        for name, basis in (("basis_left", left), ("basis_right", right)):
            if basis is not None:
                stored |= storage.stored(name, basis)
        return stored
