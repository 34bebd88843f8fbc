"""DICOM files that speak of images without being images: opening them, and what they say, checked.

Segmentations and structure sets come from many programs, and from damaged disks; they are long lists of items where
images are few elements. What they have in common is here: the file within bounds, the space and the patient that
they must share with their images, names as labels, and one number per voxel.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from medsaga.data.bounds import MOST_INFLATED_BYTES
from medsaga.data.dicom.reading import guarded, uid
from medsaga.data.dicom.sources import source_header
from medsaga.data.names import normal
from medsaga.errors import InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from medsaga.data.dicom.geometry import Geometry

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_META_BYTES = 4096
_ELEMENT_HEAD_BYTES = 8
_INFLATED_AT_ONCE = 2**24
_MOST_LABEL_CHARACTERS = 60
_BACKGROUND = "background"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the warnings of pydicom and highdicom silent, which quote values: names, dates and UIDs."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [each.level for each in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in loggers:
            each.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for each, level in zip(loggers, levels, strict=True):
                each.setLevel(level)


class TruncatedError(Exception):
    """A file ends within an element. No EOFError: that one pydicom takes for the end of the file."""


class _Whole:
    """A file whose elements must be as long as they say.

    pydicom takes what is left of a truncated file for the value of its last element. And asking an ordinary file for
    a length that a damaged header claims allocates that length first.
    """

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._size = content, len(content)
        self.seek, self.tell, self.name = content.seek, content.tell, ""

    def read(self, count: int = -1) -> bytes:
        # Only the first eight bytes of an element may be missing: that is how pydicom finds the end of a file.
        if count > self._size - self.tell() and count != _ELEMENT_HEAD_BYTES:
            raise TruncatedError
        return self._content.read(None if count < 0 else count)


def read_document(path: Path, storage_classes: tuple[str, ...], kind: str) -> Dataset:
    """Return the data set of a file whose SOP class is one of ``storage_classes``.

    Args:
        path: the file, with or without the preamble of a DICOM file.
        storage_classes: UIDs of the accepted SOP classes.
        kind: what such a file is called, for the message.

    Raises:
        InputError: no such file, another kind of file, or a damaged one. A header cannot make it read more than the
            file holds, or inflate it to more than 1 GiB.
    """
    from pydicom import dcmread

    # Also keeps away from pipes, which would wait for their writers.
    with guarded(path, f"{kind} that can be read"):
        if not path.is_file():
            raise FileNotFoundError
        with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _refuse_bombs(content)
            document = dcmread(cast(BinaryIO, _Whole(content)), force=True)
    if uid(path, document, "SOPClassUID") not in storage_classes:
        raise InputError(
            path,
            expected=kind,
            found="another kind of DICOM file" if "SOPClassUID" in document else "no DICOM file",
            do="Give the file that the segmentation or planning program exported.",
        )
    return document


def _refuse_bombs(content: mmap.mmap) -> None:
    """Raise when a deflated file would fill the memory; pydicom inflates such files in one go."""
    if content[128:132] != b"DICM" or _DEFLATED not in content[:_META_BYTES]:
        return
    # Where the data set begins, as the first element says: the length of the rest of the meta information.
    inflater, pending = zlib.decompressobj(-zlib.MAX_WBITS), content[144 + int.from_bytes(content[140:144], "little") :]
    inflated = 0
    while pending and not inflater.eof:
        inflated += len(inflater.decompress(pending, _INFLATED_AT_ONCE))
        pending = inflater.unconsumed_tail
        if inflated > MOST_INFLATED_BYTES:
            raise MemoryError


def items(where: Path, dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; none where it is missing.

    Raises:
        InputError: the element is no sequence.
    """
    from pydicom.sequence import Sequence

    with guarded(where):
        value: Any = dataset.get(keyword)
    if value is None:
        return []
    if not isinstance(value, Sequence):
        raise InputError(
            where,
            expected=f"a sequence in {keyword}",
            found="something else",
            do="Export the file again: it is damaged.",
        )
    return list(value)


