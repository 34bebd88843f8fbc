from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pytest
from dicom_phantoms import IDENTITY, NAME, new_image, save, secrets_of, set_pixels, write_ct_series
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileDataset
from pydicom.sr.codedict import codes
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    SegmentationStorage,
    generate_uid,
)

from medsaga.data.dicom import terminology
from medsaga.data.dicom.geometry import Geometry, geometry_of
from medsaga.data.dicom.segmentation import read_segmentation, segments_of
from medsaga.data.dicom.segmentation_writer import SERIES_DESCRIPTION, write_segmentation
from medsaga.data.dicom.series import Series, find_series
from medsaga.errors import InputError

Bytes = npt.NDArray[np.uint8]
Affine = npt.NDArray[np.float64]

_X, _Y = np.array([0.8, 0.6, 0.0]), np.array([-0.48, 0.64, 0.6])
AFFINES = {
    "axial": np.array([[-0.8, 0, 0, 40], [0, -0.7, 0, 30], [0, 0, 2.5, -60], [0, 0, 0, 1.0]]),
    "coronal": np.array([[-0.8, 0, 0, 40], [0, 0, -3, 30], [0, -0.7, 0, -60], [0, 0, 0, 1.0]]),
    "sagittal": np.array([[0, 0, 3, 40], [-0.8, 0, 0, 30], [0, -0.7, 0, -60], [0, 0, 0, 1.0]]),
    "oblique": np.vstack(
        [np.column_stack([-0.8 * _X, -0.7 * _Y, 2.5 * np.cross(_X, _Y), [5.0, 6, 7]]), [0, 0, 0, 1.0]]
    ),
    "tilted": np.array([[-0.8, 0, 0, 40], [0, -0.7, 0.5, 30], [0, 0, 2.5, -60], [0, 0, 0, 1.0]]),
}
"""Voxel (column, row, slice) to RAS+ mm."""
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


def images_in(folder: Path, affine: Affine, shape: tuple[int, int, int] = SHAPE, **options: Any) -> Images:
    files = write_ct_series(folder, np.zeros(shape), affine, **options)
    (series,) = find_series(folder)
    return Images(series, geometry_of(series), files, affine)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return images_in(tmp_path / "ct", AFFINES["axial"])


