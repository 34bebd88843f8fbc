"""DICOM headers read within bounds, and values taken out of them.

Whatever pydicom and its decoders raise on damaged files becomes an `InputError` here, in `guarded`. The text of their
errors and warnings is dropped, because it may quote values of the header, and those may identify the patient.
"""

from __future__ import annotations

import io
import math
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from medsaga.data.bounds import (
    ALWAYS_INFLATED_BYTES,
    MOST_DICOM_HEADER_BYTES,
    MOST_DICOM_HEADER_READS,
    MOST_INFLATED_BYTES,
    MOST_INFLATION_OF_DICOM,
    MOST_META_ELEMENTS,
)
from medsaga.errors import InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

_MAGIC_AT, _MAGIC = 128, b"DICM"
_BARE = b"\x08\x00"
"""Group 0008 in little endian: how files begin that archives wrote without preamble and meta information."""
_IMPLICIT, _BIG_ENDIAN, _DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
_EXPLICIT = "1.2.840.10008.1.2.1"
_LONG_VRS = (b"OB", b"OW", b"OD", b"OF", b"OL", b"OV", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_HEAD_BYTES = 8
_UNDEFINED_LENGTH = 2**32 - 1
_PIXEL_KEYWORDS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
BEFORE_PIXELS = 0x7FE00000
_MOST_TEXT = 60
_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
"""Control characters but tab, ends of lines and pages, and escape, which DICOM allows in text."""


@dataclass(frozen=True)
class Opened:
    """A file whose header has been read.

    Attributes:
        header: the elements that were asked for.
        transfer_syntax: the UID of how the file is written; a deflated file counts as explicit little endian.
        stream: the file, standing at the first byte of the value of its pixel data, if it was read as far as that.
        pixels: keyword of the pixel data; empty where there are none.
        vr: how the pixel data are written, ``OB`` or ``OW``.
        length: bytes of the pixel data that are in the file; of compressed ones, bytes in the file from there on.
    """

    header: Dataset
    transfer_syntax: str
    stream: BinaryIO
    pixels: str
    vr: str
    length: int

    @property
    def is_compressed(self) -> bool:
        """Whether the pixel data are not native, whatever their transfer syntax is worth."""
        return self.transfer_syntax not in (_IMPLICIT, _EXPLICIT, _BIG_ENDIAN)


class _TooLongError(Exception):
    """A header goes on and on."""


class _TruncatedError(Exception):
    """A file ends too early. No EOFError, because pydicom catches those and returns what it has."""


class _CompressedError(Exception):
    """Pixels are compressed, and nothing says how."""


class _Stream:
    """A file that never reads or skips beyond its end, and reads a bounded amount until `unbind`.

    A header that promises 4 GiB in a small file is thereby known before anything is allocated.
    """

    def __init__(self, raw: BinaryIO, size: int) -> None:
        self._raw, self.size = raw, size
        self._bytes, self._reads = MOST_DICOM_HEADER_BYTES, MOST_DICOM_HEADER_READS
        self._is_bound = True

    def read(self, count: int | None = -1) -> bytes:
        left = max(0, self.size - self._raw.tell())
        wanted = left if count is None or count < 0 else count
        count = min(wanted, left)
        if self._is_bound:
            # A data set that ends between two elements is looked for by reading the head of another one.
            if wanted > left and not (left == 0 and wanted <= _HEAD_BYTES):
                raise _TruncatedError
            self._bytes -= count
            self._reads -= 1
            if self._bytes < 0 or self._reads < 0:
                raise _TooLongError
        return self._raw.read(count)

    def seek(self, offset: int, whence: int = 0) -> int:
        position = self._raw.seek(offset, whence)
        if self._is_bound and position > self.size:
            raise _TruncatedError
        return position

    def tell(self) -> int:
        return self._raw.tell()

    def unbind(self) -> None:
        """Lift the bound: the header has been read."""
        self._is_bound = False


@contextmanager
def guarded(path: Path, what: str = "a DICOM file that can be read") -> Iterator[None]:
    """Turn what a library raises on a damaged file into an `InputError` without the library's words."""
    from pydicom import config

    before, config.logger.disabled = config.logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (InputError, AssertionError):
        raise
    except Exception as error:
        raise InputError(
            path,
            expected=what,
            found=_what_happened(path, error),
            do="Copy or export the file again; move it away if it is not needed.",
        ) from None
    finally:
        config.logger.disabled = before


def is_dicom(path: Path) -> bool:
    """Whether a regular file carries DICOM's mark behind its preamble."""
    return _beginning(path)[_MAGIC_AT:] == _MAGIC


def may_be_bare(path: Path) -> bool:
    """Whether a regular file begins like a data set that was written without a preamble."""
    beginning = _beginning(path)
    return beginning[:2] == _BARE and beginning[_MAGIC_AT:] != _MAGIC


@contextmanager
def opened(path: Path, keywords: tuple[str, ...], until: int = BEFORE_PIXELS) -> Iterator[Opened]:
    """Read elements of a header, and stand at the pixel data.

    Args:
        path: the file.
        keywords: the elements that are wanted; all others are skipped.
        until: the tag to stop at, when the pixel data need not be reached.

    Raises:
        InputError: the file cannot be read, is truncated within its header, or its header is longer than 64 MiB.
    """
    with ExitStack() as stack:
        with guarded(path):
            # A pipe would wait for its writer.
            if not path.is_file():
                raise FileNotFoundError
            raw = stack.enter_context(path.open("rb"))
            found = _parse(raw, path.stat().st_size, keywords, until)
        yield found


def read_header(path: Path, keywords: tuple[str, ...], until: int = BEFORE_PIXELS) -> Dataset:
    """Return the wanted elements of a header. Raises as `opened`."""
    with opened(path, keywords, until) as found:
        return found.header


def numbers(path: Path, header: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return ``count`` finite numbers of an element; None where it is missing or empty.

    Raises:
        InputError: there are others.
    """
    with guarded(path):
        element = header.get(keyword)
        if element is None or element == "" or (hasattr(element, "__len__") and len(element) == 0):
            return None
    try:
        values = [float(value) for value in (element if count > 1 else [element])]
    except (TypeError, ValueError, OverflowError):
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        raise InputError(
            path,
            expected=f"{count} finite {'number' if count == 1 else 'numbers'} in {keyword}",
            found="something else",
            do="Export the series again: its header is damaged.",
        )
    return tuple(values)


def number(path: Path, header: Dataset, keyword: str) -> float | None:
    """Return the number of an element; None where it is missing or empty. Raises as `numbers`."""
    found = numbers(path, header, keyword, 1)
    return None if found is None else found[0]


def whole(path: Path, header: Dataset, keyword: str, default: int | None = None) -> int:
    """Return a whole number from 0 to 2^31 of an element.

    Raises:
        InputError: there is none and no default, or it is something else.
    """
    value = number(path, header, keyword)
    value = default if value is None else value
    if value is None or not 0 <= value < 2**31 or value != int(value):
        raise InputError(
            path,
            expected=f"a whole number in {keyword}",
            found="none" if value is None else "something else",
            do="Export the series again: its header is damaged.",
        )
    return int(value)


def text(path: Path, header: Dataset, keyword: str) -> str:
    """Return the printable characters of an element in one line, cut to 60; empty where it is missing.

    It ends where characters are that no text has: an element whose length is damaged holds the heads of those behind
    it, and their values, which may be names.
    """
    with guarded(path):
        value = header.get(keyword)
        words = "" if value is None else str(value)[: 16 * _MOST_TEXT]
    words = _NO_TEXT.split(words.lstrip("\0"), maxsplit=1)[0]
    return " ".join("".join(c if c.isprintable() else " " for c in words).split())[:_MOST_TEXT]


def uid(path: Path, header: Dataset, keyword: str) -> str:
    """Return the UID of an element; empty where it is missing."""
    with guarded(path):
        value = header.get(keyword)
        return "" if value is None else str(value)[:64]


def require_uids(path: Path, keywords: tuple[str, ...], what: str, do: str) -> None:
    """Raise an `InputError` that names the UIDs which a header lacks, or has empty.

    Args:
        path: the file.
        keywords: of the UIDs.
        what: repeats them, such as ``a segmentation``.
        do: what the user can do about it.
    """
    header = read_header(path, keywords)
    missing = [keyword for keyword in keywords if not uid(path, header, keyword)]
    if missing:
        raise InputError(path, expected=f"the UIDs that {what} repeats", found=f"no {' and no '.join(missing)}", do=do)


def as_uid(value: str) -> UID:
    """Return pydicom's UID of a text, without its warning, which would quote the text."""
    from pydicom import config
    from pydicom.uid import UID

    return UID(value, config.IGNORE)


def _beginning(path: Path) -> bytes:
    """Return the first bytes of a regular file; none of anything else (a pipe would wait for its writer)."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with path.open("rb") as handle:
            return handle.read(_MAGIC_AT + len(_MAGIC))
    except OSError:
        return b""


def _parse(raw: BinaryIO, size: int, keywords: tuple[str, ...], until: int) -> Opened:
    from pydicom.datadict import tag_for_keyword
    from pydicom.filereader import read_dataset

    syntax, start = _meta(raw)
    raw.seek(start)
    if syntax == _DEFLATED:
        content = _inflate(raw)
        raw, size, syntax = io.BytesIO(content), len(content), _EXPLICIT
    elif not syntax:
        head = raw.read(6)
        syntax = _EXPLICIT if head[4:].isalpha() and head[4:].isupper() else _IMPLICIT
        raw.seek(start)
    stream = _Stream(raw, size)
    end: list[tuple[int, str, int, int]] = []

    def stop(tag: int, vr: str | None, length: int) -> bool:
        if tag >= until and (tag < BEFORE_PIXELS or tag in _PIXEL_KEYWORDS):
            end[:] = [(tag, vr or "OW", stream.tell(), length)]
        return bool(end)

    tags: list[Any] = [tag_for_keyword(keyword) for keyword in keywords]
    assert None not in tags, "a keyword that DICOM does not know"
    file = cast(BinaryIO, stream)
    header = read_dataset(file, syntax == _IMPLICIT, syntax != _BIG_ENDIAN, stop_when=stop, specific_tags=tags)
    stream.unbind()
    tag, vr, position, claimed = end[0] if end else (0, "", size, 0)
    found = Opened(header, syntax, file, _PIXEL_KEYWORDS.get(tag, ""), vr, min(claimed, size - position))
    if claimed == _UNDEFINED_LENGTH and found.pixels and not found.is_compressed:
        # The word for "in fragments": read as they stand, compressed bytes would make an image of noise.
        raise _CompressedError
    stream.seek(position)
    return found


def _meta(raw: BinaryIO) -> tuple[str, int]:
    """Return the transfer syntax, empty where there is none, and where the data set begins.

    Read here and not by pydicom, which inflates a deflated file without a bound.
    """
    raw.seek(_MAGIC_AT)
    if raw.read(len(_MAGIC)) != _MAGIC:
        return "", 0
    syntax = ""
    for _ in range(MOST_META_ELEMENTS):
        start = raw.tell()
        head = raw.read(8)
        if len(head) < 8:
            raise _TruncatedError
        group, element, vr, length = struct.unpack("<HH2sH", head)
        if group != 2:
            return syntax, start
        if not vr.isalpha():
            (length,) = struct.unpack("<L", head[4:])
        elif vr in _LONG_VRS:
            (length,) = struct.unpack("<L", raw.read(4))
        if element == 0x10:
            syntax = raw.read(min(length, 64)).decode("ascii", "replace").strip("\0 ")
        else:
            raw.seek(length, 1)
    raise _TooLongError


def _inflate(raw: BinaryIO) -> bytes:
    deflated, inflate = raw.read(), zlib.decompressobj(-zlib.MAX_WBITS)
    most = min(MOST_INFLATED_BYTES, max(ALWAYS_INFLATED_BYTES, MOST_INFLATION_OF_DICOM * len(deflated)))
    content = inflate.decompress(deflated, most)
    if inflate.unconsumed_tail:
        raise _TooLongError
    if not inflate.eof:
        raise _TruncatedError
    return content


def _what_happened(path: Path, error: Exception) -> str:
    if not path.is_file():
        if path.exists():
            return "no file but a folder, a pipe or a device"
        return "a broken link" if path.is_symlink() else "no such file"
    if path.stat().st_size == 0:
        return "an empty file"
    if isinstance(error, PermissionError):
        return "a file that may not be read"
    if isinstance(error, MemoryError):
        return "more than the memory holds"
    if isinstance(error, _TooLongError):
        return "a header without end"
    if isinstance(error, _TruncatedError):
        return "a truncated file"
    if isinstance(error, _CompressedError):
        return "compressed pixels, though its transfer syntax is missing or says that they are not"
    return f"damaged data ({type(error).__name__})"
