"""Folders as people have them: which are read, and what those are told whose folder cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from medsaga.data.dataset import check_items, read_dataset
from medsaga.data.inputs import find_inputs
from medsaga.data.items import read_item, read_mask
from medsaga.errors import InputError


def picture(path: Path, seed: int = 0, shape: tuple[int, ...] = (9, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)).save(path)
    return path


def mask(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 2, (9, 8)).astype(np.uint8)).save(path)
    return path


def nifti(path: Path, seed: int = 0, shape: tuple[int, ...] = (6, 5, 4), highest: int = 900) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(0, highest + 1, shape).astype(np.int16)
    nibabel.Nifti1Image(voxels, np.diag([2.0, 2, 5, 1])).to_filename(path)
    return voxels


def describe(root: Path, **document: Any) -> None:
    (root / "dataset.json").write_text(json.dumps(document))


def the_problem_of(root: Path) -> InputError:
    dataset = read_dataset(root)
    (problem,) = (*dataset.problems, *check_items(dataset))
    return problem


@pytest.fixture
def spleen(tmp_path: Path) -> Path:
    """A task of the Decathlon, unpacked on a Mac."""
    root = tmp_path / "download" / "Task09_Spleen"
    for number in (2, 10, 3):
        nifti(root / "imagesTr" / f"spleen_{number}.nii.gz", number)
        nifti(root / "labelsTr" / f"spleen_{number}.nii.gz", number, highest=1)
        for folder in ("imagesTr", "labelsTr"):
            (root / folder / f"._spleen_{number}.nii.gz").write_bytes(b"\0\5\x16\7" + bytes(60))
    nifti(root / "imagesTs" / "spleen_1.nii.gz")
    describe(
        root,
        name="Spleen",
        tensorImageSize="3D",
        modality={"0": "CT"},
        labels={"0": "background", "1": "spleen"},
        numTraining=3,
        training=[{"image": "./imagesTr/spleen_2.nii.gz", "label": "./labelsTr/spleen_2.nii.gz"}],
    )
    return root


def test_a_decathlon_task_is_read(spleen: Path) -> None:
    dataset = read_dataset(spleen)
    assert (dataset.layout, dataset.problems, check_items(dataset)) == ("decathlon", (), ())
    assert (dataset.labels, dataset.channels) == ({"background": 0, "spleen": 1}, ("CT",))
    assert dataset.cases == ("spleen_10", "spleen_2", "spleen_3")
    for item in dataset.items:
        stored = nibabel.load(spleen / "labelsTr" / f"{item.name}.nii.gz")
        np.testing.assert_array_equal(read_mask(item), np.asanyarray(stored.dataobj))


def test_a_decathlon_task_of_several_modalities_has_them_in_one_file(tmp_path: Path) -> None:
    voxels = nifti(tmp_path / "imagesTr" / "BRATS_001.nii.gz", 1, (6, 5, 4, 4))
    nifti(tmp_path / "labelsTr" / "BRATS_001.nii.gz", 1, highest=1)
    modality = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    describe(tmp_path, modality=modality, labels={"0": "background", "1": "edema"}, tensorImageSize="4D")
    dataset = read_dataset(tmp_path)
    assert (dataset.problems, check_items(dataset)) == ((), ())
    assert dataset.channels == ("FLAIR", "T1w", "t1gd", "T2w")
    np.testing.assert_array_equal(read_item(dataset.items[0]), np.moveaxis(voxels, 3, 0))


def test_numbers_of_four_digits_are_names_where_the_label_maps_have_them_too(tmp_path: Path) -> None:
    for number in range(3):
        nifti(tmp_path / "imagesTr" / f"case_{number:04d}.nii.gz", number)
        nifti(tmp_path / "labelsTr" / f"case_{number:04d}.nii.gz", number, highest=1)
    describe(tmp_path, modality={"0": "MR"}, labels={"0": "background", "1": "x"})
    dataset = read_dataset(tmp_path)
    assert (dataset.layout, dataset.problems) == ("decathlon", ())
    assert dataset.cases == ("case_0000", "case_0001", "case_0002")


def test_a_decathlon_case_without_its_label_map_is_named(spleen: Path) -> None:
    (spleen / "labelsTr" / "spleen_3.nii.gz").unlink()
    assert Path(the_problem_of(spleen).where) == spleen / "labelsTr" / "spleen_3"


@pytest.mark.parametrize("home", ["masks", "labels", "label", "Segmentations", "MASKS"])
def test_masks_may_lie_in_a_folder_of_another_name(tmp_path: Path, home: str) -> None:
    picture(tmp_path / "Images" / "a.png")
    mask(tmp_path / home / "a.png")
    dataset = read_dataset(tmp_path)
    assert (dataset.problems, check_items(dataset), dataset.labels) == ((), (), {"background": 0, "label_1": 1})
    np.testing.assert_array_equal(read_mask(dataset.items[0]), np.random.default_rng(0).integers(0, 2, (9, 8)))


def test_a_file_for_each_structure_becomes_a_folder_for_each(tmp_path: Path) -> None:
    for number in range(2):
        picture(tmp_path / "images" / f"p{number}.png", number)
        for structure in ("liver", "spleen"):
            mask(tmp_path / "masks" / f"p{number}_{structure}.png", number)
    do = "Several masks belong to p0: put those of each structure into a folder of its own, masks/liver/p0.png."
    assert the_problem_of(tmp_path).do == do
    for path in list((tmp_path / "masks").iterdir()):
        name, structure = path.stem.split("_")
        (tmp_path / "masks" / structure).mkdir(exist_ok=True)
        path.rename(tmp_path / "masks" / structure / f"{name}.png")
    dataset = read_dataset(tmp_path)
    assert (dataset.problems, dataset.labels) == ((), {"background": 0, "liver": 1, "spleen": 2})


def test_a_file_for_each_channel_is_told_of_nnunets_names(tmp_path: Path) -> None:
    for number in range(2):
        for channel in ("t1", "t2"):
            nifti(tmp_path / "images" / f"p{number}_{channel}.nii.gz", number)
        nifti(tmp_path / "masks" / f"p{number}.nii.gz", number, highest=1)
    assert the_problem_of(tmp_path).do == (
        "If p0_t1 and p0_t2 are channels of p0, use nnU-Net's names: imagesTr/p0_0000.nii.gz, "
        "imagesTr/p0_0001.nii.gz, labelsTr/p0.nii.gz."
    )


def test_masks_of_other_names_are_still_to_be_renamed(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "p1.png")
    mask(tmp_path / "masks" / "p10_a.png")
    mask(tmp_path / "masks" / "p10_b.png")
    assert the_problem_of(tmp_path).do.startswith("Rename the masks")


SLICES = [f"pat{patient:02d}_slice{number}" for patient in range(3) for number in range(3)]


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (SLICES, "pat00_slice0 and pat00_slice1"),
        ([*SLICES, "pat03_slice0"], "pat00_slice0 and pat00_slice1"),
        ([name.replace("_slice", "-") for name in SLICES], "pat00-0 and pat00-1"),
        ([f"img{number}" for number in range(9)], None),
        ([f"case_{number:04d}" for number in range(9)], None),
        (SLICES[::3], None),
        (SLICES[:3], None),
        ([f"{name}{side}" for name in SLICES for side in ("left", "right")], None),
        (["a_1", "a_2", "b_1", "b_2"], None),
    ],
)
def test_images_that_look_like_those_of_a_few_patients(tmp_path: Path, names: list[str], first: str | None) -> None:
    for number, name in enumerate(names):
        picture(tmp_path / "images" / f"{name}.png", number)
        mask(tmp_path / "masks" / f"{name}.png", number)
    said = f"no cases.csv; if {first} are of one patient, the test is too easy"
    found = [warning for warning in read_dataset(tmp_path).warnings if "one patient" in warning]
    assert len(found) == (first is not None)
    assert all(said in warning for warning in found)
    rows = [f"{name},{name.partition('_')[0]}" for name in names]
    (tmp_path / "cases.csv").write_text("\n".join(["image,case", *rows]) + "\n")
    assert read_dataset(tmp_path).warnings == ()


def test_of_several_folders_of_masks_the_user_chooses(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    mask(tmp_path / "labels" / "a.png")
    mask(tmp_path / "segmentations" / "a.png")
    assert "found labels, segmentations. Rename the one that is meant to masks." in str(the_problem_of(tmp_path))
    mask(tmp_path / "masks" / "a.png")
    dataset = read_dataset(tmp_path)
    assert (dataset.problems, dataset.items[0].masks) == ((), (tmp_path / "masks" / "a.png",))


@pytest.mark.parametrize(
    "named", ["{}_mask", "{}_Segmentation", "{}-gt", "{} label", "mask_{}", "{}.seg", "{}_lung"], ids=str
)
@pytest.mark.parametrize("home", ["masks", "masks/lung"])
def test_what_all_masks_have_in_their_names_is_taken_off(tmp_path: Path, named: str, home: str) -> None:
    for seed, name in enumerate(("a", "a_1", "b.2")):
        picture(tmp_path / "images" / f"{name}.png", seed)
        mask(tmp_path / home / f"{named.format(name)}.png", seed)
    dataset = read_dataset(tmp_path)
    assert (dataset.problems, check_items(dataset)) == ((), ())
    for seed, item in enumerate(dataset.items):
        np.testing.assert_array_equal(read_mask(item), np.random.default_rng(seed).integers(0, 2, (9, 8)))
    assert "without " in dataset.warnings[0]


@pytest.mark.parametrize(
    "names",
    [("a_mask", "b_seg"), ("a_1", "b_1"), ("a_liver", "a_spleen", "b_liver"), ("x", "y"), ("am", "bm")],
    ids=str,
)
def test_masks_that_do_not_surely_belong_to_an_image_are_not_guessed(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in "ab":
        picture(tmp_path / "images" / f"{name}.png")
    for name in names:
        mask(tmp_path / "masks" / f"{name}.png")
    problem = the_problem_of(tmp_path)
    assert problem.where == str(tmp_path / "masks")
    assert (problem.expected, min(names) in problem.found) == ("masks named exactly like their images, such as a", True)


def test_a_dataset_without_masks_is_told_what_lies_there(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "masks.zip").write_bytes(b"PK")
    assert str(the_problem_of(tmp_path)) == (
        f"{tmp_path / 'masks'}: expected a folder with a mask for each image; found no such folder beside images, "
        "masks.zip. Unpack masks.zip, if it holds the masks. Put the masks into masks/, each named like its image."
    )


def test_a_folder_above_or_inside_a_dataset_names_it(spleen: Path) -> None:
    for given in (spleen.parent, spleen.parent.parent, spleen / "imagesTr"):
        (problem,) = read_dataset(given).problems
        assert problem.do == f"Name {spleen}, which is one."
    for kind in ("images", "masks"):
        picture(spleen.parent / "other" / kind / "a.png")
    (problem,) = read_dataset(spleen.parent).problems
    assert problem.do == f"Name one of {spleen}, {spleen.parent / 'other'}."


def test_images_in_folders_of_their_own_are_told_of(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "patient1" / "a.png")
    mask(tmp_path / "masks" / "a.png")
    problem = read_dataset(tmp_path).problems[0]
    assert (problem.where, problem.found) == (str(tmp_path / "images"), "no files, but the folder patient1")


def test_a_missing_description_is_told_what_to_write(spleen: Path) -> None:
    (spleen / "dataset.json").unlink()
    problem = read_dataset(spleen).problems[0]
    assert Path(problem.where) == spleen / "dataset.json"
    assert '{"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}}' in problem.do


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Four cases of two channels, one of which lacks its second."""
    for case in range(4):
        for channel in range(2):
            picture(tmp_path / f"case{case}_{channel:04d}.png", 2 * case + channel)
    (tmp_path / "case2_0001.png").unlink()
    return tmp_path


