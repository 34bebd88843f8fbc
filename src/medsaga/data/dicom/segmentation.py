"""Reading DICOM segmentations (SEG): binary, fractional and label maps, onto the grid of an image series.

Every frame says where it lies, and is put there: by position, orientation and spacing of its own plane, whatever
the order of the frames, whichever slices they leave out, and also where their rows and columns run another way
than those of the images or cover a part of them. Frames without a position are put on the image that they refer to.
Nothing is resampled: a frame whose pixels are not pixels of the series is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medsaga.data.dicom.decoding import stored_frames
from medsaga.data.dicom.documents import (
    Canvas,
    items,
    merged_labels,
    printable,
    quiet,
    read_document,
    require_same_patient,
)
from medsaga.data.dicom.reading import guarded, numbers, text, uid, whole
from medsaga.data.types import Labels
from medsaga.errors import InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from medsaga.data.dicom.geometry import Geometry

STORAGE_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes: Segmentation Storage and Label Map Segmentation Storage."""

_KIND = "a DICOM segmentation (SEG)"
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_TOLERANCE_VOXELS = 0.2
"""By how much a pixel may miss the voxel that it is: positions are written with few decimals."""
_FAR_VOXELS = 1e9
"""Whatever lies farther outside lies outside."""


@dataclass(frozen=True)
class _Stored:
    """What a header says of the frames, checked against the size of the pixel data."""

    kind: str
    rows: int
    columns: int
    frames: int
    bits: int
    threshold: float
    """The least value of a fractional frame that is inside of its segment."""


@dataclass(frozen=True)
class _Place:
    """The plane of a label map that a frame covers: ``labels[where]`` is ``(rows, columns)`` or transposed."""

    where: tuple[slice | int, ...]
    transpose: bool


@quiet()
def segments_of(path: Path) -> dict[str, int]:
    """Return the names of the segments of a segmentation, with the labels that `read_segmentation` gives them.

    Raises:
        InputError: no readable segmentation.
    """
    document = read_document(path, STORAGE_CLASSES, _KIND)
    return merged_labels(_segments(path, document).items())[1]


@quiet()
def read_segmentation(
    path: Path, geometry: Geometry, wanted: Mapping[str, int] | None = None
) -> tuple[Labels, dict[str, int], tuple[str, ...]]:
    """Read a segmentation onto the grid of the series that it belongs to.

    Without ``wanted`` a label is the number of its segment; segments of the same name are one label, the lowest of
    their numbers. A
    voxel is inside of a fractional segment from one half of the maximum on. Where segments overlap, the highest
    label wins, and a warning counts the voxels.

    Args:
        path: the file.
        geometry: of the image series.
        wanted: see `medsaga.data.dicom.documents.merged_labels`.

    Returns:
        Labels of the shape of ``geometry.grid``, in the smallest unsigned type; the label of each name, also of
        segments without a voxel; warnings.

    Raises:
        InputError: no readable segmentation, one of another patient or frame of reference, a frame that lies on no
            slice of the series or on another grid, or a segment without a description.
    """
    document = read_document(path, STORAGE_CLASSES, _KIND)
    values, names, warnings = merged_labels(_segments(path, document).items(), wanted)
    require_same_patient(path, document, [uid(path, document, "FrameOfReferenceUID")], geometry)
    stored = _stored(path, document)
    frames = _frames(path, document, stored, geometry, values)
    canvas = Canvas(geometry.grid.shape, max(values.values(), default=0))
    for (place, number), pixels in zip(frames, _pixels(path, document, stored), strict=True):
        labelled = (
            _relabelled(path, document, pixels, values)
            if stored.kind == "LABELMAP"
            else (pixels >= stored.threshold) * canvas.labels.dtype.type(values[number])
        )
        canvas.lay(place.where, place.transpose, labelled)
    return canvas.labels, names, warnings + canvas.warnings()


