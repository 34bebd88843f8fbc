"""PNG of 16 bits per channel and several channels, of which Pillow decodes the upper 8."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from medsaga.data.formats import tiff
from medsaga.data.formats.raster_opening import UINT16, orientation_of, rawmode_of, transparent
from medsaga.data.types import Array


def channels_first(pixels: Array) -> Array:
    """Bring ``(height, width)`` or ``(height, width, channels)`` to ``(channels, height, width)``."""
    return pixels[np.newaxis] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _deep_grey_and_alpha(path: Path) -> Array:
    """Return ``(height, width, 2)`` uint16 of a PNG of grey and alpha, which ITK does not read.

    Its pixels are as long as those of 8-bit RGBA, and PNG's filters work on bytes: under that name Pillow gives all.
    """
    content = bytearray(path.read_bytes())
    content[24:26] = bytes([8, 6])  # bit depth and colour type
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        return np.asarray(image).view(">u2").astype(UINT16)


def is_deep_png(image: Image.Image) -> bool:
    """Whether it has 16 bits per channel and several channels: Pillow decodes the upper 8 of them."""
    return image.format == "PNG" and image.mode in ("RGB", "RGBA", "LA") and ";16" in rawmode_of(image)


def read_deep_png(path: Path, image: Image.Image) -> Array:
    """Return ``(channels, height, width)`` uint16, upright, without the alpha channel.

    Raises:
        InputError: some pixels are transparent.
    """
    if rawmode_of(image).startswith("LA"):  # though Pillow's mode is RGBA
        channels, stored = 1, _deep_grey_and_alpha(path)
    else:
        import SimpleITK

        channels, stored = 3, SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path), imageIO="PNGImageIO"))
    assert stored.dtype == UINT16
    assert stored.shape[:2] == (image.height, image.width)
    pixels, alpha = stored[..., :channels], stored[..., channels:]
    if bool((alpha != np.iinfo(UINT16).max).any()):
        raise transparent(path)
    return np.ascontiguousarray(tiff.upright(channels_first(pixels), orientation_of(image)))
