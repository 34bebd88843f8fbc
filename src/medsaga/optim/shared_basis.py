"""GaLore whose bases come from outside, so that several machines that train apart move in the same subspaces.

Each machine sketches its gradient when it is asked to; whoever has the sum of the sketches makes one basis of it
(`medsaga.optim.projection.sketch_basis`) and gives it to all. Until the next one, every update of a projected weight W
is P times something small: what a machine has changed is c W + P N, with N of r rows (or columns), and the mean of
several such changes is the same with the mean of N.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from medsaga.errors import InputError
from medsaga.optim.arrival import Arrived
from medsaga.optim.galore import GaLoreAdamW
from medsaga.optim.projection import matrix_shape
from medsaga.optim.storage import Storage, precision_of, scales_of

Sides = tuple[Tensor | None, Tensor | None]
"""Left (m, r) and right (n, r) of an (m, n) matrix: its two bases, or two sketches; None where a side has none."""


class SharedBasisAdamW(GaLoreAdamW):
    """As `GaLoreAdamW`, but it makes no bases: they are given, and sketches are taken out.

    Attributes:
        sketching: whether the gradients that arrive are sketched. Without a basis they are sketched only.
        sketch_number: with the seed and the weight it decides over a sketch's random columns: sketches with the same
            one may be added up.
    """

    def __init__(self, params: Iterable[Any], **settings: Any) -> None:
        self.sketching = False
        self.sketch_number = 0
        self._sketches: dict[Tensor, Sides] = {}
        super().__init__(params, **settings)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group.

        Raises:
            InputError: it is to make bases of full gradients.
        """
        super().add_param_group(param_group)
        refresh = self.param_groups[-1]["refresh"]
        if refresh == "exact":
            raise InputError("refresh", expected="sketch: bases are given", found=refresh, do="Change this setting.")

    def needs_calibration(self) -> bool:
        """Return False: no step makes bases."""
        return False

    @torch.no_grad()
    def give_bases(self, bases: Mapping[Tensor, Sides]) -> None:
        """Change the bases of some weights; their moments follow, as with bases of their own.

        Args:
            bases: by weight, each (m, r) or (n, r) with nearly orthonormal columns.
        """
        for group, weight in self._weights():
            if weight in bases:
                how: dict[str, Any] = {"device": weight.device, "dtype": precision_of(weight)}
                left, right = (None if side is None else side.to(**how) for side in bases[weight])
                state, exact = self.state[weight], Storage(32, group["state_on_host"])
                state.update(self._with_bases(weight, left, right, group))
                # To the last bit what the others have, whatever the moments are kept in: else a change would not be
                # P N with the P that all know.
                for name, basis in (("basis_left", left), ("basis_right", right)):
                    if basis is not None:
                        state.pop(scales_of(name), None)
                        state.update(exact.stored(name, basis))

    def take_sketches(self) -> dict[Tensor, Sides]:
        """Return the sketches of the gradients since the last call, of a step that was made or of a gradient alone."""
        for weight, arrived in self._arrived.items():
            self._keep(weight, arrived)
        taken, self._sketches = self._sketches, {}
        return taken

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every weight whose gradient has arrived; the sketches of this step take the place of earlier ones."""
        self._sketches.clear()
        super().step(closure)

    def _sketches_now(self, state: dict[str, Any], group: dict[str, Any]) -> bool:
        return self.sketching

    def _sketch_number(self, state: dict[str, Any]) -> int:
        return self.sketch_number

    def _from_sketches(self, weight: Tensor, arrived: Arrived, group: dict[str, Any]) -> dict[str, Tensor]:
        self._keep(weight, arrived)
        return {}

    def _keep(self, weight: Tensor, arrived: Arrived) -> None:
        if arrived.sketch_left is not None or arrived.sketch_right is not None:
            self._sketches[weight] = (arrived.sketch_left, arrived.sketch_right)


@torch.no_grad()
def factor_of(change: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """Return N of a change P N, N Q^T or P N Q^T, by least squares: the bases need not be orthonormal to the last bit.

    Args:
        change: of a weight, seen as (m, n) if it has more dimensions.
        left: P, (m, r), or None.
        right: Q, (n, r), or None.

    Returns:
        (r, n), (m, r) or (r, r), in the change's type.
    """
    rows, columns = matrix_shape(change.shape)
    factor = change.reshape(rows, columns)
    if left is not None:
        factor = torch.linalg.solve(left.T @ left, left.T @ factor)
    if right is not None:
        factor = torch.linalg.solve(right.T @ right, right.T @ factor.T).T
    return factor.contiguous()
