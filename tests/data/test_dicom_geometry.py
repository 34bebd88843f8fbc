"""Where slices lie: every plane, tilt, duplicates and gaps, with ITK as oracle of affines."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from dicom_phantoms import AFFINES, Edit, save, secrets_of, write_ct_series, write_enhanced, write_flat
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from medsaga.data.dicom.geometry import Geometry, geometry_of
from medsaga.data.dicom.pixels import read_volume
from medsaga.data.dicom.series import find_series
from medsaga.errors import InputError

VOLUME = np.random.default_rng(0).integers(-1000, 900, (5, 6, 7))
AXIAL = AFFINES["axial"]


def read(root: Path) -> tuple[Geometry, np.ndarray]:
    """Return the geometry and ``(i, j, k)`` of the only series below ``root``."""
    (series,) = find_series(root)
    geometry = geometry_of(series)
    return geometry, read_volume(series, geometry)[0]


def affine_of(geometry: Geometry) -> np.ndarray:
    """Return the affine, which a volume has."""
    assert geometry.grid.affine is not None
    return geometry.grid.affine


def refusal(root: Path) -> str:
    """Return the message about the only series below ``root``, after a look for the patient in it."""
    (series,) = find_series(root)
    with pytest.raises(InputError) as caught:
        geometry_of(series)
    assert_silent(str(caught.value), root)
    return str(caught.value)


def assert_silent(words: str, root: Path) -> None:
    """Fail where a name, identity, date or UID of the files is in ``words``."""
    files = [path for path in root.rglob("*") if path.is_file()]
    assert files
    assert not [secret for secret in secrets_of(files) if secret in words]


def with_marker(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a volume with 1000 in its left-anterior-superior corner, and where that is in RAS+ mm."""
    corners = np.array([[i, j, k, 1] for i in (0, 4) for j in (0, 5) for k in (0, 6)])
    world = corners @ affine.T
    corner = int((world @ [-1, 1, 1, 0]).argmax())
    volume = VOLUME.copy()
    volume[tuple(corners[corner, :3])] = 1000
    return volume, world[corner, :3]


@pytest.mark.parametrize("plane", AFFINES)
def test_a_marker_comes_back_in_its_corner(tmp_path: Path, plane: str) -> None:
    affine = AFFINES[plane]
    volume, place = with_marker(affine)
    write_ct_series(tmp_path, volume, affine)
    geometry, read_back = read(tmp_path)
    marker = [int(index) for index in np.unravel_index(read_back.argmax(), read_back.shape)]
    assert np.allclose((affine_of(geometry) @ [*marker, 1])[:3], place, atol=1e-6)
    # Every other voxel is at its place too: the order along k may be the other one.
    flipped = not np.allclose(affine_of(geometry), affine, atol=1e-6)
    assert np.array_equal(read_back, volume[:, :, ::-1] if flipped else volume)
    # By the right-hand rule from the directions of rows and columns.
    codes = {"coronal": "LIP", "sagittal": "PIR", "feet first": "LPS"}
    assert "".join(nib.aff2axcodes(affine_of(geometry))) == codes.get(plane, "LPS")
    assert geometry.grid.shape == (5, 6, 7)
    assert geometry.grid.spacing == pytest.approx((0.9, 1.2, 4), abs=1e-6)
    assert np.prod(geometry.grid.spacing or 0) == pytest.approx(abs(np.linalg.det(affine_of(geometry))))


@pytest.mark.parametrize("plane", [name for name in AFFINES if name != "tilted"])
def test_itk_agrees(tmp_path: Path, plane: str) -> None:
    write_ct_series(tmp_path, VOLUME, AFFINES[plane])
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    oracle = reader.Execute()
    geometry, volume = read(tmp_path)
    expected = np.eye(4)
    expected[:3, :3] = np.array(oracle.GetDirection()).reshape(3, 3) @ np.diag(oracle.GetSpacing())
    expected[:3, 3] = oracle.GetOrigin()
    assert np.allclose(affine_of(geometry), np.diag([-1, -1, 1, 1]) @ expected, atol=1e-5)
    assert np.array_equal(volume, SimpleITK.GetArrayFromImage(oracle).T)


def test_a_tilted_gantry_shears_the_grid_and_resamples_nothing(tmp_path: Path) -> None:
    write_ct_series(tmp_path, VOLUME, AFFINES["tilted"])
    geometry, volume = read(tmp_path)
    assert np.allclose(affine_of(geometry), AFFINES["tilted"], atol=1e-6)
    assert np.array_equal(volume, VOLUME)
    assert geometry.warnings == (
        "The gantry was tilted by 11.3 degrees: the grid is sheared, and nothing was resampled.",
    )


