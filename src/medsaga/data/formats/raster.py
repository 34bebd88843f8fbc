"""PNG, JPEG, TIFF, BMP and GIF images and label maps.

Pillow decodes them, but for what it would not give whole: 16 bits of colour in PNG, which ITK reads, and what
`medsaga.data.formats.tiff` reads. The content of a file says what it is, not its suffix.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from medsaga.data.formats import tiff
from medsaga.data.formats.integral import as_integers
from medsaga.data.formats.raster_deep_png import channels_first, is_deep_png, read_deep_png
from medsaga.data.formats.raster_opening import (
    MODES,
    UINT8,
    UINT16,
    opened,
    orientation_of,
    rawmode_of,
    require_opaque,
    turned_upright,
)
from medsaga.data.formats.tiff_stored import LOSSY, Stored
from medsaga.data.labels import listed
from medsaga.data.types import Array, Grid, Header, Labels
from medsaga.errors import InputError
from medsaga.files import replacing

SUFFIXES: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".ome.tif", ".ome.tiff", ".bmp", ".gif")
LABELS_SUFFIXES: tuple[str, ...] = (".png", ".tif", ".tiff")
PROBABILITIES_SUFFIX = ".tif"
_LOSSY_COMPRESSIONS = {"jpeg", "tiff_jpeg", "webp", "jpeg2000"}
_LOW_BIT_STEP = {"L;2": 85, "L;4": 17}
"""Pillow stretches 2-bit and 4-bit grey to 0..255 by these factors, which would change label values."""
_MOST_SHOWN_PIXELS = 2**20
"""Of a coloured mask, to name some of its colours."""
_BITS_OF_BMP = {"1": 1, "L": 8}
"""Bits per pixel that Pillow believes a BMP file to have whose palette it takes for plain grey."""
Colour = tuple[int, int, int]


def read_header(path: Path) -> Header:
    """Return the upright size, channels and dtype of an image, or of the stack of slices in a TIFF file.

    Raises:
        InputError: no image, an animation, or colours that are not grey, RGB or a palette.
    """
    stored = _tiff(path)
    if stored is not None and not stored.is_plain:
        return stored.header
    with opened(path, stored) as image:
        width, height = image.size
        channels, dtype = MODES[image.mode]
        if (image.mode == "I" and image.format == "PNG") or is_deep_png(image):
            channels, dtype = 1 if image.mode == "I" or rawmode_of(image).startswith("LA") else 3, UINT16
        shape = (width, height) if orientation_of(image) in (5, 6, 7, 8) else (height, width)
    return Header(Grid(shape), channels, dtype)


def read_image(path: Path) -> Array:
    """Return the upright image, ``(channels, height, width)``, or the stack, ``(channels, slices, height, width)``.

    Integers are as stored, floating point is float32.

    Raises:
        InputError: as `read_header`, or the data are damaged, or some pixels are transparent.
    """
    stored = _tiff(path)
    if stored is not None and not stored.is_plain:
        return tiff.read_image(path, stored)
    with opened(path, stored, verify=True) as image:
        if is_deep_png(image):
            return read_deep_png(path, image)
        is_png, is_pierced = image.format == "PNG", "transparency" in image.info
        if _is_misread_bmp(path, image):
            return channels_first(_indices_of_bmp(path) * np.uint8(255 if image.mode == "1" else 1))
        upright = turned_upright(image)
        channels, dtype = MODES[upright.mode]
        if upright.mode in ("LA", "PA", "RGBA") or is_pierced:
            require_opaque(path, upright)
        if upright.mode == "I" and is_png:
            dtype = UINT16
        elif dtype == UINT8 and upright.mode not in ("L", "RGB"):
            upright = upright.convert("L" if channels == 1 else "RGB")
        pixels = np.asarray(upright)
    return channels_first(pixels.astype(dtype))


def read_labels(path: Path) -> Labels:
    """Return the upright label map, ``(height, width)`` or ``(slices, height, width)``, as it is stored.

    That is grey values or palette indices. Colours are read when the three are equal and nothing is transparent,
    floating point when all of its values are integers. Of a GIF the grey values that are seen are read, because its
    writers number the palette as they like, and of a palette of greys that does not begin with the darkest, too; where
    it holds black and white alone, black is 0 and white 1, as with one bit per pixel.

    Raises:
        InputError: as `read_header`, or the file is lossy, transparent, coloured or not integral.
    """
    stored = _tiff(path)
    if stored is not None and stored.compression in LOSSY:
        raise lossy_mask(path)
    if stored is not None and not stored.is_plain:
        if stored.photometric == 0:
            raise _white_is_zero(path)
        return _labels_of(path, tiff.read_samples(path, stored))
    with opened(path, stored, verify=True) as image:
        if image.format in ("JPEG", "MPO") or image.info.get("compression") in _LOSSY_COMPRESSIONS:
            raise lossy_mask(path)
        if is_deep_png(image):
            return _labels_of(path, read_deep_png(path, image))
        rawmode = rawmode_of(image)
        if "I" in rawmode.partition(";")[2]:
            raise _white_is_zero(path)
        if _is_misread_bmp(path, image):
            return _indices_of_bmp(path)
        is_gif = image.format == "GIF"
        upright = turned_upright(image)
        if upright.mode in ("RGBA", "LA", "PA"):
            require_opaque(path, upright)
        if is_gif or upright.mode in ("RGBA", "LA", "PA"):
            # To three equal channels if it is grey.
            upright = upright.convert("RGB")
        mode, pixels = upright.mode, np.asarray(upright)
        if mode == "P":
            return _meanings(upright)[pixels]
    if mode == "1":
        return pixels.astype(np.uint8)
    if mode == "L":
        return pixels // np.uint8(_LOW_BIT_STEP.get(rawmode, 1))
    return _labels_of(path, channels_first(pixels.astype(pixels.dtype.newbyteorder("="), copy=False)))


def colours_of_labels(path: Path) -> dict[int, Colour]:
    """Return the colour of each label that a palette shows in a mask; empty where it is not stored with a palette.

    Raises:
        InputError: as `read_labels`.
    """
    stored = _tiff(path)
    if stored is not None and not stored.is_plain:
        return {}
    with opened(path, stored) as image:
        if image.mode != "P" or image.format == "GIF":
            return {}
        image.load()
        meanings, palette = _meanings(image), _palette_of(image)
        shown = [(int(meanings[index]), palette[index].tolist()) for index in _used(image)]
    return {label: (red, green, blue) for label, (red, green, blue) in shown}


def palettes_that_differ(masks: Sequence[tuple[Path, Mapping[int, Colour]]]) -> InputError | None:
    """Return what to tell the user of two masks in which a label has not the same colour; None if there are none.

    A program that makes a palette for each file by itself numbers the colours anew in each. Grey is also looked at
    the other way round: it may be read by its number in one mask, and as it is seen in another.

    Args:
        masks: files and their `colours_of_labels`.
    """
    colours: dict[int, tuple[Colour, Path]] = {}
    greys: dict[Colour, tuple[int, Path]] = {}
    for path, shown in masks:
        times = Counter(shown.values())
        for label, colour in sorted(shown.items()):
            usual, other = colours.setdefault(label, (colour, path))
            if usual != colour:
                return _differently_numbered(path, f"{usual} as the colour of the value {label}", other, f"{colour}")
            # Black fills what a palette does not use.
            if len(set(colour)) == 1 and colour[0] > 0 and times[colour] == 1:
                number, other = greys.setdefault(colour, (label, path))
                if number != label:
                    return _differently_numbered(
                        path, f"{number} as the value of the colour {colour}", other, f"{label}"
                    )
    return None


def _differently_numbered(path: Path, expected: str, other: Path, found: str) -> InputError:
    return InputError(
        path,
        expected=f"{expected}, as in {other}",
        found=found,
        do="Their palettes are numbered differently. Save all masks as grey PNG without a palette, whose values are "
        "the labels 0, 1, 2 and so on, the same for a colour in every mask.",
    )


def _meanings(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the label, ``(256,)``, for each index of a decoded palette image.

    Annotation tools begin with black, or the darkest grey, as background: then indices are labels. Programs that
    reduce colours number them as they come, often white first.
    """
    palette, used, indices = _palette_of(image), _used(image), np.arange(256, dtype=np.uint8)
    greys = palette[:, 0]
    # A single index is compared with the rest of the palette, so that a white mask is told from an empty one.
    others = [index for index in used if index > 0] or list(range(1, len(image.getpalette() or ()) // 3))
    begins_dark = greys[0] == 0 or (bool(others) and greys[0] < greys[others].min())
    if begins_dark or bool((palette != palette[:, :1]).any()):
        return indices
    return greys // 255 if bool(np.isin(greys, (0, 255)).all()) else greys


def _palette_of(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the colours of a palette, ``(256, 3)``, black behind its end."""
    colours = np.array(image.getpalette() or [], np.uint8).reshape(-1, 3)
    return np.pad(colours, ((0, 256 - len(colours)), (0, 0)))


def _used(image: Image.Image) -> list[int]:
    return [index for index, count in enumerate(image.histogram()) if count]


def _is_misread_bmp(path: Path, image: Image.Image) -> bool:
    """Whether a BMP file has another number of bits per pixel than Pillow would read, because its palette is grey."""
    if image.format != "BMP" or image.mode not in _BITS_OF_BMP:
        return False
    with path.open("rb") as file:
        head = file.read(30)
    is_short = int.from_bytes(head[14:18], "little") == 12  # the header of OS/2
    return int.from_bytes(head[24:26] if is_short else head[28:30], "little") != _BITS_OF_BMP[image.mode]


def _indices_of_bmp(path: Path) -> npt.NDArray[np.uint8]:
    """Return the palette indices, ``(height, width)``, of a BMP file that `_is_misread_bmp`."""
    content = bytearray(path.read_bytes())
    # With a first colour that is no grey Pillow believes the file again.
    content[14 + int.from_bytes(content[14:18], "little")] ^= 1
    with Image.open(io.BytesIO(content), formats=("BMP",)) as image:
        colours = len(image.getpalette() or ()) // 3
        indices = np.array(image, np.uint8)
    if indices.max() >= colours:
        raise ValueError("pixels beyond the palette")
    return indices


def _labels_of(path: Path, image: Array) -> Labels:
    """Make a label map of ``(channels, *shape)``.

    Raises:
        InputError: the channels differ, or values are not integers.
    """
    grey = equal_channels(image)
    if grey is None:
        flat = image.reshape(len(image), -1)
        colours = np.unique(flat[:, :_MOST_SHOWN_PIXELS], axis=1).T.tolist() if len(image) <= 4 else []
        shown = listed((tuple(each) for each in colours), 4)
        raise InputError(
            path,
            expected="one integer label per pixel: 8-bit or 16-bit grey, or a palette",
            found=f"colours such as {shown}" if colours else f"{len(image)} channels",
            do="Save the mask as a grey PNG whose values are the labels 0, 1, 2 and so on, one for each colour."
            if colours
            else "Save one label map; if these are slices, with the axes ZYX, for example as a NIfTI volume.",
        )
    labels = np.ascontiguousarray(grey[0])
    return as_integers(path, labels) if labels.dtype.kind == "f" else labels


def equal_channels(image: Array) -> Array | None:
    """Return an image with one channel, ``(1, *shape)``, of one whose channels are all equal; None of any other."""
    return image[:1] if bool((image[1:] == image[:1]).all()) and len(image) in (1, 3) else None


def _tiff(path: Path) -> Stored | None:
    return tiff.read_stored(path) if tiff.is_tiff(path) else None


def write_labels(path: Path, labels: Labels, like: Path | Grid) -> None:
    """Write ``(height, width)`` labels as 8-bit or 16-bit grey PNG or TIFF, by the suffix; of a stack, TIFF.

    Raises:
        InputError: the suffix is neither PNG nor TIFF.
    """
    if path.suffix.lower() not in LABELS_SUFFIXES:
        raise InputError(
            path,
            expected="a label map to be written as .png, .tif or .tiff",
            found=f"the suffix {path.suffix!r}",
            do="Choose another suffix: JPEG would change the labels.",
        )
    grid = _grid_of(like)
    if len(grid.shape) == 3 and path.suffix.lower() == ".png":
        raise InputError(
            path,
            expected="labels of a stack of slices to be written as .tif or .tiff",
            found="the suffix '.png'",
            do="Choose .tif: PNG holds one slice.",
        )
    assert labels.shape == grid.shape, "predictions are written on the grid of their image"
    assert labels.min() >= 0
    assert labels.max() <= 65535
    labels = labels.astype(np.uint8 if labels.max() <= 255 else np.uint16)
    with replacing(path) as temporary:
        if len(grid.shape) == 3:
            tiff.write_stack(temporary, labels, "ZYX", grid.spacing)
        else:
            Image.fromarray(labels).save(temporary)


def write_probabilities(path: Path, probabilities: npt.NDArray[np.float32], like: Path | Grid) -> None:
    """Write ``(classes, *shape)`` float32 as a TIFF with one page per class, or per class and slice of a stack.

    Raises:
        InputError: the suffix is not TIFF's.
    """
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(
            path,
            expected="probabilities to be written as .tif",
            found=f"the suffix {path.suffix!r}",
            do="Choose .tif: PNG and JPEG cannot hold floating point.",
        )
    grid = _grid_of(like)
    assert probabilities.shape[1:] == grid.shape, "predictions have the grid of their image"
    if len(grid.shape) == 3:
        with replacing(path) as temporary:
            tiff.write_stack(temporary, probabilities.astype(np.float32, copy=False), "CZYX", grid.spacing)
        return
    first, *others = (Image.fromarray(page.astype(np.float32, copy=False)) for page in probabilities)
    with replacing(path) as temporary:
        first.save(temporary, save_all=True, append_images=others, compression="tiff_adobe_deflate")


def _grid_of(like: Path | Grid) -> Grid:
    return like if isinstance(like, Grid) else read_header(like).grid


def _white_is_zero(path: Path) -> InputError:
    return InputError(
        path,
        expected="a label map in which black is 0",
        found="a TIFF in which white is 0",
        do="Save the mask again with the photometric interpretation MinIsBlack.",
    )


def lossy_mask(path: Path) -> InputError:
    """Return what to tell the user of a mask that is stored with loss."""
    return InputError(
        path,
        expected="a lossless label map (PNG, TIFF, BMP)",
        found="JPEG compression, which changes label values",
        do="Export the mask again as PNG; converting the JPEG does not bring the labels back.",
    )
