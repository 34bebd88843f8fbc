"""Finding and checking a dataset: both layouts, and every mistake with the file it names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medsaga.data.dataset import (
    check_items,
    fingerprint,
    raise_problems,
    read_dataset,
)
from medsaga.data.inputs import find_inputs
from medsaga.data.labels import MOST_LABELS, parse_labels, values_in
from medsaga.data.layouts import LAYOUTS
from medsaga.data.sources import place_of
from medsaga.data.survey import survey
from medsaga.errors import InputError

AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])


def write_image(path: Path, seed: int = 0, shape: tuple[int, ...] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_mask(path: Path, highest: int = 2, shape: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.indices(shape).sum(axis=0) % (highest + 1)).astype(np.uint8)).save(path)
    return path


def write_volume(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(voxels, affine).to_filename(path)
    return path


def write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A plain folder: four images of three cases, with two labels."""
    root = tmp_path / "plain"
    for index, name in enumerate("abcd"):
        write_image(root / "images" / f"{name}.png", index)
        write_mask(root / "masks" / f"{name}.png")
    write_json(root / "dataset.json", {"labels": {"tumour": 2, "liver": 1, "background": 0}, "modality": "MR, T2"})
    (root / "cases.csv").write_text("name,case\na,p1\nb,p1\nc,p2\nd,p3\n")
    return root


@pytest.fixture
def nnunet(tmp_path: Path) -> Path:
    """nnU-Net v2: two cases of two channels."""
    root = tmp_path / "Dataset001"
    rng = np.random.default_rng(0)
    for case in ("case_1", "case_2"):
        for channel in range(2):
            voxels = rng.integers(-1000, 1000, (6, 5, 4)).astype(np.int16)
            write_volume(root / "imagesTr" / f"{case}_{channel:04d}.nii.gz", voxels)
        write_volume(root / "labelsTr" / f"{case}.nii.gz", rng.integers(0, 2, (6, 5, 4)).astype(np.uint8))
    write_json(
        root / "dataset.json",
        {
            "channel_names": {"0": "T1", "1": "FLAIR"},
            "labels": {"background": 0, "lesion": 1},
            "file_ending": ".nii.gz",
            "numTraining": 2,
        },
    )
    return root


def problems_of(root: Path) -> list[str]:
    """All that is wrong with a dataset, and that nothing is said twice."""
    dataset = read_dataset(root)
    found = [*map(str, dataset.problems), *map(str, check_items(dataset))]
    assert len(set(found)) == len(found)
    return found


def the_problem_of(root: Path) -> str:
    found = problems_of(root)
    assert len(found) == 1, found
    return found[0]


def test_a_plain_folder_is_read_whole(folder: Path) -> None:
    (folder / "images" / ".DS_Store").touch()
    (folder / "images" / "._a.png").write_bytes(b"resource fork")
    (folder / "images" / "Thumbs.db").touch()
    dataset = read_dataset(folder)
    assert problems_of(folder) == []
    assert dataset.layout == "folder"
    assert list(dataset.labels.items()) == [("background", 0), ("liver", 1), ("tumour", 2)]
    assert [(item.name, item.case) for item in dataset.items] == [("a", "p1"), ("b", "p1"), ("c", "p2"), ("d", "p3")]
    assert dataset.items[0].masks == (folder / "masks" / "a.png",)
    assert dataset.items[0].header.grid.shape == (12, 10)
    assert dataset.channels == ("channel_0",)
    assert survey(dataset).labels_of_cases == {case: frozenset({0, 1, 2}) for case in ("p1", "p2", "p3")}


def test_nnunet_is_read_whole(nnunet: Path) -> None:
    dataset = read_dataset(nnunet)
    assert problems_of(nnunet) == []
    assert dataset.layout == "nnunet"
    assert dataset.channels == ("T1", "FLAIR")
    assert dataset.cases == ("case_1", "case_2")
    item = dataset.items[0]
    assert [place_of(source).name for source in item.images] == ["case_1_0000.nii.gz", "case_1_0001.nii.gz"]
    assert (item.header.channels, item.header.grid.shape, item.header.grid.spacing) == (2, (6, 5, 4), (2, 2, 5))


