from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dicom_phantoms import SORTED_AFFINES, new_image, secrets_of, set_pixels
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    SegmentationStorage,
    generate_uid,
)
from seg_phantoms import SHAPE, Images, blobs, images_in, write_by_highdicom

from medsaga.data.dicom.geometry import Geometry
from medsaga.data.dicom.segmentation import read_segmentation, segments_of
from medsaga.errors import InputError

Bytes = npt.NDArray[np.uint8]
Affine = npt.NDArray[np.float64]


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return images_in(tmp_path / "ct", SORTED_AFFINES["axial"])


def by_highdicom(
    path: Path,
    images: Images,
    pixels: npt.NDArray[Any],
    numbers: Sequence[int],
    kind: str = "BINARY",
    syntax: UID = ExplicitVRLittleEndian,
    **options: Any,
) -> Path:
    """Let highdicom write ``(frames, rows, columns[, segments])``, compressed or not."""
    write_by_highdicom(path, images.files, pixels, [(number, f"part {number}") for number in numbers], kind, **options)
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


@pytest.mark.parametrize("name", SORTED_AFFINES)
@pytest.mark.parametrize("segments", [1, 3])
def test_what_highdicom_writes_comes_back_voxel_for_voxel(tmp_path: Path, name: str, segments: int) -> None:
    images = images_in(tmp_path / "ct", SORTED_AFFINES[name])
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
    monkeypatch.setattr("medsaga.data.dicom.documents.MOST_INFLATED_BYTES", 2**22)
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
