"""Single slices as their headers describe them: one file may hold one, or many as frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsaga.data.bounds import SPACING_LIMITS_MM
from medsaga.data.dicom import decoding, reading
from medsaga.errors import InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_CENTIMETRES = 3
"""The code of a length among the units of ultrasound regions."""
DISTINCTIONS = (
    *("EchoTime", "EchoNumbers", "TemporalPositionIdentifier", "TriggerTime", "DiffusionBValue", "ImageType"),
    *("AcquisitionNumber", "FlipAngle", "InversionTime", "ConvolutionKernel", "KVP", "ComplexImageComponent"),
)
"""What images of one place may differ in; named in messages, their values are not shown."""
_KEYWORDS = (
    *decoding.KEYWORDS,
    *("SOPInstanceUID", "FrameOfReferenceUID"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "RescaleSlope", "RescaleIntercept"),
    *DISTINCTIONS,
)
_FLAT_KEYWORDS = ("ImagerPixelSpacing", "NominalScannedPixelSpacing", "SequenceOfUltrasoundRegions")


@dataclass(frozen=True)
class Instance:
    """Where one slice is stored.

    Attributes:
        file: the file.
        uid: SOPInstanceUID; never shown.
        frame: number of the frame in the file, from 1 as DICOM counts them; None in a single-frame file.
        slope: what its stored pixels are multiplied by.
        intercept: what is added then.
    """

    file: Path
    uid: str = field(repr=False)
    frame: int | None = None
    slope: float = 1.0
    intercept: float = 0.0

    def label(self, root: Path) -> str:
        """Say for people which slice of the series in ``root`` it is."""
        name = str(self.file.relative_to(root)) if self.file != root else self.file.name
        return repr(name) if self.frame is None else f"frame {self.frame} of {name!r}"


@dataclass(frozen=True)
class Frame:
    """One slice as its header describes it; what it does not say is empty.

    Attributes:
        instance: where it is stored.
        size: rows, columns and channels.
        frame_of_reference: UID.
        position: centre of its first pixel in LPS mm.
        orientation: unit vectors along a row and along a column, LPS.
        spacing: mm between rows and between columns.
        thickness: mm.
        distinctions: the values of `DISTINCTIONS`.
        rescaled: whether it has a slope and whether it has an intercept.
    """

    instance: Instance
    size: tuple[int, int, int]
    frame_of_reference: str
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    thickness: float | None
    distinctions: tuple[str, ...]
    rescaled: tuple[bool, bool]


def frames_of(path: Path) -> list[Frame]:
    """Return the slices in a file in the order of its frames; a header without functional groups has one.

    Raises:
        InputError: the header is damaged, or there are several frames that do not say where they lie.
    """
    with reading.opened(path, _KEYWORDS) as file:
        header, pixels = file.header, decoding.pixel_format(path, file)
    shared = _items(path, header, "SharedFunctionalGroupsSequence")
    each = _items(path, header, "PerFrameFunctionalGroupsSequence")
    if not each:
        if pixels.frames > 1:
            raise InputError(
                path,
                expected="a single image, or frames that say where they lie",
                found=f"{pixels.frames} frames without positions in space (a clip)",
                do="Export the frames that are wanted as single images.",
            )
        return [_frame(path, header, pixels, [header], None)]
    if len(each) != pixels.frames:
        raise InputError(
            path,
            expected=f"the places of {pixels.frames} frames",
            found=f"those of {len(each)}",
            do="Export the series again: its header is damaged.",
        )
    numbers = range(1, pixels.frames + 1) if pixels.frames > 1 else (None,)
    return [
        _frame(path, header, pixels, [own, *shared, header], number) for number, own in zip(numbers, each, strict=True)
    ]


def _frame(
    path: Path, header: Dataset, pixels: decoding.PixelFormat, sources: list[Dataset], number: int | None
) -> Frame:
    """Return one frame; what it says of itself goes before what is shared, and that before the file's own."""

    def first(group: str, keyword: str, count: int) -> tuple[float, ...]:
        for source in sources:
            for place in [source] if source is header else _items(path, source, group)[:1]:
                found = reading.numbers(path, place, keyword, count)
                if found is not None:
                    return found
        return ()

    thickness = first("PixelMeasuresSequence", "SliceThickness", 1)
    given = first("PixelValueTransformationSequence", "RescaleSlope", 1)
    offset = first("PixelValueTransformationSequence", "RescaleIntercept", 1)
    slope, intercept = given or (1.0,), offset or (0.0,)
    if slope[0] == 0:
        raise InputError(
            path, expected="a RescaleSlope other than 0", found="0", do="Export the file again: its header is damaged."
        )
    return Frame(
        instance=Instance(path, reading.uid(path, header, "SOPInstanceUID"), number, slope[0], intercept[0]),
        size=(pixels.rows, pixels.columns, pixels.channels),
        frame_of_reference=reading.uid(path, header, "FrameOfReferenceUID"),
        position=first("PlanePositionSequence", "ImagePositionPatient", 3),
        orientation=_orientation(path, first("PlaneOrientationSequence", "ImageOrientationPatient", 6)),
        spacing=_spacing(path, first("PixelMeasuresSequence", "PixelSpacing", 2)),
        thickness=thickness[0] if thickness else None,
        distinctions=tuple(reading.text(path, header, keyword) for keyword in DISTINCTIONS),
        rescaled=(bool(given), bool(offset)),
    )