def test_nnunet_v1_and_png_with_three_channels_in_one_file(tmp_path: Path) -> None:
    root = tmp_path / "Task1"
    write_image(root / "imagesTr" / "a_0000.png", shape=(12, 10, 3))
    write_mask(root / "labelsTr" / "a.png")
    document = {"modality": {"0": "R", "1": "G", "2": "B"}, "labels": {"0": "background", "2": "x", "1": "y"}}
    write_json(root / "dataset.json", {**document, "file_ending": ".png"})
    assert problems_of(root) == []
    assert read_dataset(root).labels == {"background": 0, "y": 1, "x": 2}
    assert read_dataset(root).channels == ("R", "G", "B")


def test_labels_come_from_the_masks_without_dataset_json(folder: Path) -> None:
    (folder / "dataset.json").unlink()
    write_mask(folder / "masks" / "a.png", highest=4)
    assert problems_of(folder) == []
    labels = read_dataset(folder).labels
    assert labels == {"background": 0, "label_1": 1, "label_2": 2, "label_3": 3, "label_4": 4}


def test_smoothed_masks_are_not_taken_for_labels(folder: Path) -> None:
    (folder / "dataset.json").unlink()
    write_image(folder / "masks" / "a.png", seed=77)
    assert "grey values between black and white in 1 of 4 masks, such as a.png" in the_problem_of(folder)


def test_as_many_classes_are_read_as_a_byte_can_count(tmp_path: Path) -> None:
    labels = {"background": 0} | {f"organ {value}": value for value in range(1, 255)}
    assert parse_labels(tmp_path, {"labels": labels}) == labels
    assert len(labels) == MOST_LABELS
    with pytest.raises(InputError, match="found 256 labels"):
        parse_labels(tmp_path, {"labels": labels | {"one more": 255}})


def test_images_without_cases_csv_are_cases_of_their_own(folder: Path) -> None:
    (folder / "cases.csv").unlink()
    assert read_dataset(folder).cases == ("a", "b", "c", "d")


def test_masks_may_be_missing_only_when_they_are_not_required(folder: Path) -> None:
    (folder / "masks" / "b.png").unlink()
    assert the_problem_of(folder).startswith(str(folder / "masks" / "b") + ": expected a mask of this name")
    dataset = read_dataset(folder, masks_required=False)
    assert dataset.problems == ()
    assert [item.masks == () for item in dataset.items] == [False, True, False, False]
    shutil.rmtree(folder / "masks")
    assert read_dataset(folder, masks_required=False).problems == ()
    assert "masks: expected a folder with a mask for each image; found no such folder beside" in the_problem_of(folder)


def test_images_that_are_not_labelled_yet_are_left_out_and_counted(folder: Path) -> None:
    write_image(folder / "images" / "c.png", seed=9, shape=(12, 10, 3))  # in colour, which would be another kind
    (folder / "masks" / "b.png").unlink()
    (folder / "masks" / "c.png").unlink()
    dataset = read_dataset(folder)
    assert dataset.problems == ()
    assert [item.name for item in dataset.items] == ["a", "d"]
    assert dataset.warnings == (
        "2 of 4 images have no mask and are left out, such as b; where there is nothing to label, a mask of zeros says "
        "so",
    )
    # What goes on being labelled outside of the dataset's cases changes nothing of a run.
    before = fingerprint(dataset)
    write_image(folder / "images" / "e.png", seed=10)
    assert fingerprint(read_dataset(folder)) == before


def test_a_few_missing_masks_among_many_are_forgotten_ones(folder: Path) -> None:
    (folder / "cases.csv").unlink()
    for number in range(16):
        write_image(folder / "images" / f"n{number:02d}.png", seed=100 + number)
        write_mask(folder / "masks" / f"n{number:02d}.png")
    for missing, problems in ((1, 1), (2, 0)):  # of 20: a tenth of those with a mask is 1.8
        (folder / "masks" / f"n{missing:02d}.png").unlink()
        assert len(problems_of(folder)) == problems