def test_instances_know_the_slice_they_come_from(tmp_path: Path) -> None:
    files = write_ct_series(tmp_path, VOLUME, AXIAL)
    geometry, _ = read(tmp_path)
    assert [instance.file for instance in geometry.instances] == files
    assert [instance.uid for instance in geometry.instances] == [dcmread(file).SOPInstanceUID for file in files]
    assert {instance.frame for instance in geometry.instances} == {None}
    assert geometry.frame_of_reference == dcmread(files[0]).FrameOfReferenceUID
    assert_silent(repr(geometry), tmp_path)


@pytest.mark.parametrize("plane", AFFINES)
def test_frames_of_an_enhanced_image_are_slices(tmp_path: Path, plane: str) -> None:
    numbers = write_enhanced(tmp_path / "x.dcm", VOLUME, AFFINES[plane])
    geometry, volume = read(tmp_path)
    flipped = not np.allclose(affine_of(geometry), AFFINES[plane], atol=1e-6)
    expected = numbers[::-1] if flipped else numbers
    assert [instance.frame for instance in geometry.instances] == expected
    assert len({instance.uid for instance in geometry.instances}) == 1
    assert np.array_equal(volume, VOLUME[:, :, ::-1] if flipped else VOLUME)
    first = affine_of(geometry) @ [0, 0, 0, 1]
    assert np.allclose(first, AFFINES[plane] @ [0, 0, 6 if flipped else 0, 1], atol=1e-6)


def test_one_slice_is_as_thick_as_it_says(tmp_path: Path) -> None:
    write_ct_series(tmp_path, VOLUME[..., :1], AXIAL)
    geometry, volume = read(tmp_path)
    assert np.allclose(affine_of(geometry), AXIAL, atol=1e-6)
    assert volume.shape == (5, 6, 1)
    assert geometry.warnings == ()


def test_one_slice_that_does_not_say_how_thick_it_is(tmp_path: Path) -> None:
    write_ct_series(tmp_path, VOLUME[..., :1], AXIAL, edit=lambda image, k: image.__delattr__("SliceThickness"))
    geometry, _ = read(tmp_path)
    assert geometry.grid.spacing == pytest.approx((0.9, 1.2, 1))
    assert "1 mm is assumed" in geometry.warnings[0]


def test_positions_that_scanners_round_are_even(tmp_path: Path) -> None:
    def rounded(image: Dataset, k: int) -> None:
        image.ImagePositionPatient = [f"{float(value):.1f}" for value in image.ImagePositionPatient]

    affine = AXIAL.copy()
    affine[2, 2] = 1.25
    write_ct_series(tmp_path, VOLUME, affine, edit=rounded)
    geometry, _ = read(tmp_path)
    assert geometry.grid.spacing == pytest.approx((0.9, 1.2, 1.25), abs=0.02)


def test_a_missing_slice_is_named(tmp_path: Path) -> None:
    files = write_ct_series(tmp_path, VOLUME, AXIAL)
    files[3].unlink()
    message = refusal(tmp_path)
    assert f"a gap of 8 mm between {files[2].name!r} and {files[4].name!r}, where slices are 4 mm apart." in message


def test_several_gaps_are_counted(tmp_path: Path) -> None:
    files = write_ct_series(tmp_path, np.repeat(VOLUME, 2, axis=2), AXIAL)
    for k in (3, 6, 7, 10):
        files[k].unlink()
    message = refusal(tmp_path)
    assert f"a gap of 12 mm between {files[5].name!r} and {files[8].name!r}" in message
    assert "4 mm apart, and 2 more" in message


def test_slices_that_lie_unevenly(tmp_path: Path) -> None:
    def moved(image: Dataset, k: int) -> None:
        if k == 3:
            image.ImagePositionPatient[2] += 1

    files = write_ct_series(tmp_path, VOLUME, AXIAL, edit=moved)
    assert f"unevenly: 3 to 5 mm apart, worst at {files[3].name!r}" in refusal(tmp_path)


def test_slices_that_are_shifted_sideways(tmp_path: Path) -> None:
    def moved(image: Dataset, k: int) -> None:
        if k == 3:
            image.ImagePositionPatient[0] += 1

    files = write_ct_series(tmp_path, VOLUME, AXIAL, edit=moved)
    assert f"shifted sideways, worst at {files[3].name!r}" in refusal(tmp_path)


