"""Dice and the 95th percentile of the Hausdorff distance, between two binary masks of 2 or 3 dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from medsaga.data.types import Mask

Steps = Sequence[float] | npt.NDArray[np.float64]
"""From voxel to voxel, in mm: its size along each axis, or ``(world axes, axes)``, a step along each as columns.

Only the matrix tells a sheared grid, as `medsaga.data.types.Grid.to_mm` does: between the axes of a tilted CT gantry is
no right angle.
"""


def dice(prediction: Mask, truth: Mask) -> float:
    """Return 2 |A and B| / (|A| + |B|) (Dice, Ecology 26, 1945), from 0 to 1; NaN where both masks are empty.

    Args:
        prediction: bool, ``(*shape)``.
        truth: bool, ``(*shape)``.
    """
    assert prediction.shape == truth.shape, f"{prediction.shape} against {truth.shape}"
    total = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return 2.0 * np.count_nonzero(prediction & truth) / total if total else float("nan")


def hd95(prediction: Mask, truth: Mask, steps: Steps | None = None) -> float:
    """Return the larger of the two directed 95th percentiles of the surface distances; NaN where a mask is empty.

    This is the HD95 of Metrics Reloaded (arXiv 2206.01653) and of MONAI.

    Args:
        prediction: bool, ``(*shape)``.
        truth: bool, ``(*shape)``.
        steps: from voxel to voxel in mm; the distance is in mm then, and in voxels when None.
    """
    there, back = surface_distances(prediction, truth, steps)
    return max(float(np.percentile(there, 95)), float(np.percentile(back, 95))) if there.size else float("nan")


def surface_distances(
    prediction: Mask, truth: Mask, steps: Steps | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return how far each surface voxel of one mask lies from the nearest surface voxel of the other.

    A surface voxel is one that a mask loses by erosion with the cross-shaped neighbourhood; beyond the edge of the
    image is background. A tree of the surface voxels needs no array of the volume's size: on 512 x 512 x 160 voxels
    it is four times faster than two distance transforms, and ten times with scattered false positives.

    Args:
        prediction: bool, ``(*shape)``.
        truth: bool, ``(*shape)``.
        steps: from voxel to voxel in mm, or None for voxels.

    Returns:
        ``(surface voxels of prediction,)`` and ``(surface voxels of truth,)``, in mm or voxels; both empty where
        either mask is empty.
    """
    assert prediction.shape == truth.shape, f"{prediction.shape} against {truth.shape}"
    matrix = np.asarray(np.ones(truth.ndim) if steps is None else steps, dtype=np.float64)
    matrix = np.diag(matrix) if matrix.ndim == 1 else matrix
    assert matrix.shape[1:] == (truth.ndim,), f"steps {steps} for {truth.ndim} axes"
    surfaces = [_surface(mask) @ matrix.T for mask in (prediction, truth)]
    if any(len(surface) == 0 for surface in surfaces):
        return np.empty(0), np.empty(0)
    # Points on a grid: splitting cells at the middle instead of the median builds and queries up to 4 times faster.
    trees = [cKDTree(surface, balanced_tree=False, compact_nodes=False) for surface in surfaces]
    return trees[1].query(surfaces[0])[0], trees[0].query(surfaces[1])[0]


def _surface(mask: Mask) -> npt.NDArray[np.intp]:
    """Return the index of each surface voxel, ``(voxels, axes)``."""
    boxes = ndimage.find_objects(np.ascontiguousarray(mask).view(np.uint8), max_label=1)
    if boxes[0] is None:
        return np.empty((0, mask.ndim), dtype=np.intp)
    cropped = mask[boxes[0]]
    inside = ndimage.binary_erosion(cropped)
    return np.argwhere(cropped & ~inside) + [edge.start for edge in boxes[0]]
