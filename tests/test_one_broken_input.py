"""One broken file among many: the others are segmented, it is named at the end, and the exit code says so."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import write_toy_dataset
from dicom_phantoms import AFFINES, write_ct_series
from PIL import Image

from medsaga.cli import main
from medsaga.data.inputs import find_inputs
from medsaga.data.letterbox import unletterbox
from medsaga.errors import InputError


def truncated(path: Path, kept: float = 0.5) -> Path:
    """Cut the end of a file off, as a full USB stick does."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    return path


def first_column(path: Path) -> set[str]:
    """The cases of a table."""
    with path.open(encoding="utf-8", newline="") as handle:
        return {row[0] for row in csv.reader(handle)} - {"case"}


@pytest.mark.parametrize("damage", ["pixels", "header", "empty", "other channels"])
def test_the_others_are_segmented(
    trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    run, images = str(trained_toy / "run"), tmp_path / "images"
    shutil.copytree(trained_toy / "data/images", images)
    assert main(["predict", run, str(images), "--out", str(tmp_path / "whole")]) == 0
    if damage == "other channels":
        nibabel.save(nibabel.Nifti1Image(np.zeros((9, 8, 2), np.uint8), np.eye(4)), images / "img2.nii.gz")
        (images / "img2.png").unlink()
    else:
        truncated(images / "img2.png", {"pixels": 0.9, "header": 0.01, "empty": 0}[damage])
    if damage == "other channels":
        truncated(images / "img2.nii.gz")
    capsys.readouterr()
    options = ["--out", str(tmp_path / "out"), "--measure"]
    assert main(["predict", run, str(images), *options]) == 1
    said = capsys.readouterr()
    others = [f"img{n}" for n in (0, 1, 3, 4, 5)]
    assert said.out.split() == [str(tmp_path / f"out/{name}.png") for name in others]
    assert "1 of 6 images could not be segmented" in said.err
    assert str(images / "img2.") in said.err
    assert first_column(tmp_path / "out/confidence.csv") == first_column(tmp_path / "out/measurements.csv") == {*others}
    for name in others:
        assert (tmp_path / f"out/{name}.png").read_bytes() == (tmp_path / f"whole/{name}.png").read_bytes()


def test_where_all_are_broken(trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, images, out = str(trained_toy / "run"), tmp_path / "images", str(tmp_path / "out")
    shutil.copytree(trained_toy / "data/images", images)
    for path in images.iterdir():
        truncated(path, 0.9)
    assert main(["predict", run, str(images), "--out", out]) == 1
    assert "6 of 6 images" in capsys.readouterr().err
    # A single one is an input that cannot be used.
    assert main(["predict", run, str(images / "img0.png"), "--out", out]) == 2
    truncated(images / "img0.png", 0.01)
    assert main(["predict", run, str(images / "img0.png"), "--out", out]) == 2
    assert not list(tmp_path.glob("out/*"))


def test_the_message_names_the_first_ten(trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_toy_dataset(tmp_path / "data", images=13)
    for path in sorted((data / "images").iterdir())[1:]:
        truncated(path, 0.01)
    assert main(["predict", str(trained_toy / "run"), str(data), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.count("images/img") == 10
    assert "and 2 more" in said


@pytest.mark.parametrize("where", ["header", "pixels"])
def test_a_broken_series_among_others(tmp_path: Path, where: str) -> None:
    values = np.random.default_rng(0).integers(0, 99, (9, 8, 4)).astype(float)
    for name in ("p1", "p2", "p3"):
        write_ct_series(tmp_path / name / "SE1", values, AFFINES["axial"])
    slices = sorted((tmp_path / "p2/SE1").iterdir())
    truncated(slices[-1], 0.3 if where == "header" else 0.97)
    problems: list[InputError] = []
    items = find_inputs(tmp_path, problems=problems)
    # A series that is whole but for its last slice must not pass for a shorter one.
    assert [item.name for item in items] == ["p1_SE1", "p3_SE1"]
    (problem,) = problems
    assert str(slices[-1]) in str(problem)
    with pytest.raises(InputError):
        find_inputs(tmp_path)


def test_suggest_leaves_out_what_it_cannot_read(
    trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    shutil.copytree(trained_toy / "data/images", images)
    for number, kept in ((1, 0.01), (4, 0.9)):
        truncated(images / f"img{number}.png", kept)
    assert main(["suggest", str(images), "--n", "4", "--json"]) == 0
    said = capsys.readouterr()
    assert {f"img{n}" for n in (0, 2, 3, 5)} == {each["case"] for each in json.loads(said.out)["suggestions"]}
    assert said.err.count("left out: ") == 2


def test_an_image_that_does_not_fit_into_memory(
    trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, images, out = str(trained_toy / "run"), tmp_path / "images", str(tmp_path / "out")
    shutil.copytree(trained_toy / "data/images", images)
    large = images / "img2.png"
    Image.new("L", (640, 480)).save(large)

    def run_out(maps: torch.Tensor, content: Any, size: int, shape: tuple[int, int], rows: slice) -> torch.Tensor:
        if shape == (480, 640):
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"
            )
        return unletterbox(maps, content, size, shape, rows)

    monkeypatch.setattr("medsaga.prediction.mirrored.unletterbox", run_out)
    assert main(["predict", run, str(images), "--out", out]) == 1
    said = capsys.readouterr()
    assert len(said.out.split()) == 5
    assert f"1 of 6 images could not be segmented:\n  {large}: " in said.err
    assert "Cut it into smaller ones" in said.err
    assert main(["predict", run, str(large), "--out", out]) == 3
    assert str(large) in capsys.readouterr().err
