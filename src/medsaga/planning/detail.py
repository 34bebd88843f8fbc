"""The image size that the finest structures of the labelled images ask for.

An outline that is wrong by a part of a pixel costs a structure Dice in proportion to the pixels along its outline, and
against those of its area. So a label counts as fine where it has few pixels of area for each of its outline: 0.6 for a
crack, 1.3 for the discs of a spine, 15 for a polyp that fills a quarter of a picture (at 192 px).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medsaga.data.slices import slice_view
from medsaga.data.tiles import tile_shape
from medsaga.data.types import Grid

ENOUGH = 2.0
"""Pixels of area for each pixel of outline above which more pixels were not worth their time
(``benchmarks/starter``)."""


@dataclass(frozen=True)
class Outlined:
    """The labels of an image or volume.

    Attributes:
        grid: of it.
        voxels: label value to number of voxels.
        outlines: label value to the voxels along its outline, along each axis of the grid; see
            `medsaga.data.outlines`.
    """

    grid: Grid
    voxels: Mapping[int, int]
    outlines: Mapping[int, Sequence[int]]


def side_for(sizes: Sequence[int], labelled: Sequence[Outlined], axis: str, tile: int | None) -> int:
    """Return the smallest image size at which the finest label has `ENOUGH`, or the largest of them.

    Args:
        sizes: in pixels, ascending.
        labelled: images that are trained on; those without labels say nothing. The first size, if there are none.
        axis: along which volumes are cut into slices, as `medsaga.data.slices.slice_view` takes it.
        tile: side of the tiles into which slices are cut; None is the whole slice.
    """
    areas: dict[int, float] = defaultdict(float)
    lengths: dict[int, float] = defaultdict(float)
    for image in labelled:
        view = slice_view(image.grid, axis)
        side = max(tile_shape(view.slice_shape, tile))
        rows_and_columns = view.order[1:] or (0, 1)
        for value in image.outlines.keys() - {0}:
            areas[value] += image.voxels[value] / side**2
            lengths[value] += sum(image.outlines[value][along] for along in rows_and_columns) / side
    shares = [areas[value] / lengths[value] for value in lengths if lengths[value]]
    if not shares:
        return sizes[0]
    return next((size for size in sizes if size * min(shares) >= ENOUGH), sizes[-1])