def test_a_mask_without_an_image_is_a_mistake_among_unlabelled_images_too(folder: Path) -> None:
    for name in "bc":
        (folder / "masks" / f"{name}.png").rename(folder / "masks" / f"{name}x.png")
    assert [Path(problem.where).name for problem in read_dataset(folder).problems] == ["bx.png", "cx.png"]


def break_masks(root: Path) -> None:
    shutil.rmtree(root / "masks")
    (root / "masks").mkdir()


def jpeg_mask(root: Path) -> None:
    with Image.open(root / "masks" / "a.png") as mask:
        mask.save(root / "masks" / "a.jpg")
    (root / "masks" / "a.png").unlink()


def renamed_jpeg_mask(root: Path) -> None:
    with Image.open(root / "masks" / "a.png") as mask:
        mask.save(root / "masks" / "a.png", format="JPEG")


def break_link(root: Path) -> None:
    (root / "images" / "a.png").unlink()
    (root / "images" / "a.png").symlink_to(root / "nowhere")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:70])


def float_tiff(path: Path, value: float) -> None:
    pixels = np.arange(120, dtype=np.float32).reshape(12, 10)
    pixels[3, 4] = value
    Image.fromarray(pixels).save(path.with_suffix(".tif"))
    path.unlink()


def mask_of_255(root: Path) -> None:
    write_json(root / "dataset.json", {"labels": {"background": 0, "liver": 1}})
    for path in sorted((root / "masks").iterdir()):
        write_mask(path, highest=1)
    Image.fromarray((np.indices((12, 10)).sum(axis=0) % 2 * 255).astype(np.uint8)).save(root / "masks" / "a.png")


def labels_json(labels: Any) -> Any:
    return lambda root: write_json(root / "dataset.json", {"labels": labels})


