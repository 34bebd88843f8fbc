"""Volumes that are larger than the memory: their slices lie in a temporary file, written as the image is decoded.

A file of voxels is read and written piece by piece, never mapped into memory: what a mapping has read counts as the
process's memory until the system takes it back, and on a full disk a mapping ends the process.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from io import FileIO
from typing import Any

import numpy as np
import numpy.typing as npt

from medsaga.data.dicom.pixels import read_slices
from medsaga.data.formats import PiecewiseFormat, format_of
from medsaga.data.slices import SliceView
from medsaga.data.sources import geometry_of, place_of, read_header, read_image
from medsaga.data.types import Array, Block, Item, Series, Source
from medsaga.errors import InputError

LARGEST_IN_MEMORY = 2**28
"""Bytes of an image or of a result; what is larger lies in a temporary file. A CT of 500 slices has as many."""
_BLOCK_BYTES = 2**25
_VOLUME, _RESULT = "a large volume", "a large result"


class SliceFile:
    """The slices of a volume in a temporary file, which goes with the object.

    In the file each slice is ``(channels, slow, fast)``: its two axes in the order in which images store them, so that
    blocks of an image are written in long runs, whichever axis the slices are cut across.
    """

    def __init__(self, view: SliceView, channels: int, dtype: np.dtype) -> None:
        """Make an empty file in the system's folder for temporary files.

        Raises:
            InputError: the file has no room there.
        """
        self.view = view
        self.dtype = dtype
        across = view.order[0]
        self._slow, self._fast = sorted(set(range(3)) - {across}, reverse=True)
        self._shape = (channels, view.shape[self._slow], view.shape[self._fast])
        self._slice_bytes = math.prod(self._shape) * dtype.itemsize
        self._file = _scratch_file(self._slice_bytes * view.slices, _VOLUME)
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        """Return the number of slices."""
        return self.view.slices

    def __getitem__(self, index: int) -> Array:
        """Return a slice, ``(channels, height, width)``, as `SliceView.view` shows it."""
        assert 0 <= index < len(self)
        stored = np.empty(self._shape, self.dtype)
        self._file.seek(self._place(index) * self._slice_bytes)
        unread = stored.data.cast("B")
        while unread:
            count = self._file.readinto(unread)
            assert count, "the whole volume was written"
            unread = unread[count:]
        rows_first = self.view.order[1] == self._slow
        rows, columns = (slice(None, None, -1 if flip else 1) for flip in self.view.flips[1:])
        return (stored if rows_first else stored.swapaxes(1, 2))[:, rows, columns]

    def write(self, block: Block) -> None:
        """Put voxels at their places.

        Raises:
            InputError: the disk is full.
        """
        first_channel, first_k, voxels = block
        across, (channels, slow, fast) = self.view.order[0], self._shape
        is_whole = voxels.shape[1 + self._slow] == slow
        first_slice, first_row = (first_k, 0) if across == 2 else (0, first_k)
        planes = voxels.transpose(1 + across, 0, 1 + self._slow, 1 + self._fast)
        with _explaining(_VOLUME):
            for n, plane in enumerate(planes, first_slice):
                # The rows of one channel lie together; whole channels do, too.
                for channel, run in enumerate([plane] if is_whole else plane, first_channel):
                    row = (n * channels + channel) * slow + first_row
                    self._file.seek(row * fast * self.dtype.itemsize)
                    _write_all(self._file, np.ascontiguousarray(run, self.dtype).data.cast("B"))

    def _place(self, index: int) -> int:
        return len(self) - 1 - index if self.view.flips[0] else index


def is_large(item: Item) -> bool:
    """Whether the voxels of an item are too many to be held in memory at once; 2-D images never are."""
    header = item.header
    voxels = header.channels * math.prod(header.grid.shape)
    return len(header.grid.shape) == 3 and voxels * header.dtype.itemsize > LARGEST_IN_MEMORY


def read_to_file(item: Item, view: SliceView) -> SliceFile:
    """Decode a volume into a temporary file.

    NIfTI, NRRD, MetaImage and DICOM are decoded in pieces; other formats whole, one file at a time.

    Raises:
        InputError: a file cannot be read, has another shape than the header that the item was found with, or there is
            no room for the temporary file.
    """
    headers = [read_header(source) for source in item.images]
    for source, header in zip(item.images, headers, strict=True):
        if header.grid.shape != view.shape:
            raise InputError(
                place_of(source),
                expected=f"the shape {view.shape} of {item.name}",
                found=f"{header.grid.shape}",
                do="Export the file again, on the grid of its image.",
            )
    firsts = np.cumsum([0, *(header.channels for header in headers)])
    assert firsts[-1] == item.header.channels, "a dataset has the channels of its files"
    dtype = np.result_type(*(header.dtype for header in headers))
    while True:
        slices = SliceFile(view, int(firsts[-1]), dtype)
        wider = _fill(slices, item.images, [int(first) for first in firsts[:-1]])
        if wider is None:
            return slices
        # A slice of a DICOM series may hold values that its header did not let expect: once more, and wide enough.
        dtype = wider


def _fill(slices: SliceFile, sources: Sequence[Source], firsts: Sequence[int]) -> np.dtype | None:
    """Write all sources; return a dtype as soon as that of ``slices`` turns out to be too narrow."""
    for source, first_channel in zip(sources, firsts, strict=True):
        for channel, k, voxels in blocks_of(source):
            wanted = np.result_type(slices.dtype, voxels.dtype)
            if wanted != slices.dtype:
                return wanted
            slices.write((first_channel + channel, k, voxels))
    return None


def blocks_of(source: Source) -> Iterator[Block]:
    """Yield a volume in pieces: those of its file or series, or all of it where its format knows no pieces.

    Raises:
        InputError: it cannot be read; damage at the end of a file is found at the end.
    """
    if isinstance(source, Series):
        yield from _series_blocks(source)
        return
    form = format_of(source)
    if isinstance(form, PiecewiseFormat):
        yield from form.read_blocks(source, _BLOCK_BYTES)
    else:
        yield 0, 0, read_image(source)


def _series_blocks(series: Series) -> Iterator[Block]:
    """Yield several slices at a time: a slice across them is written in runs that are as long."""
    waiting: list[Array] = []
    for k, plane in enumerate(read_slices(series, geometry_of(series))):
        waiting.append(plane)
        if len(waiting) * plane.nbytes >= _BLOCK_BYTES:
            yield 0, k + 1 - len(waiting), np.stack(waiting, axis=-1)
            waiting = []
    if waiting:
        yield 0, k + 1 - len(waiting), np.stack(waiting, axis=-1)


def empty_result(shape: tuple[int, ...], order: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return an array to be filled, in memory or, if it is large, mapped to a temporary file that goes with it.

    Args:
        shape: of the array.
        order: its axes, the one that is outermost in memory first.
        dtype: of the array.

    Raises:
        InputError: the file has no room.
    """
    stored = tuple(shape[axis] for axis in order)
    size = math.prod(stored) * np.dtype(dtype).itemsize
    if size <= LARGEST_IN_MEMORY:
        return np.empty(stored, dtype).transpose(np.argsort(order))
    with _scratch_file(size, _RESULT) as file:
        with _explaining(_RESULT):
            # All of it is written once: on a full disk, a mapping of a file with holes would end the process.
            for start in range(0, size, _BLOCK_BYTES):
                _write_all(file, memoryview(bytes(min(_BLOCK_BYTES, size - start))))
        return np.memmap(file, dtype, mode="r+", shape=stored).transpose(np.argsort(order))


def _write_all(file: FileIO, content: memoryview) -> None:
    while content:
        content = content[file.write(content) :]


def _scratch_file(size: int, what: str) -> FileIO:
    """Open a temporary file without a name, which goes when it is closed.

    It has no buffer: what could not be written would be tried again when it is closed, and raise anew.

    Raises:
        InputError: there is no room for ``size`` bytes of ``what``.
    """
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < size:
        raise _full(what, f"{size / 2**20:,.0f} MiB of free disk", f"{free / 2**20:,.0f} MiB")
    with _explaining(what):
        return tempfile.TemporaryFile(buffering=0)


@contextlib.contextmanager
def _explaining(what: str) -> Iterator[None]:
    """Raise an InputError when the folder for temporary files does not take what is written."""
    try:
        yield
    except OSError as error:
        raise _full(what, "free disk", error.strerror or "an error") from error


def _full(what: str, expected: str, found: str) -> InputError:
    return InputError(
        tempfile.gettempdir(),
        expected=f"{expected} for {what} in the folder for temporary files",
        found=found,
        do="Make room there, or name a folder on a larger disk in the environment variable TMPDIR.",
    )
