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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from medsaga.data.formats.arrays import AS_STORED
from medsaga.data.types import Array, Grid, Header
from medsaga.errors import InputError

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MOST_INFLATION = 3000
"""LZW makes data at most some 2700 times smaller; a file that claims more than this is damaged."""
_MOST_PAGES = 20_000
LOSSY = frozenset({6, 7, 33003, 33004, 33005, 34712, 33007, 34887, 34892, 34934, 22610, 50001, 34927})
"""Compressions: JPEG, JPEG 2000, LERC, JPEG XR and WebP."""
_LZW, _DEFLATE, _FLOAT_PREDICTOR = 5, (8, 32946), 3
"""Without another package tifffile decodes no LZW, and nothing with differences between the bytes of floats."""
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_REDUCED_OR_MASK = 1 | 4
"""Bits of NewSubfileType: a thumbnail or a level of a pyramid; a transparency mask."""
_SLICE_AXES, _CHANNEL_AXES = "ZTIQR", "CS"
_MM_PER_UNIT = {
    **dict.fromkeys(("µm", "μm", "um", "micron", "microns", "micrometer", "\\u00b5m"), 1e-3),
    **{"mm": 1.0, "cm": 10.0, "m": 1e3, "nm": 1e-6, "inch": 25.4},
}
_LOST = re.compile(
    r"invalid page offset|circular reference|invalid offset to page|corrupted tag list of page|corrupted file|"
    r"missing data|missing ByteCounts|incorrect Strip|series expected|is missing \d|missing files|files_missing"
)
_SPACING_LIMITS_MM = (1e-6, 1e4)


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
        return math.prod(size for axis, size in sizes if axis in _CHANNEL_AXES) - self.has_alpha

    @property
    def header(self) -> Header:
        """What `read_image` returns."""
        kinds: dict[str, np.dtype[Any]] = {"f": np.dtype(np.float32), "b": np.dtype(np.uint8)}
        return Header(self.grid, self.channels, kinds.get(self.dtype.kind, self.dtype))


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
        return _stored(path, file)


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
        stored.axes.index(axis)
        for kind in (_CHANNEL_AXES, _SLICE_AXES, "Y", "X")
        for axis in stored.axes
        if axis in kind
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
    if stored.photometric == _MIN_IS_WHITE:
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
            if len(file.pages) > _MOST_PAGES:
                raise ValueError(f"more than {_MOST_PAGES:,} pages")
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


def _stored(path: Path, file: Any) -> Stored:
    series = _main_series(path, file)
    page = series.keyframe
    axes, shape = str(series.axes), tuple(int(size) for size in series.shape)
    pages = [each for each in series.pages if each is not None]
    kept = [each for each in pages if not _is_aside(each)]
    if len(pages) != len(series.pages):
        raise _refused(
            path, "all pages of its image", "some that lie in other files, or nowhere", "Save the image in one file."
        )
    if len(kept) < len(pages):
        if axes[0] not in _SLICE_AXES or len(pages) != shape[0]:
            raise _refused(path, "pages of one image", "thumbnails between them", "Save the image without them.")
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
    slices = [size for axis, size in zip(axes, shape, strict=True) if axis in _SLICE_AXES]
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
        _grid(file, (*slices, height, width)),
    )
    if not is_plain:
        _require_decodable(path, stored, kept, bits)
    return stored


def _main_series(path: Path, file: Any) -> Any:
    """Return the image of a file that may hold smaller copies of it besides.

    A page is a copy where TIFF says so, and where it is smaller and has the same proportions.
    """
    if file.is_ome and file.series[0].kind != "ome":
        raise _refused(
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
            raise _refused(
                path,
                "one image per file, or the slices of one stack",
                f"images of {', '.join(found)}",
                "Save the one that is meant as a file of its own.",
            )
    return main


def _is_aside(page: Any) -> bool:
    return bool(int(getattr(page, "subfiletype", 0) or 0) & _REDUCED_OR_MASK)


def _require_axes(path: Path, axes: str, shape: tuple[int, ...]) -> None:
    unknown = set(axes) - set(_SLICE_AXES + _CHANNEL_AXES + "YX")
    slices = [axis for axis in axes if axis in _SLICE_AXES]
    if unknown or len(slices) > 1 or not {"Y", "X"} <= set(axes) or len(set(axes)) < len(axes):
        raise _refused(
            path,
            "an image, or a stack of slices, with its channels",
            f"the axes {axes} of {' x '.join(map(str, shape))}",
            "Save each time point as its own file.",
        )


def _require_samples(path: Path, page: Any, dtype: Any, bits: int) -> None:
    if page.photometric not in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _YCBCR):
        raise _refused(
            path,
            "a grey, RGB or palette image",
            f"the colours {getattr(page.photometric, 'name', '?')}",
            "Convert the image to grey or RGB.",
        )
    kind = None if dtype is None else np.dtype(dtype)
    if kind is None or kind.kind not in "iufb" or kind.itemsize > 8:
        found = f"samples of {bits} bits" if kind is None else f"samples of the type {kind}"
        raise _refused(
            path,
            "whole numbers or floating point of 8, 16, 32 or 64 bits",
            found,
            "Convert the image to 16 bits or to 32-bit floating point.",
        )
    if page.photometric == _MIN_IS_WHITE and kind.kind == "f":
        raise _refused(
            path,
            "floating-point samples in which black is the lowest",
            "white as the lowest",
            "Save the image again with the photometric interpretation MinIsBlack.",
        )


