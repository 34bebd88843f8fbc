"""Images as the page shows them: slices of 16 bits, so that window and level are the browser's and instant."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from medsaga.app.watched import State, state_of
from medsaga.data.items import read_item
from medsaga.data.slices import SliceView, slice_view
from medsaga.data.sources import files_of
from medsaga.data.types import Array, Grid, Item

PLANES = ("axial", "coronal", "sagittal")
MOST_BYTES = 2**30
"""Of decoded images that are kept; the one that is looked at is kept whatever its size."""
_WHOLE = 2**16
_AIR_BELOW = -500
"""HU. What is this dark and in whole numbers is CT, and shown as soft tissue is."""
_SOFT_TISSUE = (-160.0, 240.0)
_SAMPLED = 200_000
_States = tuple[State | None, ...]
"""Of the files of an image."""


@dataclass(frozen=True, eq=False)
class OpenImage:
    """A decoded image.

    Attributes:
        voxels: ``(channels, *shape)`` in the units of the file.
        grid: of the file.
    """

    voxels: Array
    grid: Grid

    @cached_property
    def views(self) -> dict[str, SliceView]:
        """How the grid is cut in each plane; of a 2-D image in one, ``image``."""
        return views_of(self.grid)

    @cached_property
    def scales(self) -> tuple[tuple[float, float], ...]:
        """For each channel offset and step: value = offset + step * number of 16 bits."""
        return tuple(_scale(channel) for channel in self.voxels)

    @cached_property
    def windows(self) -> tuple[tuple[float, float], ...]:
        """For each channel the values that are shown black and white at first."""
        return tuple(_window(channel) for channel in self.voxels)

    def slice(self, plane: str, index: int, channel: int) -> npt.NDArray[np.uint16]:
        """Return a slice, ``(height, width)`` uint16, little-endian.

        Raises:
            IndexError: there is no such plane, slice or channel.
        """
        if plane not in self.views or not 0 <= channel < len(self.voxels):
            raise IndexError(plane)
        view = self.views[plane]
        if not 0 <= index < view.slices:
            raise IndexError(index)
        values = view.view(self.voxels[channel : channel + 1])[index, 0]
        offset, step = self.scales[channel]
        if values.dtype.kind in "ui" and step == 1.0:
            return (values.astype(np.int64) - int(offset)).astype("<u2")
        # What is not finite has no place between black and white.
        finite = np.nan_to_num(values.astype(np.float64), nan=offset, posinf=offset, neginf=offset)
        return np.clip(np.rint((finite - offset) / step), 0, _WHOLE - 1).astype("<u2")


def views_of(grid: Grid) -> dict[str, SliceView]:
    """Return how a grid is cut into slices in each plane that it has."""
    if len(grid.shape) == 2:
        return {"image": slice_view(grid)}
    return {plane: slice_view(grid, plane) for plane in PLANES}


class Images:
    """Decoded images, of which the last that were looked at are kept."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[_States, OpenImage]] = OrderedDict()
        self._lock = threading.Lock()
        self._decoding: dict[str, threading.Lock] = {}

    def has(self, key: str, item: Item) -> bool:
        """Whether an image is decoded as its files are now."""
        with self._lock:
            return key in self._kept and self._kept[key][0] == _states(item)

    def of(self, key: str, item: Item) -> OpenImage:
        """Return the image of an item, decoded once however many ask at a time.

        Args:
            key: by which it is kept.
            item: the image.

        Raises:
            InputError: it cannot be read.
        """
        with self._lock:
            decoding = self._decoding.setdefault(key, threading.Lock())
        with decoding:
            states = _states(item)  # before they are read: what is written meanwhile is another image
            with self._lock:
                if key in self._kept and self._kept[key][0] == states:
                    self._kept.move_to_end(key)
                    return self._kept[key][1]
            image = OpenImage(read_item(item), item.header.grid)
            with self._lock:
                self._kept[key] = (states, image)
                self._kept.move_to_end(key)
                while len(self._kept) > 1 and sum(each.voxels.nbytes for _, each in self._kept.values()) > MOST_BYTES:
                    self._kept.popitem(last=False)
            return image


def _states(item: Item) -> _States:
    return tuple(state_of(path) for source in item.images for path in files_of(source))


def _scale(channel: Array) -> tuple[float, float]:
    if channel.dtype.kind == "b":
        return 0.0, 1.0
    if channel.dtype.kind in "ui":
        least, most = int(channel.min()), int(channel.max())
        return float(least), max(1.0, (most - least) / (_WHOLE - 1))
    finite = channel[np.isfinite(channel)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return low, (high - low) / (_WHOLE - 1) or 1.0


def _window(channel: Array) -> tuple[float, float]:
    flat = channel.reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLED)].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return 0.0, 1.0
    if channel.dtype == np.uint8:
        return 0.0, 255.0
    if channel.ndim == 3 and sample.min() <= _AIR_BELOW and np.array_equal(sample, np.rint(sample)):
        return _SOFT_TISSUE
    low, high = np.percentile(sample, (0.5, 99.5))
    return float(low), float(high if high > low else low + 1)