FOLDER_MISTAKES: dict[str, tuple[Any, str, str]] = {
    "no masks": (break_masks, "masks", "found no files"),
    "a JPEG mask": (jpeg_mask, "masks/a.jpg", "lossless label map"),
    "a JPEG mask in disguise": (renamed_jpeg_mask, "masks/a.png", "lossless label map"),
    "a mask without image": (lambda root: write_mask(root / "masks" / "e.png"), "masks/e.png", "an image named e"),
    "a mask of another size": (
        lambda root: write_mask(root / "masks" / "a.png", shape=(10, 12)),
        "masks/a.png",
        "the size of its image, 12 x 10; found 10 x 12",
    ),
    "a truncated image": (lambda root: cut(root / "images" / "a.png"), "images/a.png", "damaged data"),
    "a truncated mask": (lambda root: cut(root / "masks" / "a.png"), "masks/a.png", "damaged data"),
    "an unreadable header": (
        lambda root: (root / "images" / "a.png").write_bytes(b"no"),
        "images/a.png",
        "something else",
    ),
    "a broken link": (
        break_link,
        "images/a.png",
        "a broken link",
    ),
    "two images of one name": (
        lambda root: write_image(root / "images" / "a.jpg"),
        "images/a.png",
        "one file per name; found also a.jpg",
    ),
    "two masks of one name": (
        lambda root: write_mask(root / "masks" / "a.tif"),
        "masks/a.tif",
        "one file per name; found also a.png",
    ),
    "NaN": (lambda root: float_tiff(root / "images" / "a.png", np.nan), "images/a.tif", "NaN or infinity in 1 of 120"),
    "a constant image": (
        lambda root: Image.new("L", (10, 12), 7).save(root / "images" / "a.png"),
        "images/a.png",
        "the value 7 everywhere",
    ),
    "fractions in a mask": (lambda root: float_tiff(root / "masks" / "a.png", 0.5), "masks/a.tif", "the value 0.5"),
    "an unknown label": (
        lambda root: write_mask(root / "masks" / "a.png", highest=4),
        "masks/a.png",
        "the labels 0 (background), 1 (liver), 2 (tumour); found the values 3, 4",
    ),
    "labels 0 and 255": (mask_of_255, "masks/a.png", 'Divide the masks by 255, or write "liver": 255'),
    "an unknown case": (
        lambda root: (root / "cases.csv").write_text("name,case\na,1\nb,1\nc,2\nd,3\n../../etc/passwd,4\n"),
        "cases.csv",
        "found '../../etc/passwd' in line 6",
    ),
    "an image without case": (
        lambda root: (root / "cases.csv").write_text("name,case\na,1\nb,1\nc,2\n"),
        "cases.csv",
        "a line for the image 'd'",
    ),
    "an image in two cases": (
        lambda root: (root / "cases.csv").write_text("name,case\na,1\nb,1\nc,2\nd,2\na,2\n"),
        "cases.csv",
        "'a' in two cases",
    ),
    "an empty case": (
        lambda root: (root / "cases.csv").write_text("name,case\na,1\nb,1\nc,2\nd,2\na,\n"),
        "cases.csv",
        "an empty field in line 6",
    ),
    "semicolons": (
        lambda root: (root / "cases.csv").write_text("name;case\na;1\n"),
        "cases.csv",
        "the header line name,case; found 'name;case'",
    ),
    "an empty cases.csv": (lambda root: (root / "cases.csv").write_text(""), "cases.csv", "no header"),
    "cases.csv in UTF-16": (
        lambda root: (root / "cases.csv").write_text("name,case\n", encoding="utf-16"),
        "cases.csv",
        "text in UTF-8",
    ),
    "JSON garbage": (
        lambda root: (root / "dataset.json").write_text("{'labels'"),
        "dataset.json",
        "expected JSON; found",
    ),
    "deep JSON": (lambda root: (root / "dataset.json").write_text("[" * 10**5), "dataset.json", "expected JSON"),
    "a JSON list": (lambda root: (root / "dataset.json").write_text("[]"), "dataset.json", "a JSON object"),
    "a label twice": (
        lambda root: (root / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1, "liver": 2}}'),
        "dataset.json",
        "a key twice: 'liver'",
    ),
    "no labels": (lambda root: write_json(root / "dataset.json", {}), "dataset.json", '"labels"'),
    "a region": (labels_json({"background": 0, "whole": [1, 2]}), "dataset.json", "Regions are not supported"),
    "an ignore label": (labels_json({"background": 0, "x": 1, "ignore": 2}), "dataset.json", "an ignore label"),
    "no background": (labels_json({"liver": 1, "tumour": 2}), "dataset.json", "no label with the value 0"),
    "background alone": (labels_json({"background": 0}), "dataset.json", "the background alone"),
    "a value twice": (labels_json({"background": 0, "x": 1, "y": 1}), "dataset.json", "one value for several labels"),
    "a fraction as label": (labels_json({"background": 0, "x": 1.5}), "dataset.json", "1.5 for 'x'"),
    "a bool as label": (labels_json({"background": 0, "x": True}), "dataset.json", "True for 'x'"),
    "a negative label": (labels_json({"background": 0, "x": -1}), "dataset.json", "-1 for 'x'"),
    "too many labels": (
        labels_json({f"label {value}": value for value in range(256)}),
        "dataset.json",
        "found 256 labels",
    ),
    "two channel names": (
        lambda root: write_json(
            root / "dataset.json",
            {"labels": {"background": 0, "x": 1, "y": 2}, "channel_names": {"1": "T1", "2": "T2"}},
        ),
        "dataset.json",
        "numbers the channels from 0",
    ),
}


@pytest.mark.parametrize("mistake", FOLDER_MISTAKES)
def test_a_mistake_in_a_folder_is_one_problem_that_names_its_file(folder: Path, mistake: str) -> None:
    make, where, message = FOLDER_MISTAKES[mistake]
    make(folder)
    problem = the_problem_of(folder)
    assert problem.startswith(f"{folder / where}: expected")
    assert message in problem


def without(key: str) -> Any:
    def remove(root: Path) -> None:
        document = json.loads((root / "dataset.json").read_text())
        del document[key]
        write_json(root / "dataset.json", document)

    return remove


