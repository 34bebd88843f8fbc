"""Filling the slices between two that were outlined, by their shapes.

Shape-based interpolation (Raya and Udupa, IEEE Trans. Med. Imaging 9:32, 1990): the signed distance to the outline is
interpolated between the two slices, and what is negative there is inside.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medsaga.data.types import Mask


def between(first: Mask, last: Mask, slices: int, spacing: tuple[float, float] | None = None) -> Mask:
    """Return the shape in the slices between two.

    Where the shapes do not overlap, they are brought to one place by their centres first, so that a structure that
    runs obliquely does not end in the middle.

    Args:
        first: ``(height, width)`` of the slice below, not empty.
        last: of the slice above, not empty.
        slices: number of slices between them.
        spacing: height and width of a pixel in mm.

    Returns:
        ``(slices, height, width)``.
    """
    centres = [np.array(ndimage.center_of_mass(shape)) for shape in (first, last)]
    shift = np.zeros(2) if (first & last).any() else centres[1] - centres[0]
    below, above = _distance(first, spacing), _distance(last, spacing)
    found = np.empty((slices, *first.shape), bool)
    for index in range(slices):
        share = (index + 1) / (slices + 1)
        one, other = below, above
        if shift.any():
            far = float(max(below.max(), above.max()))
            one = ndimage.shift(below, share * shift, order=1, cval=far)
            other = ndimage.shift(above, (share - 1) * shift, order=1, cval=far)
        found[index] = (1 - share) * one + share * other < 0
    return found


def gaps_beside(present: npt.NDArray[np.bool_], index: int) -> list[tuple[int, int]]:
    """Return the gaps that a slice lies in or beside: pairs of slices that hold a label and none between them does.

    Args:
        present: (slices,) whether each slice holds the label.
        index: the slice that is looked at.
    """
    held = np.flatnonzero(present)
    pairs = [(int(low), int(high)) for low, high in itertools.pairwise(held) if high - low > 1]
    return [(low, high) for low, high in pairs if low <= index <= high]


def _distance(shape: Mask, spacing: tuple[float, float] | None) -> npt.NDArray[np.float32]:
    """Return the distance to the outline, negative inside, in mm or pixels."""
    padded = np.pad(shape, 1)
    sampling = spacing or (1.0, 1.0)
    outside = ndimage.distance_transform_edt(~padded, sampling=sampling)
    inside = ndimage.distance_transform_edt(padded, sampling=sampling)
    return (outside - inside)[1:-1, 1:-1].astype(np.float32)
