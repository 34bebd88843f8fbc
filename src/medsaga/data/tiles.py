"""Slices that are larger than a tile: cut into a grid of tiles to train on, and predicted by overlapping windows.

Lengths are in pixels of the slice. A slice that is smaller than a tile along an axis has one tile of its own length
there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

OVERLAP = 0.5
"""Share of a window that the next one repeats: every pixel is near the middle of some window."""
_SIGMA = 0.125
_LEAST_WEIGHT = 1e-3


def tile_shape(shape: tuple[int, int], tile: int | None) -> tuple[int, int]:
    """Return height and width of the tiles of a slice of ``shape``; None is the whole slice."""
    return shape if tile is None else (min(shape[0], tile), min(shape[1], tile))


def covering(length: int, tile: int) -> list[int]:
    """Return where tiles begin that cover ``length`` side by side; the last one is moved inwards to end with it."""
    return [min(n * tile, length - tile) for n in range(math.ceil(length / tile))]


def overlapping(length: int, tile: int) -> list[int]:
    """Return where windows begin, each repeating `OVERLAP` of the one before; the last one ends with ``length``."""
    step = max(1, int(tile * (1 - OVERLAP)))
    return [min(n * step, length - tile) for n in range(math.ceil((length - tile) / step) + 1)]


def tile_corners(shape: tuple[int, int], tile: int | None) -> list[tuple[int, int]]:
    """Return top and left of each tile of the grid that covers a slice of ``shape``, row by row."""
    height, width = tile_shape(shape, tile)
    return [(top, left) for top in covering(shape[0], height) for left in covering(shape[1], width)]


def shares_of_tile(corner: tuple[int, int], shape: tuple[int, int], tile: int | None) -> list[float]:
    """Return top, left, height and width of a tile as shares of the height and width of its slice."""
    return [pixels / side for pixels, side in zip((*corner, *tile_shape(shape, tile)), (*shape, *shape), strict=True)]


def window_weights(shape: tuple[int, int]) -> torch.Tensor:
    """Return how much each pixel of a window counts, ``(height, width)`` float32: 1 in the middle.

    A Gaussian of an eighth of the window's sides, at least 0.001, as in nnU-Net (Isensee et al., 2021) and MONAI: a
    network knows less of what lies at the edge of what it sees.
    """
    sides = []
    for length in shape:
        place = torch.arange(length, dtype=torch.float32) - (length - 1) / 2
        sides.append(torch.exp(-(place**2) / (2 * (_SIGMA * length) ** 2)))
    return torch.outer(*sides).clamp(min=_LEAST_WEIGHT)


def blended(
    windows: Iterator[torch.Tensor], tops: Sequence[int], lefts: Sequence[int], shape: tuple[int, int]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Join the windows of one slice, in the memory of one row of them.

    Args:
        windows: the maps of the windows, ``(classes, window height, window width)`` floating point, row by row; no more
            are taken than belong to the slice.
        tops: where the rows of windows begin, from `overlapping`.
        lefts: where the columns begin.
        shape: height and width of the slice.

    Yields:
        the first row, and ``(classes, rows, width)`` of means by `window_weights`: strips from the top to the bottom. A
        single window is the slice, as it is; several are joined on the CPU.
    """
    if len(tops) == len(lefts) == 1:
        yield 0, next(windows)
        return
    total = weight = weights = torch.empty(0)
    for top, below in zip(tops, [*tops[1:], shape[0]], strict=True):
        for left in lefts:
            window = next(windows).cpu()
            height, width = window.shape[1:]
            if not len(weights):
                weights = window_weights((height, width))
                total, weight = window.new_zeros(len(window), height, shape[1]), weights.new_zeros(height, shape[1])
            total[:, :, left : left + width] += window * weights
            weight[:, left : left + width] += weights
        # No later window reaches above the next row.
        done = below - top
        yield top, total[:, :done] / weight[:done]
        for kept in (total, weight):
            rest = kept[..., done:, :].clone()
            kept[..., : rest.shape[-2], :] = rest
            kept[..., rest.shape[-2] :, :] = 0
