"""How long the outlines of labels are: with the number of their voxels, how fine the structures are that they mark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from medsaga.data.types import Labels, outer_pieces


def outlines_of(labels: Labels) -> dict[int, tuple[int, ...]]:
    """Return label value to how many voxels have another label as their next one, along each axis.

    A pair of neighbours counts for both of their labels. The border of the label map is not an outline. Needs little
    memory however large the label map is.

    Args:
        labels: ``(i, j)`` or ``(i, j, k)``.
    """
    along: list[Counter[int]] = [Counter() for _ in labels.shape]
    for axis, counted in enumerate(along):
        for former, latter in _neighbours(labels, axis):
            parted = former != latter
            for side in (former, latter):
                values, counts = np.unique(side[parted], return_counts=True)
                counted.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    found = sorted(set().union(*along))
    return {value: tuple(counted[value] for counted in along) for value in found}


def _neighbours(labels: Labels, axis: int) -> Iterator[tuple[Labels, Labels]]:
    """Yield pieces of a label map and the same pieces one voxel further along an axis."""
    outer: tuple[slice, ...] = (slice(None),) * axis
    former, latter = labels[(*outer, slice(None, -1))], labels[(*outer, slice(1, None))]
    for piece in outer_pieces(former):
        yield former[piece], latter[piece]
