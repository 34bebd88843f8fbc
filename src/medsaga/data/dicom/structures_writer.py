"""Writing label maps as RT structure sets, for planning programs that read no segmentations.

The contours run along the edges of the voxels, so that filling them gives back the label map exactly, with
`read_structures` as with any program that tests the centres of voxels. A hole is a contour of its own within the
outer one, which programs combine by the even-odd rule.
"""

from __future__ import annotations

from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medsaga.data.dicom.documents import printable, quiet
from medsaga.data.dicom.reading import guarded, require_uids
from medsaga.data.dicom.segmentation_writer import UIDS
from medsaga.data.dicom.sources import COPIED, derived_series_number, source_headers
from medsaga.data.types import Labels
from medsaga.errors import InputError
from medsaga.files import replacing

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from medsaga.data.dicom.geometry import Geometry, Instance
    from medsaga.data.types import Series

SERIES_DESCRIPTION = "medsaga structures - research use only, not for clinical use"
_STUDY_MANAGEMENT = "1.2.840.10008.3.1.2.3.1"
_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])

Contour = npt.NDArray[np.float64]


@quiet()
def write_structures(
    path: Path, labels: Labels, series: Series, geometry: Geometry, names: dict[str, int], *, model: str
) -> None:
    """Write a label map as the structure set of an image series.

    Args:
        path: the file to write, whole or not at all.
        labels: ``(i, j, k)`` on ``geometry.grid``; every value above 0 has a name.
        series: the images.
        geometry: of the series.
        names: label name to label value; ROI n is the n-th of the ascending values above 0.
        model: what made the labels, for people; it must not identify a patient.

    Raises:
        InputError: the images lack what a structure set must repeat, or cannot be read any more.
    """
    from pydicom.config import disable_value_validation

    rois = [(name, value) for name, value in sorted(names.items(), key=lambda pair: pair[1]) if value > 0]
    assert rois, "a structure set has at least one structure"
    assert labels.shape == geometry.grid.shape, "labels lie on the grid of their images"
    require_complete(series, geometry)
    headers = source_headers(geometry)
    with disable_value_validation():
        document = _document(headers, geometry, model)
        for number, (name, value) in enumerate(rois, start=1):
            _add_structure(document, number, name, np.asarray(labels == value), headers, geometry)
        _colour(document)
        with replacing(path) as temporary, guarded(path, "images whose headers a structure set can repeat"):
            document.save_as(temporary, enforce_file_format=True)


def require_complete(series: Series, geometry: Geometry) -> None:
    """Check that the images of a series have what a structure set of them must repeat.

    Raises:
        InputError: they have no positions, UIDs are missing, or a file cannot be read.
    """
    if geometry.grid.affine is None:
        raise InputError(
            series.label(),
            expected="images with positions in space, for contours are in mm",
            found="images without",
            do="Write the prediction as a DICOM segmentation.",
        )
    do = "Export the images again with these, or write the prediction as NIfTI."
    for file in dict.fromkeys(each.file for each in geometry.instances):
        require_uids(file, (*UIDS, "FrameOfReferenceUID"), "a structure set", do)


def outlines(mask: npt.NDArray[np.bool_]) -> list[Contour]:
    """Return the closed contours around the pixels of a mask, along their edges.

    Args:
        mask: ``(i, j)``.

    Returns:
        Each ``(points, 2)`` in pixel indices, at half-integers; only the points where a contour turns. Outer ones
        have the pixels on their left, from i to j, holes on their right; pixels that touch at a corner are apart.
    """
    padded = np.pad(mask, 1)
    inner = padded[1:-1, 1:-1]
    # Direction of an edge, where its pixel's neighbour lies that must be outside, and where the edge begins.
    sides = (((1, 0), (0, -1), (0, 0)), ((0, 1), (1, 0), (1, 0)), ((-1, 0), (0, 1), (1, 1)), ((0, -1), (-1, 0), (0, 1)))
    leaving: dict[tuple[int, int], list[int]] = {}
    for direction, (_, (di, dj), (ci, cj)) in enumerate(sides):
        outside = ~padded[1 + di : padded.shape[0] - 1 + di, 1 + dj : padded.shape[1] - 1 + dj]
        for i, j in np.argwhere(inner & outside).tolist():
            leaving.setdefault((i + ci, j + cj), []).append(direction)
    contours = []
    while leaving:
        start, first = next((corner, directions[0]) for corner, directions in leaving.items())
        corner, direction, turns = start, first, []
        while True:
            (di, dj), _, _ = sides[direction]
            corner = corner[0] + di, corner[1] + dj
            # Left before right, so that the contour stays with its pixel where two touch at a corner.
            candidates = ((direction + 1) % 4, direction, (direction - 1) % 4)
            following = next(each for each in candidates if each in leaving[corner])
            leaving[corner].remove(following)
            if not leaving[corner]:
                del leaving[corner]
            if following != direction:
                turns.append(corner)
            if (corner, following) == (start, first):
                break
            direction = following
        contours.append(np.array(turns, dtype=np.float64) - 0.5)
    return contours


