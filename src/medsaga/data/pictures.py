"""Images as the model sees them: slices of 8 bits per channel, of which a large volume holds one at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medsaga.data.intensity import (
    Intensity,
    apply,
    percentile_range,
    require_finite,
    require_uint8,
    rescaled,
    sampled_places,
)
from medsaga.data.items import read_item
from medsaga.data.slices import SliceView, Stack
from medsaga.data.sources import place_of
from medsaga.data.types import Array, Item
from medsaga.data.volumes import SliceFile, is_large, read_to_file

Range = tuple[float, float] | None
"""What becomes 0 and 255; None for what is uint8 already."""


def read_picture(item: Item, view: SliceView, intensities: Sequence[Intensity]) -> Stack[np.uint8]:
    """Decode an item and show it as slices, ``(channels, height, width)`` uint8 each.

    Of a volume that is larger than `medsaga.data.volumes.LARGEST_IN_MEMORY` no more than a slice is in memory. A 2-D
    image is decoded whole, whatever its size.

    Args:
        item: the image.
        view: of its grid.
        intensities: one per channel.

    Raises:
        InputError: a file cannot be read, there is no room for a temporary file, or see `intensity.apply`.
    """
    where = str(place_of(item.images[0]))
    if not is_large(item):
        return picture_of(read_item(item), view, intensities, where)
    return LargePicture(read_to_file(item, view), intensities, where)


def picture_of(image: Array, view: SliceView, intensities: Sequence[Intensity], where: str) -> npt.NDArray[np.uint8]:
    """Return the slices of an image, ``(channels, *shape)``, as one array, ``(slices, channels, height, width)``.

    Args:
        image: in the units of its file.
        view: of its grid.
        intensities: one per channel.
        where: the file, for the message of an error.

    Raises:
        InputError: see `intensity.apply`.
    """
    if len(image) == 1:
        return view.view(apply(intensities[0], image[0], where)[np.newaxis])
    picture = np.empty_like(image, np.uint8)
    for channel, how, target in zip(image, intensities, picture, strict=True):
        target[:] = apply(how, channel, where)
    return view.view(picture)


class LargePicture:
    """The slices of a volume that lies in a temporary file; each becomes 8-bit when it is asked for."""

    def __init__(self, slices: SliceFile, intensities: Sequence[Intensity], where: str) -> None:
        """Look at all voxels, if need be, to find the range of every channel.

        Raises:
            InputError: ``identity`` for values that are not uint8, or values that are not finite.
        """
        self._slices = slices
        self._ranges = _ranges(slices, intensities, where)

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self._slices)

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        """Return a slice, ``(channels, height, width)``."""
        channels = self._slices[index]
        picture = np.empty(channels.shape, np.uint8)
        for channel, ends, target in zip(channels, self._ranges, picture, strict=True):
            target[:] = channel if ends is None else rescaled(channel, *ends)
        return picture


def _ranges(slices: SliceFile, intensities: Sequence[Intensity], where: str) -> list[Range]:
    kinds = [how.kind for how in intensities]
    if "identity" in kinds:
        require_uint8(slices.dtype, where)
    if "percentile" not in kinds and slices.dtype.kind != "f":
        return [None if how.kind == "identity" else (how.low, how.high) for how in intensities]
    ordered, starts = _places(slices.view)
    samples: list[list[Array]] = [[] for _ in intensities]
    lowest, highest = [], []
    for index in range(len(slices)):
        values = slices[index]
        require_finite(values, where)
        places = ordered[starts[index] : starts[index + 1]]
        for channel, sample in zip(values, samples, strict=True):
            sample.append(channel.ravel()[places])
        lowest.append(values.min(axis=(1, 2)))
        highest.append(values.max(axis=(1, 2)))
    least, most = np.min(lowest, axis=0), np.max(highest, axis=0)
    ranges: list[Range] = []
    for n, how in enumerate(intensities):
        if how.kind == "percentile":
            ranges.append(percentile_range(how, np.concatenate(samples[n]), least[n], most[n]))
        else:
            ranges.append(None if how.kind == "identity" else (how.low, how.high))
    return ranges


def _places(view: SliceView) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return where in its slice each of the `sampled_places` lies, slice by slice, and where each slice begins."""
    stored = np.unravel_index(sampled_places(math.prod(view.shape)), view.shape)
    index, row, column = (
        view.shape[axis] - 1 - stored[axis] if flip else stored[axis]
        for axis, flip in zip(view.order, view.flips, strict=True)
    )
    order = np.argsort(index, kind="stable")
    starts = np.searchsorted(index[order], np.arange(view.slices + 1))
    return (row * view.slice_shape[1] + column)[order], starts
