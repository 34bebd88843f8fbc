"""Opening an image with Pillow: what it may open and how much, and what its errors mean."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from medsaga.data.bounds import MOST_PIXELS, MOST_PIXELS_PER_BYTE
from medsaga.data.formats.tiff_stored import Stored
from medsaga.errors import InputError

UINT8, UINT16, FLOAT32 = np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float32)
MODES: dict[str, tuple[int, np.dtype]] = {
    **dict.fromkeys(("1", "L", "LA"), (1, UINT8)),
    **dict.fromkeys(("P", "PA", "RGB", "RGBA"), (3, UINT8)),
    **dict.fromkeys(("I;16", "I;16L", "I;16B", "I;16N"), (1, UINT16)),
    **dict.fromkeys(("I", "F"), (1, FLOAT32)),
}
"""Channels and dtype of the array that `read_image` makes of each of Pillow's modes."""
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


@contextlib.contextmanager
def opened(path: Path, stored: Stored | None, *, verify: bool = False) -> Iterator[Image.Image]:
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
                expected=f"at most {MOST_PIXELS:,} pixels",
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
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MOST_PIXELS // 2
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
    if image.mode not in MODES:
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
    most_pixels = path.stat().st_size * MOST_PIXELS_PER_BYTE.get(tiles[0][0] if tiles else "", math.inf)
    if not 0 < image.width * image.height <= most_pixels:
        raise InputError(
            path,
            expected="as many pixels as the file can hold",
            found=f"a header that claims {image.width:,} x {image.height:,}",
            do="Copy or export the file again: it is truncated or its header is damaged.",
        )


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation that is still to be applied, 1 when there is none."""
    # Pillow turns TIFF upright by itself.
    if image.format == "TIFF":
        return 1
    # Asking a PNG for EXIF data that it does not announce ahead of its pixels would decode all of them.
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1
    return image.getexif().get(_ORIENTATION_TAG, 1)


def turned_upright(image: Image.Image) -> Image.Image:
    """Return the image turned as its EXIF orientation says."""
    method = _UPRIGHT.get(orientation_of(image))
    image.load()
    return image if method is None else image.transpose(method)


def rawmode_of(image: Image.Image) -> str:
    """Return how the file stores its pixels, such as ``L;4``; Pillow's mode is what they become."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return image.mode
    arguments = tiles[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def require_opaque(path: Path, image: Image.Image) -> None:
    """Raise an InputError where some pixels are transparent."""
    if image.mode in ("L", "P", "RGB") or image.mode.endswith("A"):
        is_opaque = image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
    else:
        # The grey value that stands for transparent.
        is_opaque = not bool((np.asarray(image) == image.info["transparency"]).any())
    if not is_opaque:
        raise transparent(path)


def transparent(path: Path) -> InputError:
    """Return what to tell the user of an image with transparent pixels."""
    return InputError(
        path,
        expected="an opaque image",
        found="transparent pixels",
        do="Flatten the image onto a background and save it without an alpha channel.",
    )