def _segments(path: Path, document: Dataset) -> dict[int, str]:
    """Return number and printable name of each segment but the background of a label map, which has number 0."""
    segments: dict[int, str] = {}
    for item in items(path, document, "SegmentSequence"):
        number = whole(path, item, "SegmentNumber")
        if not 0 <= number <= 65535 or number in segments:
            raise _unusable(path, "segment numbers from 1 to 65535, each once", f"the number {number}")
        named = [
            *(text(path, item, word) for word in ("SegmentLabel", "SegmentDescription")),
            *(text(path, kind, "CodeMeaning") for kind in items(path, item, "SegmentedPropertyTypeCodeSequence")),
        ]
        segments[number] = next(filter(None, map(printable, named)), f"segment {number}")
    segments.pop(0, None)
    return segments


def _stored(path: Path, document: Dataset) -> _Stored:
    kind = text(path, document, "SegmentationType").upper() or "BINARY"
    rows, columns = (whole(path, document, name) for name in ("Rows", "Columns"))
    frames, bits = whole(path, document, "NumberOfFrames", 1), whole(path, document, "BitsAllocated")
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise _unusable(path, "a binary, fractional or label map segmentation", "another segmentation type")
    if min(rows, columns, frames) < 1 or bits not in (1, 8, 16) or whole(path, document, "SamplesPerPixel", 1) != 1:
        raise _unusable(
            path,
            "frames of at least 1 x 1 pixels of 1, 8 or 16 bits",
            f"{frames} frames of {columns} x {rows} pixels of {bits} bits",
        )
    described = len(items(path, document, "PerFrameFunctionalGroupsSequence"))
    if described != frames:
        raise _unusable(path, f"a description of each of its {frames} frames", f"{described} descriptions")
    if not _is_encapsulated(document) and document.original_encoding[1] is False:
        raise _unusable(path, "little endian pixels", "big endian ones")
    promised, held = (rows * columns * frames * bits + 7) // 8, len(_pixel_bytes(path, document))
    if held < promised and not _is_encapsulated(document):
        raise _unusable(path, f"{promised:,} bytes of pixels, as its header says", f"{held:,} bytes")
    most = whole(path, document, "MaximumFractionalValue", 255) if kind == "FRACTIONAL" else 1
    if most < 1:
        raise _unusable(path, "a MaximumFractionalValue of at least 1", "0")
    return _Stored(kind, rows, columns, frames, bits, most / 2)


def _pixel_bytes(path: Path, document: Dataset) -> bytes:
    with guarded(path):
        content = document.get("PixelData")
        in_fragments = isinstance(content, bytes) and document["PixelData"].is_undefined_length
    if not isinstance(content, bytes):
        raise _unusable(path, "pixel data", "none")
    if in_fragments and not _is_encapsulated(document):
        raise _unusable(path, "a transfer syntax that says how its pixels are compressed", "none, or another")
    return content


def _is_encapsulated(document: Dataset) -> bool:
    """Whether the pixels are compressed; a file without meta information has them as they are."""
    syntax = getattr(getattr(document, "file_meta", None), "TransferSyntaxUID", None)
    return bool(syntax is not None and not syntax.is_private and syntax.is_transfer_syntax and syntax.is_encapsulated)


def _frames(
    path: Path, document: Dataset, stored: _Stored, geometry: Geometry, values: dict[int, int]
) -> list[tuple[_Place, int]]:
    """Return place and segment number of every frame; the number is 0 in a label map, where pixels carry it."""
    shared = next(iter(items(path, document, "SharedFunctionalGroupsSequence")), None)
    instances = {(each.uid, each.frame): k for k, each in enumerate(geometry.instances)}
    affine = geometry.grid.affine
    to_index = None if affine is None else np.linalg.inv(affine).astype(np.float64)
    frames = []
    for groups in items(path, document, "PerFrameFunctionalGroupsSequence"):
        number = 0
        if stored.kind != "LABELMAP":
            number = whole(path, _group(path, groups, shared, "SegmentIdentification"), "ReferencedSegmentNumber")
            if number not in values:
                raise _unusable(path, "frames of segments that the file describes", f"one of segment {number}")
        corners = None if to_index is None else _corners(path, groups, shared, stored, to_index)
        if corners is None:
            place = _place_by_reference(path, groups, shared, stored, geometry, instances)
        else:
            place = _place(path, corners, stored, geometry.grid.shape)
        frames.append((place, number))
    return frames


