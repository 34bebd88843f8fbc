"""The stored pixels of single frames, decompressed.

Each frame is fetched from its file by itself, so a file of any number of frames is read in the memory of one. What
it claims of its size is compared with what it has before a decoder allocates anything.

One decoder is used per compression, the one that stands damaged data best: GDCM ends the process over them, and the
Rust decoder of RLE panics. pydicom decodes RLE, Pillow 8-bit JPEG and JPEG 2000, pyjpegls JPEG-LS, and
`lossless_jpeg` that. With pylibjpeg-openjpeg there is high-throughput JPEG 2000 too. All are under MIT or BSD
licences, with which there is no decoder for lossy JPEG of 12 bits.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medsaga.data.bounds import ALWAYS_DECODED_BYTES, MOST_COMPRESSION
from medsaga.data.dicom import lossless_jpeg, reading
from medsaga.errors import InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

_LUTS = tuple(
    f"{colour}PaletteColorLookupTable{part}" for colour in ("Red", "Green", "Blue") for part in ("Data", "Descriptor")
)
KEYWORDS = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *_LUTS,
)
_LOSSLESS_JPEG = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_PLUGINS = {
    "1.2.840.10008.1.2.5": "pydicom",
    "1.2.840.10008.1.2.4.50": "pillow",
    "1.2.840.10008.1.2.4.51": "pillow",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pillow",
    "1.2.840.10008.1.2.4.91": "pillow",
    "1.2.840.10008.1.2.4.201": "pylibjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg",
}
"""The decoder of each compression, by pydicom's names: RLE, JPEG, JPEG-LS, JPEG 2000 and its high-throughput kind."""
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_UNREAD = ("HSV", "ARGB", "CMYK", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "XYB")
_BEGINS_JPEG, _ENDS_JPEG, _BEGINS_JPEG_2000 = b"\xff\xd8", b"\xff\xd9", b"\xff\x4f\xff\x51"
_FRAME_HEADERS = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
"""Markers that carry the size of a JPEG; the others in their range are tables. F7 is JPEG-LS's."""
_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))


@dataclass(frozen=True)
class PixelFormat:
    """What a header says of its pixels, checked."""

    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    planar: int
    allocated: int
    stored: int
    is_signed: bool
    keyword: str

    @property
    def channels(self) -> int:
        """Channels of the image that is read: 3 of a colour image, else 1."""
        return 1 if self.photometric in _GREY else 3

    @property
    def frame_bits(self) -> int:
        """Size of a native frame."""
        bits = self.rows * self.columns * self.samples * self.allocated
        # Two pixels share their colour.
        return bits // 3 * 2 if self.photometric == "YBR_FULL_422" else bits

    @property
    def dtype(self) -> np.dtype:
        """The type of the decoded pixels."""
        if self.keyword != "PixelData":
            return np.dtype(np.float32)
        if self.channels == 3 or self.allocated == 1:
            return np.dtype(np.uint8)
        return np.dtype(f"{'i' if self.is_signed else 'u'}{self.allocated // 8}")

    @property
    def value_range(self) -> tuple[int, int]:
        """Lowest and highest value that the stored bits can hold."""
        least = -(2 ** (self.stored - 1)) if self.is_signed else 0
        return least, least + 2**self.stored - 1


def pixel_format(path: Path, file: reading.Opened) -> PixelFormat:
    """Return what a file says of its pixels, after a look at whether it can hold them.

    Raises:
        InputError: something is missing, contradictory, or of a kind that is not read, or there are fewer pixels than
            the header promises.
    """
    if not file.pixels:
        raise _unusable(path, "pixel data", "none: the file is truncated, or no image")
    pixels = _pixel_format(path, file.header, file.pixels)
    usual = pixels.stored - 1
    if not file.is_compressed and usual != (high := reading.whole(path, file.header, "HighBit", usual)):
        # Old files may have them in the upper bits; read as others are, they would be noise.
        raise _unusable(path, f"pixels in the lower {pixels.stored} bits, with a HighBit of {usual}", str(high))
    if not file.is_compressed and file.length * 8 < pixels.frame_bits * pixels.frames:
        promised = f"{-(-pixels.frame_bits * pixels.frames // 8):,} bytes of pixels, as its header says"
        raise _unusable(path, promised, f"{file.length:,} bytes")
    return pixels


def stored_frames(path: Path, numbers: Iterable[int]) -> Iterator[npt.NDArray[Any]]:
    """Decode frames of a file one after the other.

    Args:
        path: the file.
        numbers: the frames that are wanted, from 0.

    Yields:
        ``(channels, rows, columns)`` as stored: before slope, intercept and inversion. Colours are uint8 RGB.

    Raises:
        InputError: the pixels are damaged, more than the file can hold, or their compression has no decoder.
    """
    with reading.opened(path, KEYWORDS) as file:
        pixels = pixel_format(path, file)
        decode = _Decoder(path, file, pixels)
        for number in numbers:
            assert 0 <= number < pixels.frames
            yield decode(number)


