"""Phantoms in DICOM files: what scanners and archives write, made in a test with pydicom.

Volumes are ``(i, j, k)`` = (column, row, slice) with an affine to RAS+ mm, as everywhere in the package; a sheared
affine makes a series with a tilted gantry. Every file carries a name, an identity, a date and UIDs that must never
reach a message: `secrets_of` lists them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

NAME, IDENTITY, BIRTH, DATE = "Secret^Name", "ID-7493021", "19480229", "20190417"


def _turned(about_x: float, about_z: float) -> npt.NDArray[np.float64]:
    """Return a rotation by two angles in degrees, (4, 4)."""
    (a, b), turn_x, turn_z = np.radians([about_x, about_z]), np.eye(4), np.eye(4)
    turn_x[1:3, 1:3] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    turn_z[:2, :2] = [[np.cos(b), -np.sin(b)], [np.sin(b), np.cos(b)]]
    return turn_z @ turn_x


AFFINES: dict[str, npt.NDArray[np.float64]] = {
    "axial": np.array([[-0.9, 0, 0, 30], [0, -1.2, 0, -20.5], [0, 0, 4, 7.25], [0, 0, 0, 1]]),
    "feet first": np.array([[-0.9, 0, 0, 30], [0, -1.2, 0, -20.5], [0, 0, -4, 7.25], [0, 0, 0, 1]]),
    "coronal": np.array([[-0.9, 0, 0, 30], [0, 0, 4, -20.5], [0, -1.2, 0, 7.25], [0, 0, 0, 1]]),
    "sagittal": np.array([[0, 0, 4, 30], [-0.9, 0, 0, -20.5], [0, -1.2, 0, 7.25], [0, 0, 0, 1]]),
    "oblique": _turned(25, 20) @ np.array([[-0.9, 0, 0, 30], [0, -1.2, 0, -20.5], [0, 0, 4, 7.25], [0, 0, 0, 1]]),
    "tilted": np.array([[-0.9, 0, 0, 30], [0, -1.2, 0.8, -20.5], [0, 0, 4, 7.25], [0, 0, 0, 1]]),
}
"""Voxel index to RAS+ mm of series in the usual planes. ``tilted`` is sheared by a gantry at 11.3 degrees."""
_X, _Y = np.array([0.8, 0.6, 0.0]), np.array([-0.48, 0.64, 0.6])
SORTED_AFFINES: dict[str, npt.NDArray[np.float64]] = {
    "axial": np.array([[-0.8, 0, 0, 40], [0, -0.7, 0, 30], [0, 0, 2.5, -60], [0, 0, 0, 1]]),
    "coronal": np.array([[-0.8, 0, 0, 40], [0, 0, -3, 30], [0, -0.7, 0, -60], [0, 0, 0, 1]]),
    "sagittal": np.array([[0, 0, 3, 40], [-0.8, 0, 0, 30], [0, -0.7, 0, -60], [0, 0, 0, 1]]),
    "oblique": np.vstack([np.column_stack([-0.8 * _X, -0.7 * _Y, 2.5 * np.cross(_X, _Y), [5.0, 6, 7]]), [0, 0, 0, 1]]),
    "tilted": np.array([[-0.8, 0, 0, 40], [0, -0.7, 0.5, 30], [0, 0, 2.5, -60], [0, 0, 0, 1]]),
}
"""More of them, with slices in the order that a series is sorted to: k of the files is k of the geometry."""

Edit = Callable[[Dataset, int], None]
"""Changes the data set of slice k before it is written."""


def write_ct_series(
    folder: Path,
    volume: npt.NDArray[Any],
    affine: npt.NDArray[np.float64],
    *,
    study_uid: str | None = None,
    series_uid: str | None = None,
    frame_of_reference: str | None = None,
    patient_name: str = NAME,
    patient_id: str = IDENTITY,
    modality: str = "CT",
    description: str = "phantom",
    slope: float = 1,
    intercept: float = -1024,
    signed: bool = False,
    transfer_syntax: UID = ExplicitVRLittleEndian,
    edit: Edit | None = None,
    seed: int = 0,
) -> list[Path]:
    """Write one file per slice of a volume in HU, ``(i, j, k)``, under odd names in shuffled order.

    Args:
        affine: (4, 4) voxel index to RAS+ mm. Its first two columns must be at right angles.
        edit: changes each data set just before it is written.

    Returns:
        The files in the order of k; their names and instance numbers are in another one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study, series = study_uid or generate_uid(), series_uid or generate_uid()
    frame = frame_of_reference or generate_uid()
    order = np.random.default_rng(seed).permutation(volume.shape[2])
    endings = (".dcm", "", ".IMA", ".1.2", " copy.dcm")
    files = []
    for k, number in enumerate(order):
        stored = np.round((volume[:, :, k].T - intercept) / slope)
        image = new_image(CTImageStorage if modality != "MR" else MRImageStorage, modality, study, series)
        image.PatientName, image.PatientID = patient_name, patient_id
        image.SeriesDescription, image.InstanceNumber = description, int(number) + 1
        image.FrameOfReferenceUID = frame
        image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.RescaleSlope, image.RescaleIntercept = slope, intercept
        place(image, affine, k)
        set_pixels(image, stored.astype(np.int16 if signed else np.uint16))
        if edit is not None:
            edit(image, k)
        path = folder / f"I{(int(number) * 37) % 10007:05d}{endings[k % len(endings)]}"
        files.append(save(image, path, transfer_syntax))
    return files