def _group(path: Path, groups: Dataset, shared: Dataset | None, name: str) -> Dataset:
    """Return a functional group of a frame, its own or the shared one; an empty data set where there is none."""
    from pydicom.dataset import Dataset

    for each in (groups, shared):
        found = [] if each is None else items(path, each, f"{name}Sequence")
        if found:
            return found[0]
    return Dataset()


def _corners(
    path: Path, groups: Dataset, shared: Dataset | None, stored: _Stored, to_index: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64] | None:
    """Return the voxel indices, (3, 3), of the first pixel, the last of its row and the last of its column.

    None where the frame does not say where it lies.
    """
    position, cosines, spacing = (
        numbers(path, _group(path, groups, shared, group), keyword, count)
        for group, keyword, count in (
            ("PlanePosition", "ImagePositionPatient", 3),
            ("PlaneOrientation", "ImageOrientationPatient", 6),
            ("PixelMeasures", "PixelSpacing", 2),
        )
    )
    if position is None:
        return None
    if cosines is None or spacing is None:
        raise _unusable(path, "frames with an orientation and a pixel spacing", "a position alone")
    along_row, along_column = np.reshape(cosines, (2, 3)) * np.reshape(spacing[::-1], (2, 1))
    corners = position + np.array([np.zeros(3), along_row * (stored.columns - 1), along_column * (stored.rows - 1)])
    return np.clip(corners @ _LPS_TO_RAS @ to_index[:3, :3].T + to_index[:3, 3], -_FAR_VOXELS, _FAR_VOXELS)


def _place(path: Path, corners: npt.NDArray[np.float64], stored: _Stored, shape: tuple[int, ...]) -> _Place:
    """Find the voxels that a frame covers.

    The steps from corner to corner must be whole voxels along one axis each: then every pixel between is a voxel.
    """
    nearest = np.rint(corners)
    off = np.abs(corners - nearest)
    steps = (nearest[1:] - nearest[0]).astype(np.int64)
    extents = np.array([stored.columns - 1, stored.rows - 1])
    axes = np.abs(steps).argmax(axis=1)
    # A frame that is one pixel wide runs along whatever axis the other one leaves.
    if extents[0] == 0:
        axes[0] = (axes[1] + 1) % 3 if extents[1] else 0
    if extents[1] == 0:
        axes[1] = 1 if axes[0] != 1 else 0
    wanted = np.zeros((2, 3), np.int64)
    wanted[[0, 1], axes] = extents
    normal = 3 - axes.sum() if axes[0] != axes[1] else 2
    if axes[0] == axes[1] or (np.abs(steps) != wanted).any() or np.delete(off, normal, 1).max() > _TOLERANCE_VOXELS:
        raise InputError(
            path,
            expected="frames whose pixels are those of the image series",
            found="frames with another orientation, pixel size or offset",
            do="Resample the segmentation to the grid of the images, in the program that made it.",
        )
    at = int(nearest[0, normal])
    if off[:, normal].max() > _TOLERANCE_VOXELS or not 0 <= at < shape[normal]:
        raise InputError(
            path,
            expected="frames that lie on slices of the image series",
            found=f"one at slice {corners[0, normal] + 1:.2f} of {shape[normal]}",
            do="Give the series that it was drawn on, with all of its slices.",
        )
    where: list[slice | int] = [at, at, at]
    for axis, step in zip(axes, steps, strict=True):
        first, last = int(nearest[0, axis]), int(nearest[0, axis] + step[axis])
        if min(first, last) < 0 or max(first, last) >= shape[axis]:
            raise InputError(
                path,
                expected="frames within the images of the series",
                found="one that reaches out of them",
                do="Crop the segmentation to its images, in the program that made it.",
            )
        where[axis] = slice(first, last + 1) if last >= first else slice(first, last - 1 if last else None, -1)
    return _Place(tuple(where), transpose=bool(axes[0] < axes[1]))


