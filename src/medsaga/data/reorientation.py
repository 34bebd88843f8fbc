"""A label map whose axes are stored in another order than its image's, or run the other way: the same voxels.

Programs that convert DICOM to NIfTI or NRRD turn axes round as they like, and 3D Slicer saves of a segmentation the
box that holds its segments. As long as every voxel of the mask is a voxel of the image, transposes, flips and shifts
by whole voxels bring the one onto the other, and nothing is resampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsaga.data.types import Grid, Labels

_OFF_AXIS = 1e-2
"""By how much an axis of the mask may miss an axis of the image, as a part of a voxel per voxel."""
_OFF_VOXEL = 0.05
"""By how much a corner of a part of the image may miss a voxel of it."""


@dataclass(frozen=True)
class Reorientation:
    """How a label map is brought onto an image's grid.

    Attributes:
        order: for each axis of the image, the axis of the mask that runs along it.
        flips: whether it runs the other way.
        shape: of the image.
        first: the voxel of the image on which the first of the turned label map lies.
    """

    order: tuple[int, ...]
    flips: tuple[bool, ...]
    shape: tuple[int, ...]
    first: tuple[int, ...]

    def __call__(self, labels: Labels) -> Labels | None:
        """Return ``labels`` on the image's grid, without copying where they cover it; 0 around what they cover.

        None where labels other than 0 lie outside of the image.
        """
        turned = labels.transpose(self.order)[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]
        if turned.shape == self.shape and not any(self.first):
            return turned
        spans = list(zip(self.first, turned.shape, self.shape, strict=True))
        from_ = tuple(slice(max(0, -first), max(0, min(size, whole - first))) for first, size, whole in spans)
        to = tuple(slice(max(0, first), max(0, min(whole, first + size))) for first, size, whole in spans)
        placed = np.zeros(self.shape, labels.dtype)
        placed[to] = turned[from_]
        return placed if np.count_nonzero(placed) == np.count_nonzero(turned) else None


def reorientation(mask: Grid, image: Grid, *, is_part: bool = False) -> Reorientation | None:
    """Return how label maps on ``mask`` come onto ``image``; None where their voxels are not the same.

    With ``is_part`` the mask may be a box that covers a part of the image, or reaches out of it.
    """
    start = (0,) * len(image.shape)
    if mask.same_space(image):
        return Reorientation(tuple(range(len(start))), (False,) * len(start), image.shape, start)
    if mask.affine is None or image.affine is None or len(mask.shape) != 3 or len(image.shape) != 3:
        return None
    pairs = ((mine, theirs) for mine in mask.affines for theirs in image.affines)
    found = (_turned(Grid(mask.shape, None, mine), Grid(image.shape, None, theirs), is_part) for mine, theirs in pairs)
    return next((each for each in found if each is not None), None)


def _turned(mask: Grid, image: Grid, is_part: bool) -> Reorientation | None:
    """Do what `reorientation` does for grids in space with one affine each."""
    assert mask.affine is not None
    assert image.affine is not None
    to_index, start = np.linalg.inv(image.affine), (0,) * 3
    steps = (to_index @ mask.affine)[:3, :3]
    nearest = np.rint(steps)
    is_signed_permutation = np.array_equal(np.abs(nearest).sum(0), np.ones(3)) and np.array_equal(
        np.abs(nearest).sum(1), np.ones(3)
    )
    if not is_signed_permutation or np.abs(steps - nearest).max() > _OFF_AXIS:
        return None
    order = tuple(int(axis) for axis in np.abs(nearest).argmax(axis=1))
    flips = tuple(bool(nearest[i, axis] < 0) for i, axis in enumerate(order))
    turned = _reoriented(mask, order, flips)
    if turned.same_space(image):
        return Reorientation(order, flips, image.shape, start)
    assert turned.affine is not None
    first, last = ((to_index @ turned.affine @ [*at, 1])[:3] for at in (start, np.subtract(turned.shape, 1)))
    corner = np.rint(first)
    misses = np.abs([first - corner, last - corner - np.subtract(turned.shape, 1)]).max()
    if not is_part or misses > _OFF_VOXEL:
        return None
    return Reorientation(order, flips, image.shape, tuple(corner.astype(int).tolist()))


def _reoriented(grid: Grid, order: tuple[int, ...], flips: tuple[bool, ...]) -> Grid:
    """Return the grid of a label map after it was brought into another order."""
    assert grid.affine is not None
    affine = np.eye(4)
    affine[:3, 3] = grid.affine[:3, 3]
    for i, (axis, flip) in enumerate(zip(order, flips, strict=True)):
        step = grid.affine[:3, axis]
        affine[:3, i] = -step if flip else step
        if flip:
            affine[:3, 3] += step * (grid.shape[axis] - 1)
    return Grid(tuple(grid.shape[axis] for axis in order), None, affine)