VOLUME = np.arange(120, dtype=np.int16).reshape(6, 5, 4)
NNUNET_MISTAKES: dict[str, tuple[Any, str, str]] = {
    "no dataset.json": (lambda root: (root / "dataset.json").unlink(), "dataset.json", "a file that names labels"),
    "a missing channel": (
        lambda root: (root / "imagesTr" / "case_2_0001.nii.gz").unlink(),
        "imagesTr/case_2_0001.nii.gz",
        "channel 0001 (FLAIR) of the case case_2; found only 0000",
    ),
    "a missing first channel": (
        lambda root: (root / "imagesTr" / "case_2_0000.nii.gz").unlink(),
        "imagesTr/case_2_0000.nii.gz",
        "channel 0000 (T1) of the case case_2; found only 0001",
    ),
    "a channel on another grid": (
        lambda root: write_volume(root / "imagesTr" / "case_1_0001.nii.gz", VOLUME, np.diag([1.0, 2, 5, 1])),
        "imagesTr/case_1_0001.nii.gz",
        "the grid of case_1_0000.nii.gz",
    ),
    "a name without channel": (
        lambda root: write_volume(root / "imagesTr" / "scan.nii.gz", VOLUME),
        "imagesTr/scan.nii.gz",
        "a name such as CASE_0000",
    ),
    "a mask elsewhere in space": (
        lambda root: write_volume(
            root / "labelsTr" / "case_1.nii.gz", (VOLUME % 2).astype(np.uint8), np.diag([2.0, -2, 5, 1])
        ),
        "labelsTr/case_1.nii.gz",
        "the affine of its image",
    ),
    "a shifted mask": (
        lambda root: write_volume(
            root / "labelsTr" / "case_1.nii.gz",
            (VOLUME % 2).astype(np.uint8),
            AFFINE + np.array([[0, 0, 0, 0.5], [0] * 4, [0] * 4, [0] * 4]),
        ),
        "labelsTr/case_1.nii.gz",
        "the affine of its image",
    ),
    "an unknown ending": (
        lambda root: write_json(
            root / "dataset.json", {"labels": {"background": 0, "lesion": 1}, "file_ending": ".xyz"}
        ),
        "dataset.json",
        '"file_ending": one of',
    ),
    "a missing label file": (
        lambda root: (root / "labelsTr" / "case_1.nii.gz").unlink(),
        "labelsTr/case_1",
        "a mask of this name",
    ),
}


@pytest.mark.parametrize("mistake", NNUNET_MISTAKES)
def test_a_mistake_in_nnunet_is_one_problem_that_names_its_file(nnunet: Path, mistake: str) -> None:
    make, where, message = NNUNET_MISTAKES[mistake]
    make(nnunet)
    problem = the_problem_of(nnunet)
    assert problem.startswith(f"{nnunet / where}: expected")
    assert message in problem


@pytest.mark.parametrize("key", ["file_ending", "channel_names", "numTraining"])
def test_nnunet_keys_that_can_be_told_from_the_files_may_be_missing(nnunet: Path, key: str) -> None:
    without(key)(nnunet)
    assert problems_of(nnunet) == []


def test_a_header_within_the_tolerance_is_the_same_space(nnunet: Path) -> None:
    shifted = AFFINE.copy()
    shifted[0, 3] = 0.004
    write_volume(nnunet / "labelsTr" / "case_1.nii.gz", (VOLUME % 2).astype(np.uint8), shifted)
    assert problems_of(nnunet) == []


def test_all_problems_are_collected_and_one_error_tells_of_them(folder: Path) -> None:
    jpeg_mask(folder)
    (folder / "masks" / "b.png").unlink()
    (folder / "cases.csv").write_text("")
    dataset = read_dataset(folder)
    assert len(dataset.problems) == 3
    with pytest.raises(InputError) as caught:
        raise_problems(dataset.problems)
    assert str(caught.value) == f"{dataset.problems[0]} (And 2 more problems: see `medsaga info`.)"
    assert caught.value.where == dataset.problems[0].where
    assert caught.value.exit_code == 2
    with pytest.raises(InputError) as caught:
        raise_problems(dataset.problems[:1])
    assert caught.value is dataset.problems[0]
    raise_problems(())


