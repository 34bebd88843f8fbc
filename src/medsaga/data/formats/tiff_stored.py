"""What a TIFF file holds, from its tags alone, and which files are refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medsaga.data.bounds import MOST_INFLATION_OF_TIFF
from medsaga.data.formats.tiff_spacing import grid_of
from medsaga.data.types import Grid, Header
from medsaga.errors import InputError

LOSSY = frozenset({6, 7, 33003, 33004, 33005, 34712, 33007, 34887, 34892, 34934, 22610, 50001, 34927})
"""Compressions: JPEG, JPEG 2000, LERC, JPEG XR and WebP."""
_LZW, _DEFLATE, _FLOAT_PREDICTOR = 5, (8, 32946), 3
"""Without another package tifffile decodes no LZW, and nothing with differences between the bytes of floats."""
MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_REDUCED_OR_MASK = 1 | 4
"""Bits of NewSubfileType: a thumbnail or a level of a pyramid; a transparency mask."""
SLICE_AXES, CHANNEL_AXES = "ZTIQR", "CS"


@dataclass(frozen=True)
class Stored:
    """What a TIFF file holds.

    Attributes:
        pages: of the image, thumbnails left out, as their numbers in the file.
        axes: of the stored samples, tifffile's letters.
        shape: sizes of these axes.
        dtype: of the samples, in native byte order.
        has_alpha: whether the last sample of a pixel is its opacity.
        photometric: TIFF's PhotometricInterpretation.
        compression: TIFF's code.
        is_for_itk: whether tifffile needs another package to decode it, and ITK does not.
        orientation: TIFF's code; 1 is upright.
        is_plain: whether Pillow reads it as it is: one page of grey, palette or RGB with at most 8 bits.
        grid: ``(height, width)``, or ``(slices, height, width)`` of a stack.
    """

    pages: tuple[int, ...]
    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype
    has_alpha: bool
    photometric: int
    compression: int
    is_for_itk: bool
    orientation: int
    is_plain: bool
    grid: Grid

    @property
    def channels(self) -> int:
        """The number of values per pixel, without its opacity."""
        sizes = zip(self.axes, self.shape, strict=True)
        return math.prod(size for axis, size in sizes if axis in CHANNEL_AXES) - self.has_alpha

    @property
    def header(self) -> Header:
        """What `read_image` returns."""
        kinds: dict[str, np.dtype[Any]] = {"f": np.dtype(np.float32), "b": np.dtype(np.uint8)}
        return Header(self.grid, self.channels, kinds.get(self.dtype.kind, self.dtype))


def stored_in(path: Path, file: Any) -> Stored:
    """Return what tifffile's view of a file holds.

    Raises:
        InputError: it holds several images, or something that cannot be read without loss.
    """
    series = _main_series(path, file)
    page = series.keyframe
    axes, shape = str(series.axes), tuple(int(size) for size in series.shape)
    pages = [each for each in series.pages if each is not None]
    kept = [each for each in pages if not _is_aside(each)]
    if len(pages) != len(series.pages):
        raise refused(
            path, "all pages of its image", "some that lie in other files, or nowhere", "Save the image in one file."
        )
    if len(kept) < len(pages):
        if axes[0] not in SLICE_AXES or len(pages) != shape[0]:
            raise refused(path, "pages of one image", "thumbnails between them", "Save the image without them.")
        axes, shape = (axes[1:], shape[1:]) if len(kept) == 1 else (axes, (len(kept), *shape[1:]))
    # An axis of one page is none: a stack of one slice is a picture.
    sizes = [(axis, size) for axis, size in zip(axes, shape, strict=True) if axis in "YXS" or size > 1]
    axes, shape = "".join(axis for axis, _ in sizes), tuple(size for _, size in sizes)
    _require_axes(path, axes, shape)
    bits, samples = _bits(page), int(page.samplesperpixel)
    _require_samples(path, page, series.dtype, bits)
    extra = [int(each) for each in page.extrasamples or ()]
    is_rgba = page.photometric == _RGB and samples == 4 and not extra
    has_alpha = "S" in axes and (is_rgba or (len(extra) == 1 and extra[0] in (1, 2) and samples > 1))
    dtype = np.dtype(series.dtype).newbyteorder("=")
    slices = [size for axis, size in zip(axes, shape, strict=True) if axis in SLICE_AXES]
    compression, orientation = int(page.compression), int(page.tags.valueof(274, 1) or 1)
    height, width = (shape[axes.index(axis)] for axis in "YX")
    height, width = (width, height) if orientation in (5, 6, 7, 8) else (height, width)
    is_shallow = bits <= 8 and (samples in (1, 3) or has_alpha)
    # 12 bits in one and a half bytes, which Pillow unpacks and tifffile does not without another package.
    is_packed = bits == 12 and samples == 1 and page.photometric == _MIN_IS_BLACK
    is_plain = set(axes) <= set("YXS") and page.sampleformat in (None, 1) and (is_shallow or is_packed)
    stored = Stored(
        tuple(int(each.index) for each in kept),
        axes,
        shape,
        dtype,
        has_alpha,
        int(page.photometric),
        compression,
        compression == _LZW or (compression in _DEFLATE and page.predictor == _FLOAT_PREDICTOR),
        orientation,
        is_plain,
        grid_of(file, (*slices, height, width)),
    )
    if not is_plain:
        _require_decodable(path, stored, kept, bits)
    return stored


def _main_series(path: Path, file: Any) -> Any:
    """Return the image of a file that may hold smaller copies of it besides.

    A page is a copy where TIFF says so, and where it is smaller and has the same proportions.
    """
    if file.is_ome and file.series[0].kind != "ome":
        raise refused(
            path,
            "an OME file with all of its pages",
            "a description of pages in other files, or of none",
            "Save the image in one file.",
        )
    series = [each for each in file.series if not _is_aside(each.keyframe)] or list(file.series)
    main = max(series, key=lambda each: math.prod(each.keyframe.shape[:2]) if each.keyframe.ndim > 1 else 0)
    height, width = main.keyframe.imagelength, main.keyframe.imagewidth
    for other in series:
        scale = max(other.keyframe.imagelength / height, other.keyframe.imagewidth / width)
        is_copy = (
            scale < 1
            and len(other.pages) == 1
            and abs(other.keyframe.imagelength - scale * height) <= 1
            and abs(other.keyframe.imagewidth - scale * width) <= 1
        )
        if other is not main and not is_copy:
            found = (f"{each.keyframe.imagewidth} x {each.keyframe.imagelength}" for each in series[:4])
            raise refused(
                path,
                "one image per file, or the slices of one stack",
                f"images of {', '.join(found)}",
                "Save the one that is meant as a file of its own.",
            )
    return main


def _is_aside(page: Any) -> bool:
    return bool(int(getattr(page, "subfiletype", 0) or 0) & _REDUCED_OR_MASK)


def _require_axes(path: Path, axes: str, shape: tuple[int, ...]) -> None:
    unknown = set(axes) - set(SLICE_AXES + CHANNEL_AXES + "YX")
    slices = [axis for axis in axes if axis in SLICE_AXES]
    if unknown or len(slices) > 1 or not {"Y", "X"} <= set(axes) or len(set(axes)) < len(axes):
        raise refused(
            path,
            "an image, or a stack of slices, with its channels",
            f"the axes {axes} of {' x '.join(map(str, shape))}",
            "Save each time point as its own file.",
        )


def _require_samples(path: Path, page: Any, dtype: Any, bits: int) -> None:
    if page.photometric not in (MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _YCBCR):
        raise refused(
            path,
            "a grey, RGB or palette image",
            f"the colours {getattr(page.photometric, 'name', '?')}",
            "Convert the image to grey or RGB.",
        )
    kind = None if dtype is None else np.dtype(dtype)
    if kind is None or kind.kind not in "iufb" or kind.itemsize > 8:
        found = f"samples of {bits} bits" if kind is None else f"samples of the type {kind}"
        raise refused(
            path,
            "whole numbers or floating point of 8, 16, 32 or 64 bits",
            found,
            "Convert the image to 16 bits or to 32-bit floating point.",
        )
    if page.photometric == MIN_IS_WHITE and kind.kind == "f":
        raise refused(
            path,
            "floating-point samples in which black is the lowest",
            "white as the lowest",
            "Save the image again with the photometric interpretation MinIsBlack.",
        )


def _require_decodable(path: Path, stored: Stored, pages: list[Any], bits: int) -> None:
    from tifffile import COMPRESSION

    if bits not in (1, 8 * stored.dtype.itemsize):
        raise refused(
            path,
            "samples of 1, 8, 16, 32 or 64 bits",
            f"{bits} bits",
            "Convert the image to 16 bits or to 32-bit floating point.",
        )
    if stored.photometric in (_PALETTE, _YCBCR):
        raise refused(
            path,
            "pages of grey or RGB",
            "a stack with a palette, or of YCbCr colours",
            "Save the stack as grey or RGB.",
        )
    size, held = math.prod(stored.shape) * stored.dtype.itemsize, path.stat().st_size
    if size > held * (1 if stored.compression == 1 else MOST_INFLATION_OF_TIFF):
        raise InputError(
            path,
            expected=f"{size:,} bytes of pixels, as its header says ({' x '.join(map(str, stored.shape))})",
            found=f"a file of {held:,} bytes, which cannot hold them",
            do="Copy or export the file again: it is truncated or its header is damaged.",
        )
    for page in pages:
        # tifffile would fill what is missing with zeros.
        if not page.databytecounts or any(not count for count in page.databytecounts):
            raise refused(path, "pixels in all parts of its pages", "parts without any", "Export the file again.")
    can_itk = stored.orientation == 1 and stored.photometric in (_MIN_IS_BLACK, _RGB)
    if not (can_itk if stored.is_for_itk else _has_decoder(stored)):
        name = COMPRESSION(stored.compression).name if stored.compression in list(COMPRESSION) else "unknown"
        raise refused(
            path,
            "pixels that are not compressed, or by deflate, PackBits or LZW",
            f"the compression {name} of samples of {8 * stored.dtype.itemsize} bits",
            "Save the file again without it.",
        )


def _has_decoder(stored: Stored) -> bool:
    from tifffile import TIFF

    try:
        TIFF.DECOMPRESSORS[stored.compression]
    except KeyError:
        return False
    return True


def _bits(page: Any) -> int:
    bits = page.bitspersample
    return int(bits if isinstance(bits, int) else max(bits))


def refused(path: Path, expected: str, found: str, do: str) -> InputError:
    """Return what to tell the user of a file that is not read."""
    return InputError(path, expected=expected, found=found, do=do)