def test_slices_beside_each_other(tmp_path: Path) -> None:
    affine = AXIAL.copy()
    affine[:3, 2] = [5, 0, 0]
    files = write_ct_series(tmp_path, VOLUME[..., :2], affine)
    message = refusal(tmp_path)
    assert "side by side in one plane" in message
    assert all(repr(file.name) in message for file in files)
    shutil.rmtree(tmp_path)
    affine[:3, 2] = [5, 0, 1]
    write_ct_series(tmp_path, VOLUME[..., :2], affine)
    assert "beside each other rather than one upon the other (79 degrees)" in refusal(tmp_path)


def test_a_slice_that_is_there_twice_is_taken_once(tmp_path: Path) -> None:
    files = write_ct_series(tmp_path, VOLUME, AXIAL)
    shutil.copy(files[2], tmp_path / "once more")
    again = dcmread(files[4])
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    save(again, tmp_path / "later" / "once more")
    geometry, volume = read(tmp_path)
    assert np.array_equal(volume, VOLUME)
    assert geometry.warnings == ("2 of 9 slices are there twice, with the same pixels: one of each was taken.",)


def test_different_slices_at_one_place_are_named(tmp_path: Path) -> None:
    files = write_ct_series(tmp_path, VOLUME, AXIAL, edit=lambda image, k: setattr(image, "EchoTime", 30))
    other = dcmread(files[2])
    other.EchoTime = 90
    other.PixelData = bytes(len(other.PixelData))
    save(other, tmp_path / "other" / files[2].name)
    message = refusal(tmp_path)
    assert "different images at the same place" in message
    assert repr(files[2].name) in message
    assert f"'other/{files[2].name}' (EchoTime differ" in message


def test_the_same_pixels_with_another_slope_are_another_image(tmp_path: Path) -> None:
    files = write_ct_series(tmp_path, VOLUME, AXIAL)
    other = dcmread(files[2])
    other.RescaleIntercept = 0
    save(other, tmp_path / "other")
    assert "different images at the same place" in refusal(tmp_path)


def resized(image: Dataset) -> None:
    image.Rows, image.Columns = 5, 6


def turned(image: Dataset) -> None:
    image.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


def spaced(image: Dataset) -> None:
    image.PixelSpacing = [2, 2]


def elsewhere(image: Dataset) -> None:
    image.FrameOfReferenceUID = generate_uid()


@pytest.mark.parametrize(
    ("change", "word"),
    [(resized, "size"), (turned, "orientation"), (spaced, "pixel spacing"), (elsewhere, "frame of reference")],
)
def test_a_localiser_among_the_slices(tmp_path: Path, change: Callable[[Dataset], None], word: str) -> None:
    def edit(image: Dataset, k: int) -> None:
        if k == 6:
            change(image)

    files = write_ct_series(tmp_path, VOLUME, AXIAL, edit=edit)
    message = refusal(tmp_path)
    assert f"images of another {word} than" in message
    assert repr(files[6].name) in message
    assert "without localisers" in message


