"""What an object that is derived from images repeats of them: whose they are, and which study they belong to.

The link is what makes archives and viewers show the result with its images. Structure sets get what is listed here;
highdicom copies the whole patient and study modules into segmentations, as the standard has it. Nothing else that the
package writes says who the patient is.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsaga.data.dicom.reading import guarded

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from medsaga.data.dicom.geometry import Geometry

COPIED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName", "PositionReferenceIndicator"),
)
"""Elements that must exist in what is derived, and may be empty there as they may in the images."""
_SERIES_NUMBER_OFFSET = 1000
_MOST_SERIES_NUMBER = 2**31 - 1


def source_header(path: Path) -> Dataset:
    """Return the header of an image, without its pixels.

    Raises:
        InputError: the file cannot be read.
    """
    from pydicom import dcmread

    with guarded(path):
        return dcmread(path, stop_before_pixels=True, force=True)


def source_headers(geometry: Geometry) -> list[Dataset]:
    """Return the headers of the files of a series, by their first slices, with all of `COPIED`.

    What is missing or malformed is empty there: that is no reason to lose a segmentation.

    Raises:
        InputError: a file cannot be read.
    """
    files = list(dict.fromkeys(each.file for each in geometry.instances))
    headers = [source_header(file) for file in files]
    for header in headers:
        for keyword in COPIED:
            if not _is_well_formed(header, keyword):
                setattr(header, keyword, "")
    return headers


def derived_series_number(header: Dataset) -> int:
    """Return a number for the new series: that of the images and 1000, as scanners number what they derive."""
    try:
        number = int(header.get("SeriesNumber") or 0)
    except (ValueError, TypeError):
        number = 0
    return min(max(number, 0) + _SERIES_NUMBER_OFFSET, _MOST_SERIES_NUMBER)


def _is_well_formed(header: Dataset, keyword: str) -> bool:
    from pydicom.valuerep import DA, TM

    try:
        value: Any = header.get(keyword)
        if keyword.endswith("Date"):
            DA(value)
        elif keyword.endswith("Time"):
            TM(value)
        elif keyword == "PatientSex":
            return value in ("M", "F", "O")
    except (ValueError, TypeError):
        return False
    return value is not None
