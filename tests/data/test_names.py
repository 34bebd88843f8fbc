"""Names of two forms that look alike: umlauts are composed on Windows, and often decomposed on a Mac."""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_phantoms import AFFINES, write_ct_series
from PIL import Image
from pydicom import dcmread
from resolved import resolved

from medsaga.config import RunConfig, read_config
from medsaga.data.dataset import check_items, fingerprint, read_dataset, select_channels
from medsaga.data.descriptions import read_description
from medsaga.data.dicom.geometry import geometry_of
from medsaga.data.dicom.segmentation_writer import write_segmentation
from medsaga.data.dicom.series import choose_series, find_series
from medsaga.data.dicom.terminology import read_codes
from medsaga.data.inputs import find_inputs
from medsaga.data.items import read_item, read_mask
from medsaga.data.splits import Split, split_cases
from medsaga.errors import InputError


def composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def decomposed(name: str) -> str:
    return unicodedata.normalize("NFD", name)


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 7), np.uint8)).save(path)


def mask(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 2, (8, 7)).astype(np.uint8)).save(path)


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    """Four images whose names a Mac wrote, with masks, cases and folds whose names Windows wrote."""
    assert composed("längs") != decomposed("längs")
    root = tmp_path / "heads"
    for seed in range(4):
        picture(root / "images" / decomposed(f"längs_{seed}.png"), seed)
        mask(root / "masks" / composed(f"längs_{seed}.png"), seed)
    lines = [composed(f"längs_{seed},Müller {seed // 2}") for seed in range(4)]
    (root / "cases.csv").write_text("\n".join(["name,case", *lines]), encoding="utf-8")
    return root


def test_images_masks_cases_and_folds_go_together(heads: Path) -> None:
    folds = [{"train": [decomposed("Müller 1")], "val": [composed("Müller 0")]}]
    (heads / "splits_final.json").write_text(json.dumps(folds), encoding="utf-8")
    dataset = read_dataset(heads)
    assert (dataset.problems, check_items(dataset)) == ((), ())
    assert [item.name for item in dataset.items] == [composed(f"längs_{seed}") for seed in range(4)]
    for seed, item in enumerate(dataset.items):
        rng = np.random.default_rng(seed)
        np.testing.assert_array_equal(read_mask(item), rng.integers(0, 2, (8, 7)))
    split = split_cases(dataset, shots=None, seed=0, validation=None, fold=0)
    assert split == Split((composed("Müller 1"),), (), (composed("Müller 0"),))
    written_on_a_mac = {name: list(map(decomposed, cases)) for name, cases in split.to_json().items()}
    assert Split.from_json(written_on_a_mac) == split


def test_the_fingerprint_and_the_draw_do_not_tell_the_forms_apart(heads: Path, tmp_path: Path) -> None:
    (heads / "cases.csv").unlink()
    first = read_dataset(heads)
    print_of_first = fingerprint(first)
    for path in sorted((heads / "images").iterdir()):
        path.rename(path.with_name(composed(path.name)))
    second = read_dataset(heads)
    assert print_of_first == fingerprint(second)
    draws = [split_cases(each, shots=2, seed=3, validation=0, fold=0) for each in (first, second)]
    assert draws[0] == draws[1]


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac keeps only one of the two")
def test_two_files_of_one_name_are_told_apart_in_words(heads: Path) -> None:
    picture(heads / "images" / composed("längs_0.png"), 9)
    (problem,) = read_dataset(heads).problems
    assert "the same name with its accents stored in another way" in str(problem)
    with pytest.raises(InputError, match="one image per name"):
        find_inputs(heads / "images")