def _pixel_format(path: Path, header: Dataset, keyword: str) -> PixelFormat:
    """Return what a header, with its `KEYWORDS`, says of the pixel data of that keyword."""
    photometric = reading.text(path, header, "PhotometricInterpretation")
    default = {"PixelData": None, "FloatPixelData": 32, "DoubleFloatPixelData": 64}[keyword]
    allocated = reading.whole(path, header, "BitsAllocated", default)
    # Integers without BitsStored and this could be any numbers; floating point has no such elements.
    signedness = reading.whole(path, header, "PixelRepresentation", default and 0)
    if signedness > 1:
        raise _unusable(path, "a PixelRepresentation of 0 or 1", str(signedness))
    found = PixelFormat(
        rows=reading.whole(path, header, "Rows"),
        columns=reading.whole(path, header, "Columns"),
        frames=max(1, reading.whole(path, header, "NumberOfFrames", 1)),
        samples=reading.whole(path, header, "SamplesPerPixel", 1),
        photometric=photometric,
        planar=reading.whole(path, header, "PlanarConfiguration", 0),
        allocated=allocated,
        stored=reading.whole(path, header, "BitsStored", default),
        is_signed=signedness == 1,
        keyword=keyword,
    )
    if not (0 < found.rows <= 65535 and 0 < found.columns <= 65535):
        raise _unusable(path, "1 to 65535 rows and columns", f"{found.rows} x {found.columns}")
    samples = 3 if photometric in _COLOUR else 1 if photometric in (*_GREY, "PALETTE COLOR") else 0
    if samples == 0 or found.samples != samples:
        # Only words of the standard are repeated: anything may stand there.
        kind = photometric if samples or photometric in _UNREAD else "another interpretation"
        raise _unusable(path, "grey, RGB, YBR or palette pixels", f"{kind} with {found.samples} samples per pixel")
    depths = (32, 64) if keyword != "PixelData" else (8, 16, 32) if found.channels == 1 else (8, 16)
    one_bit = allocated == 1 and found.frames == 1 and samples == 1
    if not (one_bit or allocated in depths) or not 1 <= found.stored <= allocated or (samples == 3 and allocated != 8):
        raise _unusable(path, "pixels of 8, 16 or 32 bits, colours of 8", f"{found.stored} of {allocated} bits")
    return found


