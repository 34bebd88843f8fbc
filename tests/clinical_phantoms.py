"""Examinations of phantoms as a hospital exports them: DICOM images, and masks from other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from dicom_phantoms import AFFINES, IDENTITY, new_image, save, write_ct_series
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage
from seg_phantoms import write_by_highdicom

Affine = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

STRUCTURES = ("kidney", "liver")
"""Label 1 and 2."""
SHAPE = (40, 36, 6)
_LPS = np.diag([-1.0, -1, 1, 1])


def anatomy(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> tuple[npt.NDArray[np.int16], Bytes]:
    """Return a body in HU and its labels, ``(i, j, k)``: a large liver and a small kidney, elsewhere each time."""
    random = np.random.default_rng(seed)
    at = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))

    def ball(centre: Sequence[float], radii: Sequence[float]) -> npt.NDArray[np.bool_]:
        moved = np.add(centre, random.uniform(-0.08, 0.08, 3))
        inside = ((at - moved.reshape(3, 1, 1, 1)) / np.reshape(radii, (3, 1, 1, 1))) ** 2
        return np.asarray(inside.sum(axis=0) < 1)

    labels = np.zeros(shape, np.uint8)
    labels[ball((0.35, 0.0, 0.0), (0.4, 0.6, 1.1))] = 2
    labels[ball((-0.45, 0.2, 0.1), (0.25, 0.3, 0.8))] = 1
    grey = np.where(ball((0, 0, 0), (0.95, 0.95, 3)), 20.0, -990.0)
    grey = np.select([labels == 2, labels == 1], [160.0, 320.0], grey) + random.normal(0, 12, shape)
    return np.round(grey).astype(np.int16), labels


def write_examination(
    root: Path, name: str, *, seed: int = 0, mask: str = "seg", shape: tuple[int, int, int] = SHAPE, **options: Any
) -> list[Path]:
    """Write ``images/NAME/`` and its mask; return the files of the images in the order of k.

    Args:
        root: dataset folder.
        name: of the case.
        seed: of the anatomy.
        mask: ``seg``, ``rtstruct``, ``dcm2niix`` or ``none``.
        shape: (i, j, k).
        options: of `dicom_phantoms.write_ct_series`.
    """
    volume, labels = anatomy(seed, shape)
    affine = options.pop("affine", AFFINES["axial"])
    patient = options.setdefault("patient_id", IDENTITY)
    files = write_ct_series(root / "images" / name, volume, affine, **options)
    if mask == "seg":
        write_seg(root / "masks" / f"{name}.dcm", labels, files)
    elif mask == "rtstruct":
        write_structures(root / "masks" / f"{name}.dcm", labels, affine, files, patient=patient)
    elif mask == "dcm2niix":
        write_as_dcm2niix(root / "masks" / f"{name}.nii.gz", labels, affine)
    return files


def write_seg(path: Path, labels: Bytes, files: Sequence[Path], names: Sequence[str] = STRUCTURES) -> Path:
    """Let highdicom write labels 1, 2, ..., ``(i, j, k)``, for images by k."""
    return write_by_highdicom(path, files, labels.transpose(2, 1, 0), enumerate(names, start=1))


def write_structures(
    path: Path,
    labels: Bytes,
    affine: Affine,
    files: Sequence[Path],
    names: Sequence[str] = STRUCTURES,
    patient: str = IDENTITY,
) -> Path:
    """Draw labels 1, 2, ..., ``(i, j, k)``: a rectangle in mm and LPS round each run of voxels in a row.

    Args:
        affine: (4, 4) voxel index to RAS+ mm.
        files: the images; they tell the frame of reference.
    """
    frame_of_reference = dcmread(files[0], stop_before_pixels=True).FrameOfReferenceUID
    document = new_image(RTStructureSetStorage, "RTSTRUCT")
    document.PatientID, document.StructureSetLabel = patient, "phantom"
    space = Dataset()
    space.FrameOfReferenceUID = frame_of_reference
    document.ReferencedFrameOfReferenceSequence = [space]
    document.StructureSetROISequence, document.ROIContourSequence = [], []
    for number, name in enumerate(names, start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, frame_of_reference
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for j, k in np.argwhere((labels == number).any(axis=0)):
            for low, high in _runs(labels[:, j, k] == number):
                edges = np.array([(low, j - 0.5, k), (high, j - 0.5, k), (high, j + 0.5, k), (low, j + 0.5, k)])
                contour = Dataset()
                contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", 4
                contour.ContourData = [f"{value:.4f}" for value in _in_lps_mm(edges, affine).ravel()]
                drawn.ContourSequence.append(contour)
        document.StructureSetROISequence.append(roi)
        document.ROIContourSequence.append(drawn)
    return save(document, path, ImplicitVRLittleEndian)


def write_as_dcm2niix(path: Path, labels: Bytes, affine: Affine) -> Path:
    """Write labels as a mask drawn on what dcm2niix makes of a series: its rows run from bottom to top."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flip = np.diag([1.0, -1, 1, 1])
    flip[1, 3] = labels.shape[1] - 1
    nib.Nifti1Image(labels[:, ::-1], affine @ flip).to_filename(path)
    return path


def _runs(inside: npt.NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Return the edges of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(np.int8)))
    return [(low - 0.5, high - 0.5) for low, high in zip(edges[::2], edges[1::2], strict=True)]


def _in_lps_mm(indices: npt.NDArray[np.float64], affine: Affine) -> npt.NDArray[np.float64]:
    placed = _LPS @ affine
    return np.asarray(indices @ placed[:3, :3].T + placed[:3, 3])