def blobs(segments: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Bytes:
    """Return labels 0 to ``segments`` on some of the slices of a grid."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, segments + 1, shape).astype(np.uint8)
    labels[:, :, random.permutation(shape[2])[: shape[2] // 3]] = 0
    return labels


def described(number: int, label: str) -> Any:
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=codes.SCT.Tissue,
        segmented_property_type=codes.SCT.Tissue,
        algorithm_type="MANUAL",
    )


def by_highdicom(
    path: Path,
    images: Images,
    pixels: npt.NDArray[Any],
    numbers: Sequence[int],
    kind: str = "BINARY",
    syntax: UID = ExplicitVRLittleEndian,
    **options: Any,
) -> Path:
    """Let highdicom write ``(frames, rows, columns[, segments])``, on images in shuffled order."""
    order = np.random.default_rng(3).permutation(len(images.files))
    segmentation = hd.seg.Segmentation(
        source_images=[images.headers[k] for k in order],
        pixel_array=pixels[order],
        segmentation_type=kind,
        segment_descriptions=[described(number, f"part {number}") for number in numbers],
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="somebody",
        manufacturer_model_name="program",
        software_versions="1",
        device_serial_number="1",
        **options,
    )
    segmentation.save_as(path)
    if syntax != ExplicitVRLittleEndian:
        # Not by highdicom, which takes any encoder: that of GDCM ends the process at an odd number of pixels.
        document = dcmread(path)
        document.compress(syntax, encoding_plugin="pydicom" if syntax == RLELossless else "pyjpegls")
        document.save_as(path)
    return path


def by_hand(
    path: Path,
    images: Images,
    frames: Sequence[tuple[int, npt.NDArray[Any], Affine]],
    *,
    labels: Sequence[str] = ("one", "two"),
    edit: Callable[[Dataset], object] | None = None,
    syntax: UID = ExplicitVRLittleEndian,
) -> Path:
    """Write frames of a segment, ``(rows, columns)``, each with an affine (column, row, slice 0) to RAS+ mm."""
    document = new_image(SegmentationStorage, "SEG")
    document.file_meta.TransferSyntaxUID = syntax
    document.FrameOfReferenceUID = images.geometry.frame_of_reference
    set_pixels(document, np.stack([mask for _, mask, _ in frames]).astype(np.uint8))
    document.BitsAllocated = document.BitsStored = 1
    document.HighBit = 0
    packed = np.packbits(np.stack([mask for _, mask, _ in frames]).ravel() > 0, bitorder="little").tobytes()
    document.PixelData = packed + b"\0" * (len(packed) % 2)
    document.SegmentationType = "BINARY"
    document.SegmentSequence, document.PerFrameFunctionalGroupsSequence = [], []
    for number, label in enumerate(labels, start=1):
        segment = Dataset()
        segment.SegmentNumber, segment.SegmentLabel = number, label
        document.SegmentSequence.append(segment)
    for number, _, affine in frames:
        lps = np.diag([-1.0, -1, 1, 1]) @ affine
        spacing = np.linalg.norm(lps[:3, :2], axis=0)
        groups, which, place, direction, measures = (Dataset() for _ in range(5))
        which.ReferencedSegmentNumber = number
        place.ImagePositionPatient = [f"{value:.6e}" for value in lps[:3, 3]]
        direction.ImageOrientationPatient = [f"{value:.6e}" for value in (lps[:3, :2] / spacing).T.ravel()]
        measures.PixelSpacing = [f"{value:.6e}" for value in spacing[::-1]]
        groups.SegmentIdentificationSequence, groups.PlanePositionSequence = [which], [place]
        groups.PlaneOrientationSequence, groups.PixelMeasuresSequence = [direction], [measures]
        document.PerFrameFunctionalGroupsSequence.append(groups)
    if edit is not None:
        edit(document)
    document.save_as(path, enforce_file_format=True)
    return path


def moved(affine: Affine, to_index: Sequence[Sequence[float]]) -> Affine:
    """Return the affine of a frame whose column, row and slice steps and origin are given in voxel indices."""
    steps = np.eye(4)
    steps[:3] = np.array(to_index, dtype=np.float64).T
    return affine @ steps


def on_slice(affine: Affine, k: float) -> Affine:
    return moved(affine, [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, k)])


# Reading


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("segments", [1, 3])
def test_what_highdicom_writes_comes_back_voxel_for_voxel(tmp_path: Path, name: str, segments: int) -> None:
    images = images_in(tmp_path / "ct", AFFINES[name])
    labels = blobs(segments)
    path = by_highdicom(tmp_path / "seg.dcm", images, labels.transpose(2, 1, 0), range(1, segments + 1))
    found, names, warnings = read_segmentation(path, images.geometry)
    assert (found == labels).all()
    assert names == segments_of(path) == {f"part {n}": n for n in range(1, segments + 1)}
    assert warnings == ()


def test_a_frame_lies_where_it_says_whatever_images_it_refers_to(tmp_path: Path, images: Images) -> None:
    labels = blobs(2)
    frames = [
        (number, (labels[:, :, k] == number).T, on_slice(images.affine, k))
        for number, k in [(2, 3), (1, 0), (2, 0), (1, 3), (1, 5)]
    ]
    expected = np.zeros_like(labels)
    for number, k in [(2, 3), (1, 0), (2, 0), (1, 3), (1, 5)]:
        expected[:, :, k][labels[:, :, k] == number] = number
    found, names, warnings = read_segmentation(by_hand(tmp_path / "seg.dcm", images, frames), images.geometry)
    assert expected.any()
    assert (found == expected).all()
    assert (names, warnings) == ({"one": 1, "two": 2}, ())


@pytest.mark.parametrize(
    ("steps", "shape", "covered"),
    [
        # Rows and columns the other way round, one and both of them mirrored.
        ([(-1, 0, 0), (0, -1, 0), (0, 0, 1), (10, 6, 2)], (7, 11), np.s_[::-1, ::-1, 2]),
        ([(1, 0, 0), (0, -1, 0), (0, 0, 1), (0, 6, 2)], (7, 11), np.s_[:, ::-1, 2]),
        # A part of an image.
        ([(1, 0, 0), (0, 1, 0), (0, 0, 1), (3, 2, 4)], (4, 5), np.s_[3:8, 2:6, 4]),
        # One row of it.
        ([(1, 0, 0), (0, 1, 0), (0, 0, 1), (3, 2, 4)], (1, 5), np.s_[3:8, 2:3, 4]),
        # One pixel of it.
        ([(1, 0, 0), (0, 1, 0), (0, 0, 1), (3, 2, 4)], (1, 1), np.s_[3:4, 2:3, 4]),
    ],
)
def test_frames_may_run_another_way_or_cover_a_part(
    tmp_path: Path, images: Images, steps: list[tuple[float, ...]], shape: tuple[int, int], covered: Any
) -> None:
    mask = np.random.default_rng(0).integers(0, 2, shape)
    mask[0, 0] = 1
    path = by_hand(tmp_path / "seg.dcm", images, [(1, mask, moved(images.affine, steps))])
    found, _, _ = read_segmentation(path, images.geometry)
    expected = np.zeros(SHAPE, np.uint8)
    expected[covered] = mask.T
    assert (found == expected).all()


def test_frames_may_have_another_orientation_than_the_images(tmp_path: Path) -> None:
    images = images_in(tmp_path / "ct", np.diag([-1.0, -1, 1, 1]))
    mask = np.random.default_rng(0).integers(0, 2, (SHAPE[2], SHAPE[0]))
    # A coronal plane of axial images: its columns are those of the images, its rows run down the slices.
    affine = moved(images.affine, [(1, 0, 0), (0, 0, -1), (0, 1, 0), (0, 4, 5)])
    found, _, _ = read_segmentation(by_hand(tmp_path / "seg.dcm", images, [(1, mask, affine)]), images.geometry)
    expected = np.zeros(SHAPE, np.uint8)
    expected[:, 4, ::-1] = mask.T
    assert (found == expected).all()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_where_segments_overlap_the_highest_wins_in_any_order(
    tmp_path: Path, images: Images, order: tuple[int, int]
) -> None:
    masks = [np.zeros((7, 11)), np.zeros((7, 11))]
    masks[0][2:5, 2:6], masks[1][4:6, 3:9] = 1, 1
    frames = [(n + 1, masks[n], on_slice(images.affine, 1)) for n in order]
    found, _, warnings = read_segmentation(by_hand(tmp_path / "seg.dcm", images, frames), images.geometry)
    assert warnings == ("voxels in more than one label, of which the highest wins: 3",)
    assert (found == 2).sum() == 12
    assert (found == 1).sum() == 9


def test_segments_of_one_name_are_one_label(tmp_path: Path, images: Images) -> None:
    mask = np.ones((7, 11))
    frames = [(n, mask, on_slice(images.affine, n)) for n in (1, 2, 3)]
    path = by_hand(tmp_path / "seg.dcm", images, frames, labels=("lesion", "liver", "lesion"))
    found, names, warnings = read_segmentation(path, images.geometry)
    assert names == segments_of(path) == {"lesion": 1, "liver": 2}
    assert np.unique(found[:, :, 3]).tolist() == [1]
    assert warnings == ("2 are called 'lesion': read as one label",)


def test_names_come_from_the_label_the_description_or_the_number(tmp_path: Path, images: Images) -> None:
    def edit(document: Dataset) -> None:
        del document.SegmentSequence[1].SegmentLabel
        document.SegmentSequence[1].SegmentDescription = " of\ttwo  lines "
        document.SegmentSequence[2].SegmentLabel = ""

    frames = [(1, np.ones((7, 11)), on_slice(images.affine, 1))]
    path = by_hand(tmp_path / "seg.dcm", images, frames, labels=("a", "b", "c", "Background"), edit=edit)
    assert segments_of(path) == {"a": 1, "of two lines": 2, "segment 3": 3}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless])
def test_fractions_from_one_half_on_are_inside(tmp_path: Path, images: Images, syntax: UID) -> None:
    fractions = np.random.default_rng(0).random((6, 7, 11, 1))
    # Noise alone does not compress.
    fractions[:, 3:] = 0
    fractions[0, 0, :5, 0] = [0, 0.4999, 0.5, 0.5001, 1]
    options: dict[str, Any] = {"max_fractional_value": 200, "fractional_type": "PROBABILITY"}
    path = tmp_path / "seg.dcm"
    by_highdicom(path, images, fractions, [1], "FRACTIONAL", syntax, **options)
    found, _, _ = read_segmentation(path, images.geometry)
    # As highdicom stores them: rounded to the nearest of 0 to 200.
    expected = np.rint(fractions[..., 0] * 200).transpose(2, 1, 0) >= 100
    assert (found == expected).all()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_label_maps_keep_numbers_with_gaps(tmp_path: Path, images: Images, syntax: UID) -> None:
    labels = np.array([0, 2, 7, 300], np.uint16)[blobs(3)]
    path = tmp_path / "seg.dcm"
    by_highdicom(path, images, labels.transpose(2, 1, 0), [2, 7, 300], "LABELMAP", syntax)
    found, names, _ = read_segmentation(path, images.geometry)
    assert (found == labels).all()
    assert found.dtype == np.uint16
    assert names == {"part 2": 2, "part 7": 7, "part 300": 300}


def test_a_deflated_segmentation_is_read(tmp_path: Path, images: Images) -> None:
    frames = [(1, np.ones((7, 11)), on_slice(images.affine, 1))]
    path = by_hand(tmp_path / "seg.dcm", images, frames, syntax=DeflatedExplicitVRLittleEndian)
    found, _, _ = read_segmentation(path, images.geometry)
    assert found.sum() == 77


def test_frames_without_a_position_go_to_the_image_they_refer_to(tmp_path: Path, images: Images) -> None:
    def edit(document: Dataset) -> None:
        for k, groups in zip((4, 1), document.PerFrameFunctionalGroupsSequence, strict=True):
            del groups.PlanePositionSequence
            source, derivation = Dataset(), Dataset()
            source.ReferencedSOPInstanceUID = images.headers[k].SOPInstanceUID
            derivation.SourceImageSequence = [source]
            groups.DerivationImageSequence = [derivation]

    mask = np.random.default_rng(0).integers(0, 2, (7, 11))
    frames = [(1, mask, images.affine), (2, mask, images.affine)]
    found, _, _ = read_segmentation(by_hand(tmp_path / "seg.dcm", images, frames, edit=edit), images.geometry)
    assert (found[:, :, 4] == mask.T).all()
    assert (found[:, :, 1] == 2 * mask.T).all()
    assert not np.delete(found, [1, 4], axis=2).any()


# What cannot be read


def refused(path: Path, geometry: Geometry, words: str) -> None:
    """Require one error with these words, in seconds, that says nothing of the patient."""
    start = time.monotonic()
    with pytest.raises(InputError, match=words) as caught:
        read_segmentation(path, geometry)
    assert time.monotonic() - start < 3
    shown = f"{caught.value} {caught.value.__cause__}".replace(str(path), "")
    assert not [secret for secret in secrets_of(each.file for each in geometry.instances) if secret in shown]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 6)], "one at slice 7.00 of 6"),
        ([(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 2.4)], "one at slice 3.40 of 6"),
        ([(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0, 2)], "another orientation, pixel size or offset"),
        ([(0.5, 0, 0), (0, 0.5, 0), (0, 0, 1), (0, 0, 2)], "another orientation, pixel size or offset"),
        ([(1, 0, 0.2), (0, 1, 0), (0, 0, 1), (0, 0, 2)], "another orientation, pixel size or offset"),
        ([(0.7, 0.7, 0), (-0.7, 0.7, 0), (0, 0, 1), (0, 0, 2)], "another orientation, pixel size or offset"),
        ([(1, 0, 0), (0, 1, 0), (0, 0, 1), (3, 0, 2)], "reaches out of them"),
        ([(1, 0, 0), (0, 1, 0), (0, 0, 1), (1e9, 0, 2)], "another orientation, pixel size or offset"),
    ],
)
def test_frames_on_another_grid_are_refused(
    tmp_path: Path, images: Images, steps: list[tuple[float, ...]], words: str
) -> None:
    path = by_hand(tmp_path / "seg.dcm", images, [(1, np.ones((7, 11)), moved(images.affine, steps))])
    refused(path, images.geometry, words)


def _first(document: Dataset) -> Dataset:
    return document.PerFrameFunctionalGroupsSequence[0]


def _made_gigantic(document: Dataset) -> None:
    document.Rows = document.Columns = 65535


def _made_fractional(document: Dataset) -> None:
    document.SegmentationType, document.MaximumFractionalValue = "FRACTIONAL", 0


DAMAGE: dict[str, tuple[Callable[[Dataset], object], str]] = {
    "another space": (lambda d: setattr(d, "FrameOfReferenceUID", generate_uid()), "another examination"),
    "another patient": (lambda d: setattr(d, "PatientID", "Other-1"), "another patient"),
    "gigantic frames": (_made_gigantic, "bytes of pixels"),
    "gigantic number": (lambda d: setattr(d, "NumberOfFrames", 2**31 - 1), "description of each of its"),
    "no rows": (lambda d: delattr(d, "Rows"), "Rows"),
    "zero rows": (lambda d: setattr(d, "Rows", 0), "at least 1 x 1"),
    "no pixels": (lambda d: delattr(d, "PixelData"), "pixel data"),
    "few pixels": (lambda d: setattr(d, "PixelData", b"\0\0"), "bytes of pixels"),
    "no frames": (lambda d: delattr(d, "PerFrameFunctionalGroupsSequence"), "0 descriptions"),
    "no segments": (lambda d: delattr(d, "SegmentSequence"), "one of segment 1"),
    "equal segments": (lambda d: setattr(d.SegmentSequence[1], "SegmentNumber", 1), "each once"),
    "no number": (lambda d: delattr(d.SegmentSequence[1], "SegmentNumber"), "SegmentNumber"),
    "unknown type": (lambda d: setattr(d, "SegmentationType", "SURFACE"), "binary, fractional or label map"),
    "no position": (lambda d: delattr(_first(d), "PlanePositionSequence"), "does neither"),
    "no orientation": (lambda d: delattr(_first(d), "PlaneOrientationSequence"), "a position alone"),
    "zero spacing": (
        lambda d: setattr(_first(d).PixelMeasuresSequence[0], "PixelSpacing", ["0", "0"]),
        "another orientation",
    ),
    "two coordinates": (
        lambda d: setattr(_first(d).PlanePositionSequence[0], "ImagePositionPatient", ["1", "2"]),
        "ImagePositionPatient",
    ),
    "endless position": (
        lambda d: setattr(_first(d).PlanePositionSequence[0], "ImagePositionPatient", ["1e300", "-1e300", "1e300"]),
        "expected",
    ),
    "32 bits": (lambda d: setattr(d, "BitsAllocated", 32), "1, 8 or 16 bits"),
    "no fraction": (_made_fractional, "MaximumFractionalValue"),
    "another class": (lambda d: setattr(d, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.2"), "another kind"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_segmentation_is_one_clear_error(tmp_path: Path, images: Images, name: str) -> None:
    edit, words = DAMAGE[name]
    frames = [(1, np.ones((7, 11)), on_slice(images.affine, 1))]
    refused(by_hand(tmp_path / "seg.dcm", images, frames, edit=edit), images.geometry, words)


@pytest.mark.parametrize("bad", ["nan", "inf", "abc"])
def test_positions_that_are_no_numbers_are_refused(tmp_path: Path, images: Images, bad: str) -> None:
    path = by_hand(tmp_path / "seg.dcm", images, [(1, np.ones((7, 11)), on_slice(images.affine, 1))])
    content, written = path.read_bytes(), f"{-images.affine[0, 3]:.6e}".encode()
    assert content.count(written) == 1
    path.write_bytes(content.replace(written, bad.encode().ljust(len(written))))
    refused(path, images.geometry, "expected")


def test_any_truncation_is_an_input_error(tmp_path: Path, images: Images) -> None:
    path = by_hand(tmp_path / "seg.dcm", images, [(1, np.ones((7, 11)), on_slice(images.affine, 1))])
    content = path.read_bytes()
    for size in [0, 1, 131, 132, *np.random.default_rng(1).integers(132, len(content), 60).tolist()]:
        path.write_bytes(content[:size])
        refused(path, images.geometry, "expected")


@pytest.mark.parametrize("name", ["missing.dcm", "folder", "text.dcm"])
def test_what_is_no_segmentation_is_refused(tmp_path: Path, images: Images, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.dcm").write_text("no DICOM at all " * 40)
    refused(tmp_path / name, images.geometry, "a DICOM segmentation")


def test_a_deflated_bomb_is_refused(tmp_path: Path, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medsaga.data.dicom.documents._MOST_INFLATED_BYTES", 2**22)
    frames = [(1, np.ones((7, 11)), on_slice(images.affine, 1))]
    path = by_hand(
        tmp_path / "seg.dcm",
        images,
        frames,
        syntax=DeflatedExplicitVRLittleEndian,
        edit=lambda d: setattr(d, "PixelData", bytes(2**23)),
    )
    assert path.stat().st_size < 2**16
    refused(path, images.geometry, "more than the memory holds")


# Writing


def written(path: Path, images: Images, labels: npt.NDArray[Any], names: dict[str, int], **options: Any) -> FileDataset:
    write_segmentation(path, labels, images.series, images.geometry, names, model="vit_b", **options)
    return dcmread(path)


@pytest.mark.parametrize("name", AFFINES)
def test_highdicom_reads_the_voxels_that_were_written(tmp_path: Path, name: str) -> None:
    images = images_in(tmp_path / "ct", AFFINES[name])
    labels = blobs(3)
    path = tmp_path / "out" / "seg.dcm"
    written(path, images, labels, {"background": 0, "liver": 1, "kidney": 2, "other": 3})
    segmentation = hd.seg.segread(path)
    pixels = segmentation.get_pixels_by_source_instance(
        [header.SOPInstanceUID for header in images.headers], combine_segments=True
    )
    assert (pixels.transpose(2, 1, 0) == labels).all()
    found, names, warnings = read_segmentation(path, images.geometry)
    assert (found == labels).all()
    assert (names, warnings) == ({"liver": 1, "kidney": 2, "other": 3}, ())
    positions = {
        tuple(map(float, groups.PlanePositionSequence[0].ImagePositionPatient))
        for groups in segmentation.PerFrameFunctionalGroupsSequence
    }
    drawn = np.flatnonzero(labels.any(axis=(0, 1)))
    assert positions == {tuple(map(float, images.headers[k].ImagePositionPatient)) for k in drawn}


def test_label_values_with_gaps_become_consecutive_segments(tmp_path: Path, images: Images) -> None:
    labels = np.array([0, 1, 4], np.uint8)[blobs(2)]
    path = tmp_path / "seg.dcm"
    written(path, images, labels, {"tumour core": 4, "edema": 1, "never seen": 300})
    found, names, _ = read_segmentation(path, images.geometry)
    assert names == {"edema": 1, "tumour core": 2, "never seen": 3}
    assert (found == np.array([0, 1, 0, 0, 2])[labels]).all()


def test_labels_without_a_voxel_are_segments_without_a_frame(tmp_path: Path, images: Images) -> None:
    document = written(tmp_path / "seg.dcm", images, np.zeros(SHAPE, np.uint8), {"liver": 1, "spleen": 2})
    assert [str(each.SegmentLabel) for each in document.SegmentSequence] == ["liver", "spleen"]
    assert int(document.NumberOfFrames) >= 1
    found, names, _ = read_segmentation(tmp_path / "seg.dcm", images.geometry)
    assert names == {"liver": 1, "spleen": 2}
    assert not found.any()


def test_the_segmentation_has_what_dcmqi_and_viewers_need(tmp_path: Path, images: Images) -> None:
    document = written(tmp_path / "seg.dcm", images, blobs(2), {"liver": 1, "kidney_left": 2})
    source = images.headers[0]
    for word in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID"):
        assert document[word].value == source[word].value
    assert document.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert document.SeriesInstanceUID != source.SeriesInstanceUID
    assert document.Modality == "SEG"
    assert document.SeriesDescription == SERIES_DESCRIPTION
    assert "not for clinical use" in SERIES_DESCRIPTION
    assert len(SERIES_DESCRIPTION) <= 64
    assert (document.Manufacturer, document.ManufacturerModelName) == ("medsaga", "medsaga")
    assert document.ContentLabel == "SEGMENTATION"
    assert (document.SegmentationType, document.BitsAllocated, document.SegmentsOverlap) == ("BINARY", 1, "NO")

    (series,) = document.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    referenced = {each.ReferencedSOPInstanceUID for each in series.ReferencedInstanceSequence}
    assert referenced == {header.SOPInstanceUID for header in images.headers}

    for number, segment in enumerate(document.SegmentSequence, start=1):
        assert segment.SegmentNumber == number
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert segment.SegmentAlgorithmName == "medsaga segmentation"
        assert len(segment.RecommendedDisplayCIELabValue) == 3
        for word in ("SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence"):
            (code,) = segment[word].value
            assert code.CodeValue
            assert code.CodingSchemeDesignator == "SCT"
            assert code.CodeMeaning
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmSource, algorithm.AlgorithmParameters) == ("medsaga", "model=vit_b")
    (kidney,) = document.SegmentSequence[1].SegmentedPropertyTypeCodeSequence
    (side,) = kidney.SegmentedPropertyTypeModifierCodeSequence
    assert (kidney.CodeMeaning, side.CodeMeaning) == ("Kidney", "Left")

    (shared,) = document.SharedFunctionalGroupsSequence
    (measures,) = shared.PixelMeasuresSequence
    assert [float(value) for value in measures.PixelSpacing] == [0.7, 0.8]
    assert float(measures.SliceThickness) == float(measures.SpacingBetweenSlices) == 2.5
    assert list(shared.PlaneOrientationSequence[0].ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]

    pointers = [int(each.DimensionIndexPointer) for each in document.DimensionIndexSequence]
    assert pointers == [0x0062000B, 0x00200032]
    places = {tuple(map(float, header.ImagePositionPatient)): header.SOPInstanceUID for header in images.headers}
    assert len(document.PerFrameFunctionalGroupsSequence) == document.NumberOfFrames
    for groups in document.PerFrameFunctionalGroupsSequence:
        position = tuple(map(float, groups.PlanePositionSequence[0].ImagePositionPatient))
        (derivation,) = groups.DerivationImageSequence
        (image,) = derivation.SourceImageSequence
        assert image.ReferencedSOPInstanceUID == places[position]
        assert image.ReferencedSOPClassUID == source.SOPClassUID
        assert image.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert derivation.DerivationCodeSequence[0].CodeValue == "113076"
        number, index = groups.FrameContentSequence[0].DimensionIndexValues
        assert number == groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        assert 1 <= index <= SHAPE[2]


def test_given_codes_go_before_known_names(tmp_path: Path, images: Images) -> None:
    given = terminology.Terminology(
        terminology.MORPHOLOGY, terminology.Code("4147007", "SCT", "Mass"), terminology.Code("24028007", "SCT", "Right")
    )
    names = {"liver": 1, "spleen": 2, "thing": 3}
    document = written(tmp_path / "seg.dcm", images, blobs(3), names, codes={"liver": given})
    types = [each.SegmentedPropertyTypeCodeSequence[0] for each in document.SegmentSequence]
    assert [each.CodeMeaning for each in types] == ["Mass", "Spleen", "Tissue"]
    assert types[0].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Right"


def test_names_of_patients_in_other_scripts_and_odd_headers_survive(tmp_path: Path) -> None:
    def edit(image: Dataset, _: int) -> None:
        image.SpecificCharacterSet = "ISO_IR 100"
        image.PatientName = "Müller^Jürgen"
        image.StudyDate = "2019.04.31"
        del image.PatientSex, image.ReferringPhysicianName, image.AccessionNumber, image.SeriesNumber

    with disable_value_validation():
        images = images_in(tmp_path / "ct", AFFINES["axial"], edit=edit)
    document = written(tmp_path / "seg.dcm", images, blobs(1), {"Läsion \\ Übergang": 1})
    assert document.PatientName == "Müller^Jürgen"
    assert document.SegmentSequence[0].SegmentLabel == "Läsion / Übergang"
    assert document.StudyDate == ""


def test_a_failed_writing_leaves_no_file_and_names_no_patient(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def edit(image: Dataset, _: int) -> None:
        # highdicom quotes a name that it finds odd in its log.
        image.PatientName = "Secret=Name=with=many=parts^^^^^^^"
        del image.StudyInstanceUID

    with disable_value_validation():
        images = images_in(tmp_path / "ct", AFFINES["axial"], edit=edit)
    path = tmp_path / "seg.dcm"
    with pytest.raises(InputError, match="attributes that a segmentation of them repeats") as caught:
        written(path, images, blobs(1), {"liver": 1})
    assert not path.exists()
    assert [each.name for each in tmp_path.iterdir()] == ["ct"]
    shown = "".join([str(caught.value), *capfd.readouterr()])
    assert not [secret for secret in secrets_of(images.files) if secret in shown]


def test_an_image_without_a_position_gets_a_segmentation_that_refers_to_it(tmp_path: Path) -> None:
    image = new_image(DigitalXRayImageStorageForPresentation, "DX")
    image.SeriesDescription = "chest"
    image.ImagerPixelSpacing = [0.2, 0.2]
    set_pixels(image, np.zeros((9, 13), np.uint16))
    save(image, tmp_path / "dx" / "1.dcm")
    (series,) = find_series(tmp_path / "dx")
    images = Images(series, geometry_of(series), [tmp_path / "dx" / "1.dcm"], np.eye(4))
    assert images.geometry.grid.shape == (9, 13)
    labels = np.random.default_rng(0).integers(0, 3, (9, 13)).astype(np.uint8)
    path = tmp_path / "seg.dcm"
    document = written(path, images, labels, {"heart": 1, "lung": 2})
    found, names, _ = read_segmentation(path, images.geometry)
    assert (found == labels).all()
    assert names == {"heart": 1, "lung": 2}
    assert document.PatientName == NAME


def test_a_multi_frame_image_gets_a_segmentation_frame_by_frame(tmp_path: Path) -> None:
    single = images_in(tmp_path / "ct", AFFINES["oblique"])
    enhanced = hd.legacy.LegacyConvertedEnhancedCTImage(
        legacy_datasets=[dcmread(file) for file in single.files[::-1]],
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
    )
    path = tmp_path / "enhanced" / "1.dcm"
    path.parent.mkdir()
    enhanced.save_as(path)
    (series,) = find_series(path.parent)
    images = Images(series, geometry_of(series), [path], single.affine)
    assert images.geometry.grid.shape == SHAPE
    labels = blobs(2)
    written(tmp_path / "seg.dcm", images, labels, {"liver": 1, "spleen": 2})
    for geometry in (images.geometry, single.geometry):
        assert (read_segmentation(tmp_path / "seg.dcm", geometry)[0] == labels).all()


def test_no_message_nor_representation_shows_the_patient(images: Images) -> None:
    shown = f"{images.series!r} {images.series.label()} {images.geometry!r}"
    assert IDENTITY not in shown
    assert not [uid for uid in (header.SOPInstanceUID for header in images.headers) if uid in shown]


# Terminology


def test_the_codes_are_those_of_the_standard() -> None:
    known = {(code.value, code.scheme_designator): code for code in map(codes.SCT.__getattr__, codes.SCT.dir())}
    entries = [*terminology._KNOWN.values(), terminology.Terminology()]
    for code in {code for each in entries for code in (each.type, each.category)} | set(terminology._SIDES.values()):
        assert (code.value, code.scheme) in known, code
    for each in entries:
        assert each.type.meaning in {
            code.meaning for code in map(codes.SCT.__getattr__, codes.SCT.dir()) if code.value == each.type.value
        }


@pytest.mark.parametrize(
    ("name", "meaning", "side"),
    [
        ("liver", "Liver", None),
        ("Left Kidney", "Kidney", "Left"),
        ("kidney_right", "Kidney", "Right"),
        ("lung-left", "Lung", "Left"),
        ("Oesophagus", "Esophagus", None),
        ("tumour", "Neoplasm", None),
        ("inferior_vena_cava", "Inferior vena cava", None),
        ("left right kidney", "Tissue", None),
        ("widget", "Tissue", None),
        ("", "Tissue", None),
    ],
)
def test_names_are_understood(name: str, meaning: str, side: str | None) -> None:
    found = terminology.terminology_of(name)
    assert found.type.meaning == meaning
    assert (found.side.meaning if found.side else None) == side
