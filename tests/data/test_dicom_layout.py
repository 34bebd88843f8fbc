"""Datasets of DICOM folders, with masks in every form that they come in."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from dicom_phantoms import AFFINES, write_ct_series, write_flat
from PIL import Image

from medsaga.data.dataset import check_items, fingerprint, read_dataset, select_channels
from medsaga.data.dicom.geometry import geometry_of
from medsaga.data.dicom.segmentation_writer import write_segmentation
from medsaga.data.dicom.series import find_series
from medsaga.data.dicom.structures_writer import write_structures
from medsaga.data.items import read_item, read_mask, warnings_of
from medsaga.data.types import Series

SHAPE = (12, 10, 4)
AFFINE = AFFINES["axial"]
Labels = npt.NDArray[np.uint8]


def a_volume(seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(-900, 900, SHAPE)


def some_labels(seed: int, highest: int = 2) -> Labels:
    labels = np.zeros(SHAPE, np.uint8)
    first, second = np.random.default_rng(seed).integers(1, 4, 2)
    labels[first : first + 5, 2:6, 1:3] = 1
    labels[7:11, second : second + 3, 0:3] = highest
    return labels


def the_series(folder: Path) -> Series:
    (series,) = find_series(folder)
    return series


def write_seg(path: Path, labels: Labels, folder: Path, names: dict[str, int]) -> None:
    series = the_series(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_segmentation(path, labels, series, geometry_of(series), names, model="phantom")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two cases, with a SEG that numbers liver and spleen in one order and one that does in the other."""
    root = tmp_path / "data"
    for seed, case in enumerate(("a", "b")):
        write_ct_series(root / "images" / case, a_volume(seed), AFFINE, seed=seed)
    write_seg(root / "masks" / "a.dcm", some_labels(0), root / "images" / "a", {"liver": 1, "spleen": 2})
    write_seg(root / "masks" / "b.dcm", some_labels(1), root / "images" / "b", {"Spleen": 1, "liver": 2})
    return root


def test_labels_go_by_the_names_of_the_segments(data: Path) -> None:
    dataset = read_dataset(data)
    assert dataset.problems == ()
    assert check_items(dataset) == ()
    assert dataset.layout == "dicom"
    assert dataset.labels == {"background": 0, "liver": 1, "spleen": 2}
    first, second = dataset.items
    np.testing.assert_array_equal(read_item(first)[0], a_volume(0))
    np.testing.assert_array_equal(read_mask(first), some_labels(0))
    np.testing.assert_array_equal(read_mask(second), np.array([0, 2, 1], np.uint8)[some_labels(1)])


def test_a_description_chooses_among_the_segments(data: Path) -> None:
    (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "SPLEEN": 5}}))
    dataset = read_dataset(data)
    assert dataset.problems == ()
    np.testing.assert_array_equal(read_mask(dataset.items[0]), 5 * (some_labels(0) == 2))
    np.testing.assert_array_equal(read_mask(dataset.items[1]), 5 * (some_labels(1) == 1))
    (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "kidney": 1}}))
    problems = read_dataset(data).problems
    assert [(Path(each.where).name, each.found) for each in problems] == [
        ("a.dcm", "liver, spleen"),
        ("b.dcm", "Spleen, liver"),
    ]


def test_names_that_differ_by_a_sign_alone_are_two_labels(data: Path) -> None:
    names = {"HER2+": 1, "HER2-": 2}
    for seed, case in enumerate(("a", "b")):
        write_seg(data / "masks" / f"{case}.dcm", some_labels(seed), data / "images" / case, names)
    (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "her2-": 1, "HER2+": 5}}))
    dataset = read_dataset(data)
    assert dataset.problems == ()
    for seed, item in enumerate(dataset.items):
        np.testing.assert_array_equal(read_mask(item), np.array([0, 5, 1], np.uint8)[some_labels(seed)])


def test_structure_sets_folders_of_masks_and_label_maps(data: Path) -> None:
    for case in ("a", "b"):
        (data / "masks" / f"{case}.dcm").unlink()
    series = the_series(data / "images" / "a")
    (data / "masks" / "a").mkdir()
    names = {"liver": 1, "spleen": 2}
    write_structures(
        data / "masks" / "a" / "export 1", some_labels(0), series, geometry_of(series), names, model="phantom"
    )
    # As dcm2niix writes it: rows the other way round.
    flip = AFFINE @ np.array([[1, 0, 0, 0], [0, -1, 0, SHAPE[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(some_labels(1)[:, ::-1], flip), data / "masks" / "b.nii.gz")
    mixed = read_dataset(data)
    assert "names" in mixed.problems[0].expected, "values mean nothing beside names unless somebody says it"
    (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **names}}))
    dataset = read_dataset(data)
    assert dataset.problems == ()
    assert check_items(dataset) == ()
    np.testing.assert_array_equal(read_mask(dataset.items[0]), some_labels(0))
    np.testing.assert_array_equal(read_mask(dataset.items[1]), some_labels(1))


