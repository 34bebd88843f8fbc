"""PNG, JPEG, TIFF, BMP and GIF images and label maps.

Pillow decodes them, but for what it would not give whole: 16 bits of colour in PNG, which ITK reads, and what
`medsaga.data.formats.tiff` reads. The content of a file says what it is, not its suffix.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from medsaga.data.formats import tiff
from medsaga.data.formats.integral import as_integers
from medsaga.data.labels import listed
from medsaga.data.types import Array, Grid, Header, Labels
from medsaga.errors import InputError
from medsaga.files import replacing

SUFFIXES: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".ome.tif", ".ome.tiff", ".bmp", ".gif")
LABELS_SUFFIX = ".png"
PROBABILITIES_SUFFIX = ".tif"

_UINT8, _UINT16, _FLOAT32 = np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float32)
_MODES: dict[str, tuple[int, np.dtype]] = {
    **dict.fromkeys(("1", "L", "LA"), (1, _UINT8)),
    **dict.fromkeys(("P", "PA", "RGB", "RGBA"), (3, _UINT8)),
    **dict.fromkeys(("I;16", "I;16L", "I;16B", "I;16N"), (1, _UINT16)),
    **dict.fromkeys(("I", "F"), (1, _FLOAT32)),
}
"""Channels and dtype of the array that `read_image` makes of each of Pillow's modes."""
_LOSSY_COMPRESSIONS = {"jpeg", "tiff_jpeg", "webp", "jpeg2000"}
_LOW_BIT_STEP = {"L;2": 85, "L;4": 17}
"""Pillow stretches 2-bit and 4-bit grey to 0..255 by these factors, which would change label values."""
_MOST_PIXELS_PER_BYTE = {"raw": 8, "zip": 8 * 1100}
"""By Pillow's name of the decoder: one bit per pixel, which deflate makes at most 1032 times smaller."""
_MOST_PIXELS = 20_000 * 20_000
"""More than Pillow's own bound, for tissue sections; 1.2 GB in colour. What is larger is read in parts elsewhere."""
_MOST_SHOWN_PIXELS = 2**20
"""Of a coloured mask, to name some of its colours."""
_ORIENTATION_TAG = 0x0112
_UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image upright, by its EXIF orientation; 5 to 8 swap height and width."""


def read_header(path: Path) -> Header:
    """Return the upright size, channels and dtype of an image, or of the stack of slices in a TIFF file.

    Raises:
        InputError: no image, an animation, or colours that are not grey, RGB or a palette.
    """
    stored = _tiff(path)
    if stored is not None and not stored.is_plain:
        return stored.header
    with _opened(path, stored) as image:
        width, height = image.size
        channels, dtype = _MODES[image.mode]
        if (image.mode == "I" and image.format == "PNG") or _is_deep_png(image):
            channels, dtype = 1 if image.mode == "I" or _rawmode(image).startswith("LA") else 3, _UINT16
        shape = (width, height) if _orientation(image) in (5, 6, 7, 8) else (height, width)
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
    with _opened(path, stored, verify=True) as image:
        if _is_deep_png(image):
            return _deep_png(path, image)
        is_png, is_pierced = image.format == "PNG", "transparency" in image.info
        upright = _upright(image)
        channels, dtype = _MODES[upright.mode]
        if upright.mode in ("LA", "PA", "RGBA") or is_pierced:
            _require_opaque(path, upright)
        if upright.mode == "I" and is_png:
            dtype = _UINT16
        elif dtype == _UINT8 and upright.mode not in ("L", "RGB"):
            upright = upright.convert("L" if channels == 1 else "RGB")
        pixels = np.asarray(upright)
    return _channels_first(pixels.astype(dtype))


def read_labels(path: Path) -> Labels:
    """Return the upright label map, ``(height, width)`` or ``(slices, height, width)``, as it is stored.

    That is grey values or palette indices. Colours are read when the three are equal and nothing is transparent,
    floating point when all of its values are integers. Of a GIF the grey values that are seen are read, because its
    writers number the palette as they like.

    Raises:
        InputError: as `read_header`, or the file is lossy, transparent, coloured or not integral.
    """
    stored = _tiff(path)
    if stored is not None and stored.compression in tiff.LOSSY:
        raise lossy_mask(path)
    if stored is not None and not stored.is_plain:
        if stored.photometric == 0:
            raise _white_is_zero(path)
        return _labels_of(path, tiff.read_samples(path, stored))
    with _opened(path, stored, verify=True) as image:
        if image.format in ("JPEG", "MPO") or image.info.get("compression") in _LOSSY_COMPRESSIONS:
            raise lossy_mask(path)
        if _is_deep_png(image):
            return _labels_of(path, _deep_png(path, image))
        rawmode = _rawmode(image)
        if "I" in rawmode.partition(";")[2]:
            raise _white_is_zero(path)
        is_gif = image.format == "GIF"
        upright = _upright(image)
        if upright.mode in ("RGBA", "LA", "PA"):
            _require_opaque(path, upright)
        if is_gif or upright.mode in ("RGBA", "LA", "PA"):
            # To three equal channels if it is grey.
            upright = upright.convert("RGB")
        mode, pixels = upright.mode, np.asarray(upright)
    if mode in ("P", "1"):
        return pixels.astype(np.uint8)
    if mode == "L":
        return pixels // np.uint8(_LOW_BIT_STEP.get(rawmode, 1))
    return _labels_of(path, _channels_first(pixels.astype(pixels.dtype.newbyteorder("="), copy=False)))


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


def _channels_first(pixels: Array) -> Array:
    """Bring ``(height, width)`` or ``(height, width, channels)`` to ``(channels, height, width)``."""
    return pixels[np.newaxis] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _tiff(path: Path) -> tiff.Stored | None:
    return tiff.read_stored(path) if tiff.is_tiff(path) else None


def _deep_grey_and_alpha(path: Path) -> Array:
    """Return ``(height, width, 2)`` uint16 of a PNG of grey and alpha, which ITK does not read.

    Its pixels are as long as those of 8-bit RGBA, and PNG's filters work on bytes: under that name Pillow gives all.
    """
    content = bytearray(path.read_bytes())
    content[24:26] = bytes([8, 6])  # bit depth and colour type
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        return np.asarray(image).view(">u2").astype(_UINT16)


def _is_deep_png(image: Image.Image) -> bool:
    """Whether it has 16 bits per channel and several channels: Pillow decodes the upper 8 of them."""
    return image.format == "PNG" and image.mode in ("RGB", "RGBA", "LA") and ";16" in _rawmode(image)


def _deep_png(path: Path, image: Image.Image) -> Array:
    """Return ``(channels, height, width)`` uint16, upright, without the alpha channel.

    Raises:
        InputError: some pixels are transparent.
    """
    if _rawmode(image).startswith("LA"):  # though Pillow's mode is RGBA
        channels, stored = 1, _deep_grey_and_alpha(path)
    else:
        import SimpleITK

        channels, stored = 3, SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path), imageIO="PNGImageIO"))
    assert stored.dtype == _UINT16
    assert stored.shape[:2] == (image.height, image.width)
    pixels, alpha = stored[..., :channels], stored[..., channels:]
    if bool((alpha != np.iinfo(_UINT16).max).any()):
        raise _transparent(path)
    return np.ascontiguousarray(tiff.upright(_channels_first(pixels), _orientation(image)))


def write_labels(path: Path, labels: Labels, like: Path | Grid) -> None:
    """Write ``(height, width)`` labels as 8-bit or 16-bit grey PNG or TIFF, by the suffix; of a stack, TIFF.

    Raises:
        InputError: the suffix is neither PNG nor TIFF.
    """
    if path.suffix.lower() not in (".png", ".tif", ".tiff"):
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


@contextlib.contextmanager
def _opened(path: Path, stored: tiff.Stored | None, *, verify: bool = False) -> Iterator[Image.Image]:
    """Yield an image whose header has been read and found usable; what its decoding raises becomes an InputError.

    Of a TIFF file it is the page that ``stored`` names. With ``verify`` the checksums of a PNG are compared first,
    which its decoding alone does not do.

    Only the five formats are tried, whatever the suffix says, so that a file cannot reach Pillow's more exotic
    decoders. A handle is opened, because from a name Pillow maps uncompressed files into memory, which scrambles
    TIFFs that are to be rotated (seen with Pillow 13). Damaged files make the decoders raise nearly anything, hence
    the broad ``except``. Their warnings (large image, odd metadata) call for nothing that a user could do.
    """
    with warnings.catch_warnings(), _own_bound():
        warnings.simplefilter("ignore")
        try:
            with path.open("rb") as handle, Image.open(handle, formats=("PNG", "JPEG", "TIFF", "BMP", "GIF")) as image:
                if stored is not None:
                    image.seek(stored.pages[0])
                _require_known(path, image, has_one_page=stored is not None)
                if verify and image.format == "PNG":
                    with path.open("rb") as again, Image.open(again, formats=("PNG",)) as checked:
                        checked.verify()
                yield image
        except InputError:
            raise
        except Image.DecompressionBombError as error:
            raise InputError(
                path,
                expected=f"at most {_MOST_PIXELS:,} pixels",
                found="a header that claims more",
                do="Save it at a lower magnification or in several parts, or again if the file is damaged.",
            ) from error
        except Exception as error:
            raise InputError(
                path,
                expected="a PNG, JPEG, TIFF, BMP or GIF image that can be decoded",
                found=_what_happened(path, error),
                do="Copy or export the file again.",
            ) from error


@contextlib.contextmanager
def _own_bound() -> Iterator[None]:
    # Pillow refuses from twice this number on. It is put back, because it is everybody's.
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, _MOST_PIXELS // 2
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _what_happened(path: Path, error: Exception) -> str:
    if not path.is_file():
        return "a broken link" if path.is_symlink() else "no such file"
    if path.stat().st_size == 0:
        return "an empty file"
    if isinstance(error, UnidentifiedImageError):
        bits = _bits_of_jpeg(path)
        return f"a JPEG of {bits} bits per sample" if bits > 8 else "something else, or a damaged header"
    return f"damaged data ({type(error).__name__}: {error})"


def _bits_of_jpeg(path: Path) -> int:
    """Return the bits per sample that a JPEG says in its start of frame; 0 where there is none."""
    with path.open("rb") as handle:
        if handle.read(2) != b"\xff\xd8":
            return 0
        while len(marker := handle.read(4)) == 4 and marker[0] == 0xFF:
            # Starts of frames are C0 to CF but for tables (C4, CC) and an extension (C8).
            if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
                return int.from_bytes(handle.read(1), "big")
            handle.seek(max(0, int.from_bytes(marker[2:], "big") - 2), 1)
    return 0


def _require_known(path: Path, image: Image.Image, has_one_page: bool) -> None:
    if image.mode not in _MODES:
        raise InputError(
            path,
            expected="a grey, RGB or palette image",
            found=f"the colour mode {image.mode}",
            do="Convert the image to grey or RGB.",
        )
    # A phone's JPEG may carry a second picture (MPO): a preview, not a page.
    if not has_one_page and image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise InputError(
            path,
            expected="one image per file",
            found="several pages or frames",
            do="Save each frame as its own file, or all of them as a stack: TIFF or NIfTI.",
        )
    # Pillow would make the missing rows up.
    tiles = getattr(image, "tile", None)
    most_pixels = path.stat().st_size * _MOST_PIXELS_PER_BYTE.get(tiles[0][0] if tiles else "", math.inf)
    if not 0 < image.width * image.height <= most_pixels:
        raise InputError(
            path,
            expected="as many pixels as the file can hold",
            found=f"a header that claims {image.width:,} x {image.height:,}",
            do="Copy or export the file again: it is truncated or its header is damaged.",
        )


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation that is still to be applied, 1 when there is none."""
    # Pillow turns TIFF upright by itself.
    if image.format == "TIFF":
        return 1
    # Asking a PNG for EXIF data that it does not announce ahead of its pixels would decode all of them.
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1
    return image.getexif().get(_ORIENTATION_TAG, 1)


