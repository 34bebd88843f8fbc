"""TIFF files that are more than a picture of 8 bits: deep, floating point, many channels, stacks, OME and BigTIFF.

tifffile reads their structure: which pages are one image, along which axes, and which are thumbnails. It decodes
the pixels, too, but for compressions that need another package: these are left to ITK, which keeps all bits as well.
Pillow, which reads the other TIFF files, would give the upper 8 of 16 bits of colour, and of two channels one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from medsaga.data.bounds import MOST_PAGES
from medsaga.data.formats.tiff_stored import CHANNEL_AXES, MIN_IS_WHITE, SLICE_AXES, Stored, refused, stored_in
from medsaga.data.types import Array
from medsaga.errors import InputError

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_LOST = re.compile(
    r"invalid page offset|circular reference|invalid offset to page|corrupted tag list of page|corrupted file|"
    r"missing data|missing ByteCounts|incorrect Strip|series expected|is missing \d|missing files|files_missing"
)


def is_tiff(path: Path) -> bool:
    """Whether a file is TIFF or BigTIFF, whatever its name; not where it cannot be read."""
    try:
        with path.open("rb") as handle:
            return handle.read(4) in _MAGIC
    except OSError:
        return False


def read_stored(path: Path) -> Stored:
    """Return what a TIFF file holds, without decoding it.

    Raises:
        InputError: it is damaged, holds several images, or something that cannot be read without loss.
    """
    with _opened(path) as file:
        return stored_in(path, file)


def read_samples(path: Path, stored: Stored) -> Array:
    """Return the image as it is stored but upright, ``(channels, *shape)``: white-is-0 samples stay so.

    Raises:
        InputError: it is damaged, compressed in a way that cannot be read, or partly transparent.
    """
    with _opened(path) as file:
        samples = _by_itk(path, stored) if stored.is_for_itk else _by_tifffile(file, stored)
    if samples.dtype.kind == "b":
        samples = samples.astype(np.uint8)
    order = [
        stored.axes.index(axis) for kind in (CHANNEL_AXES, SLICE_AXES, "Y", "X") for axis in stored.axes if axis in kind
    ]
    image = samples.transpose(order).reshape(stored.channels + stored.has_alpha, *_upright_before(stored))
    if stored.has_alpha:
        _require_opaque(path, image[-1])
        image = image[:-1]
    return upright(image, stored.orientation).astype(image.dtype.newbyteorder("="), copy=False)


def read_image(path: Path, stored: Stored) -> Array:
    """Return the image, ``(channels, *shape)``: integers as stored, floating point as float32; white is the highest.

    Raises:
        InputError: as `read_samples`.
    """
    image = read_samples(path, stored)
    if stored.photometric == MIN_IS_WHITE:
        levels = cast(npt.NDArray[np.integer[Any]], image)
        image = np.iinfo(levels.dtype).max - levels
    # Values beyond float32 become infinite, which the checks of a dataset report.
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(image).astype(stored.header.dtype, copy=False)


def write_stack(path: Path, values: Array, axes: str, spacing: tuple[float, ...] | None) -> None:
    """Write a stack of slices, as ImageJ does where the spacing is known.

    Args:
        path: a new file.
        values: ``(slices, height, width)`` or ``(channels, slices, height, width)``, unsigned integers of at most 16
            bits, or float32.
        axes: ``ZYX`` or ``CZYX``.
        spacing: of slices, rows and columns in mm.
    """
    import tifffile

    if spacing is None:
        tifffile.imwrite(path, values, photometric="minisblack", compression="zlib", metadata={"axes": axes}, ome=False)
        return
    per_mm = (1 / spacing[2], 1 / spacing[1])
    meta: dict[str, Any] = {"axes": "ZYX" if axes == "ZYX" else "ZCYX", "spacing": spacing[0], "unit": "mm"}
    values = values if axes == "ZYX" else values.swapaxes(0, 1)
    tifffile.imwrite(path, values, imagej=True, resolution=per_mm, metadata=meta)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Yield tifffile's view of a file; other files that it names are not opened.

    tifffile reports pages that it cannot find, and goes on without them. Here that is an error.
    """
    import tifffile

    told = _Told()
    logger = logging.getLogger("tifffile")
    before = logger.propagate
    logger.propagate = False
    logger.addHandler(told)
    try:
        with path.open("rb") as handle, tifffile.TiffFile(handle, _multifile=False) as file:
            if len(file.pages) > MOST_PAGES:
                raise ValueError(f"more than {MOST_PAGES:,} pages")
            yield file
        if told.lost:
            raise ValueError(told.lost)
    except InputError:
        raise
    except Exception as error:  # damaged files make tifffile raise nearly anything
        raise InputError(
            path,
            expected="a TIFF image that can be decoded",
            found=f"damaged data ({type(error).__name__}: {str(error)[:200]})",
            do="Copy or export the file again.",
        ) from error
    finally:
        logger.removeHandler(told)
        logger.propagate = before


class _Told(logging.Handler):
    """Keeps what tifffile says of pages that it could not find."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lost = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Take a message."""
        message = record.getMessage()
        if _LOST.search(message):
            self.lost = self.lost or message[:200]


def _by_tifffile(file: Any, stored: Stored) -> Array:
    series = next(
        each for each in file.series if any(page is not None and page.index == stored.pages[0] for page in each.pages)
    )
    if len(series.pages) == len(stored.pages):
        samples = series.asarray(maxworkers=1)
    else:
        by_index = {int(page.index): page for page in series.pages}
        samples = np.stack([by_index[index].asarray(maxworkers=1) for index in stored.pages])
    return cast(Array, samples.reshape(stored.shape))


def _by_itk(path: Path, stored: Stored) -> Array:
    import SimpleITK

    pixels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path), imageIO="TIFFImageIO"))
    if pixels.dtype != stored.dtype or pixels.size != math.prod(stored.shape) or "C" in stored.axes:
        raise refused(
            path, "LZW-compressed pages of one kind", "others besides", "Save the file again without compression."
        )
    return cast(Array, pixels.reshape(stored.shape))


def _upright_before(stored: Stored) -> tuple[int, ...]:
    """Return the spatial shape as it is stored, before the image is turned upright."""
    *slices, height, width = stored.grid.shape
    return (*slices, width, height) if stored.orientation in (5, 6, 7, 8) else (*slices, height, width)


def upright(image: Array, orientation: int) -> Array:
    """Turn ``(..., height, width)`` as TIFF's code says."""
    turned = image.swapaxes(-1, -2) if orientation in (5, 6, 7, 8) else image
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return turned[..., ::rows, ::columns]


def _require_opaque(path: Path, alpha: Array) -> None:
    most = 1 if alpha.dtype.kind == "f" else np.iinfo(cast(npt.NDArray[np.integer[Any]], alpha).dtype).max
    if not bool((alpha == most).all()):
        raise refused(
            path,
            "an opaque image",
            "transparent pixels",
            "Flatten the image onto a background and save it without an alpha channel.",
        )
