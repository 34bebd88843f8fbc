"""Several tensors in one, so that an operation on all of them is one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 256
"""Every tensor begins at a multiple of so many elements; of 8-bit codes, so many share a scale."""


@dataclass(frozen=True)
class Row:
    """Tensors one after the other in a flat one, with zeros between them.

    Attributes:
        shapes: of the tensors.
    """

    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Row:
        """Return the row of tensors of these shapes."""
        return cls(tuple(tensor.shape for tensor in tensors))

    def join(self, tensors: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return all in a flat tensor; a single one is not copied if it need not be, and gets no zeros."""
        if len(tensors) == 1:
            return tensors[0].to(device, dtype).reshape(-1)
        flat = torch.zeros(BLOCK * sum(self.blocks()), dtype=dtype, device=device)
        torch._foreach_copy_(self.split(flat), list(tensors))
        return flat

    def split(self, flat: Tensor) -> list[Tensor]:
        """Return a view of each tensor in what `join` has made, or in what has been computed of it."""
        if len(self.shapes) == 1:
            return [flat.view(self.shapes[0])]
        sizes = [size for shape in self.shapes for size in (shape.numel(), -shape.numel() % BLOCK)]
        return [part.view(shape) for part, shape in zip(flat.split(sizes)[::2], self.shapes, strict=True)]

    def blocks(self) -> list[int]:
        """Return how many blocks each tensor takes."""
        return [-(-shape.numel() // BLOCK) for shape in self.shapes]