def _require_decodable(path: Path, stored: Stored, pages: list[Any], bits: int) -> None:
    from tifffile import COMPRESSION

    if bits not in (1, 8 * stored.dtype.itemsize):
        raise _refused(
            path,
            "samples of 1, 8, 16, 32 or 64 bits",
            f"{bits} bits",
            "Convert the image to 16 bits or to 32-bit floating point.",
        )
    if stored.photometric in (_PALETTE, _YCBCR):
        raise _refused(
            path,
            "pages of grey or RGB",
            "a stack with a palette, or of YCbCr colours",
            "Save the stack as grey or RGB.",
        )
    size, held = math.prod(stored.shape) * stored.dtype.itemsize, path.stat().st_size
    if size > held * (1 if stored.compression == 1 else _MOST_INFLATION):
        raise InputError(
            path,
            expected=f"{size:,} bytes of pixels, as its header says ({' x '.join(map(str, stored.shape))})",
            found=f"a file of {held:,} bytes, which cannot hold them",
            do="Copy or export the file again: it is truncated or its header is damaged.",
        )
    for page in pages:
        # tifffile would fill what is missing with zeros.
        if not page.databytecounts or any(not count for count in page.databytecounts):
            raise _refused(path, "pixels in all parts of its pages", "parts without any", "Export the file again.")
    can_itk = stored.orientation == 1 and stored.photometric in (_MIN_IS_BLACK, _RGB)
    if not (can_itk if stored.is_for_itk else _has_decoder(stored)):
        name = COMPRESSION(stored.compression).name if stored.compression in list(COMPRESSION) else "unknown"
        raise _refused(
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
        raise _refused(
            path, "LZW-compressed pages of one kind", "others besides", "Save the file again without compression."
        )
    return cast(Array, pixels.reshape(stored.shape))


def _bits(page: Any) -> int:
    bits = page.bitspersample
    return int(bits if isinstance(bits, int) else max(bits))


def _grid(file: Any, shape: tuple[int, ...]) -> Grid:
    if len(shape) == 2:
        return Grid(shape)
    spacing = _spacing_of_ome(file.ome_metadata) if file.is_ome else _spacing_of_imagej(file)
    least, most = _SPACING_LIMITS_MM
    if spacing is None or not all(least <= size <= most for size in spacing):
        return Grid(shape, None, AS_STORED.copy())
    return Grid(shape, spacing, AS_STORED @ np.diag([*spacing, 1.0]))


def _spacing_of_ome(text: str | None) -> tuple[float, ...] | None:
    """Return the sizes of a voxel along z, y and x in mm."""
    pixels = re.search(r"<(?:\w+:)?Pixels\b([^<>]*)>", text or "")
    if pixels is None:
        return None
    words = dict(re.findall(r'(\w+)\s*=\s*"([^"]*)"', pixels[1]))
    try:
        return tuple(
            float(words[f"PhysicalSize{axis}"]) * _MM_PER_UNIT[words.get(f"PhysicalSize{axis}Unit", "µm")]
            for axis in "ZYX"
        )
    except (KeyError, ValueError):
        return None


def _spacing_of_imagej(file: Any) -> tuple[float, ...] | None:
    about = file.imagej_metadata or {} if file.is_imagej else {}
    scale = _MM_PER_UNIT.get(str(about.get("unit", "")).lower())
    try:
        rates = [file.pages[0].tags[name].value for name in ("YResolution", "XResolution")]
        steps = [float(about["spacing"]), *(below / above for above, below in rates)]
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return None if scale is None else tuple(step * scale for step in steps)


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
        raise _refused(
            path,
            "an opaque image",
            "transparent pixels",
            "Flatten the image onto a background and save it without an alpha channel.",
        )


def _refused(path: Path, expected: str, found: str, do: str) -> InputError:
    return InputError(path, expected=expected, found=found, do=do)
