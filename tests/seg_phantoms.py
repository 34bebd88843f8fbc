"""DICOM segmentations as highdicom writes them, and the images that they lie on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import numpy.typing as npt
from dicom_phantoms import write_ct_series
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from medsaga.data.dicom.geometry import Geometry, geometry_of
from medsaga.data.dicom.series import find_series
from medsaga.data.types import Series

Affine = npt.NDArray[np.float64]

SHAPE = (11, 7, 6)
"""77 pixels: most frames of single bits start within a byte."""


@dataclass(frozen=True)
class Images:
    series: Series
    geometry: Geometry
    files: list[Path]
    """By k."""
    affine: Affine

    @property
    def headers(self) -> list[FileDataset]:
        return [dcmread(file, stop_before_pixels=True) for file in self.files]


def images_in(
    folder: Path, affine: npt.NDArray[np.float64], shape: tuple[int, int, int] = SHAPE, **options: Any
) -> Images:
    files = write_ct_series(folder, np.zeros(shape), affine, **options)
    (series,) = find_series(folder)
    return Images(series, geometry_of(series), files, affine)


def blobs(segments: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return labels 0 to ``segments`` on some of the slices of a grid."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, segments + 1, shape).astype(np.uint8)
    labels[:, :, random.permutation(shape[2])[: shape[2] // 3]] = 0
    return labels


def write_by_highdicom(
    path: Path,
    files: Sequence[Path],
    pixels: npt.NDArray[Any],
    segments: Iterable[tuple[int, str]],
    kind: str = "BINARY",
    **options: Any,
) -> Path:
    """Let highdicom write ``(frames, rows, columns[, segments])`` of files by k, given to it in another order."""
    order = np.random.default_rng(3).permutation(len(files))
    path.parent.mkdir(parents=True, exist_ok=True)
    hd.seg.Segmentation(
        source_images=[dcmread(files[k]) for k in order],
        pixel_array=pixels[order],
        segmentation_type=kind,
        segment_descriptions=[
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=label,
                segmented_property_category=codes.SCT.Tissue,
                segmented_property_type=codes.SCT.Tissue,
                algorithm_type="MANUAL",
            )
            for number, label in segments
        ],
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="somebody",
        manufacturer_model_name="program",
        software_versions="1",
        device_serial_number="1",
        **options,
    ).save_as(path)
    return path
