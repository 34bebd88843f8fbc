"""What is kept of a weight's gradient when it arrives: its projection, and sketches for the next basis.

A gradient arrives as a matrix, or as two factors (`medsaga.models.linear`), from which both are made without the
matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from medsaga.optim.projection import project, projected_sides, sketch_matrix, sketch_width


class Gradient(Protocol):
    """An (m, n) gradient, of which products are asked for."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        ...

    def projected(self, left: Tensor | None, right: Tensor | None) -> Tensor:
        """Return P^T G Q, leaving out the side whose basis is None."""
        ...

    def times(self, columns: Tensor) -> Tensor:
        """Return G Omega for an (n, k) matrix."""
        ...

    def transposed_times(self, columns: Tensor) -> Tensor:
        """Return G^T Omega for an (m, k) matrix."""
        ...


@dataclass(frozen=True)
class WholeGradient:
    """A gradient as a matrix, in the precision of the optimizer's arithmetic."""

    matrix: Tensor  # (768, 3072)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        rows, columns = self.matrix.shape
        return rows, columns

    def projected(self, left: Tensor | None, right: Tensor | None) -> Tensor:
        """Return P^T G Q, leaving out the side whose basis is None."""
        return project(self.matrix, left, right)

    def times(self, columns: Tensor) -> Tensor:
        """Return G Omega for an (n, k) matrix."""
        return self.matrix @ columns

    def transposed_times(self, columns: Tensor) -> Tensor:
        """Return G^T Omega for an (m, k) matrix."""
        return self.matrix.T @ columns


@dataclass(frozen=True)
class FactoredGradient:
    """A gradient G = Y^T X as Y and X, in the type of the activations; products are returned in another precision."""

    grad_output: Tensor  # (4096, 768), Y
    inputs: Tensor  # (4096, 3072), X
    precision: torch.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.grad_output.shape[1], self.inputs.shape[1]

    def projected(self, left: Tensor | None, right: Tensor | None) -> Tensor:
        """Return P^T G Q, leaving out the side whose basis is None."""
        rows = self.grad_output if left is None else self.grad_output @ left.to(self.grad_output.dtype)
        columns = self.inputs if right is None else self.inputs @ right.to(self.inputs.dtype)
        return (rows.T @ columns).to(self.precision)

    def times(self, columns: Tensor) -> Tensor:
        """Return G Omega for an (n, k) matrix."""
        return (self.grad_output.T @ (self.inputs @ columns.to(self.inputs.dtype))).to(self.precision)

    def transposed_times(self, columns: Tensor) -> Tensor:
        """Return G^T Omega for an (m, k) matrix."""
        return (self.inputs.T @ (self.grad_output @ columns.to(self.grad_output.dtype))).to(self.precision)


@dataclass
class Arrived:
    """What has been kept of a weight's gradients since the last step: sums over micro-batches."""

    low_rank: Tensor | None = None  # (64, 3072), P^T G
    sketch_left: Tensor | None = None  # (768, 136), G Omega
    sketch_right: Tensor | None = None  # G^T Omega

    def add(self, gradient: Gradient, left: Tensor | None, right: Tensor | None) -> None:
        """Add the projection of a gradient."""
        self.low_rank = _sum(self.low_rank, gradient.projected(left, right))

    def add_sketches(
        self, gradient: Gradient, rank: int, projection: str, generator: Callable[[str], torch.Generator], like: Tensor
    ) -> None:
        """Add the sketches of a gradient for each projected side.

        Args:
            gradient: what is sketched.
            rank: of the basis that will be made of them.
            projection: which sides are projected.
            generator: gives that of the random columns of a side, ``left`` or ``right``: the same for all that is added
                up to one sketch.
            like: a tensor of the type and on the device of the random columns.
        """
        m, n = gradient.shape
        rank = min(rank, m, n)
        for side, size, times in (("left", n, gradient.times), ("right", m, gradient.transposed_times)):
            if projected_sides(m, n, projection)[side == "right"]:
                columns = sketch_matrix(size, sketch_width(rank, size), generator(side), like)
                name = f"sketch_{side}"
                setattr(self, name, _sum(getattr(self, name), times(columns)))


def factors_are_shorter(tokens: int, m: int, n: int, columns: int) -> bool:
    """Whether products of an (m, n) gradient with so many columns take less arithmetic from its factors.

    From the factors: ``tokens * columns * (m + n)`` multiplications. By the matrix: ``tokens * m * n`` to make it, then
    ``columns * m * n``.
    """
    return tokens * columns * (m + n) < m * n * (tokens + columns)


def _sum(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total.add_(term)