def _place_by_reference(
    path: Path,
    groups: Dataset,
    shared: Dataset | None,
    stored: _Stored,
    geometry: Geometry,
    instances: dict[tuple[str, int | None], int],
) -> _Place:
    """Put a frame on the image that it was derived from."""
    references = [
        source
        for each in (groups, shared)
        if each is not None
        for derivation in items(path, each, "DerivationImageSequence")
        for source in items(path, derivation, "SourceImageSequence")
    ]
    slices: set[int] = set()
    for source in references:
        image, number = uid(path, source, "ReferencedSOPInstanceUID"), whole(path, source, "ReferencedFrameNumber", 1)
        slices.update(instances[key] for key in ((image, None), (image, number)) if key in instances)
    if len(slices) != 1:
        raise InputError(
            path,
            expected="frames that say where they lie, or which image of the series they belong to",
            found="one that does neither",
            do="Give the series that it was drawn on, or export the segmentation again.",
        )
    shape = geometry.grid.shape
    columns, rows = shape[:2] if len(shape) == 3 else shape[::-1]
    if (rows, columns) != (stored.rows, stored.columns):
        raise _unusable(
            path, f"frames of {columns} x {rows} pixels, as the images", f"{stored.columns} x {stored.rows}"
        )
    if len(shape) == 2:
        return _Place((slice(None), slice(None)), transpose=False)
    return _Place((slice(None), slice(None), slices.pop()), transpose=True)


def _pixels(path: Path, document: Dataset, stored: _Stored) -> Iterator[npt.NDArray[np.unsignedinteger]]:
    """Yield the frames, ``(rows, columns)``, one at a time."""
    if _is_encapsulated(document):
        compressed = stored_frames(path, range(stored.frames))
        for _ in range(stored.frames):
            with guarded(path, "frames that can be decoded"):
                frame = next(compressed)
            if frame.shape[0] != 1 or frame.dtype.kind != "u":
                raise _unusable(path, "frames of unsigned numbers", "frames of colours or signed numbers")
            yield frame[0]
        return
    # Unpacked here: frames of single bits follow each other without padding, so that most start within a byte. And a
    # label map in colours means its numbers, not their colours.
    size, content = stored.rows * stored.columns, _pixel_bytes(path, document)
    for first in range(0, size * stored.frames, size):
        if stored.bits == 1:
            packed = np.frombuffer(content[first // 8 : (first + size + 7) // 8], np.uint8)
            flat = np.unpackbits(packed, bitorder="little")[first % 8 : first % 8 + size]
        else:
            flat = np.frombuffer(content, f"<u{stored.bits // 8}", size, first * stored.bits // 8)
        yield flat.reshape(stored.rows, stored.columns)


def _relabelled(
    path: Path, document: Dataset, pixels: npt.NDArray[np.unsignedinteger], values: dict[int, int]
) -> npt.NDArray[np.unsignedinteger]:
    """Replace the segment numbers in a frame of a label map by labels."""
    padding = whole(path, document, "PixelPaddingValue", 0)
    lookup = np.zeros(2**16, np.min_scalar_type(max(values.values(), default=0)))
    described = np.zeros(2**16, np.bool_)
    for number, value in {0: 0, **values, padding & 0xFFFF: 0}.items():
        lookup[number], described[number] = value, True
    if not described[pixels].all():
        unknown = int(pixels[~described[pixels]][0])
        raise _unusable(path, "pixels of segments that the file describes", f"one of segment {unknown}")
    return lookup[pixels]


def _unusable(path: Path, expected: str, found: str) -> InputError:
    return InputError(path, expected=expected, found=found, do="Export the segmentation again, or repair its header.")