def test_several_series_in_a_case(data: Path) -> None:
    for case in ("a", "b"):
        folder = data / "images" / case
        (folder / "portal").mkdir()
        for file in folder.iterdir():
            if file.is_file():
                file.rename(folder / "portal" / file.name)
        write_ct_series(folder / "late", a_volume(7) + 9, AFFINE, description="late phase")
    problems = read_dataset(data).problems
    assert [Path(each.where).name for each in problems[:2]] == ["a", "b"]
    assert "late phase" in problems[0].found
    assert "dataset.json" in problems[0].do
    (data / "dataset.json").write_text(json.dumps({"series": "late"}))
    dataset = read_dataset(data)
    (source,) = dataset.items[0].images
    assert isinstance(source, Series)
    assert source.description == "late phase"
    np.testing.assert_array_equal(read_item(dataset.items[0])[0], a_volume(7) + 9)


def test_series_as_channels(data: Path) -> None:
    for case in ("a", "b"):
        write_ct_series(
            data / "images" / case / "x", a_volume(9), AFFINE, modality="MR", description="FLAIR", intercept=0
        )
    (data / "dataset.json").write_text(json.dumps({"channel_names": {"0": "flair", "1": "phantom"}}))
    dataset = read_dataset(data)
    assert dataset.channels == ("flair", "phantom")
    image = read_item(dataset.items[0])
    assert image.shape == (2, *SHAPE)
    np.testing.assert_array_equal(image[1], a_volume(0))
    # The mask was drawn on the second of them.
    np.testing.assert_array_equal(read_mask(dataset.items[0]), some_labels(0))
    assert select_channels(dataset, ["phantom"]).items[0].header.channels == 1


def test_flat_images_one_file_each(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30)).astype(np.uint8)
    labels = (pixels > 200).astype(np.uint8)
    (tmp_path / "masks").mkdir()
    for case in ("chest.1", "chest.2"):
        write_flat(tmp_path / "images" / f"{case}.dcm", pixels)
        Image.fromarray(labels).save(tmp_path / "masks" / f"{case}.png")
    dataset = read_dataset(tmp_path)
    assert dataset.problems == ()
    assert [item.name for item in dataset.items] == ["chest.1", "chest.2"]
    assert dataset.labels == {"background": 0, "label_1": 1}
    np.testing.assert_array_equal(read_item(dataset.items[0])[0], pixels)
    np.testing.assert_array_equal(read_mask(dataset.items[0]), labels)


def test_what_is_wrong_is_named(data: Path) -> None:
    (data / "images" / "empty").mkdir()
    (data / "images" / "empty" / "notes.txt").write_text("nothing")
    write_ct_series(data / "images" / "unlabelled", a_volume(3), AFFINE)
    (data / "masks" / "nobody.dcm").write_bytes((data / "masks" / "a.dcm").read_bytes())
    wheres = [Path(each.where).name for each in read_dataset(data).problems]
    assert wheres == ["empty", "unlabelled", "nobody.dcm"]


def test_a_mask_of_another_patient_is_refused(data: Path) -> None:
    a, b = data / "masks" / "a.dcm", data / "masks" / "b.dcm"
    a.rename(data / "x")
    b.rename(a)
    (data / "x").rename(b)
    found = check_items(read_dataset(data))
    assert len(found) == 2
    assert "frame of reference" in str(found[0])


def test_cases_and_the_fingerprint(data: Path) -> None:
    (data / "cases.csv").write_text("name,case\na,p1\nb,p1\n")
    dataset = read_dataset(data)
    assert dataset.cases == ("p1",)
    before = fingerprint(dataset)
    file = sorted((data / "images" / "b").iterdir())[0]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert fingerprint(read_dataset(data)) != before


def test_warnings_of_images_and_masks(data: Path) -> None:
    folder = data / "images" / "a"
    twice = sorted(folder.iterdir())[0]
    (folder / "again").write_bytes(twice.read_bytes())
    dataset = read_dataset(data)
    assert len(warnings_of(dataset.items[0])) == 1
    assert warnings_of(dataset.items[1]) == ()


def test_folders_that_are_links_are_followed(data: Path, tmp_path: Path) -> None:
    """As DataLad lays them out: the folder of a case leads to the export, which is elsewhere."""
    linked = tmp_path / "linked"
    for case in ("a", "b"):
        segmentations = tmp_path / "segmentations" / case
        segmentations.mkdir(parents=True)
        (data / "masks" / f"{case}.dcm").rename(segmentations / "1.dcm")
        for kind, place in (("images", data / "images" / case), ("masks", segmentations)):
            (linked / kind / case).mkdir(parents=True)
            (linked / kind / case / "export").symlink_to(place, target_is_directory=True)
    dataset = read_dataset(linked)
    assert (dataset.layout, dataset.problems) == ("dicom", ())
    for seed, item in enumerate(dataset.items):
        np.testing.assert_array_equal(read_item(item)[0], a_volume(seed))
        np.testing.assert_array_equal(read_mask(item) > 0, some_labels(seed) > 0)
