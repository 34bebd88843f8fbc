"""Label maps out of DICOM files, whichever of the two kinds they are: segmentations or structure sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medsaga.data.dicom import segmentation, structures
from medsaga.data.dicom.geometry import Geometry
from medsaga.data.dicom.reading import is_dicom, read_header, uid
from medsaga.data.types import Labels

SUFFIX = ".dcm"


def is_mask(path: Path) -> bool:
    """Whether a file is to be read as a DICOM mask: by its suffix, or by DICOM's mark in it."""
    return path.suffix.lower() == SUFFIX or is_dicom(path)


def outlines(path: Path) -> bool:
    """Whether a file is a segmentation or a structure set, by its class.

    Raises:
        InputError: the file is damaged.
    """
    return _storage_class(path) in (*segmentation.STORAGE_CLASSES, *structures.STORAGE_CLASSES)


def names_in(path: Path) -> tuple[str, ...]:
    """Return the names of what is outlined in a DICOM segmentation or structure set, in its order.

    Raises:
        InputError: it is neither, or damaged.
    """
    of = structures.structures_of if _is_structure_set(path) else segmentation.segments_of
    return tuple(of(path))


def read_mask(path: Path, geometry: Geometry, wanted: Mapping[str, int]) -> tuple[Labels, tuple[str, ...]]:
    """Read a DICOM segmentation or structure set onto the grid of its images.

    Args:
        path: the file.
        geometry: of the series that it belongs to.
        wanted: label value of each name; what has another name is background.

    Returns:
        Labels of the shape of ``geometry.grid``; warnings.

    Raises:
        InputError: it cannot be read, or is of other images.
    """
    read = structures.read_structures if _is_structure_set(path) else segmentation.read_segmentation
    labels, _, warnings = read(path, geometry, wanted)
    return labels, warnings


def _is_structure_set(path: Path) -> bool:
    return _storage_class(path) in structures.STORAGE_CLASSES


def _storage_class(path: Path) -> str:
    header = read_header(path, ("SOPClassUID",), until=0x00080018)
    return uid(path, header, "SOPClassUID")
