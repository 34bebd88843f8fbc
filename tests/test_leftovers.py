"""What an earlier call of `medsaga predict` left: no input, and nothing that tells of another label map."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import content, labels_in
from PIL import Image

from medsaga import files
from medsaga.cli import main
from medsaga.models.weights.loading import save_model
from medsaga.prediction.record import RECORD
from medsaga.prediction.segmenter import Segmenter


def test_outputs_beside_their_images_are_no_images(
    trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(trained_toy / "run")
    for number in (0, 1):
        with Image.open(trained_toy / f"data/images/img{number}.png") as picture:
            picture.convert("L").save(tmp_path / f"img{number}.jpg")
    predict = ["predict", run, str(tmp_path), "--out", str(tmp_path), "--overlay"]
    assert main(predict) == 0
    first = content(tmp_path)
    assert first.keys() >= {"img0.jpg", "img0.png", "img0_overlay.png"}
    hashed, sha256 = list[Path](), files.sha256

    def noted(path: Path) -> str:
        hashed.append(path)
        return sha256(path)

    monkeypatch.setattr(files, "sha256", noted)
    capsys.readouterr()
    assert main(predict) == 0
    said = capsys.readouterr()
    assert said.out.split() == [str(tmp_path / f"img{number}.png") for number in (0, 1)]
    assert "left out, because medsaga wrote them" in said.err
    assert not [path for path in hashed if path.suffix == ".jpg"]
    assert content(tmp_path) == first
    # As a shell makes them of *.*g, and into another folder.
    pictures = [str(path) for path in sorted(tmp_path.iterdir()) if path.suffix in (".png", ".jpg")]
    assert main(["predict", run, *pictures, "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"img0.png", "img1.png"}
    # One that somebody has corrected is lost in no case.
    Image.new("L", (64, 48), 1).save(tmp_path / "img1.png")
    assert main(predict) == 2
    assert labels_in(tmp_path / "img1.png").min() == 1


def test_a_folder_of_nothing_but_outputs(trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = str(trained_toy / "run"), tmp_path / "out"
    assert main(["predict", run, str(trained_toy / "data/images"), "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["predict", run, str(out), "--out", str(tmp_path / "again")]) == 2
    assert "expected images to segment; found nothing but what medsaga wrote there" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
    assert main(["predict", run, str(out / "img0.png"), "--out", str(tmp_path / "again")]) == 0
    # A file that has nothing of a record but its name keeps nobody from the images beside it.
    (out / RECORD).write_text("my own notes\nof two lines\n")
    assert main(["predict", run, str(out), "--out", str(tmp_path / "all")]) == 0


@pytest.fixture
def trained_otherwise(trained_toy: Path, tmp_path: Path) -> Path:
    """The same run with other weights, whose label maps differ."""
    run = shutil.copytree(trained_toy / "run", tmp_path / "otherwise")
    model = Segmenter.load(run, "cpu").model
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_model(run / "model.safetensors", model)
    return run


def test_what_tells_of_an_earlier_label_map_goes_with_it(
    trained_toy: Path, trained_otherwise: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = trained_toy / "data/images", tmp_path / "out"
    first = ["predict", str(trained_toy / "run"), str(images), "--out", str(out)]
    other = ["predict", str(trained_otherwise)]
    assert main([*first, "--overlay", "--probabilities", "--measure"]) == 0
    before = content(out)
    (out / "img4_overlay.png").write_bytes(b"mine")
    capsys.readouterr()
    assert main(first) == 0
    assert "removed" not in capsys.readouterr().err, "the same label maps"
    assert content(out).keys() == before.keys()
    assert main([*other, str(images / "img0.png"), "--out", str(out), "--probabilities"]) == 0
    said = capsys.readouterr().err
    expected = "measurements and overlays of earlier label maps were removed: add --measure --overlay to make new ones"
    assert said.count(expected) == 1
    assert before.keys() - content(out).keys() == {"img0_overlay.png"}
    assert content(out)["img0.png"] != before["img0.png"]
    rows = (out / "measurements.csv").read_text().splitlines()[1:]
    assert {row.split(",")[0] for row in rows} == {f"img{n}" for n in range(1, 6)}
    (out / "img5.png").unlink()
    assert main([*other, str(images), "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert said.count("measurements, overlays and probabilities of earlier label maps were removed") == 1
    left = {"img4_overlay.png", "img5_overlay.png", "img5_probabilities.tif", "img0_probabilities.tif"}
    label_maps = {f"img{n}.png" for n in range(6)}
    assert content(out).keys() == {*label_maps, *left, "confidence.csv", "measurements.csv", RECORD}
    assert (out / "img4_overlay.png").read_bytes() == b"mine"


def test_a_changed_table_of_measurements_is_left_alone(
    trained_toy: Path, trained_otherwise: Path, tmp_path: Path
) -> None:
    image, out = str(trained_toy / "data/images/img0.png"), tmp_path / "out"
    assert main(["predict", str(trained_toy / "run"), image, "--out", str(out), "--measure"]) == 0
    (out / "measurements.csv").write_text("case,mine\nimg0,1\n")
    assert main(["predict", str(trained_otherwise), image, "--out", str(out)]) == 0
    assert (out / "measurements.csv").read_text() == "case,mine\nimg0,1\n"


def test_what_is_written_under_a_name_of_its_own_is_told_of_under_that_name(
    trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exports of many patients are called alike, and their tables are one."""
    out = tmp_path / "out"
    for number in (0, 1):
        export = tmp_path / f"patient{number}" / "ct.png"
        export.parent.mkdir()
        shutil.copy(trained_toy / f"data/images/img{number}.png", export)
        predict = ["predict", str(trained_toy / "run"), str(export), "--out", str(out / f"patient{number}.png")]
        assert main([*predict, "--measure"]) == 0
        assert f"patient{number}: confidence" in capsys.readouterr().err
    rows = (out / "measurements.csv").read_text().splitlines()[1:]
    assert {row.split(",")[0] for row in rows} == {"patient0", "patient1"}
    # One into a folder of several is told of beside them, and not in the place of its namesake.
    assert main(["predict", str(trained_toy / "run"), str(trained_toy / "data/images"), "--out", str(tmp_path)]) == 0
    before = (tmp_path / "confidence.csv").read_text().splitlines()
    later = trained_toy / "data/images/img0.png"
    assert main(["predict", str(trained_toy / "run"), str(later), "--out", str(tmp_path / "followup.png")]) == 0
    after = (tmp_path / "confidence.csv").read_text().splitlines()
    assert sorted(before) == sorted(line for line in after if not line.startswith("followup,"))
    assert len(after) == len(before) + 1
