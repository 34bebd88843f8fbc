"""What is in a label map, in numbers: size, largest diameter and pieces of every class, and the table of them.

Lengths come from the affine where there is one, so that sheared and oblique grids (a tilted CT gantry) are measured as
they lie in the patient. A 2-D image has an area, in a format of volumes, too. Where a file does not say its spacing
nothing is in mm: those columns stay empty, and the count of voxels (pixels, in 2-D) is all there is to say.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy  # its parts are imported where they are first used

from medsaga import files
from medsaga.data.types import Grid, Labels, Mask

COLUMNS = ("case", "label", "voxels", "volume_ml", "area_mm2", "largest_diameter_mm", "components")
"""The header of the table that `write_csv` writes."""

_MM3_PER_ML = 1000.0
_ROWS_AT_A_TIME = 1024
"""Of the matrix of distances between corners: a rugged mask has tens of thousands of them."""


@dataclass(frozen=True)
class Measurement:
    """One class of one label map. A class that is absent has zeros; what its grid cannot tell is None.

    Attributes:
        label: its name.
        voxels: voxels, or pixels in 2-D.
        volume_ml: volume in millilitres; None of 2-D images and where the spacing is unknown.
        area_mm2: area in mm2; None for volumes and where the spacing is unknown.
        largest_diameter_mm: largest distance between the centres of two of its voxels in mm, in 3-D for volumes,
            whether or not the line between them stays inside; 0 for a single voxel; None where the spacing is unknown.
        components: pieces that do not touch; voxels touch where they share a face (an edge, in 2-D).
    """

    label: str
    voxels: int
    volume_ml: float | None
    area_mm2: float | None
    largest_diameter_mm: float | None
    components: int


def measure(labels: Labels, grid: Grid, names: Mapping[str, int]) -> list[Measurement]:
    """Measure every class of a label map.

    Args:
        labels: ``(*shape)`` label values, 2-D or 3-D.
        grid: where its voxels lie.
        names: label name to label value, as `medsaga.data.types.Dataset.labels`; 0, the background, is left out.

    Returns:
        one measurement per class, in the order of ``names``.
    """
    assert labels.shape == grid.shape, f"labels of {labels.shape} on a grid of {grid.shape}"
    return [_measured(name, labels == value, grid) for name, value in names.items() if value != 0]


def write_csv(path: Path, rows: Sequence[tuple[str, Measurement]], earlier: Sequence[Sequence[str]] = ()) -> None:
    """Write one line per case and class, with `COLUMNS`; what is None is empty.

    Args:
        path: the file, written whole or not at all.
        rows: name of the case and measurement.
        earlier: lines of an earlier table, `read_csv`; those of cases that are among ``rows`` are left out.
    """
    measured = {case for case, _ in rows}
    table: list[Iterable[object]] = [COLUMNS, *(line for line in earlier if line[0] not in measured)]
    for case, row in rows:
        sizes = (row.volume_ml, row.area_mm2, row.largest_diameter_mm)
        table.append([case, row.label, row.voxels, *map(_number, sizes), row.components])
    files.write_csv(path, table)


def read_csv(path: Path) -> list[list[str]]:
    """Return the lines of a table that `write_csv` wrote, without its header."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    return lines if tuple(header) == COLUMNS else []


def voxel_size(grid: Grid) -> float | None:
    """Return the size of a voxel in mm3 (of a pixel in mm2, in 2-D); None where the spacing is unknown.

    It is the determinant of the affine, to which the product of the spacings is equal only without shear.
    """
    to_mm = grid.to_mm
    if to_mm is None:
        return None
    if grid.flat:
        return float(np.linalg.norm(np.cross(to_mm[:, 0], to_mm[:, 1])))
    return abs(float(np.linalg.det(to_mm)))


def largest_diameter(mask: Mask, to_mm: npt.NDArray[np.float64]) -> float:
    """Return the largest distance between the centres of two voxels of a mask, exactly; 0 for less than two voxels.

    The two lie at corners of the convex hull. The hull is sought among indices, which are small integers, and only
    its corners become mm: a linear map takes the corners of a hull to the corners of its image.

    Args:
        mask: bool, ``(*shape)``.
        to_mm: (axes, axes) float64, a step along each axis of ``shape``, as columns, in mm.
    """
    points = _ends(mask)
    if len(points) < 2:
        return 0.0
    corners = _corners(points) @ to_mm.T
    blocks = (corners[start : start + _ROWS_AT_A_TIME] for start in range(0, len(corners), _ROWS_AT_A_TIME))
    return math.sqrt(max(float(scipy.spatial.distance.cdist(block, corners, "sqeuclidean").max()) for block in blocks))


def _measured(name: str, mask: Mask, grid: Grid) -> Measurement:
    to_mm, size = grid.to_mm, voxel_size(grid)
    is_volume = mask.ndim == 3 and not grid.flat
    mask = _cropped(mask)
    voxels = int(np.count_nonzero(mask))
    in_mm = None if size is None else voxels * size
    return Measurement(
        label=name,
        voxels=voxels,
        volume_ml=in_mm / _MM3_PER_ML if in_mm is not None and is_volume else None,
        area_mm2=None if is_volume else in_mm,
        largest_diameter_mm=None if to_mm is None else largest_diameter(mask, to_mm),
        components=int(scipy.ndimage.label(mask)[1]),
    )


def _cropped(mask: Mask) -> Mask:
    """Cut a mask to its bounding box, which leaves nothing of an empty one."""
    box = scipy.ndimage.find_objects(np.ascontiguousarray(mask).view(np.uint8), max_label=1)[0]
    return mask[box] if box is not None else mask[(slice(0),) * mask.ndim]


def _ends(mask: Mask) -> npt.NDArray[np.int64]:
    """Return the indices, ``(points, axes)``, of the first and last voxel of every line along the longest axis.

    No voxel between two others of its line is a corner of the hull.
    """
    if mask.size == 0:
        return np.empty((0, mask.ndim), dtype=np.int64)
    axis = int(np.argmax(mask.shape))
    length = mask.shape[axis]
    lines = np.argwhere(mask.any(axis=axis))
    at = tuple(lines.T)
    first = mask.argmax(axis=axis)[at]
    last = length - 1 - np.flip(mask, axis).argmax(axis=axis)[at]
    ends = [np.insert(lines, axis, where, axis=1) for where in (first, last)]
    return np.unique(np.concatenate(ends), axis=0)


def _corners(points: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the corners of the convex hull of at least two different points; ``(corners, axes)`` float64."""
    offsets = (points - points[0]).astype(np.float64)
    # Points in a plane or on a line have no hull that Qhull could build: their own dimensions are left to it.
    _, extents, directions = np.linalg.svd(offsets - offsets.mean(axis=0), full_matrices=False)
    inside = offsets @ directions[extents > 1e-9 * extents[0]].T
    if inside.shape[1] == 1:
        return offsets[[int(inside.argmin()), int(inside.argmax())]]
    return offsets[scipy.spatial.ConvexHull(inside).vertices]


def _number(value: float | None) -> str:
    return "" if value is None else repr(float(f"{value:.9g}"))
