"""Mirrorings of images and labels, under which the labels of some data keep their meaning.

A polyp upside down is a polyp; a left kidney in the mirror is a right one. With few images it is worth several points
of Dice to know which it is (``benchmarks/starter``), and the masks tell: where a mirroring takes labels to places that
are another label's rather than their own, it is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from medsaga.data.samples import Samples

LEFT_RIGHT, UP_DOWN, TRANSPOSED = "left-right", "up-down", "transposed"
SYMMETRIES: dict[str, Callable[[Tensor], Tensor]] = {
    LEFT_RIGHT: lambda maps: maps.flip(-1),
    UP_DOWN: lambda maps: maps.flip(-2),
    TRANSPOSED: lambda maps: maps.transpose(-1, -2),
}
"""What each does to maps, ``(..., side, side)``; done twice, it does nothing."""
_AXES = {UP_DOWN: 1, LEFT_RIGHT: 2}
"""The axis of ``(channels, height, width)`` that a mirroring turns round."""
_CELLS = 6
"""Cells along a side of the maps of where labels are: a few images say no more."""
_LOOKED_AT = 200
"""Label maps, evenly spaced, that are enough to tell where a label usually is."""
_MARGIN = 0.2
"""By how much a mirrored label must be more like another one, of at most 1, to count as taking its place."""


def symmetries_of(samples: Samples, classes: int) -> tuple[str, ...]:
    """Return the mirrorings that keep the meaning of labels, as their usual places in their slices tell.

    A mirroring is left out if it makes the map of where one label is more like the map of another label than like its
    own, by cosine similarity. Transposing is left out where either of the flips is. One label alone tells nothing, and
    all are kept.

    Args:
        samples: that are trained on.
        classes: background included.
    """
    looked_at = range(0, len(samples), max(1, len(samples) // _LOOKED_AT))
    places = torch.from_numpy(sum(_places(samples, index, classes) for index in looked_at)).float()
    places = places[places.sum((1, 2)) > 0]
    own = F.normalize(places.flatten(1), dim=1)

    def keeps(name: str) -> bool:
        likeness = F.normalize(SYMMETRIES[name](places).flatten(1), dim=1) @ own.T
        return bool((likeness <= likeness.diagonal()[:, None] + _MARGIN).all())

    flipped = [name for name in (LEFT_RIGHT, UP_DOWN) if keeps(name)]
    return (*flipped, TRANSPOSED) if len(flipped) == 2 and keeps(TRANSPOSED) else tuple(flipped)


def _places(samples: Samples, index: int, classes: int) -> npt.NDArray[np.float64]:
    """Return how much of each cell of a slice each label takes in a sample, ``(classes - 1, cells, cells)``.

    A square's padding is no place, and a tile lies somewhere in its slice.
    """
    height, width = samples.content[index]
    top, left, tall, wide = samples.windows[index]
    rows, columns = (
        (_CELLS * (start + extent * (np.arange(pixels) + 0.5) / pixels)).astype(np.int64)
        for start, extent, pixels in ((top, tall, height), (left, wide, width))
    )
    labels = samples.labels[index, :height, :width].astype(np.int64)
    cells = (labels * _CELLS + rows[:, None]) * _CELLS + columns
    counts = np.bincount(cells.ravel(), minlength=classes * _CELLS**2).reshape(classes, _CELLS, _CELLS)
    return counts[1:] * (tall * wide / cells.size)


def flips(names: Iterable[str]) -> list[tuple[int, ...]]:
    """Return the axes of ``(channels, height, width)`` to turn round in each pass of test-time augmentation.

    The first pass turns none. Transposing is left out: with it there would be eight passes in place of four.
    """
    passes: list[tuple[int, ...]] = [()]
    for axis in sorted(_AXES[name] for name in names if name in _AXES):
        passes += [(*axes, axis) for axes in passes]
    return passes