def _document(headers: list[Dataset], geometry: Geometry, model: str) -> Dataset:
    """Return the structure set without structures."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    now, source = datetime.now(), headers[0]
    document, meta = Dataset(), FileMetaDataset()
    document.SpecificCharacterSet = "ISO_IR 192"
    document.SOPClassUID, document.SOPInstanceUID = RTStructureSetStorage, generate_uid()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, UID(document.SOPInstanceUID)
    # With explicit types the text of a contour could not exceed 64 KiB.
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    document.file_meta = meta
    for keyword in (*COPIED, "StudyInstanceUID"):
        setattr(document, keyword, source.get(keyword, ""))
    document.Modality, document.SeriesDescription = "RTSTRUCT", SERIES_DESCRIPTION
    document.SeriesInstanceUID, document.SeriesNumber = generate_uid(), derived_series_number(source)
    document.InstanceNumber, document.OperatorsName = 1, ""
    document.Manufacturer = document.ManufacturerModelName = "medsaga"
    document.SoftwareVersions = metadata.version("medsaga")
    document.FrameOfReferenceUID = geometry.frame_of_reference
    document.StructureSetLabel, document.StructureSetDescription = "medsaga", printable(f"model {model}")
    document.StructureSetDate, document.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    document.ApprovalStatus = "UNAPPROVED"
    series, study, space = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = source.get("SeriesInstanceUID", "")
    series.ContourImageSequence = [_reference(headers, geometry, instance) for instance in geometry.instances]
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY_MANAGEMENT, source.get("StudyInstanceUID", "")
    study.RTReferencedSeriesSequence = [series]
    space.FrameOfReferenceUID, space.RTReferencedStudySequence = geometry.frame_of_reference, [study]
    document.ReferencedFrameOfReferenceSequence = [space]
    document.StructureSetROISequence, document.ROIContourSequence = [], []
    document.RTROIObservationsSequence = []
    return document


def _reference(headers: list[Dataset], geometry: Geometry, instance: Instance) -> Dataset:
    from pydicom.dataset import Dataset

    reference = Dataset()
    # All files of a series are of one class.
    reference.ReferencedSOPClassUID = headers[0].get("SOPClassUID", "")
    reference.ReferencedSOPInstanceUID = instance.uid
    if instance.frame is not None:
        reference.ReferencedFrameNumber = instance.frame
    return reference


def _add_structure(
    document: Dataset, number: int, name: str, mask: npt.NDArray[np.bool_], headers: list[Dataset], geometry: Geometry
) -> None:
    from pydicom.dataset import Dataset

    assert geometry.grid.affine is not None
    roi, drawn, observation = Dataset(), Dataset(), Dataset()
    roi.ROINumber, roi.ReferencedFrameOfReferenceUID = number, geometry.frame_of_reference
    roi.ROIName = printable(name.replace("\\", "/")) or f"structure {number}"
    roi.ROIGenerationAlgorithm = "AUTOMATIC"
    drawn.ReferencedROINumber = number
    contours = []
    for k in np.flatnonzero(mask.any(axis=(0, 1))).tolist():
        for points in outlines(mask[:, :, k]):
            indices = np.column_stack([points, np.full(len(points), k)])
            positions = (indices @ geometry.grid.affine[:3, :3].T + geometry.grid.affine[:3, 3]) * _RAS_TO_LPS
            contour = Dataset()
            contour.ContourImageSequence = [_reference(headers, geometry, geometry.instances[k])]
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            contour.ContourData = [f"{value:.4f}" for value in positions.ravel()]
            contours.append(contour)
    if contours:
        drawn.ContourSequence = contours
    observation.ObservationNumber = observation.ReferencedROINumber = number
    observation.RTROIInterpretedType = observation.ROIInterpreter = ""
    document.StructureSetROISequence.append(roi)
    document.ROIContourSequence.append(drawn)
    document.RTROIObservationsSequence.append(observation)


def _colour(document: Dataset) -> None:
    from medsaga.colours import label_colours

    colours = label_colours(len(document.ROIContourSequence))
    for drawn, colour in zip(document.ROIContourSequence, colours, strict=True):
        drawn.ROIDisplayColor = [int(value) for value in colour]
