"""The voxels of a series, in HU or whatever its header's slope and intercept make of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from medsaga.data.dicom import decoding, reading
from medsaga.data.dicom.geometry import Geometry, Instance, geometry_of
from medsaga.data.types import Array, Header, Series
from medsaga.errors import InputError

_INT16 = np.iinfo(np.int16)


def header_of(geometry: Geometry) -> Header:
    """Return grid, channels and dtype of what `read_volume` returns, from the headers alone.

    The dtype is int16 where slope and intercept are whole numbers, which a slice beyond int16 turns into float32.
    """
    first = geometry.instances[0]
    with reading.opened(first.file, decoding.KEYWORDS) as file:
        pixels = decoding.pixel_format(first.file, file)
    return Header(geometry.grid, pixels.channels, _declared(pixels, geometry.instances))


def read_volume(series: Series, geometry: Geometry | None = None) -> Array:
    """Return all voxels of a series.

    Stored values are multiplied by the slope and added to the intercept: HU for CT. PixelPaddingValue, which marks
    what lies outside of the scanner's field of view, is treated like any value. Colours and unscaled 8-bit images
    are uint8, unscaled images uint16 if they are stored unsigned, and else int16 if all values are whole numbers
    that fit, or float32. An X-ray image that is stored as MONOCHROME1 is inverted, so that bright means dense;
    values of a volume are physical and never inverted.

    Args:
        series: one of `find_series`.
        geometry: that of the series, if it is known already.

    Returns:
        ``(channels, i, j, k)`` on the grid of the geometry; ``(channels, height, width)`` of a 2-D image.

    Raises:
        InputError: as `geometry_of`, or the pixels are damaged or cannot be decoded.
    """
    geometry = geometry_of(series) if geometry is None else geometry
    header = header_of(geometry)
    slices = _slices(geometry, header)
    # Nothing is allocated on the word of headers alone: one slice must have been decoded.
    first = next(slices)
    if len(geometry.grid.shape) == 2:
        return first
    columns, rows, count = geometry.grid.shape
    with reading.guarded(series.root, "a volume that fits into memory"):
        volume = np.empty((header.channels, count, rows, columns), first.dtype)
    for k, values in enumerate(chain([first], slices)):
        if values.dtype != volume.dtype:
            volume = volume.astype(np.float32)
        volume[:, k] = values
    return volume.transpose(0, 3, 2, 1)


def read_slices(series: Series, geometry: Geometry) -> Iterator[Array]:
    """Yield the slices of a volume for k = 0, 1, ..., in the memory of one of them.

    Yields:
        ``(channels, i, j)`` with the values of `read_volume`; a slice beyond int16 is float32.

    Raises:
        InputError: the pixels are damaged or cannot be decoded.
    """
    del series
    assert len(geometry.grid.shape) == 3, "a 2-D image is its own only slice"
    for values in _slices(geometry, header_of(geometry)):
        yield values.transpose(0, 2, 1)


def _slices(geometry: Geometry, header: Header) -> Iterator[npt.NDArray[Any]]:
    """Yield ``(channels, rows, columns)`` of each instance."""
    inverted = len(geometry.grid.shape) == 2
    for file, run in groupby(geometry.instances, key=lambda instance: instance.file):
        instances = list(run)
        with reading.opened(file, decoding.KEYWORDS) as opened:
            pixels = decoding.pixel_format(file, opened)
        if pixels.channels != header.channels:
            raise InputError(
                file,
                expected=f"{header.channels} channels, as in the first slice",
                found=f"{pixels.channels}",
                do="Put images in grey and in colour into folders of their own.",
            )
        frames = decoding.stored_frames(file, [(instance.frame or 1) - 1 for instance in instances])
        for instance, stored in zip(instances, frames, strict=True):
            if inverted and pixels.photometric == "MONOCHROME1":
                stored = _inverted(stored, pixels)
            yield _scaled(stored, instance, header.dtype)


def _declared(pixels: decoding.PixelFormat, instances: tuple[Instance, ...]) -> np.dtype:
    """Return the dtype that the values will have, if they are what headers let expect."""
    scalings = {(instance.slope, instance.intercept) for instance in instances}
    if pixels.dtype.kind == "f" or not all(value.is_integer() for scaling in scalings for value in scaling):
        return np.dtype(np.float32)
    if scalings == {(1.0, 0.0)} and pixels.dtype in (np.uint8, np.uint16):
        return pixels.dtype
    return np.dtype(np.int16)


def _inverted(stored: npt.NDArray[Any], pixels: decoding.PixelFormat) -> npt.NDArray[Any]:
    """Mirror values within the range of the stored bits."""
    least, most = pixels.value_range
    if stored.dtype.kind == "f":
        return -stored
    return (least + most - stored.astype(np.int64)).astype(stored.dtype)


def _scaled(stored: npt.NDArray[Any], instance: Instance, dtype: np.dtype) -> npt.NDArray[Any]:
    """Apply slope and intercept; the result has ``dtype``, or float32 where it does not fit."""
    slope, intercept = instance.slope, instance.intercept
    unscaled = dtype.kind == "u" and (slope, intercept) == (1.0, 0.0) and stored.dtype.itemsize <= dtype.itemsize
    # Each slice says by itself whether its pixels are signed.
    if unscaled and (stored.dtype.kind == "u" or stored.min() >= 0):
        return stored.astype(dtype, copy=False)
    if dtype == np.int16 and stored.dtype.kind in "iu":
        least, most = sorted(int(value) * int(slope) + int(intercept) for value in (stored.min(), stored.max()))
        if _INT16.min <= least <= most <= _INT16.max:
            values = stored.astype(np.int32, copy=False) * np.int32(slope) + np.int32(intercept)
            return values.astype(np.int16)
    with np.errstate(over="ignore", invalid="ignore"):
        return (stored * np.float64(slope) + np.float64(intercept)).astype(np.float32)