def write_enhanced(
    path: Path,
    volume: npt.NDArray[Any],
    affine: npt.NDArray[np.float64],
    *,
    transfer_syntax: UID = ExplicitVRLittleEndian,
    edit: Callable[[Dataset], None] | None = None,
    seed: int = 0,
) -> list[int]:
    """Write a volume in HU, ``(i, j, k)``, as one multi-frame CT whose frames are shuffled.

    Orientation is said of all frames at once, position and slope of each, spacing of each or of all.

    Returns:
        The frame number, from 1, of each k.
    """
    image = new_image(EnhancedCTImageStorage, "CT")
    image.SeriesDescription, image.FrameOfReferenceUID = "enhanced phantom", generate_uid()
    image.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    order = np.random.default_rng(seed).permutation(volume.shape[2])
    frames = []
    for k in order:
        placed, position, transformation, content = Dataset(), Dataset(), Dataset(), Dataset()
        place(placed, affine, int(k))
        position.ImagePositionPatient = placed.ImagePositionPatient
        transformation.RescaleSlope, transformation.RescaleIntercept, transformation.RescaleType = (
            1,
            -1000 - int(k),
            "HU",
        )
        content.DimensionIndexValues = [1, int(k) + 1]
        frame = Dataset()
        frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
        frame.PixelValueTransformationSequence = [transformation]
        frames.append(frame)
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = placed.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = placed.PixelSpacing, placed.SliceThickness
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence = [shared], frames
    set_pixels(image, np.stack([volume[:, :, k].T + 1000 + k for k in order]).astype(np.uint16))
    if edit is not None:
        edit(image)
    save(image, path, transfer_syntax)
    return [int(np.flatnonzero(order == k)[0]) + 1 for k in range(volume.shape[2])]


def write_flat(
    path: Path,
    pixels: npt.NDArray[Any],
    *,
    modality: str = "DX",
    photometric: str = "",
    bits: int = 0,
    spacing: tuple[float, float] | None = None,
    transfer_syntax: UID = ExplicitVRLittleEndian,
    edit: Callable[[Dataset], None] | None = None,
) -> Path:
    """Write an image without a position in space: ``(rows, columns)``, or with frames or colours as `set_pixels`."""
    image = new_image(DigitalXRayImageStorageForPresentation, modality)
    image.SeriesDescription = "flat phantom"
    if spacing is not None:
        image.ImagerPixelSpacing = list(spacing)
    set_pixels(image, pixels, photometric=photometric, bits=bits)
    if edit is not None:
        edit(image)
    return save(image, path, transfer_syntax)


