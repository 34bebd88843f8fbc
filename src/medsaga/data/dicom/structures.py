"""Reading RT structure sets: closed planar contours, filled on the grid of an image series.

Contours are brought into voxel coordinates of the series, in which its slices are the planes k = 0, 1, ... whatever
its orientation, and are filled there at full accuracy (`medsaga.data.dicom.contours`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medsaga.data.bounds import MOST_CONTOUR_MM
from medsaga.data.dicom.contours import inside, work
from medsaga.data.dicom.documents import (
    Canvas,
    items,
    merged_labels,
    printable,
    quiet,
    read_document,
    require_same_patient,
)
from medsaga.data.dicom.reading import guarded, text, uid, whole
from medsaga.data.types import Labels
from medsaga.errors import InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from medsaga.data.dicom.geometry import Geometry

STORAGE_CLASSES = ("1.2.840.10008.5.1.4.1.1.481.3",)
"""SOP class: RT Structure Set Storage."""

_KIND = "an RT structure set (RTSTRUCT)"
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_FLATNESS = 0.25
"""By what part of the distance between slices the points of a contour may leave its plane."""
_SAME_PLANE = 0.05
"""Contours that are closer than this part of the distance between slices were drawn on one plane."""
_MOST_WORK = 2**31
"""Steps of filling, which take a minute or two: as many as 100 outlines of the body on 300 slices need."""


@dataclass
class _Structure:
    """One region of interest.

    Attributes:
        name: for people.
        elsewhere: whether it names another frame of reference than the series has.
        contours: closed ones, each ``(points, 3)`` in voxel indices of the series.
        others: number of contours that enclose nothing: points, open lines.
    """

    name: str
    elsewhere: bool = False
    contours: list[npt.NDArray[np.float64]] = field(default_factory=list)
    others: int = 0


@quiet()
def structures_of(path: Path) -> dict[str, int]:
    """Return the names of the structures in a set, with the labels that `read_structures` gives them.

    Raises:
        InputError: no readable structure set.
    """
    document = read_document(path, STORAGE_CLASSES, _KIND)
    structures = _structures(path, document, None)
    return _labels(structures)[1]


@quiet()
def read_structures(
    path: Path, geometry: Geometry, wanted: Mapping[str, int] | None = None
) -> tuple[Labels, dict[str, int], tuple[str, ...]]:
    """Read a structure set onto the grid of the series that it was drawn on.

    A voxel is inside of a structure when its centre is inside of an odd number of the contours on its slice: holes
    may be drawn as keyholes or as contours of their own. A contour between two slices belongs to the nearer one; of
    contours on several planes that belong to one slice, those of the nearest plane count. Without ``wanted`` labels
    are 1, 2, ... in ascending order of ROI numbers. Structures of the same name are one label. Where structures
    overlap, the highest label wins, and a warning counts the voxels. Structures that consist of points or open lines
    have no label.

    Args:
        path: the file.
        geometry: of the image series.
        wanted: see `medsaga.data.dicom.documents.merged_labels`.

    Returns:
        Labels ``(i, j, k)`` in the smallest unsigned type; the label of each name, also of structures without a
        voxel; warnings.

    Raises:
        InputError: no readable structure set, one of another patient or frame of reference, a series without
            positions, or contours whose filling would take unbounded time.
    """
    document = read_document(path, STORAGE_CLASSES, _KIND)
    referenced = [uid(path, each, "FrameOfReferenceUID") for each in _referenced(path, document)]
    rois = items(path, document, "StructureSetROISequence")
    own = [uid(path, each, "ReferencedFrameOfReferenceUID") for each in rois]
    require_same_patient(path, document, [*referenced, *own], geometry)
    if geometry.grid.affine is None:
        raise InputError(
            path,
            expected="an image series with positions in space, for contours are in mm",
            found="images without",
            do="Give the series that the structures were drawn on.",
        )
    structures = _structures(path, document, geometry)
    values, names, warnings = _labels(structures, wanted)
    canvas = Canvas(geometry.grid.shape, max(values.values(), default=0))
    found = [*warnings]
    if wanted is not None:
        # Plans outline the body, the couch and margins, too: nobody wants to hear of gaps in those.
        structures = {number: each for number, each in structures.items() if values.get(number)}
    _require_bounded(path, structures, geometry.grid.shape)
    for number, structure in structures.items():
        found += _draw(structure, values.get(number, 0), canvas)
    return canvas.labels, names, (*found, *canvas.warnings())


def _referenced(path: Path, document: Dataset) -> list[Dataset]:
    return items(path, document, "ReferencedFrameOfReferenceSequence")


def _structures(path: Path, document: Dataset, geometry: Geometry | None) -> dict[int, _Structure]:
    """Return the structures by their ROI numbers, ascending; with their contours when there is a geometry."""
    for keyword in ("StructureSetROISequence", "ROIContourSequence"):
        if keyword not in document:
            raise _unusable(path, f"a structure set with {keyword}", "none")
    structures: dict[int, _Structure] = {}
    for item in items(path, document, "StructureSetROISequence"):
        number = whole(path, item, "ROINumber")
        if number in structures:
            raise _unusable(path, "ROI numbers that differ", f"the number {number} twice")
        space = uid(path, item, "ReferencedFrameOfReferenceUID")
        mine = geometry.frame_of_reference if geometry is not None else ""
        name = printable(text(path, item, "ROIName")) or f"structure {number}"
        structures[number] = _Structure(name, elsewhere=bool(space and mine and space != mine))
    for item in items(path, document, "ROIContourSequence"):
        structure = structures.get(whole(path, item, "ReferencedROINumber"))
        if structure is None:
            raise _unusable(path, "contours of structures that the file names", "contours of another one")
        for contour in items(path, item, "ContourSequence"):
            if text(path, contour, "ContourGeometricType").upper() not in _CLOSED:
                structure.others += 1
            elif geometry is None or structure.elsewhere:
                structure.contours.append(np.empty((0, 3)))
            else:
                structure.contours.append(_to_index(_points(path, contour), geometry))
    return dict(sorted(structures.items()))


def _labels(
    structures: dict[int, _Structure], wanted: Mapping[str, int] | None = None
) -> tuple[dict[int, int], dict[str, int], tuple[str, ...]]:
    """Number the structures that enclose something, or are empty, from 1 on; see `merged_labels`."""
    regions = [number for number, each in structures.items() if each.contours or not each.others]
    numbered = ((n, structures[number].name) for n, number in enumerate(regions, 1))
    values, names, warnings = merged_labels(numbered, wanted)
    return {number: values[n] for n, number in enumerate(regions, 1)}, names, warnings


def _points(path: Path, contour: Dataset) -> npt.NDArray[np.float64]:
    """Return the points of a contour, ``(points, 3)``, in mm, LPS.

    The decimal strings are parsed at once: pydicom would make an object of each, and a contour can have millions.
    """
    with guarded(path):
        element: Any = contour.get_item("ContourData")
        value = None if element is None else element.value
        if isinstance(value, bytes):
            strings = value.strip(b" \0")
            value = np.array(strings.split(b"\\") if strings else [], dtype=np.bytes_)
        numbers = np.array([] if value is None else value).astype(np.float64).ravel()
    if len(numbers) % 3 or not (np.abs(numbers) <= MOST_CONTOUR_MM).all():
        raise _unusable(path, "contours of points with three finite coordinates in mm", f"{len(numbers)} numbers")
    return numbers.reshape(-1, 3)


def _to_index(points: npt.NDArray[np.float64], geometry: Geometry) -> npt.NDArray[np.float64]:
    """Bring points in mm, LPS, to voxel indices (i, j, k) of the series."""
    assert geometry.grid.affine is not None
    inverse = np.linalg.inv(geometry.grid.affine)
    return (points * [-1, -1, 1]) @ inverse[:3, :3].T + inverse[:3, 3]


def _require_bounded(path: Path, structures: dict[int, _Structure], shape: tuple[int, ...]) -> None:
    contours = (each[:, :2] for structure in structures.values() for each in structure.contours)
    steps = sum(work(each, (shape[0], shape[1])) for each in contours)
    if steps > _MOST_WORK:
        raise InputError(
            path,
            expected="contours that can be filled within minutes",
            found=f"contours that need {steps / _MOST_WORK:.1f} times as long",
            do="Export fewer structures: no anatomy needs so many contours that are so large or so crooked.",
        )


def _draw(structure: _Structure, value: int, canvas: Canvas) -> list[str]:
    """Draw one structure on the label map and return the warnings about it."""
    warnings: Counter[str] = Counter()
    if structure.others:
        warnings["contours left out, for they enclose nothing (points, open lines)"] = structure.others
    if structure.elsewhere and structure.contours:
        warnings["contours left out, for they have another frame of reference"] = len(structure.contours)
        return _said(structure, warnings)
    shape = canvas.labels.shape
    drawn = set()
    for k, contours in _by_slice(structure, shape[2], warnings):
        drawn.add(k)
        if value:
            (i, j), mask = _filled(contours, shape)
            canvas.lay((i, j, k), False, mask * canvas.labels.dtype.type(value))
    if structure.contours and not drawn:
        warnings["meets no slice of the series; contours"] = len(structure.contours)
    gaps = max(drawn) - min(drawn) + 1 - len(drawn) if drawn else 0
    if gaps:
        warnings["slices without a contour between its first and its last one, which stay empty"] = gaps
    return _said(structure, warnings)


def _said(structure: _Structure, warnings: Counter[str]) -> list[str]:
    return [f"{structure.name}: {words}: {count}" for words, count in warnings.items()]


def _by_slice(
    structure: _Structure, slices: int, warnings: Counter[str]
) -> Iterator[tuple[int, list[npt.NDArray[np.float64]]]]:
    """Yield each slice that contours belong to, with their points ``(points, 2)`` in (i, j)."""
    planes: dict[int, dict[float, list[npt.NDArray[np.float64]]]] = {}
    seen = set()
    previous = -np.inf
    flat = [each for each in structure.contours if len(each) >= 3]
    warnings["contours left out, for they have less than 3 points"] += len(structure.contours) - len(flat)
    for height, contour in sorted(((float(each[:, 2].mean()), each) for each in flat), key=lambda pair: pair[0]):
        if np.ptp(contour[:, 2]) > 2 * _FLATNESS:
            warnings["contours left out, for they are not parallel to the slices"] += 1
            continue
        if not -0.5 <= height < slices - 0.5:
            warnings["contours left out, for they lie outside of the slices"] += 1
            continue
        # A contour that the file holds twice would be a hole in itself.
        fingerprint = contour.tobytes()
        if fingerprint in seen:
            warnings["contours that occur a second time and count once"] += 1
            continue
        seen.add(fingerprint)
        plane = previous if height - previous <= _SAME_PLANE else height
        previous = plane
        k = min(int(np.floor(height + 0.5)), slices - 1)
        planes.setdefault(k, {}).setdefault(plane, []).append(contour[:, :2])
    for k, found in planes.items():
        nearest = min(found, key=lambda plane: abs(plane - k))
        left = sum(len(each) for plane, each in found.items() if plane != nearest)
        warnings["contours left out, for those of a plane nearer to the slice count"] += left
        yield k, found[nearest]
    for words in [words for words, count in warnings.items() if not count]:
        del warnings[words]


def _filled(
    contours: list[npt.NDArray[np.float64]], shape: tuple[int, ...]
) -> tuple[tuple[slice, slice], npt.NDArray[np.bool_]]:
    """Fill contours within their bounding box: where it is in the slice, and the voxels inside of it."""
    points = np.concatenate(contours)
    low = np.clip(np.floor(points.min(axis=0)), 0, shape[:2]).astype(np.int64)
    high = np.clip(np.ceil(points.max(axis=0)) + 1, low, shape[:2]).astype(np.int64)
    mask = inside([each - low for each in contours], (int(high[0] - low[0]), int(high[1] - low[1])))
    return (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))), mask


def _unusable(path: Path, expected: str, found: str) -> InputError:
    return InputError(path, expected=expected, found=found, do="Export the structure set again.")
