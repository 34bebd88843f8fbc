"""Stray files: a logo, a preview or an operating system's own files do not decide what a folder is."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_phantoms import AFFINES, new_image, save, write_ct_series, write_enhanced, write_flat
from PIL import Image
from pydicom.uid import UID, BasicTextSRStorage, EncapsulatedPDFStorage, generate_uid

from medsaga.data.dataset import check_items, read_dataset
from medsaga.data.dicom.geometry import geometry_of
from medsaga.data.dicom.segmentation_writer import write_segmentation
from medsaga.data.dicom.series import find_series
from medsaga.data.inputs import find_inputs
from medsaga.data.items import read_item, read_mask
from medsaga.data.types import Series
from medsaga.errors import InputError

AFFINE = AFFINES["axial"]
VOLUME = np.random.default_rng(0).integers(-900, 900, (6, 5, 5))


def picture(path: Path, shape: tuple[int, ...] = (9, 8), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)).save(path)
    return path


def nifti(path: Path, seed: int = 0, highest: int = 900) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(0, highest + 1, (6, 5, 4)).astype(np.int16)
    nibabel.Nifti1Image(voxels, np.diag([2.0, 2, 5, 1])).to_filename(path)
    return path


def system_files(folder: Path, image: str) -> None:
    """What Finder, Explorer and a network drive leave in a folder with an image of this name."""
    (folder / f"._{image}").write_bytes(b"\0\5\x16\7" + bytes(60))
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (folder / name).write_bytes(b"\0\0\0\1Bud1")
    picture(folder / "@eaDir" / image / "SYNOPHOTO_THUMB_M.jpg")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / f"._{image}").write_bytes(b"\0\5\x16\7" + bytes(60))


def report(path: Path, storage: UID, modality: str, study: str) -> None:
    save(new_image(storage, modality, study), path)


@pytest.fixture
def disc(tmp_path: Path) -> Path:
    """A hospital's CD: one CT below, and beside it what burners add."""
    root, study = tmp_path / "disc", generate_uid()
    write_ct_series(root / "DICOM" / "PA000001" / "ST000001", VOLUME, AFFINE, study_uid=study)
    report(root / "DICOM" / "PA000001" / "SR000001", BasicTextSRStorage, "SR", study)
    report(root / "DICOM" / "PA000001" / "PDF00001", EncapsulatedPDFStorage, "DOC", study)
    (root / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(100))
    (root / "autorun.inf").write_text("[autorun]\nopen=viewer.exe\n")
    picture(root / "logo.png", (30, 60, 3))
    picture(root / "viewer" / "icons" / "open.png")
    return root


def test_a_logo_beside_dicom_is_left_out_with_a_word(disc: Path) -> None:
    said: list[str] = []
    (item,) = find_inputs(disc, warn=said.append)
    assert item.name == "disc"
    np.testing.assert_array_equal(read_item(item)[0], VOLUME)
    assert said == [f"left out, because the images in {disc} are of another kind: {disc / 'logo.png'}"]


def test_pictures_among_slices_are_left_out(tmp_path: Path) -> None:
    write_ct_series(tmp_path, VOLUME, AFFINE)
    picture(tmp_path / "preview.jpg")
    system_files(tmp_path, "preview.jpg")
    (item,) = find_inputs(tmp_path)
    np.testing.assert_array_equal(read_item(item)[0], VOLUME)


def test_frames_of_one_file_count_one_by_one(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "ct.dcm", VOLUME, AFFINE)
    picture(tmp_path / "logo.bmp")
    (series,) = find_series(tmp_path)
    assert (series.images, len(series.files)) == (5, 1)
    (item,) = find_inputs(tmp_path)
    assert isinstance(item.images[0], Series)


@pytest.mark.parametrize("others", ["a picture for each slice", "a volume"])
def test_where_both_kinds_may_be_meant_both_are_named(disc: Path, others: str) -> None:
    if others == "a volume":
        (disc / "logo.png").unlink()
        nifti(disc / "ct.nii.gz")
    else:
        for number in range(5):
            picture(disc / f"slice{number}.png")
    with pytest.raises(InputError) as raised:
        find_inputs(disc)
    assert raised.value.where == str(disc)
    assert "5 DICOM images in DICOM/PA000001/ST000001" in raised.value.found
    assert ("ct.nii.gz" if others == "a volume" else "slice0.png") in raised.value.found
    for chosen in (find_inputs(disc / "DICOM"), find_inputs(disc, series="largest")):
        np.testing.assert_array_equal(read_item(chosen[0])[0], VOLUME)
    (named,) = find_inputs(disc / ("ct.nii.gz" if others == "a volume" else "slice0.png"))
    assert not isinstance(named.images[0], Series)


def test_dicom_among_many_images_of_other_formats_is_left_out_with_a_word(tmp_path: Path) -> None:
    for seed in range(4):
        nifti(tmp_path / f"{seed}.nii.gz", seed)
    write_ct_series(tmp_path / "original", VOLUME, AFFINE)
    said: list[str] = []
    assert [item.name for item in find_inputs(tmp_path, warn=said.append)] == ["0", "1", "2", "3"]
    assert str(tmp_path / "original") in said[0]


def test_a_logo_beside_folders_of_volumes_is_not_all_there_is(tmp_path: Path) -> None:
    for seed in range(2):
        nifti(tmp_path / f"patient{seed}" / "ct.nii.gz", seed)
    picture(tmp_path / "logo.png")
    with pytest.raises(InputError, match=r"found logo.png, and 2 volumes in the folders patient0, patient1"):
        find_inputs(tmp_path)


