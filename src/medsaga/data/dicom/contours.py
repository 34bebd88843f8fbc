"""Filling planar contours: which points of an integer grid lie inside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

_DECIMALS = 4
"""Vertices are rounded to this part of a voxel, so that a contour through voxel centres means the same on all sides
whatever the last digits of its coordinates are."""
_CHUNK = 2**21
_POINTS_PER_STEP = 4


def work(contour: npt.NDArray[np.float64], shape: tuple[int, int]) -> int:
    """Return about how many steps of some 40 ns it takes to fill a contour, ``(points, 2)``, on a grid."""
    if not len(contour):
        return 0
    first, last = _lines(contour[:, 1], np.roll(contour[:, 1], -1), shape[1])
    low, high = (np.clip(edge, 0, shape) for edge in (contour.min(axis=0), contour.max(axis=0) + 1))
    return int((last - first).sum()) + int(np.prod(high - low)) // _POINTS_PER_STEP


def inside(contours: Sequence[npt.NDArray[np.float64]], shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the points of a grid that lie inside of an odd number of times, ``shape``.

    A point is inside when a line from it to infinity crosses all contours together an odd number of times (even-odd
    rule). So a contour in another one is a hole, and so is what a keyhole, which runs back along its own cut, leaves
    out. A point exactly on a contour belongs to the side of higher coordinates: of two areas that share an edge, to
    one and only one.

    Args:
        contours: each ``(points, 2)`` in grid coordinates (i, j), finite, closed by an edge from the last point to
            the first.
        shape: number of grid points along i and j.
    """
    parity = np.zeros((shape[1], shape[0] + 1), np.uint8)
    # All edges at once: parity does not care which contour one belongs to, and a slice may have thousands of contours.
    starts = [np.round(contour, _DECIMALS) for contour in contours if len(contour)]
    if starts:
        ends = [np.roll(each, -1, axis=0) for each in starts]
        for edges in _chunks(np.concatenate(starts), np.concatenate(ends), shape[1]):
            _toggle(parity, *edges)
    # From a crossing on, every point of the line has one more crossing behind it.
    return np.bitwise_xor.accumulate(parity[:, :-1], axis=1).T.astype(np.bool_)


def _lines(
    start: npt.NDArray[np.float64], end: npt.NDArray[np.float64], columns: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the first line that each edge crosses, and one after the last: the lines with low <= j < high."""
    limits = np.clip(np.ceil(np.sort([start, end], axis=0)), 0, columns).astype(np.int64)
    return limits[0], limits[1]


def _chunks(
    starts: npt.NDArray[np.float64], ends: npt.NDArray[np.float64], columns: int
) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield edges that cross about `_CHUNK` lines together: start, end, first line, number of lines of each."""
    first, last = _lines(starts[:, 1], ends[:, 1], columns)
    crossing = np.flatnonzero(last > first)
    count = (last - first)[crossing]
    for some in np.split(np.arange(len(crossing)), np.flatnonzero(np.diff(np.cumsum(count) // _CHUNK)) + 1):
        edges = crossing[some]
        yield starts[edges], ends[edges], first[edges], count[some]


def _toggle(
    parity: npt.NDArray[np.uint8],
    start: npt.NDArray[np.float64],
    end: npt.NDArray[np.float64],
    first: npt.NDArray[np.int64],
    count: npt.NDArray[np.int64],
) -> None:
    """Flip, in ``parity`` (j, i), the first point at or after each crossing of an edge and a line."""
    edge = np.repeat(np.arange(len(count)), count)
    line = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    slope = (end[:, 0] - start[:, 0]) / (end[:, 1] - start[:, 1])
    at = start[edge, 0] + (line - start[edge, 1]) * slope[edge]
    point = np.clip(np.ceil(np.round(at, 2 * _DECIMALS)), 0, parity.shape[1] - 1).astype(np.int64)
    flat = line * parity.shape[1] + point
    parity ^= (np.bincount(flat, minlength=parity.size) & 1).astype(np.uint8).reshape(parity.shape)