def test_what_is_no_dataset_says_which_layouts_there_are(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert the_problem_of(tmp_path / "none").endswith("found nothing of this name. Check the path.")
    for root, found in ((tmp_path, "none of these"), (tmp_path / "file", "a file")):
        problem = the_problem_of(root)
        assert all(layout.EXPECTED in problem for layout in LAYOUTS)
        assert f"found {found}" in problem or f"with {found}" in problem


def test_a_folder_of_other_files_tells_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "images" / "1.dcm").touch()
    problem, _ = problems_of(tmp_path)
    assert problem.startswith(f"{tmp_path / 'images'}: expected images that end in .png")
    assert "found 1.dcm" in problem


def test_links_out_of_the_dataset_are_followed(folder: Path, tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (folder / kind / "a.png").rename(tmp_path / f"{kind}.png")
        (folder / kind / "a.png").symlink_to(tmp_path / f"{kind}.png")
    assert problems_of(folder) == []


def test_progress_counts_items(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    check_items(read_dataset(folder), lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_reading_leaves_pixels_alone_where_labels_are_named(folder: Path) -> None:
    cut(folder / "images" / "a.png")
    assert read_dataset(folder).problems == ()


def test_the_fingerprint_is_of_content_and_names_not_of_place(folder: Path, tmp_path: Path) -> None:
    before = fingerprint(read_dataset(folder))
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert fingerprint(read_dataset(tmp_path / "elsewhere")) == before
    write_mask(tmp_path / "elsewhere" / "masks" / "a.png", highest=1)
    assert fingerprint(read_dataset(tmp_path / "elsewhere")) != before
    for kind in ("images", "masks"):
        (folder / kind / "a.png").rename(folder / kind / "e.png")
    assert fingerprint(read_dataset(folder)) != before


def test_inputs_are_a_file_or_the_images_of_a_folder(folder: Path, nnunet: Path) -> None:
    (item,) = find_inputs(folder / "images" / "a.png")
    assert (item.name, item.masks, item.header.channels) == ("a", (), 1)
    assert [item.name for item in find_inputs(folder / "images")] == ["a", "b", "c", "d"]
    cases = find_inputs(nnunet / "imagesTr")
    assert [(item.name, len(item.images), item.header.channels) for item in cases] == [
        ("case_1", 2, 2),
        ("case_2", 2, 2),
    ]


def test_numbered_images_are_not_taken_for_channels_of_one_case(tmp_path: Path) -> None:
    for index in range(3):
        write_image(tmp_path / f"frame_{index:04d}.png", index)
    alone = find_inputs(tmp_path, channels=("grey",))
    assert [item.name for item in alone] == ["frame_0000", "frame_0001", "frame_0002"]
    assert [item.name for item in find_inputs(tmp_path, channels=("a", "b", "c"))] == ["frame"]
    (tmp_path / "frame_0000.png").unlink()
    assert [item.name for item in find_inputs(tmp_path)] == ["frame_0001", "frame_0002"]


def test_inputs_that_cannot_be_used_are_errors(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="found no files"):
        find_inputs(tmp_path / "empty")
    with pytest.raises(InputError, match="no such file"):
        find_inputs(tmp_path / "none.png")
    with pytest.raises(InputError, match="no suffix"):
        find_inputs(tmp_path / "none")
    write_image(folder / "images" / "a.jpg")
    with pytest.raises(InputError, match="one image per name"):
        find_inputs(folder / "images")


def test_values_in_sees_every_voxel_of_large_and_strided_maps() -> None:
    labels = np.zeros((130, 128, 128), dtype=np.uint16)
    labels[0, 0, 0], labels[-1, -1, -1], labels[64, 3, 5] = 7, 300, 65535
    for view in (labels, labels.T, labels[::-1, ::3, ::2]):
        assert values_in(view) == set(np.unique(view).tolist())