def test_labels_go_by_folders_and_channels_by_names(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png", 0)
    mask(tmp_path / "masks" / decomposed("Gefäß") / "a.png", 0)
    mask(tmp_path / "masks" / decomposed("Läsion") / "a.png", 1)
    labels = {"background": 0, composed("Gefäß"): 1, composed("Läsion"): 2}
    document = {"labels": labels, "channel_names": {"0": decomposed("Lösung")}}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    dataset = read_dataset(tmp_path)
    assert dataset.problems == ()
    assert (dataset.labels, dataset.channels) == (labels, (composed("Lösung"),))
    assert dataset.items[0].structures == (1, 2)
    assert select_channels(dataset, [decomposed("Lösung")]) == dataset


def test_a_label_twice_in_two_forms_is_one_label_twice(tmp_path: Path) -> None:
    twice = {"background": 0, composed("Läsion"): 1, decomposed("Läsion"): 2}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": twice}))
    with pytest.raises(InputError, match="a key twice"):
        read_description(tmp_path / "dataset.json")


def test_dicom_goes_by_names_in_either_form(tmp_path: Path) -> None:
    affine = AFFINES["axial"]
    voxels = np.random.default_rng(0).integers(-900, 900, (12, 10, 4))
    labels = np.zeros(voxels.shape, np.uint8)
    labels[2:5, 3:7, 1:3], labels[7:9, 2:4, :2] = 1, 2
    folder = tmp_path / "images" / decomposed("Jörg")
    files = write_ct_series(folder, voxels, affine)
    (series,) = find_series(folder)
    (tmp_path / "masks").mkdir()
    path = tmp_path / "masks" / composed("Jörg.dcm")
    names = {composed("Drüse"): 1, composed("Läsion"): 2}
    write_segmentation(path, labels, series, geometry_of(series), names, model="phantom")
    document = {"labels": {"background": 0, decomposed("läsion"): 1, decomposed("Drüse"): 2}}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    dataset = read_dataset(tmp_path)
    assert (dataset.problems, [item.name for item in dataset.items]) == ((), [composed("Jörg")])
    np.testing.assert_array_equal(read_mask(dataset.items[0]), np.array([0, 2, 1])[labels])
    for file in files:
        slice_ = dcmread(file)
        slice_.SpecificCharacterSet, slice_.SeriesDescription = "ISO_IR 192", decomposed("venös")
        slice_.save_as(file)
    assert choose_series(find_series(folder), composed("Venös")).images == 4


def test_predictions_have_composed_names_without_spaces_at_the_ends(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 0)
    (tmp_path / "a.png").rename(tmp_path / decomposed("Ärm .PNG "))
    nibabel.Nifti1Image(np.ones((4, 3, 2), np.int16), np.eye(4)).to_filename(tmp_path / "scan.nii.gz")
    (tmp_path / "scan.nii.gz").rename(tmp_path / decomposed("Öhr.NII.GZ"))
    items = find_inputs(tmp_path)
    assert [item.name for item in items] == [composed("Ärm"), composed("Öhr")]
    np.testing.assert_array_equal(read_item(items[1])[0], np.ones((4, 3, 2)))


def test_suffixes_in_capitals_pair_with_small_ones(tmp_path: Path) -> None:
    for seed, (folder, suffix) in enumerate((("imagesTr", "_0000.NII.GZ"), ("labelsTr", ".nii.gz"))):
        (tmp_path / folder).mkdir()
        voxels = np.random.default_rng(seed).integers(0, 2, (4, 3, 2)).astype(np.uint8)
        nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / "x.nii.gz")
        (tmp_path / "x.nii.gz").rename(tmp_path / folder / f"a{suffix}")
    document = {"labels": {"background": 0, "x": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    dataset = read_dataset(tmp_path)
    assert (dataset.problems, check_items(dataset), dataset.layout) == ((), (), "nnunet")
    assert [len(item.masks) for item in dataset.items] == [1]


def test_codes_are_for_names_in_either_form(tmp_path: Path) -> None:
    codes = {decomposed("Läsion"): {"type": ["52988006", "SCT", "Lesion"]}}
    (tmp_path / "codes.json").write_text(json.dumps(codes))
    assert list(read_codes(tmp_path / "codes.json")) == [composed("Läsion")]


def test_settings_of_an_earlier_run_have_names_in_one_form(tmp_path: Path) -> None:
    labels = {"background": 0, decomposed("Läsion"): 1}
    settings = resolved()
    RunConfig("x", labels, (decomposed("Lösung"),), (), settings).write(tmp_path / "config.toml")
    config = read_config(tmp_path / "config.toml")
    assert (config.labels, config.channels) == ({"background": 0, composed("Läsion"): 1}, (composed("Lösung"),))
