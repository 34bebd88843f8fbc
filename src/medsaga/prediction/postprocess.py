"""Cleaning a label map: small pieces and all but the largest piece removed, holes filled.

Pieces are connected through the faces of voxels (through edges of pixels, in 2-D), and so is the background around a
hole: a wall whose voxels meet at their corners only is closed. Volumes are cleaned in 3-D; a volume that is one voxel
thick is cleaned as the image that it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy  # its parts are imported where they are first used

from medsaga.data.types import Grid, Labels, Mask
from medsaga.errors import InputError
from medsaga.prediction.measure import voxel_size


@dataclass(frozen=True)
class PostProcessing:
    """What is done to every class of a label map, in this order. By default nothing.

    Attributes:
        min_size_mm3: pieces smaller than this become background. In mm3; of 2-D images in mm2; where the file does
            not say its spacing, in voxels or pixels.
        largest_component: only the largest piece of a class stays, of equally large ones the first in the array.
        fill_holes: background that a class encloses becomes that class.

    Raises:
        InputError: ``min_size_mm3`` is negative or not finite.
    """

    largest_component: bool = False
    fill_holes: bool = False
    min_size_mm3: float = 0.0

    def __post_init__(self) -> None:
        """Check what the user chose."""
        if not 0 <= self.min_size_mm3 < math.inf:
            raise InputError(
                "min_size_mm3",
                expected="a volume of 0 mm3 or more",
                found=f"{self.min_size_mm3:g}",
                do="Give 0 to keep pieces of every size.",
            )


def apply(labels: Labels, grid: Grid, post: PostProcessing, *, values: Iterable[int]) -> Labels:
    """Clean every class of a label map; no class ever takes a voxel from another.

    What is removed becomes background before holes are filled, so that a speck of one class inside another vanishes.
    Background that several classes enclose goes to the innermost, whatever their order.

    Args:
        labels: ``(*shape)`` label values, 2-D or 3-D; left as it is.
        grid: where its voxels lie.
        post: what to do.
        values: the label values to clean; 0, the background, is left out.

    Returns:
        ``(*shape)``, in the type of ``labels``.
    """
    assert labels.shape == grid.shape, f"labels of {labels.shape} on a grid of {grid.shape}"
    cleaned = labels.copy()
    # Through an axis of one voxel, all background would be open to the outside.
    flat = cleaned.reshape([size for size in labels.shape if size > 1] or [1])
    classes = [int(value) for value in values if value != 0]
    fewest = post.min_size_mm3 / (voxel_size(grid) or 1.0)
    if post.largest_component or fewest > 0:
        for value in classes:
            _remove_pieces(flat, value, fewest, post.largest_component)
    if post.fill_holes:
        _fill_holes(flat, classes)
    return cleaned


def _remove_pieces(labels: Labels, value: int, fewest: float, only_largest: bool) -> None:
    """Set pieces of a class to background, in place: those of less than ``fewest`` voxels, or all but the largest."""
    box = _box(labels == value)
    if box is None:
        return
    pieces, count = scipy.ndimage.label(labels[box] == value)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    # Sizes in mm3 are rarely exact in binary: three voxels of a third are not less than one.
    keep = sizes >= fewest * (1 - 1e-9)
    if only_largest:
        keep &= np.arange(count + 1) == 1 + int(sizes[1:].argmax())
    keep[0] = True
    labels[box][~keep[pieces]] = 0


def _fill_holes(labels: Labels, classes: list[int]) -> None:
    """Give enclosed background to the class that encloses it most closely, in place."""
    found = [_enclosed_background(labels, value) for value in classes]
    if not found:
        return
    where = np.concatenate([voxels for voxels, _ in found])
    sizes = np.concatenate([sizes for _, sizes in found])
    filling = np.repeat(np.array(classes, dtype=np.int64), [len(voxels) for voxels, _ in found])
    # Of the holes around a voxel the smallest is the innermost; where an index comes twice, the last one stays.
    order = np.lexsort((filling, sizes))[::-1]
    labels.reshape(-1)[where[order]] = filling[order]


def _enclosed_background(labels: Labels, value: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the flat index of each voxel of background in a hole of a class, and the size of its hole.

    A hole is all that the class separates from the edge of the image, voxels of other classes included.
    """
    box = _box(labels == value)
    if box is None:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    mask = labels[box] == value
    holes, count = scipy.ndimage.label(scipy.ndimage.binary_fill_holes(mask) & ~mask)
    inside = np.nonzero((holes > 0) & (labels[box] == 0))
    sizes = np.bincount(holes.ravel(), minlength=count + 1)
    start = [edge.start for edge in box]
    where = np.ravel_multi_index(tuple(axis + first for axis, first in zip(inside, start, strict=True)), labels.shape)
    return where.astype(np.int64), sizes[holes[inside]].astype(np.int64)


def _box(mask: Mask) -> tuple[slice, ...] | None:
    """Return the bounding box of a mask, None when it is empty: organs are small in their volumes."""
    found: list[tuple[slice, ...] | None] = scipy.ndimage.find_objects(
        np.ascontiguousarray(mask).view(np.uint8), max_label=1
    )
    return found[0]
