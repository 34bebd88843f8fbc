"""Writing label maps as DICOM segmentations (SEG) that refer to the images they were made from.

The result belongs to the patient and the study of its images (`medsaga.data.dicom.sources`). highdicom composes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medsaga.data.dicom.documents import printable, quiet
from medsaga.data.dicom.reading import require_uids, whole
from medsaga.data.dicom.sources import derived_series_number, source_headers
from medsaga.data.dicom.terminology import Code, Terminology, terminology_of
from medsaga.data.types import Labels
from medsaga.errors import InputError
from medsaga.files import replacing

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from medsaga.data.dicom.geometry import Geometry
    from medsaga.data.types import Series

SERIES_DESCRIPTION = "medsaga segmentation - research use only, not for clinical use"
UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
"""Of images, which whatever is derived from them repeats; of images in space also FrameOfReferenceUID."""
_FAMILY = Code("123110", "DCM", "Artificial Intelligence")


@quiet()
def write_segmentation(
    path: Path,
    labels: Labels,
    series: Series,
    geometry: Geometry,
    names: dict[str, int],
    *,
    codes: Mapping[str, Terminology] | None = None,
    model: str,
) -> None:
    """Write a label map as a binary segmentation of an image series.

    DICOM numbers segments 1, 2, ... without gaps: segment n is the n-th of the ascending label values in ``names``,
    and its name says which one it is. A label without a voxel is a segment without a frame, so that a reader sees
    that it was looked for. Where there is no voxel at all, one empty frame per slice is written, as the standard
    wants at least one.

    Args:
        path: the file to write, whole or not at all.
        labels: of the shape of ``geometry.grid``; every value above 0 has a name.
        series: the images.
        geometry: of the series.
        names: label name to label value; 0 is background and is not written.
        codes: what names mean; for names that are not in it see `terminology_of`.
        model: what made the labels, for people; it must not identify a patient.

    Raises:
        InputError: the images lack what a segmentation must repeat, or cannot be read any more.
    """
    require_complete(geometry)
    segments = {value: name for name, value in sorted(names.items(), key=lambda pair: pair[1]) if value > 0}
    assert segments, "a segmentation has at least one segment"
    assert labels.shape == geometry.grid.shape, "labels lie on the grid of their images"
    # Row by row within slice by slice, as the file has them: much faster than slicing the label map itself.
    planes = np.ascontiguousarray(labels.transpose(2, 1, 0) if labels.ndim == 3 else labels[None])
    lookup = np.zeros(max(segments) + 1, np.min_scalar_type(len(segments)))
    lookup[list(segments)] = np.arange(1, len(segments) + 1)
    assert 0 <= int(planes.min()) <= int(planes.max()) < len(lookup), "every label has a name"
    numbers = lookup[planes]
    assert ((numbers == 0) == (planes == 0)).all(), "every label has a name"
    sources, frames = _sources(numbers, geometry)
    descriptions = _descriptions(segments, codes or {}, model)
    _compose(path, sources, frames, descriptions, series)


def require_complete(geometry: Geometry) -> None:
    """Check that the images of a series have what a segmentation of them must repeat.

    Raises:
        InputError: UIDs are missing, it is several multi-frame files, or a file cannot be read.
    """
    files = list(dict.fromkeys(each.file for each in geometry.instances))
    is_flat = geometry.grid.affine is None
    instead = f"or write the prediction as {'PNG' if is_flat else 'NIfTI'}."
    if len(files) > 1 and geometry.instances[0].frame is not None:
        raise InputError(
            files[0].parent,
            expected="one multi-frame file, or single-frame files",
            found=f"{len(files)} multi-frame files of one series",
            do=f"Name one of the files, {instead}",
        )
    keywords = UIDS if is_flat else (*UIDS, "FrameOfReferenceUID")
    for file in files:
        require_uids(file, keywords, "a segmentation", f"Export the images again with these, {instead}")


def _sources(
    planes: npt.NDArray[np.unsignedinteger], geometry: Geometry
) -> tuple[list[Dataset], npt.NDArray[np.unsignedinteger]]:
    """Return the headers of the images, and the segments of each of their frames, ``(frames, rows, columns)``."""
    instances = geometry.instances
    headers = source_headers(geometry)
    if instances[0].frame is None:
        for header in headers:
            # highdicom asks for it; that it is unknown is no reason to lose a segmentation.
            header.setdefault("SliceThickness", None)
        return headers, planes
    count = whole(instances[0].file, headers[0], "NumberOfFrames")
    frames = np.zeros((count, *planes.shape[1:]), planes.dtype)
    frames[[(each.frame or 1) - 1 for each in instances]] = planes
    return headers, frames


def _descriptions(segments: Mapping[int, str], codes: Mapping[str, Terminology], model: str) -> list[Any]:
    """Return highdicom's description of each segment, numbered from 1 in the order of ``segments``."""
    import highdicom as hd

    from medsaga.colours import label_colours

    version = metadata.version("medsaga")
    algorithm = hd.AlgorithmIdentificationSequence(
        name="medsaga segmentation",
        family=_coded(_FAMILY),
        version=version,
        source="medsaga",
        parameters={"model": _long_string(model) or "unknown"},
    )
    descriptions = []
    for number, (name, colour) in enumerate(zip(segments.values(), label_colours(len(segments)), strict=True), start=1):
        meaning = codes.get(name) or terminology_of(name)
        description = hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=_long_string(name) or f"segment {number}",
            segmented_property_category=_coded(meaning.category),
            segmented_property_type=_coded(meaning.type),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=hd.color.CIELabColor.from_rgb(*map(int, colour)),
        )
        if meaning.side is not None:
            kind = description.SegmentedPropertyTypeCodeSequence[0]
            kind.SegmentedPropertyTypeModifierCodeSequence = [_coded(meaning.side)]
        descriptions.append(description)
    return descriptions


def _coded(code: Code) -> Any:
    import highdicom as hd

    return hd.sr.CodedConcept(code.value, code.scheme, code.meaning)


def _long_string(words: str) -> str:
    """Return words as a DICOM long string: 60 printable characters without the backslash, which separates values."""
    return printable(words.replace("\\", "/"))


def _compose(
    path: Path,
    sources: list[Dataset],
    frames: npt.NDArray[np.unsignedinteger],
    descriptions: list[Any],
    series: Series,
) -> None:
    import highdicom as hd
    from pydicom.config import disable_value_validation

    # The values of the patient and the study go over as they are: whether they are well-formed is their archive's
    # affair, and a segmentation that says something else would not be filed with its images.
    with replacing(path) as temporary, disable_value_validation():
        try:
            segmentation = hd.seg.Segmentation(
                source_images=sources,
                pixel_array=frames,
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=descriptions,
                series_instance_uid=hd.UID(),
                series_number=derived_series_number(sources[0]),
                sop_instance_uid=hd.UID(),
                instance_number=1,
                manufacturer="medsaga",
                manufacturer_model_name="medsaga",
                software_versions=metadata.version("medsaga"),
                device_serial_number="0",
                content_label="SEGMENTATION",
                content_description="Research use only, not for clinical use",
                series_description=SERIES_DESCRIPTION,
                specific_character_set="ISO_IR 192",
            )
            segmentation.save_as(temporary)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                series.label(),
                expected="images with the attributes that a segmentation of them repeats",
                found=f"some that are missing or unusable ({type(error).__name__})",
                do="Export the images again, or write the prediction as NIfTI.",
            ) from None