class _Decoder:
    """Decodes the frames of one file."""

    def __init__(self, path: Path, file: reading.Opened, pixels: PixelFormat) -> None:
        self._path, self._file, self._pixels = path, file, pixels
        self._start = file.stream.tell()
        self._syntax = reading.as_uid(file.transfer_syntax)
        self._decoder, self._plugin = _decoder_of(path, self._syntax)

    def __call__(self, number: int) -> npt.NDArray[Any]:
        """Return frame ``number``, ``(channels, rows, columns)``."""
        pixels, path = self._pixels, self._path
        is_lossless_jpeg = self._syntax in _LOSSLESS_JPEG
        if is_lossless_jpeg:
            content = self._lossless_jpeg(number)
        else:
            content = self._compressed(number) if self._plugin else self._native(number)
        options: dict[str, Any] = {
            "decoding_plugin": self._plugin,
            "transfer_syntax_uid": self._decoder.UID,
            "number_of_frames": 1,
            "rows": pixels.rows,
            "columns": pixels.columns,
            "samples_per_pixel": pixels.samples,
            "photometric_interpretation": pixels.photometric,
            "bits_allocated": pixels.allocated,
            "bits_stored": pixels.stored,
            "pixel_representation": int(pixels.is_signed),
            "pixel_keyword": pixels.keyword,
            "pixel_vr": self._file.vr,
        }
        if pixels.samples > 1:
            options["planar_configuration"] = 0 if is_lossless_jpeg else pixels.planar
        with reading.guarded(path, "pixels that can be decoded"):
            stored, found = self._decoder.as_array(content, **options)
            if pixels.photometric == "PALETTE COLOR":
                stored = _coloured(stored, self._file.header)
        if pixels.samples == 3 and found["photometric_interpretation"] != "RGB":
            raise _unusable(path, "colours that can be converted to RGB", pixels.photometric)
        if stored.shape[:2] != (pixels.rows, pixels.columns) or stored.ndim != (3 if pixels.channels == 3 else 2):
            raise _unusable(path, f"{pixels.rows} x {pixels.columns} pixels", "others in its compressed data")
        return stored[np.newaxis] if stored.ndim == 2 else np.ascontiguousarray(stored.transpose(2, 0, 1))

    def _native(self, number: int) -> bytes:
        size = -(-self._pixels.frame_bits // 8)
        with reading.guarded(self._path):
            self._file.stream.seek(self._start + number * size)
            return self._file.stream.read(size)

    def _lossless_jpeg(self, number: int) -> bytes:
        """Return a native frame."""
        pixels = self._pixels
        content = self._codestream(number)
        with reading.guarded(self._path, f"the compressed pixels of frame {number + 1}"):
            image = lossless_jpeg.decode(content, pixels.rows, pixels.columns, pixels.samples)
        if pixels.allocated not in (8, 16):
            raise _unusable(self._path, "8 or 16 bits in lossless JPEG", f"{pixels.allocated}")
        return image.astype(f"<u{pixels.allocated // 8}").tobytes()

    def _compressed(self, number: int) -> bytes:
        from pydicom.encaps import encapsulate

        return encapsulate([self._codestream(number)], has_bot=False)

    def _codestream(self, number: int) -> bytes:
        """Return the compressed data of a frame, whose size is what the header says."""
        from pydicom.encaps import get_frame

        pixels, header = self._pixels, self._file.header
        with reading.guarded(self._path, f"the compressed pixels of frame {number + 1}"):
            self._file.stream.seek(self._start)
            tables = header.get("ExtendedOffsetTable"), header.get("ExtendedOffsetTableLengths")
            content = get_frame(
                self._file.stream,
                number,
                number_of_frames=pixels.frames,
                extended_offsets=tables if all(tables) else None,
            )
        if len(content) < 2:
            raise _unusable(self._path, f"the compressed pixels of frame {number + 1}", "none")
        if pixels.frame_bits // 8 > max(ALWAYS_DECODED_BYTES, MOST_COMPRESSION * len(content)):
            claim = f"{len(content):,} bytes that claim to hold {pixels.rows} x {pixels.columns} pixels"
            raise _unusable(self._path, "as many pixels as the file can hold", claim)
        if "JPEG" in self._syntax.name:
            size = _size_in_codestream(content)
            if size != (pixels.rows, pixels.columns, pixels.samples):
                found = "x".join(map(str, size)) if size else "damaged compressed data"
                raise _unusable(self._path, f"{pixels.rows}x{pixels.columns}x{pixels.samples} pixels", found)
            # CharLS takes seconds to see by itself that zeros go on for ever.
            if self._plugin == "pyjpegls" and not content.rstrip(b"\0").endswith(_ENDS_JPEG):
                raise _unusable(self._path, f"the compressed pixels of frame {number + 1}", "truncated data")
        return content


def _decoder_of(path: Path, syntax: UID) -> tuple[Any, str]:
    """Return pydicom's decoder of a transfer syntax, and its plug-in, empty for native pixels."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import ExplicitVRLittleEndian

    # Lossless JPEG reaches pydicom decompressed.
    written = ExplicitVRLittleEndian if syntax in _LOSSLESS_JPEG else syntax
    plugin = _PLUGINS.get(written, "")
    is_known = syntax.is_transfer_syntax and not syntax.is_private
    with contextlib.suppress(NotImplementedError):
        decoder = get_decoder(written) if is_known else None
        if decoder is not None and (decoder.is_native or plugin in decoder.available_plugins):
            return decoder, plugin
    raise InputError(
        path,
        expected="pixels in a compression that an installed package decodes",
        found=syntax.name if is_known else "an unknown transfer syntax",
        do="Install pylibjpeg-openjpeg."
        if plugin == "pylibjpeg"
        else "Convert the files to explicit little endian, for example with dcmconv or gdcmconv.",
    )


def _coloured(stored: npt.NDArray[Any], header: Dataset) -> npt.NDArray[np.uint8]:
    """Return ``(rows, columns, 3)`` uint8 of palette indices ``(rows, columns)``."""
    from pydicom.pixels.processing import apply_color_lut

    colours = apply_color_lut(stored, header)
    return (colours >> 8 if colours.dtype.itemsize > 1 else colours).astype(np.uint8)


def _size_in_codestream(content: bytes) -> tuple[int, int, int] | None:
    """Return rows, columns and components of JPEG, JPEG-LS or JPEG 2000 data; None where they say none."""
    siz = content.find(_BEGINS_JPEG_2000)
    if siz >= 0 and not content.startswith(_BEGINS_JPEG):
        if len(content) < siz + 42:
            return None
        right, bottom, left, top = struct.unpack_from(">4L", content, siz + 8)
        (components,) = struct.unpack_from(">H", content, siz + 40)
        return bottom - top, right - left, components
    position = 2 if content.startswith(_BEGINS_JPEG) else len(content)
    while position + 10 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker in _FRAME_HEADERS:
            rows, columns, components = struct.unpack_from(">HHB", content, position + 5)
            return rows, columns, components
        if marker == 0xFF:
            position += 1
        elif marker in _WITHOUT_LENGTH:
            position += 2
        else:
            position += 2 + max(2, struct.unpack_from(">H", content, position + 2)[0])
    return None


def _unusable(path: Path, expected: str, found: str) -> InputError:
    return InputError(path, expected=expected, found=found, do="Copy or export the file again.")
