"""Lossless JPEG (process 14), which many archives use, decoded with numpy.

ITU-T T.81, annex H. The decoders for it that other packages offer are under the GPL, or end the whole process on
damaged data. Where a Huffman code starts depends on all codes before it, so that a decoder goes from bit to bit;
here the length of the code that would start at each bit is looked up for all bits at once, and only the way from
code to code is walked in Python.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

_SOF3, _DHT, _SOI, _EOI, _SOS, _DRI = 0xC3, 0xC4, 0xD8, 0xD9, 0xDA, 0xDD
_FIRST_RESTART, _LAST_RESTART = 0xD0, 0xD7
_PADDING = 8
_MOST_CATEGORY = 16
_CHUNK_SAMPLES = 2**20


class DamagedError(Exception):
    """The data are no lossless JPEG, or end before their end."""


@dataclass(frozen=True)
class _Table:
    """A Huffman table, looked up with the next 16 bits.

    Attributes:
        lengths: (65536,) uint8, bits of the code; 0 where there is none.
        categories: (65536,) uint8, how many bits of the difference follow.
        steps: (65536,) uint8, the bits of both.
    """

    lengths: npt.NDArray[np.uint8]
    categories: npt.NDArray[np.uint8]
    steps: npt.NDArray[np.uint8]


@dataclass
class _State:
    """What the markers before a scan have said."""

    precision: int = 0
    rows: int = 0
    columns: int = 0
    components: tuple[int, ...] = ()
    restart: int = 0
    tables: dict[int, _Table] = field(default_factory=dict)


def decode(content: bytes, rows: int, columns: int, samples: int) -> npt.NDArray[np.uint16]:
    """Decode one image.

    Args:
        content: a JPEG file.
        rows: the height that it must have.
        columns: the width that it must have.
        samples: the number of components that it must have.

    Returns:
        ``(rows, columns, samples)`` as stored, unsigned.

    Raises:
        DamagedError: the data are damaged, of another size, or of another kind of JPEG.
    """
    state = _State()
    image = np.zeros((rows, columns, samples), np.uint16)
    missing = set(range(samples))
    position = 0
    while missing:
        marker, body, position = _segment(content, position)
        if marker == _SOF3:
            _read_frame(state, body)
            if (state.rows, state.columns, len(state.components)) != (rows, columns, samples):
                raise DamagedError
        elif marker == _DHT:
            _read_tables(state, body)
        elif marker == _DRI and len(body) == 2:
            (state.restart,) = struct.unpack(">H", body)
        elif marker == _SOS:
            position, indices = _read_scan(state, content, position, body, image)
            missing -= set(indices)
        elif marker == _EOI or 0xC0 <= marker <= 0xCF:
            raise DamagedError
    return image


def _segment(content: bytes, position: int) -> tuple[int, bytes, int]:
    """Return marker and content of the segment at ``position``, and where it ends."""
    while content[position : position + 2] == b"\xff\xff":
        position += 1
    if position + 2 > len(content) or content[position] != 0xFF:
        raise DamagedError
    marker = content[position + 1]
    if marker in (_SOI, _EOI) or _FIRST_RESTART <= marker <= _LAST_RESTART:
        return marker, b"", position + 2
    if position + 4 > len(content):
        raise DamagedError
    (length,) = struct.unpack_from(">H", content, position + 2)
    end = position + 2 + length
    if length < 2 or end > len(content):
        raise DamagedError
    return marker, content[position + 4 : end], end


def _read_frame(state: _State, body: bytes) -> None:
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise DamagedError
    state.precision, state.rows, state.columns, count = struct.unpack_from(">BHHB", body)
    # Components of different resolution are not used in DICOM.
    sampling = {body[7 + 3 * n] for n in range(count)}
    if not 2 <= state.precision <= 16 or len(sampling) != 1:
        raise DamagedError
    state.components = tuple(body[6 + 3 * n] for n in range(count))


def _read_tables(state: _State, body: bytes) -> None:
    while body:
        counts = body[1:17]
        total = sum(counts)
        values = body[17 : 17 + total]
        if len(counts) != 16 or len(values) != total or max(values, default=0) > _MOST_CATEGORY:
            raise DamagedError
        state.tables[body[0] & 15] = _table(counts, values)
        body = body[17 + total :]


def _table(counts: bytes, values: bytes) -> _Table:
    """Return the table of codes that are given by their number per length (T.81, annex C)."""
    lengths, categories = np.zeros((2, 65536), np.uint8)
    code = place = 0
    for length, count in enumerate(counts, 1):
        for value in values[place : place + count]:
            start, end = code << (16 - length), (code + 1) << (16 - length)
            if end > 65536:
                raise DamagedError
            lengths[start:end], categories[start:end] = length, value
            code += 1
        place += count
        code <<= 1
    # A difference of 32768 is its category alone.
    extra = np.where(categories == _MOST_CATEGORY, 0, categories)
    return _Table(lengths, categories, np.where(lengths == 0, 0, lengths + extra).astype(np.uint8))


def _read_scan(
    state: _State, content: bytes, position: int, body: bytes, image: npt.NDArray[np.uint16]
) -> tuple[int, list[int]]:
    """Decode the components of a scan into ``image``; return where it ends, and which they are."""
    count = body[0] if body else 0
    if not state.components or not 1 <= count <= len(state.components) or len(body) != 4 + 2 * count:
        raise DamagedError
    names = [body[1 + 2 * n] for n in range(count)]
    tables = [state.tables.get(body[2 + 2 * n] >> 4) for n in range(count)]
    predictor, shift = body[1 + 2 * count], body[3 + 2 * count] & 15
    if not set(names) <= set(state.components) or None in tables or not 1 <= predictor <= 7 or shift >= state.precision:
        raise DamagedError
    indices = [state.components.index(name) for name in names]
    rows, columns = image.shape[:2]
    if state.restart % columns:
        raise DamagedError
    stripe = state.restart // columns or rows
    for top in range(0, rows, stripe):
        data, position = _entropy_coded(content, position)
        height = min(stripe, rows - top)
        differences = _differences(data, [table for table in tables if table], height * columns)
        for n, index in enumerate(indices):
            first = 1 << (state.precision - shift - 1)
            decoded = _predicted(differences[n::count].reshape(height, columns), predictor, first)
            image[top : top + height, :, index] = decoded << shift
        if top + height < rows:
            marker, _, position = _segment(content, position)
            if not _FIRST_RESTART <= marker <= _LAST_RESTART:
                raise DamagedError
    return position, indices


def _entropy_coded(content: bytes, position: int) -> tuple[bytes, int]:
    """Return the data from ``position`` to the next marker without stuffed zeros, and where that marker is."""
    end = position
    while True:
        end = content.find(b"\xff", end)
        if end < 0 or end + 1 >= len(content):
            end = len(content)
            break
        if content[end + 1] != 0:
            break
        end += 2
    return content[position:end].replace(b"\xff\x00", b"\xff"), end


def _differences(data: bytes, tables: list[_Table], pixels: int) -> npt.NDArray[np.int32]:
    """Return the differences of ``pixels * len(tables)`` samples, whose components take turns."""
    padded = np.frombuffer(data + bytes(_PADDING), np.uint8)
    steps = _steps(padded, tables)
    samples = pixels * len(tables)
    # Every sample takes a bit at least: a promise of more must not be allocated.
    if samples > 8 * len(data):
        raise DamagedError
    differences = np.empty(samples, np.int32)
    place = 0
    for start in range(0, samples, _CHUNK_SAMPLES):
        count = min(_CHUNK_SAMPLES, samples - start)
        places = []
        try:
            for n in range(start, start + count):
                places.append(place)
                place += steps[n % len(steps)][place]
        except IndexError:
            raise DamagedError from None
        if place > 8 * len(data):
            raise DamagedError
        found = np.array(places, np.int64)
        for n, table in enumerate(tables):
            own = slice((n - start) % len(tables), None, len(tables))
            differences[start : start + count][own] = _values(padded, found[own], table)
    return differences


def _steps(padded: npt.NDArray[np.uint8], tables: list[_Table]) -> list[bytes]:
    """Return, for each table, how many bits the code and the difference that start at each bit would take."""
    words = (padded[:-2].astype(np.uint32) << 16) | (padded[1:-1].astype(np.uint32) << 8) | padded[2:]
    found = []
    for table in tables:
        steps = np.empty((len(words), 8), np.uint8)
        for bit in range(8):
            steps[:, bit] = table.steps[(words >> (8 - bit)) & 0xFFFF]
        found.append(steps.tobytes())
    return found


def _values(padded: npt.NDArray[np.uint8], places: npt.NDArray[np.int64], table: _Table) -> npt.NDArray[np.int64]:
    """Return the differences that are coded at some bits."""
    word = np.zeros(len(places), np.int64)
    for n in range(5):
        word = (word << 8) | padded[(places >> 3) + n]
    word <<= places & 7
    window = (word >> 24) & 0xFFFF
    lengths, categories = table.lengths[window].astype(np.int64), table.categories[window].astype(np.int64)
    if not lengths.all():
        raise DamagedError
    value = (word >> (40 - lengths - categories)) & ((1 << categories) - 1)
    # T.81, figure F.12: the lower half of a category's codes are its negative differences.
    value = np.where(value < (1 << categories) >> 1, value - (1 << categories) + 1, value)
    return np.where(categories == _MOST_CATEGORY, 32768, value)


def _predicted(differences: npt.NDArray[np.int32], predictor: int, first: int) -> npt.NDArray[np.int64]:
    """Return samples, ``(rows, columns)``, of their differences from the prediction, modulo 65536 (T.81, H.1.2)."""
    image = differences.astype(np.int64)
    # The first row is predicted from the left, the first column from above.
    image[0, 0] += first
    image[0] = np.cumsum(image[0])
    image[:, 0] = np.cumsum(image[:, 0])
    if predictor == 1:
        image[1:] = np.cumsum(image[1:], axis=1)
    elif predictor == 2:
        image[:, 1:] = np.cumsum(image[:, 1:], axis=0)
    elif predictor in (3, 4, 5):
        _from_above(image, predictor)
    else:
        _from_both(image, predictor)
    return image & 0xFFFF


def _from_above(image: npt.NDArray[np.int64], predictor: int) -> None:
    """Add predictions that need no sum of the row itself: a row at a time."""
    image[0] &= 0xFFFF
    for above, row in pairwise(image):
        if predictor == 3:
            row[1:] += above[:-1]
        else:
            slope = above[1:] - above[:-1]
            row[1:] += slope if predictor == 4 else slope >> 1
            np.cumsum(row, out=row)
        row &= 0xFFFF


def _from_both(image: npt.NDArray[np.int64], predictor: int) -> None:
    """Add predictions that halve what the row itself makes: a sample at a time."""
    above = (image[0] & 0xFFFF).tolist()
    for row in image[1:]:
        values = row.tolist()
        left = values[0] & 0xFFFF
        for n in range(1, len(values)):
            predicted = above[n] + ((left - above[n - 1]) >> 1) if predictor == 6 else (left + above[n]) >> 1
            left = values[n] = (values[n] + predicted) & 0xFFFF
        row[:] = above = values
        above[0] &= 0xFFFF