def require_same_patient(path: Path, document: Dataset, frames_of_reference: Iterable[str], geometry: Geometry) -> None:
    """Require that a document speaks of the space and the patient of a series.

    Args:
        frames_of_reference: the UIDs that the document names; empty ones count as none.
        geometry: of the series.

    Raises:
        InputError: the frames of reference differ, or both name a patient and the patients differ.
    """
    named = {each for each in frames_of_reference if each}
    if named and geometry.frame_of_reference and geometry.frame_of_reference not in named:
        raise InputError(
            path,
            expected="the frame of reference of the image series",
            found="another one: it was drawn on another examination",
            do="Give the series that it was drawn on.",
        )
    images = geometry.instances[0].file
    source = source_header(images)
    mine, theirs = (uid(where, each, "PatientID") for where, each in ((path, document), (images, source)))
    if mine and theirs and mine != theirs:
        raise InputError(
            path,
            expected="the patient of the image series",
            found="another patient",
            do="Give the series that it was drawn on, or anonymise both in the same way.",
        )


def printable(words: str) -> str:
    """Return a name in one line of printable characters, cut to 60."""
    shown = "".join(each if each.isprintable() else " " for each in normal(words))
    return " ".join(shown.split())[:_MOST_LABEL_CHARACTERS].strip()


def as_key(name: str) -> str:
    """Return what is compared of a name: letters and digits, whatever their case and what stands between them."""
    return " ".join(re.findall(r"[^\W_]+", normal(name).casefold()))


def merged_labels(
    found: Iterable[tuple[int, str]], wanted: Mapping[str, int] | None = None
) -> tuple[dict[int, int], dict[str, int], tuple[str, ...]]:
    """Make labels of numbered names: those of the same name are one label, and the background is none.

    Args:
        found: number, at least 1, and printable name of each segment or structure.
        wanted: the label value of each name that counts, compared by `as_key`, or as they are where that makes two of
            them one (HER2+ and HER2-); all others are background. None takes every name, with its number for the value.

    Returns:
        The label value of each number, 0 where the name says background; the label value of each name, which is the
        lowest of its numbers; one warning for each name that several bear.
    """
    values: dict[int, int] = {}
    names: dict[str, int] = {}
    times: dict[str, int] = {}
    keys = Counter(map(as_key, wanted or ()))

    def compared(name: str) -> str:
        key = as_key(name)
        return key if keys[key] < 2 else normal(name).casefold()

    given = None if wanted is None else {compared(name): value for name, value in wanted.items()}
    for number, name in sorted(found):
        value = number if given is None else given.get(compared(name), 0)
        if name.casefold() == _BACKGROUND or value == 0:
            values[number] = 0
            continue
        values[number] = names.setdefault(name, value)
        times[name] = times.get(name, 0) + 1
    return values, names, tuple(f"{n} are called {name!r}: read as one label" for name, n in times.items() if n > 1)


class Canvas:
    """A label map, ``(*shape)``, onto which masks are laid; where labels overlap, the highest wins.

    One number per voxel cannot say that it belongs to two structures. The highest label wins whatever the order in
    the file is, and `warnings` counts the voxels for which that mattered.
    """

    def __init__(self, shape: tuple[int, ...], highest: int) -> None:
        # In Fortran's order a slice is one block of memory, and laying a mask on it ten times as fast.
        self.labels: npt.NDArray[np.unsignedinteger] = np.zeros(shape, np.min_scalar_type(highest), order="F")
        self._shared = np.zeros(shape, np.bool_, order="F")

    def lay(self, where: tuple[slice | int, ...], transpose: bool, values: npt.NDArray[np.unsignedinteger]) -> None:
        """Lay ``values``, ``(rows, columns)`` labels with 0 outside, on the plane ``where``."""
        labels, shared = (each[where].T if transpose else each[where] for each in (self.labels, self._shared))
        shared |= (labels != 0) & (values != 0) & (labels != values)
        np.maximum(labels, values, out=labels, casting="same_kind")

    def warnings(self) -> tuple[str, ...]:
        """Say how many voxels lie in more than one label; nothing where there are none."""
        count = int(self._shared.sum())
        return (f"voxels in more than one label, of which the highest wins: {count}",) if count else ()