def test_pictures_and_previews_among_volumes(tmp_path: Path) -> None:
    for seed in range(4):
        nifti(tmp_path / f"{seed}.nii.gz", seed)
    picture(tmp_path / "0.jpg")
    picture(tmp_path / "README.png")
    said: list[str] = []
    assert [item.name for item in find_inputs(tmp_path, warn=said.append)] == ["0", "1", "2", "3"]
    assert "0.jpg" in said[0]
    assert "README.png" in said[0]
    for seed in range(2):
        picture(tmp_path / f"xray{seed}.png")
    assert [item.name for item in find_inputs(tmp_path)] == ["0", "1", "2", "3", "README", "xray0", "xray1"]


def test_a_training_folder_of_volumes_leaves_pictures_without_a_mask_out(tmp_path: Path) -> None:
    for seed in range(4):
        nifti(tmp_path / "images" / f"{seed}.nii.gz", seed)
        nifti(tmp_path / "masks" / f"{seed}.nii.gz", seed, highest=1)
    picture(tmp_path / "images" / "README.png")
    for kind in ("images", "masks"):
        picture(tmp_path / kind / "0.png")
        system_files(tmp_path / kind, "1.nii.gz")
    dataset = read_dataset(tmp_path)
    assert (dataset.problems, check_items(dataset)) == ((), ())
    assert [item.name for item in dataset.items] == ["0", "1", "2", "3"]
    assert [Path(text.split(":")[0]).name for text in dataset.warnings] == ["0.png", "0.png", "README.png"]
    Image.fromarray(np.ones((9, 8), np.uint8)).save(tmp_path / "masks" / "README.png")
    assert [item.name for item in read_dataset(tmp_path).items] == ["0", "1", "2", "3", "README"]


def test_system_files_are_no_structures_and_no_channels(tmp_path: Path) -> None:
    for seed in range(2):
        picture(tmp_path / "plain" / "images" / f"{seed}.png", seed=seed)
        path = tmp_path / "plain" / "masks" / "lung" / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.eye(9, 8, dtype=np.uint8)).save(path)
        nifti(tmp_path / "nnunet" / "imagesTr" / f"{seed}_0000.nii.gz", seed)
        nifti(tmp_path / "nnunet" / "labelsTr" / f"{seed}.nii.gz", seed, highest=1)
    for folder in ("plain/images", "plain/masks", "plain/masks/lung"):
        system_files(tmp_path / folder, "0.png")
    for folder in ("nnunet/imagesTr", "nnunet/labelsTr"):
        system_files(tmp_path / folder, "0_0000.nii.gz")
        picture(tmp_path / folder / "README.png")
    document = {"labels": {"background": 0, "x": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (tmp_path / "nnunet" / "dataset.json").write_text(json.dumps(document))
    for name, labels in (("plain", {"background": 0, "lung": 1}), ("nnunet", {"background": 0, "x": 1})):
        dataset = read_dataset(tmp_path / name)
        assert (dataset.problems, check_items(dataset), dataset.labels) == ((), (), labels)
        assert [item.name for item in dataset.items] == ["0", "1"]


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """A DICOM dataset of two cases, with a logo among them and reports in every place."""
    root = tmp_path / "cases"
    for seed, case in enumerate("ab"):
        write_ct_series(root / "images" / case, np.roll(VOLUME, seed), AFFINE, seed=seed)
        (series,) = find_series(root / "images" / case)
        labels = np.zeros(VOLUME.shape, np.uint8)
        labels[1 : 3 + seed, 2:4, 1:3] = 1
        path = root / "masks" / case / "seg.dcm"
        path.parent.mkdir(parents=True)
        write_segmentation(path, labels, series, geometry_of(series), {"liver": 1}, model="phantom")
        report(root / "masks" / case / "dose.dcm", BasicTextSRStorage, "SR", series.study)
        (root / "masks" / case / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(100))
        for folder in (root / "images" / case, root / "masks" / case):
            (folder / "._seg.dcm").write_bytes(b"\0\5\x16\7" + bytes(60))
        picture(root / "images" / case / "preview.png")
    report(root / "images" / "dose.dcm", BasicTextSRStorage, "SR", generate_uid())
    picture(root / "images" / "logo.png")
    (root / "images" / "README.TXT").write_text("viewer")
    return root


def test_a_dicom_dataset_stays_one_with_a_logo_and_reports(cases: Path) -> None:
    dataset = read_dataset(cases)
    assert (dataset.layout, dataset.problems, check_items(dataset)) == ("dicom", (), ())
    assert [item.name for item in dataset.items] == ["a", "b"]
    assert [int(read_mask(item).sum()) for item in dataset.items] == [2 * 2 * 2, 3 * 2 * 2]
    left_out = [Path(text.split(":")[0]).name for text in dataset.warnings]
    assert left_out == ["logo.png", "dose.dcm"]


def test_a_dataset_of_two_kinds_says_so(cases: Path) -> None:
    nifti(cases / "images" / "c.nii.gz")
    (problem,) = read_dataset(cases).problems
    assert str(problem).startswith(f"{cases / 'images'}: expected images of one kind; found DICOM, and c.nii.gz")


def test_one_dicom_file_among_pictures_does_not_make_the_dataset_dicom(tmp_path: Path) -> None:
    for seed in range(4):
        picture(tmp_path / "images" / f"{seed}.png", seed=seed)
        path = tmp_path / "masks" / f"{seed}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.eye(9, 8, dtype=np.uint8)).save(path)
    write_flat(tmp_path / "images" / "x.dcm", np.random.default_rng(0).integers(0, 255, (9, 8)).astype(np.uint8))
    dataset = read_dataset(tmp_path)
    assert (dataset.layout, dataset.problems, len(dataset.items)) == ("folder", (), 4)
    assert "x.dcm" in dataset.warnings[0]