@pytest.mark.parametrize("channels", [("DAPI", "FITC"), None])
def test_the_missing_channel_of_a_case_is_named(cells: Path, channels: tuple[str, ...] | None) -> None:
    with pytest.raises(InputError) as raised:
        find_inputs(cells, channels=channels)
    assert raised.value.where == str(cells / "case2_0001.png")
    assert raised.value.expected == f"channel 0001{' (FITC)' if channels else ''} of the case case2"
    picture(cells / "case2_0001.png", 5)
    items = find_inputs(cells, channels=channels)
    assert [(item.name, item.header.channels) for item in items] == [(f"case{case}", 2) for case in range(4)]


def test_a_file_without_a_channel_among_those_with_one_is_named(cells: Path) -> None:
    (cells / "case2_0000.png").rename(cells / "case2.png")
    with pytest.raises(InputError) as raised:
        find_inputs(cells, channels=("DAPI", "FITC"))
    assert raised.value.where == str(cells / "case2.png")


def test_the_only_case_lacks_a_channel(tmp_path: Path) -> None:
    picture(tmp_path / "a_0001.png")
    with pytest.raises(InputError) as raised:
        find_inputs(tmp_path, channels=("DAPI", "FITC"))
    assert raised.value.where == str(tmp_path / "a_0000.png")


def test_frames_of_videos_are_images_of_their_own(tmp_path: Path) -> None:
    for video, frames in (("a", 10), ("b", 10), ("c", 9)):
        for frame in range(frames):
            picture(tmp_path / f"{video}_{frame:04d}.png", frame)
    assert len(find_inputs(tmp_path)) == 29
    assert len(find_inputs(tmp_path, channels=("grey",))) == 29


def test_without_names_most_cases_tell_how_many_channels_there_are(cells: Path) -> None:
    root = cells / "dataset"
    for path in sorted(cells.glob("*.png")):
        (root / "imagesTr").mkdir(parents=True, exist_ok=True)
        path.rename(root / "imagesTr" / path.name)
    for case in range(4):
        mask(root / "labelsTr" / f"case{case}.png", case)
    describe(root, labels={"background": 0, "cell": 1}, file_ending=".png")
    problem = read_dataset(root).problems[0]
    assert problem.where == str(root / "imagesTr" / "case2_0001.png")


def test_numbers_in_quotation_marks_are_told_of(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    mask(tmp_path / "masks" / "a.png")
    describe(tmp_path, labels={"background": "0", "tumour": "1"})
    assert the_problem_of(tmp_path).do == "Write the integers without quotation marks."