def _items(path: Path, header: Dataset, keyword: str) -> list[Dataset]:
    with reading.guarded(path):
        items = list(header.get(keyword) or [])
        if not all(hasattr(item, "get_item") for item in items):
            raise TypeError("no sequence of items")
    return items


def _orientation(path: Path, found: tuple[float, ...]) -> tuple[float, ...]:
    """Return two unit vectors: along a row, and along a column."""
    if not found:
        return ()
    # No part of a unit vector is longer than it; the square of a huge one would overflow.
    vectors = np.clip(np.array(found).reshape(2, 3), -2, 2)
    lengths = np.linalg.norm(vectors, axis=1)
    if not np.allclose(lengths, 1, atol=1e-2) or abs(vectors[0] @ vectors[1]) > 1e-2:
        raise InputError(
            path,
            expected="an ImageOrientationPatient of two unit vectors at right angles",
            found="others",
            do="Export the series again: its header is damaged.",
        )
    return tuple(float(value) for value in (vectors / lengths[:, np.newaxis]).ravel())


def _spacing(path: Path, found: tuple[float, ...]) -> tuple[float, ...]:
    """Return the distance between rows and between columns, checked."""
    least, most = SPACING_LIMITS_MM
    if not all(least <= size <= most for size in found):
        raise InputError(
            path,
            expected=f"a pixel spacing from {least:g} to {most:g} mm",
            found=" x ".join(f"{size:g}" for size in found),
            do="Export the series again: its header is damaged.",
        )
    return found


def flat_spacing(frame: Frame) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """Return mm between rows and between columns of an image without a position, and warnings.

    The spacing is None where the header does not say it.
    """
    file = frame.instance.file
    if frame.spacing:
        return (frame.spacing[0], frame.spacing[1]), ()
    header = reading.read_header(file, _FLAT_KEYWORDS)
    regions = {_region_spacing(file, region) for region in _items(file, header, "SequenceOfUltrasoundRegions")} - {None}
    if len(regions) == 1:
        return regions.pop(), ()
    if regions:
        return None, ("Its ultrasound regions have several spacings: sizes are given in pixels.",)
    for keyword in ("ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        found = _spacing(file, reading.numbers(file, header, keyword, 2) or ())
        if found:
            words = "Its spacing is that of the detector: what lies nearer to the X-ray tube is smaller than measured."
            return (found[0], found[1]), (words,) if keyword == "ImagerPixelSpacing" else ()
    return None, ("It does not say how large its pixels are: sizes are given in pixels.",)


def _region_spacing(file: Path, region: Dataset) -> tuple[float, float] | None:
    """Return mm between rows and columns of an ultrasound region; None where its axes are no lengths."""
    spacing = []
    for axis in ("Y", "X"):
        if reading.number(file, region, f"PhysicalUnits{axis}Direction") != _CENTIMETRES:
            return None
        delta = reading.number(file, region, f"PhysicalDelta{axis}")
        if not delta:
            return None
        spacing.append(round(abs(delta) * 10, 9))
    _spacing(file, tuple(spacing))
    return spacing[0], spacing[1]
