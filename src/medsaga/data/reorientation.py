"""A label map whose axes are stored in another order than its image's, or run the other way: the same voxels.

Programs that convert DICOM to NIfTI or NRRD turn axes round as they like. As long as every voxel of the mask is a
voxel of the image, transposes and flips bring the one onto the other, and nothing is resampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsaga.data.types import Grid, Labels

_OFF_AXIS = 1e-2
"""By how much an axis of the mask may miss an axis of the image, as a part of a voxel per voxel."""


@dataclass(frozen=True)
class Reorientation:
    """How a label map is brought onto an image's grid.

    Attributes:
        order: for each axis of the image, the axis of the mask that runs along it.
        flips: whether it runs the other way.
    """

    order: tuple[int, ...]
    flips: tuple[bool, ...]

    def __call__(self, labels: Labels) -> Labels:
        """Return ``labels`` on the image's grid, without copying."""
        return labels.transpose(self.order)[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]


def reorientation(mask: Grid, image: Grid) -> Reorientation | None:
    """Return how label maps on ``mask`` come onto ``image``; None where their voxels are not the same."""
    if mask.same_space(image):
        count = len(image.shape)
        return Reorientation(tuple(range(count)), (False,) * count)
    if mask.affine is None or image.affine is None or len(mask.shape) != 3 or len(image.shape) != 3:
        return None
    steps = (np.linalg.inv(image.affine) @ mask.affine)[:3, :3]
    nearest = np.rint(steps)
    is_signed_permutation = np.array_equal(np.abs(nearest).sum(0), np.ones(3)) and np.array_equal(
        np.abs(nearest).sum(1), np.ones(3)
    )
    if not is_signed_permutation or np.abs(steps - nearest).max() > _OFF_AXIS:
        return None
    order = tuple(int(axis) for axis in np.abs(nearest).argmax(axis=1))
    found = Reorientation(order, tuple(bool(nearest[i, axis] < 0) for i, axis in enumerate(order)))
    return found if _reoriented(mask, found).same_space(image) else None


def _reoriented(grid: Grid, how: Reorientation) -> Grid:
    """Return the grid of a label map after it was brought into another order."""
    assert grid.affine is not None
    affine = np.eye(4)
    affine[:3, 3] = grid.affine[:3, 3]
    for i, (axis, flip) in enumerate(zip(how.order, how.flips, strict=True)):
        step = grid.affine[:3, axis]
        affine[:3, i] = -step if flip else step
        if flip:
            affine[:3, 3] += step * (grid.shape[axis] - 1)
    return Grid(tuple(grid.shape[axis] for axis in how.order), None, affine)