def changed(**values: Any) -> Edit:
    """Return what sets or, with None, deletes elements of slice 3."""

    def edit(image: Dataset, k: int) -> None:
        if k == 3:
            for keyword, value in values.items():
                if value is None:
                    delattr(image, keyword)
                else:
                    setattr(image, keyword, value)

    return edit


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"PixelSpacing": [0, 1]}, "expected a pixel spacing from 1e-06 to 10000 mm; found 0 x 1"),
        ({"PixelSpacing": [-1, 1]}, "found -1 x 1"),
        ({"PixelSpacing": [1, 1e9]}, "found 1 x 1e+09"),
        ({"PixelSpacing": 1}, "expected 2 finite numbers in PixelSpacing"),
        ({"PixelSpacing": None}, "no PixelSpacing in"),
        ({"ImagePositionPatient": None}, "1 of 7 images without a position, such as"),
        ({"ImageOrientationPatient": None}, "1 of 7 images without a position, such as"),
        ({"ImagePositionPatient": ["nan", 0, 0]}, "expected 3 finite numbers in ImagePositionPatient"),
        ({"ImagePositionPatient": [0, 0, "1e300"]}, "more than a kilometre away"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "two unit vectors at right angles"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "two unit vectors at right angles"),
        ({"RescaleSlope": 0}, "expected a RescaleSlope other than 0"),
        ({"RescaleSlope": "inf"}, "expected 1 finite number in RescaleSlope"),
        ({"Rows": 0}, "1 to 65535 rows and columns"),
        (
            {"Rows": 60000, "Columns": 60000},
            "expected 7,200,000,000 bytes of pixels, as its header says; found 60 bytes",
        ),
        ({"NumberOfFrames": 2**31 - 1}, "bytes of pixels"),
        ({"PixelData": None}, "expected pixel data; found none"),
        ({"BitsStored": 17}, "17 of 16 bits"),
        ({"BitsAllocated": 12}, "of 12 bits"),
        ({"SamplesPerPixel": 3}, "MONOCHROME2 with 3 samples"),
        ({"PhotometricInterpretation": "CMYK"}, "CMYK with 1 samples per pixel"),
        ({"PhotometricInterpretation": "SECRETNAME"}, "found another interpretation with"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_headers_that_cannot_be_used(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    write_ct_series(tmp_path, VOLUME, AXIAL, edit=changed(**values))
    assert words in refusal(tmp_path)


def test_a_clip_has_no_volume(tmp_path: Path) -> None:
    write_flat(tmp_path / "x", np.zeros((4, 8, 9), np.uint8), modality="US")
    assert "found 4 frames without positions in space (a clip)" in refusal(tmp_path)


def test_images_without_positions_are_no_volume(tmp_path: Path) -> None:
    uid = generate_uid()
    for name in ("pa", "lateral"):
        write_flat(
            tmp_path / name, np.zeros((8, 9), np.uint8), edit=lambda image: setattr(image, "SeriesInstanceUID", uid)
        )
    assert "found 2 images without positions in space" in refusal(tmp_path)
    assert "Name one of the files." in refusal(tmp_path)


def regions(*deltas: tuple[float, float], units: int = 3) -> Callable[[Dataset], None]:
    """Return what says of ultrasound regions how many cm their pixels are."""

    def edit(image: Dataset) -> None:
        items = []
        for x, y in deltas:
            item = Dataset()
            item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = units
            item.PhysicalDeltaX, item.PhysicalDeltaY = x, y
            items.append(item)
        image.SequenceOfUltrasoundRegions = items

    return edit


@pytest.mark.parametrize(
    ("edit", "spacing", "words"),
    [
        (lambda image: None, None, "how large its pixels are"),
        (lambda image: setattr(image, "PixelSpacing", [0.2, 0.3]), (0.2, 0.3), ""),
        (lambda image: setattr(image, "ImagerPixelSpacing", [0.2, 0.3]), (0.2, 0.3), "that of the detector"),
        (lambda image: setattr(image, "NominalScannedPixelSpacing", [0.2, 0.3]), (0.2, 0.3), ""),
        (regions((0.03, 0.02)), (0.2, 0.3), ""),
        (regions((0.03, 0.02), (0.03, -0.02)), (0.2, 0.3), ""),
        (regions((0.03, 0.02), (0.04, 0.02)), None, "several spacings"),
        (regions((0.03, 0.02), units=4), None, "how large its pixels are"),
    ],
)
def test_flat_images(tmp_path: Path, edit: Any, spacing: tuple[float, float] | None, words: str) -> None:
    write_flat(tmp_path / "x", np.zeros((8, 9), np.uint8), edit=edit)
    (series,) = find_series(tmp_path)
    geometry = geometry_of(series)
    assert geometry.grid.shape == (8, 9)
    assert geometry.grid.affine is None
    assert geometry.grid.spacing == spacing
    assert words in " ".join(geometry.warnings)
    assert bool(words) == bool(geometry.warnings)


def test_an_enhanced_image_whose_frames_do_not_add_up(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "x", VOLUME, AXIAL, edit=lambda image: image.PerFrameFunctionalGroupsSequence.pop())
    assert "expected the places of 7 frames; found those of 6" in refusal(tmp_path)


def test_enhanced_frames_at_one_place_are_named(tmp_path: Path) -> None:
    def doubled(image: Dataset) -> None:
        first, second = image.PerFrameFunctionalGroupsSequence[:2]
        second.PlanePositionSequence = first.PlanePositionSequence

    write_enhanced(tmp_path / "x", VOLUME, AXIAL, edit=doubled)
    assert "different images at the same place: frame 1 of 'x' and frame 2 of 'x'" in refusal(tmp_path)