def new_image(storage: UID, modality: str, study_uid: str | None = None, series_uid: str | None = None) -> FileDataset:
    """Return a data set with a patient, a study and a series, and no pixels."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = storage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
    image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = NAME, IDENTITY, BIRTH, "O"
    image.StudyDate = image.SeriesDate = image.ContentDate = image.AcquisitionDate = DATE
    image.StudyTime = image.SeriesTime = image.ContentTime = "101112"
    image.StudyInstanceUID, image.SeriesInstanceUID = study_uid or generate_uid(), series_uid or generate_uid()
    image.StudyID, image.AccessionNumber, image.SeriesNumber, image.InstanceNumber = "S1", "A-99812", 3, 1
    image.Modality, image.Manufacturer, image.ReferringPhysicianName = modality, "Phantoms", "Doctor^Secret"
    image.PositionReferenceIndicator = ""
    return image


def place(image: Dataset, affine: npt.NDArray[np.float64], k: int) -> None:
    """Set position, orientation, spacing and thickness of slice k of a grid."""
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :2], axis=0)
    directions = lps[:3, :2] / spacing
    image.ImagePositionPatient = _decimals(lps[:3, 3] + k * lps[:3, 2])
    image.ImageOrientationPatient = _decimals(directions.T.ravel())
    image.PixelSpacing = _decimals(spacing[::-1])
    image.SliceThickness = _decimals([float(np.linalg.norm(lps[:3, 2]))])[0]


def set_pixels(image: Dataset, pixels: npt.NDArray[Any], *, photometric: str = "", bits: int = 0) -> None:
    """Set ``(rows, columns)``, ``(frames, rows, columns)`` or ``(rows, columns, 3)`` uint8 RGB as native pixels."""
    colour = photometric in ("RGB", "YBR_FULL")
    frames = pixels.ndim - 2 - colour
    image.Rows, image.Columns = pixels.shape[frames : frames + 2]
    if frames:
        image.NumberOfFrames = pixels.shape[0]
    image.SamplesPerPixel = 3 if colour else 1
    if colour:
        image.PlanarConfiguration = 0
    image.PhotometricInterpretation = photometric or "MONOCHROME2"
    image.BitsAllocated = pixels.dtype.itemsize * 8
    image.BitsStored = bits or image.BitsAllocated
    image.HighBit = image.BitsStored - 1
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    content = pixels.tobytes()
    image.PixelData = content + b"\0" * (len(content) % 2)
    image["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"


def save(image: FileDataset, path: Path, transfer_syntax: UID = ExplicitVRLittleEndian) -> Path:
    """Write a data set of native little endian pixels in a transfer syntax that pydicom has an encoder for.

    A data set that is compressed already is written as it is.
    """
    if transfer_syntax.is_encapsulated:
        image.compress(transfer_syntax, generate_instance_uid=False)
    elif not image.file_meta.TransferSyntaxUID.is_encapsulated:
        image.file_meta.TransferSyntaxUID = transfer_syntax
    if image.file_meta.TransferSyntaxUID == ExplicitVRBigEndian and image.BitsAllocated > 8:
        image.PixelData = np.frombuffer(image.PixelData, f"u{image.BitsAllocated // 8}").byteswap().tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, image, enforce_file_format=True)
    return path


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _predicted(image: np.ndarray, row: int, column: int, top: int, predictor: int, first: int) -> int:
    """Return the prediction of one sample of ``(rows, columns)`` in a stripe that begins at row ``top``."""
    if row == top:
        return first if column == 0 else int(image[row, column - 1])
    above = int(image[row - 1, column])
    if column == 0:
        return above
    left, corner = int(image[row, column - 1]), int(image[row - 1, column - 1])
    return {
        1: left,
        2: above,
        3: corner,
        4: left + above - corner,
        5: left + ((above - corner) >> 1),
        6: above + ((left - corner) >> 1),
        7: (left + above) >> 1,
    }[predictor]


def _bits_of(difference: int) -> str:
    """Return code and difference. The codes are the categories in five bits: 17 of them, none all ones."""
    difference &= 0xFFFF
    difference -= 65536 if difference > 32768 else 0
    category = abs(difference).bit_length()
    code = f"{category:05b}"
    if category in (0, 16):
        return code
    return code + f"{difference if difference > 0 else difference + (1 << category) - 1:0{category}b}"


def lossless_jpeg(
    image: np.ndarray, *, precision: int = 16, predictor: int = 1, shift: int = 0, restart_rows: int = 0, scans: int = 1
) -> bytes:
    """Encode ``(rows, columns, samples)`` of ``precision`` bits as lossless JPEG, slowly, by the book (ITU-T T.81)."""
    rows, columns, samples = image.shape
    image = image.astype(int) >> shift
    content = b"\xff\xd8" + _segment(0xFE, b"a comment")
    frame = struct.pack(">BHHB", precision, rows, columns, samples)
    content += _segment(0xC3, frame + b"".join(bytes([n + 1, 0x11, 0]) for n in range(samples)))
    content += _segment(0xC4, bytes([0]) + bytes([0] * 4 + [17] + [0] * 11) + bytes(range(17)))
    if restart_rows:
        content += _segment(0xDD, struct.pack(">H", restart_rows * columns))
    groups = [[n] for n in range(samples)] if scans > 1 else [list(range(samples))]
    for group in groups:
        selectors = b"".join(bytes([n + 1, 0]) for n in group)
        content += _segment(0xDA, bytes([len(group)]) + selectors + bytes([predictor, 0, shift]))
        stripe = restart_rows or rows
        for number, top in enumerate(range(0, rows, stripe)):
            bits = "".join(
                _bits_of(
                    int(image[row, column, n])
                    - _predicted(image[..., n], row, column, top, predictor, 1 << (precision - shift - 1))
                )
                for row in range(top, min(rows, top + stripe))
                for column in range(columns)
                for n in group
            )
            bits += "1" * (-len(bits) % 8)
            data = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
            content += (bytes([0xFF, 0xD0 + (number - 1) % 8]) if number else b"") + data.replace(b"\xff", b"\xff\0")
    return content + b"\xff\xd9"


def secrets_of(files: Iterable[Path]) -> set[str]:
    """Return what no message may show: names, identities, dates and UIDs of these files, as they are written."""
    secrets = {NAME, IDENTITY, BIRTH, DATE, "Secret", "A-99812"}
    for path in files:
        image = dcmread(path, stop_before_pixels=True, force=True)
        for word in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
            secrets.add(str(image.get(word, NAME)))
    return secrets


def _decimals(values: Iterable[float]) -> list[str]:
    """Write numbers as decimal strings of at most 16 characters."""
    return [f"{value:.9f}"[:16] for value in values]