def _upright(image: Image.Image) -> Image.Image:
    method = _UPRIGHT.get(_orientation(image))
    image.load()
    return image if method is None else image.transpose(method)


def _rawmode(image: Image.Image) -> str:
    """Return how the file stores its pixels, such as ``L;4``; Pillow's mode is what they become."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return image.mode
    arguments = tiles[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _require_opaque(path: Path, image: Image.Image) -> None:
    if image.mode in ("L", "P", "RGB") or image.mode.endswith("A"):
        is_opaque = image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
    else:
        # The grey value that stands for transparent.
        is_opaque = not bool((np.asarray(image) == image.info["transparency"]).any())
    if not is_opaque:
        raise _transparent(path)


def _transparent(path: Path) -> InputError:
    return InputError(
        path,
        expected="an opaque image",
        found="transparent pixels",
        do="Flatten the image onto a background and save it without an alpha channel.",
    )


def _white_is_zero(path: Path) -> InputError:
    return InputError(
        path,
        expected="a label map in which black is 0",
        found="a TIFF in which white is 0",
        do="Save the mask again with the photometric interpretation MinIsBlack.",
    )


def lossy_mask(path: Path) -> InputError:
    return InputError(
        path,
        expected="a lossless label map (PNG, TIFF, BMP)",
        found="JPEG compression, which changes label values",
        do="Export the mask again as PNG; converting the JPEG does not bring the labels back.",
    )
