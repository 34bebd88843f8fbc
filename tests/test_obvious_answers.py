"""Commands that are not quite right, and have one obvious meaning: it is done, or said in one line with exit code 2."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from conftest import write_toy_dataset
from dicom_phantoms import AFFINES, write_ct_series
from PIL import Image

from medsaga.cli import main
from medsaga.cli.entry import VERBS
from medsaga.cli.order import positionals_first
from medsaga.data.inputs import find_all_inputs, images_folder
from medsaga.errors import InputError

FAST = ["--model", "tiny", "--image-size", "64", "--steps", "1", "--batch-size", "2", "--rank", "4", "--device", "cpu"]


def said(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What an unusable command is answered: one line."""
    capsys.readouterr()
    assert main(argv) == 2
    answer = capsys.readouterr()
    assert answer.out == ""
    assert answer.err.count("\n") == 1
    return answer.err


@pytest.mark.parametrize("argv", [["--version"], ["-V"], ["version"]])
def test_the_version(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    assert capsys.readouterr().out == f"medsaga {metadata.version('medsaga')}\n"


@pytest.mark.parametrize(
    ("argv", "usage"),
    [
        ([], "medsaga"),
        (["help"], "medsaga"),
        (["help", "predict"], "medsaga predict"),
        (["weights"], "medsaga weights"),
    ],
)
def test_help_is_what_one_gets_who_asks_nothing(
    argv: list[str], usage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {usage} ")


@pytest.mark.parametrize(("typed", "meant"), [("trian", "train"), ("Predict", "predict"), ("eval", "evaluate")])
def test_a_misspelt_verb(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([typed, "x", "--out", "y"])
    assert stopped.value.code == 2
    assert f"Did you mean `medsaga {meant}`?" in capsys.readouterr().err


def test_a_misspelt_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "x", "--out", "y", "--stepz", "3"])
    assert stopped.value.code == 2
    assert "--steps" in capsys.readouterr().err


def test_run_and_data_exchanged(trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, data = str(trained_toy / "run"), str(trained_toy / "data")
    for argv in (
        ["predict", data, run, "--out", str(tmp_path / "out")],
        ["predict", f"{data}/images/img0.png", f"{run}/model.safetensors", "--out", str(tmp_path / "out.png")],
        ["evaluate", data, run],
        ["evaluate", data, "--data", run],
        ["suggest", data, run],
    ):
        answer = said(argv, capsys)
        assert f"Exchange them: medsaga {argv[0]} {run} {data}" in answer
    assert list(tmp_path.iterdir()) == []


def test_a_run_where_data_are_wanted(trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = str(trained_toy / "run"), str(tmp_path / "out")
    assert f"--resume --out {run}" in said(["train", run, "--out", out], capsys)
    assert f"{run}/report.html" in said(["info", run], capsys)
    assert "found a run folder" in said(["compare", run, "--out", out], capsys)


@pytest.mark.parametrize("file", ["model.safetensors", "config.toml", "report.html"])
def test_a_file_of_the_run_stands_for_the_run(
    trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    named, image = str(trained_toy / "run" / file), str(trained_toy / "data/images/img1.png")
    assert main(["predict", named, image, "--out", str(tmp_path / "a.png")]) == 0
    assert main(["predict", str(trained_toy / "run"), image, "--out", str(tmp_path / "b.png")]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    capsys.readouterr()
    assert main(["suggest", named, str(trained_toy / "data/images"), "--n", "1", "--json"]) == 2
    assert "none that is neither labelled nor among the run's" in capsys.readouterr().err


def test_the_second_folder_of_evaluate_is_the_data(
    trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(write_toy_dataset(tmp_path / "other", images=2, seed=5))
    found = []
    for argv in (["--data", other], [other]):
        assert main(["evaluate", str(trained_toy / "run"), *argv, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert len(found[0]["cases"]) == 2
    assert found[0] == found[1]
    both = ["evaluate", str(trained_toy / "run"), other, "--data", str(trained_toy / "data")]
    assert "one dataset" in said(both, capsys)


def test_files_that_a_shell_has_made_of_a_star(
    trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, images = str(trained_toy / "run"), trained_toy / "data/images"
    assert main(["predict", run, *map(str, sorted(images.glob("*.png"))), "--out", str(tmp_path / "files")]) == 0
    assert main(["predict", run, str(images), "--out", str(tmp_path / "folder")]) == 0
    for path in (tmp_path / "folder").iterdir():
        assert (tmp_path / "files" / path.name).read_bytes() == path.read_bytes()
    some = [str(images / f"img{n}.png") for n in (0, 1)]
    assert "a folder for the label maps of 2 images" in said(
        ["predict", run, *some, "--out", str(tmp_path / "x.png")], capsys
    )
    assert "no such file" in said(["predict", run, some[0], "nowhere.png", "--out", str(tmp_path / "x")], capsys)
    assert "RUN alone" in said(["predict", run, "--out", str(tmp_path / "x")], capsys)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("suggest RUN --n 1 FOLDER", "suggest RUN FOLDER --n 1"),
        ("suggest --json RUN --model=x FOLDER --n 1", "suggest RUN FOLDER --json --model=x --n 1"),
        ("predict RUN a.png --min_size 5 b.png --out o c.png", "predict RUN a.png b.png c.png --min_size 5 --out o"),
        ("train DATA --resume RUN --seed 3", "train DATA RUN --resume --seed 3"),
        # What follows an option of several values is its own, and what follows `--` is no option.
        ("train DATA --channels CT MR --binary RUN", "train DATA RUN --channels CT MR --binary"),
        ("predict RUN --out o -- -a.png", "predict RUN --out o -- -a.png"),
        # The parser says which option it does not know, and of several verbs in one it knows the options itself.
        ("predict RUN --outt o a.png", "predict RUN --outt o a.png"),
        ("federate simulate --out o DATA", "federate simulate --out o DATA"),
    ],
)
def test_options_may_stand_anywhere(typed: str, meant: str) -> None:
    verb, *words = typed.split()
    assert [verb, *positionals_first(words, VERBS[verb])] == meant.split()


def test_options_between_folders_and_images(
    trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, images = str(trained_toy / "run"), [str(trained_toy / f"data/images/img{n}.png") for n in (0, 1)]
    other = str(write_toy_dataset(tmp_path / "other", images=2, seed=5) / "images")
    for number in (0, 1):  # `suggest` leaves out what bears the name of a case of the run
        (Path(other) / f"img{number}.png").rename(Path(other) / f"new{number}.png")
    found = []
    for argv in ([run, other, "--n", "1"], [run, "--n", "1", other], ["--n", "1", run, other]):
        assert main(["suggest", *argv, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert len(found[0]["suggestions"]) == 1
    assert found[0] == found[1] == found[2]
    assert main(["predict", run, images[0], "--out", str(tmp_path / "out"), images[1]]) == 0
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"img0.png", "img1.png"}


def test_several_inputs_are_what_they_would_be_in_a_folder(tmp_path: Path) -> None:
    series = [write_ct_series(tmp_path / name, np.zeros((9, 8, 3)), AFFINES["axial"]) for name in ("p1", "p2")]
    (tmp_path / "mr").mkdir()
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        Image.new("L", (9, 8)).save(tmp_path / f"mr/{name}.png")
    channels = sorted((tmp_path / "mr").glob("*.png"))
    both = find_all_inputs(channels[:2], channels=("t1", "t2"))
    assert [(item.name, len(item.images)) for item in both] == [("a", 2)]
    slices = [*series[0], *series[1]]
    assert [(item.name, item.header.grid.shape) for item in find_all_inputs(slices)] == [
        ("p1", (9, 8, 3)),
        ("p2", (9, 8, 3)),
    ]
    mixed = find_all_inputs([tmp_path / "p2", *channels[2:], *series[0]], channels=("t1",))
    assert [item.name for item in mixed] == ["b_0000", "b_0001", "p1", "p2"]
    assert [item.header.grid.shape for item in mixed] == [(8, 9), (8, 9), (9, 8, 3), (9, 8, 3)]
    with pytest.raises(InputError, match="found 2 of 3"):
        find_all_inputs(series[0][:2])
    shutil.copytree(tmp_path / "mr", tmp_path / "again")
    with pytest.raises(InputError, match="one image per name"):
        find_all_inputs([*channels, tmp_path / "again"])


def test_a_dataset_given_to_predict(trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, data = str(trained_toy / "run"), str(trained_toy / "data")
    assert main(["predict", run, data, "--out", str(tmp_path / "out")]) == 0
    assert f"segmenting the images in {data}/images\n" in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("img?.png"))) == 6
    for name in ("imagesTr", "imagesTs"):
        shutil.copytree(trained_toy / "data/images", tmp_path / "nnunet" / name)
    answer = said(["predict", run, str(tmp_path / "nnunet"), "--out", str(tmp_path / "x")], capsys)
    assert f"Name one of them, such as {tmp_path / 'nnunet/imagesTs'}" in answer
    shutil.rmtree(tmp_path / "nnunet/imagesTs")
    assert images_folder(tmp_path / "nnunet") == tmp_path / "nnunet/imagesTr"
    # A folder with images is no dataset, whatever lies beside them.
    shutil.copy(trained_toy / "data/images/img0.png", tmp_path / "nnunet")
    assert images_folder(tmp_path / "nnunet") == tmp_path / "nnunet"


def test_the_run_folder_behind_the_data_and_resuming_without_data(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    assert main(["train", str(toy), run, "--shots", "2", *FAST]) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    model = (tmp_path / "run/model.safetensors").read_bytes()
    (tmp_path / "run/result.json").unlink()
    assert main(["train", "--resume", "--out", run]) == 0
    assert json.loads((tmp_path / "run/result.json").read_text())["dice_mean"] == result["dice_mean"]
    assert (tmp_path / "run/model.safetensors").read_bytes() == model
    assert "Add --out RUN" in said(["train", str(toy)], capsys)
    assert "Add --out RUN" in said(["train"], capsys)
    assert "Add --out RUN" in said(["train", "--resume"], capsys)
    assert "expected DATA; found none" in said(["train", "--out", str(tmp_path / "x")], capsys)
    assert "found 2 folders" in said(["train", str(toy), str(toy), "--out", str(tmp_path / "x")], capsys)


def test_resuming_a_run_that_continues_another_without_its_data(
    trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = write_toy_dataset(tmp_path / "new", images=1, seed=3)
    for kind in ("images", "masks"):
        (new / kind / "img0.png").rename(new / kind / "later.png")
    run, options = str(tmp_path / "run"), [str(trained_toy / "run/model.safetensors"), str(new)]
    assert main(["continue", *options, "--out", run, "--steps", "1"]) == 0
    before = (tmp_path / "run/model.safetensors").read_bytes()
    (tmp_path / "run/result.json").unlink()
    assert main(["train", run, "--resume"]) == 0
    assert (tmp_path / "run/model.safetensors").read_bytes() == before
    assert (tmp_path / "run/result.json").exists()
