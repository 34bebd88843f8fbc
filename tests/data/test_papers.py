"""The downloads of the papers as they are: TransUNet's Synapse and BraTS 2020, on small files of the same layout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from medsaga.data.dataset import check_items, fingerprint, read_dataset, select_channels
from medsaga.data.intensity import Intensity, choose_intensity
from medsaga.data.items import read_item, read_mask
from medsaga.data.splits import Split, split_cases
from medsaga.data.survey import survey
from medsaga.data.types import Dataset
from medsaga.errors import InputError

TRAIN, TEST = ("case0005", "case0006", "case0007"), ("case0001", "case0002")
MODALITIES = ("flair", "t1", "t1ce", "t2")


def save_slice(path: Path, **changes: np.ndarray | None) -> None:
    rng = np.random.default_rng(len(path.name))
    content = {"image": rng.random((16, 12), np.float32), "label": rng.integers(0, 9, (16, 12)).astype(np.float32)}
    kept = {name: values for name, values in {**content, **changes}.items() if values is not None}
    np.savez(path, **kept)  # type: ignore[arg-type]  # its stub wants allow_pickle here


@pytest.fixture
def synapse(tmp_path: Path) -> Path:
    root = tmp_path / "Synapse"
    (root / "train_npz").mkdir(parents=True)
    (root / "test_vol_h5").mkdir()
    for case in TRAIN:
        for number in range(3):
            save_slice(root / "train_npz" / f"{case}_slice{number:03d}.npz")
    rng = np.random.default_rng(0)
    for case in TEST:
        with h5py.File(root / "test_vol_h5" / f"{case}.npy.h5", "w") as file:
            file["image"] = rng.random((4, 16, 12), np.float32)
            file["label"] = rng.integers(0, 9, (4, 16, 12)).astype(np.uint8)
    return root


def write_brats_case(home: Path, name: str, shape: tuple[int, int, int] = (6, 5, 4), mask: str | None = None) -> Path:
    folder = home / name
    folder.mkdir(parents=True)
    rng, affine = np.random.default_rng(0), np.diag([-1.0, -1, 1, 1])
    for number, modality in enumerate(MODALITIES):
        voxels = (rng.integers(0, 50, shape) + 100 * number).astype(np.int16)
        nib.Nifti1Image(voxels, affine).to_filename(folder / f"{name}_{modality}.nii.gz")
    labels = rng.choice(np.array([0, 1, 2, 4], np.uint8), shape)
    nib.Nifti1Image(labels, affine).to_filename(folder / (mask or f"{name}_seg.nii.gz"))
    return folder


@pytest.fixture
def brats(tmp_path: Path) -> Path:
    home = tmp_path / "MICCAI_BraTS2020_TrainingData"
    for number in (1, 2, 3):
        write_brats_case(home, f"BraTS20_Training_{number:03d}")
    (home / "name_mapping.csv").write_text("Grade\n")
    return home


def problems_of(root: Path) -> list[str]:
    dataset = read_dataset(root)
    return [*map(str, dataset.problems), *map(str, check_items(dataset))]


def the_problem_of(root: Path) -> str:
    found = problems_of(root)
    assert len(found) == 1, found
    return found[0]


def split(dataset: Dataset, shots: int | None = None, test_cases: int | None = None) -> Split:
    return split_cases(dataset, shots=shots, seed=0, validation=None, fold=0, test_cases=test_cases)


def test_transunets_synapse_is_read_whole(synapse: Path) -> None:
    dataset = read_dataset(synapse)
    assert problems_of(synapse) == []
    assert (dataset.layout, dataset.channels, dataset.value_range) == ("transunet", ("CT",), (0, 1))
    assert list(dataset.labels)[1:3] == ["aorta", "gallbladder"]
    assert [dataset.labels[name] for name in ("liver", "pancreas", "spleen", "stomach")] == [5, 6, 7, 8]
    assert (dataset.cases, dataset.test) == (tuple(sorted(TRAIN + TEST)), TEST)
    assert [len(dataset.items_of((case,))) for case in (TRAIN[0], TEST[0])] == [3, 1]
    volume = dataset.items_of(TEST[:1])[0]
    with h5py.File(volume.images[0]) as file:
        np.testing.assert_array_equal(read_item(volume)[0], file["image"])
        np.testing.assert_array_equal(read_mask(volume), file["label"])
    assert set(survey(dataset).labels_of_cases) == set(dataset.cases)
    assert len(fingerprint(dataset)) == 64


def test_its_volumes_are_always_the_test_and_never_drawn(synapse: Path) -> None:
    dataset = read_dataset(synapse)
    assert split(dataset) == Split(TRAIN, (), TEST)
    for shots in (1, 2, 3):
        drawn = split(dataset, shots)
        assert drawn.test == TEST
        assert len(drawn.train) == shots
    with pytest.raises(InputError, match=r"--shots: expected 1 to 3 cases; found 4"):
        split(dataset, 4)
    with pytest.raises(InputError, match=r"--test-cases: .*found 2 that are fixed by its layout"):
        split(dataset, 1, test_cases=1)
    (synapse / "splits_final.json").write_text(json.dumps([{"train": [TRAIN[0]], "val": [TRAIN[1]]}]))
    with pytest.raises(InputError, match=r"splits_final\.json: expected no folds"):
        split(dataset, 1)


def test_its_intensities_are_known(synapse: Path) -> None:
    dataset = read_dataset(synapse)
    items = survey(dataset).of(dataset.items_of(TRAIN))
    for requested in ("auto", "window"):
        assert choose_intensity(dataset, items, requested, None) == (Intensity("window", 0, 1),)
    assert choose_intensity(dataset, items, "auto", (0.2, 0.8)) == (Intensity("window", 0.2, 0.8),)
    assert choose_intensity(dataset, items, "percentile", None)[0].kind == "percentile"
    save_slice(synapse / "train_npz" / "case0005_slice000.npz", image=np.arange(192.0).reshape(16, 12) - 100)
    assert "found values from -100 to 91" in the_problem_of(synapse)


def test_a_description_names_other_labels(synapse: Path) -> None:
    names = ["background", *(f"organ {value}" for value in range(1, 9))]
    (synapse / "dataset.json").write_text(json.dumps({"labels": {name: value for value, name in enumerate(names)}}))
    assert list(read_dataset(synapse).labels) == names
    (synapse / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 5}}))
    assert len(problems_of(synapse)) == len(read_dataset(synapse).items)


def test_labels_in_another_order_are_not_given_wrong_names(synapse: Path) -> None:
    for number, case in enumerate(TEST):
        with h5py.File(synapse / "test_vol_h5" / f"{case}.npy.h5", "r+") as file:
            labels = np.zeros((4, 16, 12), np.uint8)
            labels[:, :8], labels[0, 10:12] = 2, 4
            file["label"][...] = labels if number else labels // 2
    problem = the_problem_of(synapse)
    assert problem.startswith(f"{synapse}: expected TransUNet's numbers")
    assert "found 384 voxels of 2 and 24 of 4" in problem
    (synapse / "dataset.json").write_text(problem[problem.index("{") : problem.rindex("}") + 1])
    assert problems_of(synapse) == []
    assert read_dataset(synapse).labels["gallbladder"] == 4


@pytest.mark.parametrize(
    ("changes", "expected", "found"),
    [
        ({"label": None}, "an array named 'label'", "the arrays image"),
        ({"image": None}, "an array named 'image'", "the arrays label"),
        ({"label": np.full((16, 12), 0.5)}, "integer labels", "0.5"),
        ({"label": np.zeros((12, 16))}, "the shape (16, 12)", "(12, 16)"),
        ({"image": np.zeros((3, 16, 12))}, "a slice of 2 axes", "3 axes"),
        ({"image": np.full((16, 12), np.nan)}, "finite values", "NaN"),
        ({"image": np.array([[None] * 12] * 16)}, "integers or floating point", "pickled"),
        ({"label": np.full((16, 12), 13)}, "the labels 0 (background), 1 (aorta)", "the values 13"),
    ],
)
def test_a_damaged_slice_is_one_problem_that_names_it(
    synapse: Path, changes: dict[str, np.ndarray | None], expected: str, found: str
) -> None:
    save_slice(synapse / "train_npz" / "case0006_slice001.npz", **changes)
    problem = the_problem_of(synapse)
    assert problem.startswith(str(synapse / "train_npz" / "case0006_slice001.npz"))
    assert f"expected {expected}" in problem
    assert found in problem.partition("found ")[2]


def test_files_in_the_wrong_place_are_named(synapse: Path) -> None:
    save_slice(synapse / "train_npz" / "liver.npz")
    assert "found 'liver.npz'" in the_problem_of(synapse)
    (synapse / "train_npz" / "liver.npz").rename(synapse / "train_npz" / "case0001_slice000.npz")
    assert "found slices of case0001 in train_npz" in the_problem_of(synapse)
    (synapse / "train_npz" / "case0001_slice000.npz").unlink()
    (synapse / "test_vol_h5").rename(synapse / "test_vol")
    assert the_problem_of(synapse).startswith(str(synapse / "test_vol_h5"))


def test_without_h5py_one_problem_says_what_to_install(synapse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "pip install" in the_problem_of(synapse)


def test_brats_is_read_whole_from_its_folder_or_its_parent(brats: Path) -> None:
    assert problems_of(brats) == []
    dataset = read_dataset(brats)
    assert (dataset.layout, dataset.channels) == ("brats", MODALITIES)
    assert list(dataset.labels.values()) == [0, 1, 2, 4]
    assert dataset.cases == tuple(f"BraTS20_Training_{number:03d}" for number in (1, 2, 3))
    image = read_item(dataset.items[0])
    assert [channel.min() // 100 for channel in image] == [0, 1, 2, 3]
    assert survey(dataset).labels_of_cases[dataset.cases[0]] == {0, 1, 2, 4}
    above = read_dataset(brats.parent)
    assert (above.root, above.items[0].images) == (brats, dataset.items[0].images)
    assert fingerprint(above) == fingerprint(dataset)


def test_the_label_map_of_another_name_in_the_public_release_is_found(brats: Path) -> None:
    folder = write_brats_case(brats, "BraTS20_Training_355", mask="W39_1998.09.19_Segm.nii")
    assert problems_of(brats) == []
    assert read_dataset(brats).items[-1].masks == (folder / "W39_1998.09.19_Segm.nii",)
    (folder / "W39_1998.09.19_Segm.nii").unlink()
    assert "expected the label map of the case; found none" in the_problem_of(brats)
    assert read_dataset(brats, masks_required=False).problems == ()


def test_brats_cases_without_a_label_map_are_left_out_where_they_are_many(brats: Path) -> None:
    for path in sorted(brats.glob("*/*_seg.nii*"))[1:]:
        path.unlink()
    dataset = read_dataset(brats)
    assert dataset.problems == ()
    assert dataset.cases == ("BraTS20_Training_001",)
    assert "2 of 3 images have no mask and are left out" in dataset.warnings[0]


def test_a_missing_modality_names_the_case(brats: Path) -> None:
    (brats / "BraTS20_Training_002" / "BraTS20_Training_002_t1ce.nii.gz").unlink()
    problem = the_problem_of(brats)
    assert problem.startswith(str(brats / "BraTS20_Training_002"))
    assert "found no BraTS20_Training_002_t1ce.nii[.gz]" in problem


def test_a_modality_twice_and_another_grid_are_problems(brats: Path) -> None:
    folder = brats / "BraTS20_Training_002"
    nib.load(folder / f"{folder.name}_t2.nii.gz").to_filename(folder / f"{folder.name}_t2.nii")
    assert "expected one file per name" in the_problem_of(brats)
    (folder / f"{folder.name}_t2.nii").unlink()
    nib.Nifti1Image(np.ones((2, 2, 2), np.int16), np.eye(4)).to_filename(folder / f"{folder.name}_t1.nii.gz")
    assert "expected the grid of BraTS20_Training_002_flair.nii.gz" in the_problem_of(brats)


def test_channels_are_chosen_by_name_and_in_that_order(brats: Path) -> None:
    dataset = read_dataset(brats)
    chosen = select_channels(dataset, ("t2", "flair"))
    assert chosen.channels == ("t2", "flair")
    np.testing.assert_array_equal(read_item(chosen.items[0]), read_item(dataset.items[0])[[3, 0]])
    assert select_channels(dataset, ["flair"]).items[0].header.channels == 1
    assert select_channels(dataset, None) is dataset
    assert select_channels(dataset, MODALITIES) is dataset


@pytest.mark.parametrize(("names", "found"), [(("flair", "T2w"), "T2w"), (("t1", "t1"), "t1, t1"), ((), "none")])
def test_channels_that_cannot_be_chosen_are_refused(brats: Path, names: tuple[str, ...], found: str) -> None:
    message = rf"--channels: expected some of the dataset's channels, each once: flair, t1, t1ce, t2; found {found}\."
    with pytest.raises(InputError, match=message):
        select_channels(read_dataset(brats), names)


def test_channels_of_one_file_cannot_be_chosen(tmp_path: Path) -> None:
    for kind, shape in (("images", (4, 4, 4, 2)), ("masks", (4, 4, 4))):
        (tmp_path / kind).mkdir()
        voxels = (np.indices(shape).sum(0) % 2).astype(np.uint8)
        nib.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / kind / "a.nii.gz")
    dataset = read_dataset(tmp_path)
    assert select_channels(dataset, ("channel_0", "channel_1")) is dataset
    with pytest.raises(InputError, match=r"each channel is a file of its own; found all of .* in a\.nii\.gz"):
        select_channels(dataset, ("channel_1",))
