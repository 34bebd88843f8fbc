"""Folders that become datasets: everything in them is taken, from wherever it lies, and nothing that is not meant."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from clinical_phantoms import write_examination
from conftest import write_toy_dataset

from medsaga.app.opening import browse, make_dataset
from medsaga.data.dataset import read_dataset
from medsaga.errors import InputError


def write_series(folder: Path, seed: int = 0) -> Path:
    """Write a DICOM series into a folder."""
    home = folder.parent / "written"
    write_examination(home, "case", seed=seed, mask="none")
    shutil.move(home / "images" / "case", folder)
    shutil.rmtree(home)
    return folder


def kind_of(folder: Path) -> str:
    return str(browse(folder)["kind"])


def test_a_stray_picture_does_not_take_the_place_of_the_series(tmp_path: Path) -> None:
    export = tmp_path / "export"
    for number in range(2):
        write_series(export / f"c{number}", number)
    toy = write_toy_dataset(tmp_path / "toy", images=1)
    shutil.copy(toy / "images" / "img0.png", export / "logo.png")
    dataset = read_dataset(make_dataset(export), masks_required=False)
    assert [item.name for item in dataset.items] == ["c0", "c1"]
    assert any("logo.png" in each for each in dataset.warnings)


def test_series_are_found_below_patients_and_studies(tmp_path: Path) -> None:
    export = tmp_path / "export"
    disc = export / "DICOM"
    write_series(disc / "P1" / "ST0" / "SE0", 0)
    write_series(disc / "P2" / "ST0" / "SE0", 1)
    write_series(disc / "P2" / "ST1" / "SE0", 2)
    first = next((disc / "P1" / "ST0" / "SE0").iterdir())
    shutil.copy(first, export / "DICOMDIR")
    (export / "viewer").mkdir()
    (export / "viewer" / "run.exe").write_bytes(b"MZ")
    assert kind_of(export) == "images"
    dataset = read_dataset(make_dataset(export), masks_required=False)
    assert dataset.problems == ()
    assert {item.name: item.case for item in dataset.items} == {"P1": "P1", "P2_ST0_SE0": "P2", "P2_ST1_SE0": "P2"}


def test_one_series_far_below_is_an_image(tmp_path: Path) -> None:
    export = tmp_path / "export"
    write_series(export / "P1" / "ST0" / "SE0")
    (item,) = read_dataset(make_dataset(export), masks_required=False).items
    assert item.name == "P1"


def test_datasets_and_runs_in_a_folder_are_none_of_its_images(tmp_path: Path) -> None:
    write_examination(tmp_path / "home" / "clinic", "c0", seed=0, mask="none")
    assert kind_of(tmp_path / "home") == ""
    assert kind_of(tmp_path / "home" / "clinic") == "dataset"
    with pytest.raises(InputError, match="DICOM series"):
        make_dataset(tmp_path / "home")
