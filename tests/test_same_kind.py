"""What is given to a finished run is of the kind that it was trained on, or is refused; what fits is taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_toy_dataset
from PIL import Image

from medsaga.cli import main

FAST = ["--steps", "2", "--image-size", "64", "--model", "tiny", "--device", "cpu"]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def two_channels(root: Path, names: tuple[str, str]) -> Path:
    """An nnU-Net dataset of toy images, T1, and their negatives, T2, numbered in the order of ``names``."""
    toy = write_toy_dataset(root.with_name(f"{root.name}_toy"))
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for path in sorted((toy / "images").iterdir()):
        grey = np.asarray(Image.open(path))
        for place, name in enumerate(names):
            Image.fromarray(grey if name == "T1" else 255 - grey).save(
                root / "imagesTr" / f"{path.stem}_{place:04}.png"
            )
        shutil.copy(toy / "masks" / path.name, root / "labelsTr")
    labels = {"background": 0, "disc": 1, "bar": 2}
    channels = {str(place): name for place, name in enumerate(names)}
    document = {"labels": labels, "channel_names": channels, "numTraining": 6, "file_ending": ".png"}
    (root / "dataset.json").write_text(json.dumps(document))
    return root


def test_channels_in_another_order_are_not_taken_for_those_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, other = two_channels(tmp_path / "a", ("T1", "T2")), two_channels(tmp_path / "b", ("T2", "T1"))
    run = str(tmp_path / "run")
    assert main(["train", str(data), "--out", run, "--shots", "2", *FAST]) == 0
    capsys.readouterr()
    for command in (["evaluate", run, str(other)], ["suggest", run, str(other), "--n", "1"]):
        assert main([*command, "--device", "cpu"]) == 2
        assert "in its order, T1, T2; found T2, T1" in said(capsys)
    assert main(["predict", run, str(other), "--out", str(tmp_path / "p"), "--device", "cpu"]) == 2
    assert "in its order, T1, T2; found T2, T1" in said(capsys)
    assert not (tmp_path / "p").exists()
    assert main(["predict", run, str(data), "--out", str(tmp_path / "p"), "--device", "cpu"]) == 0


def test_masks_without_names_are_scored_where_their_values_are_the_runs(
    trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where a label does not occur, as with few test cases."""
    other = write_toy_dataset(tmp_path / "other", images=2, seed=8)
    (other / "dataset.json").unlink()
    for path in (other / "masks").iterdir():
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask == 2, 0, mask).astype(np.uint8)).save(path)
    assert main(["evaluate", str(trained_toy / "run"), str(other), "--json", "--device", "cpu"]) == 0
    assert set(json.loads(capsys.readouterr().out)["dice"]) == {"disc", "bar"}
    mask = np.asarray(Image.open(path))
    Image.fromarray(np.where(mask == 1, 7, mask).astype(np.uint8)).save(path)
    assert main(["evaluate", str(trained_toy / "run"), str(other), "--device", "cpu"]) == 2
    assert "the labels of the run" in said(capsys)


def test_a_test_set_that_train_has_scored_is_scored_again(tmp_path: Path) -> None:
    """One image of twenty without content is an accident, also where it is one of the few that are tested on."""
    data, run = write_toy_dataset(tmp_path / "data", images=12), str(tmp_path / "run")
    (data / "split.json").unlink(missing_ok=True)
    assert main(["train", str(data), "--out", run, "--shots", "8", *FAST]) == 0
    test = json.loads((tmp_path / "run" / "split.json").read_text())["test"]
    shutil.rmtree(run)
    Image.fromarray(np.full((48, 64), 37, np.uint8)).save(data / "images" / f"{test[0]}.png")
    assert main(["train", str(data), "--out", run, "--shots", "8", *FAST]) == 0
    before = json.loads((tmp_path / "run" / "result.json").read_text())["cases"]
    assert test[0] in {case["name"] for case in before}
    assert main(["evaluate", run, "--device", "cpu"]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["cases"] == before


def test_an_8_bit_picture_is_no_ct(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from medsaga.data.phantom import write_phantom_ct

    write_phantom_ct(tmp_path / "ct", cases=3, shape=(48, 48, 6))
    run = str(tmp_path / "run")
    assert main(["train", str(tmp_path / "ct"), "--out", run, "--shots", "1", *FAST]) == 0
    Image.fromarray(np.full((48, 48), 90, np.uint8)).save(tmp_path / "slice.png")
    capsys.readouterr()
    assert main(["predict", run, str(tmp_path / "slice.png"), "--out", str(tmp_path / "p.png")]) == 2
    assert "expected HU, as the training images hold" in said(capsys)
    assert not (tmp_path / "p.png").exists()


def test_numbered_images_of_different_sizes_are_images_of_their_own(trained_toy: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(4):
        shape = (48 + 2 * number, 64)
        Image.fromarray(np.full(shape, 50, np.uint8)).save(tmp_path / "images" / f"scan_{number:04}.png")
    out = tmp_path / "out"
    assert main(["predict", str(trained_toy / "run"), str(tmp_path / "images"), "--out", str(out)]) == 0
    assert len(list(out.glob("scan_*.png"))) == 4
    assert main(["suggest", str(tmp_path / "images"), "--n", "2", "--model", "starter", "--device", "cpu"]) == 0


def test_three_numbered_pictures_are_frames_for_a_run_on_colour(tmp_path: Path) -> None:
    data = write_toy_dataset(tmp_path / "data")
    for path in (data / "images").iterdir():
        Image.open(path).convert("RGB").save(path)
    assert main(["train", str(data), "--out", str(tmp_path / "run"), "--shots", "2", *FAST]) == 0
    (tmp_path / "frames").mkdir()
    for number in range(3):
        frame = Image.open(data / "images" / f"img{number}.png").convert("L")
        frame.save(tmp_path / "frames" / f"scan_{number:04}.png")
    out = tmp_path / "out"
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "frames"), "--out", str(out), "--device", "cpu"]) == 0
    assert len(list(out.glob("scan_*.png"))) == 3


def test_as_many_cases_are_suggested_as_there_are(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2, 6):
        (toy / "images" / f"img{number}.png").unlink()
    capsys.readouterr()
    assert main(["suggest", str(toy / "images"), "--json", "--device", "cpu"]) == 0
    assert len(json.loads(capsys.readouterr().out)["suggestions"]) == 2
    assert main(["suggest", str(toy / "images"), "--n", "5", "--device", "cpu"]) == 2


def test_names_in_brackets_are_shown_as_they_are(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"background": 0, "cyst [left]": 1, "lesion [/T2]": 2}
    (toy / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "CT [hu]"}}))
    assert main(["info", str(toy)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name in ("cyst [left]", "lesion [/T2]", "CT [hu]"):
        assert name in shown
