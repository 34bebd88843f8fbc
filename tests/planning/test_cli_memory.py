"""`medsaga memory` and `medsaga train --budget` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medsaga.cli import main
from medsaga.memory.tracker import CATEGORIES
from medsaga.models.sam import build_sam
from medsaga.models.weights.loading import save_model
from medsaga.settings.run_config import read_config

SMALL = ["memory", "--model=tiny", "--image-size", "64", "--rank", "4", "--batch-size", "2", "--device", "cpu"]


def test_json_is_one_document_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--classes", "3", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"peak_bytes", "breakdown", "inference_bytes", "settings"}
    assert set(document["breakdown"]) == set(CATEGORIES)
    assert sum(document["breakdown"].values()) == document["peak_bytes"]
    shown = {"model": "tiny", "method": "medsaga", "image_size": 64, "batch_size": 2, "micro_batch_size": 2, "rank": 4}
    assert shown.items() <= document["settings"].items()


def test_where_the_data_choose_the_image_size_the_largest_is_shown_too(capsys: pytest.CaptureFixture[str]) -> None:
    lite = ["memory", "--device", "cpu", "--classes", "3", "--json"]
    found = []
    for options in ([], ["--image-size", "320"], ["--image-size", "192"]):
        assert main([*lite, *options]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["finest"] == {"image_size": 320, "peak_bytes": found[1]["peak_bytes"]}
    assert found[0]["peak_bytes"] == found[2]["peak_bytes"] < found[1]["peak_bytes"]
    assert "finest" not in found[1] | found[2]


def test_json_with_a_budget_names_it_and_settings_that_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--budget", "80MB", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["budget_bytes"] == 80 * 10**6
    assert max(document["peak_bytes"], document["inference_bytes"]) <= document["budget_bytes"]
    assert document["settings"]["rank"] == 4


def test_tables_show_the_peak_and_options_that_train_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--budget", "200MB"]) == 0
    printed = capsys.readouterr().out
    for expected in [*CATEGORIES, "peak of a training step", "peak of inference", "budget"]:
        assert expected in printed
    for option, value in [
        ("--image-size", "64"),
        ("--rank", "4"),
        ("--micro-batch-size", "2"),
        ("--precision", "fp32"),
    ]:
        assert any(option in line and value in line for line in printed.splitlines())


@pytest.mark.parametrize(
    ("options", "image_size"),
    [(["--image-size", "224"], 224), pytest.param([], 1024, marks=pytest.mark.exhaustive)],
    ids=["given size", "chosen size"],
)
def test_a_budget_for_a_published_size(options: list[str], image_size: int, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["memory", "--model", "vit_b", "--budget", "4GB", "--device", "cpu", "--json", *options]
    assert main(given) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["settings"]["image_size"] == image_size
    assert document["settings"]["rank"] == 64
    assert max(document["peak_bytes"], document["inference_bytes"]) <= 4 * 10**9


@pytest.mark.parametrize("budget", ["4", "GB", "-1GB", "0MB", "1e3GB", "", "4 TB"])
def test_a_budget_that_is_none_says_how_to_write_it(budget: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", f"--budget={budget}"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "--budget: expected an amount of memory, such as 4GB" in captured.err
    assert "unit" in captured.err


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--model", "no-such-model"], "no-such-model"),
        (["--method", "lora"], "--method"),
        (["--image-size", "100"], "--image-size"),
        (["--classes", "1"], "--classes"),
        (["--in-channels", "0"], "--in-channels"),
        (["--budget", "1GB", "--micro-batch-size", "3"], "--micro-batch-size"),
    ],
)
def test_what_cannot_be_predicted_exits_with_2(argv: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"medsaga: {named}: expected")


@pytest.mark.exhaustive
def test_an_impossible_budget_names_one_that_would_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--budget", "1MB"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "--image-size 64" in captured.err
    least = int(captured.err.split("at least ")[1].split("MB")[0])
    assert main([*SMALL, "--budget", f"{least}MB"]) == 0
    assert main([*SMALL, "--budget", f"{least - 1}MB"]) == 2


def test_a_file_of_weights_says_its_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "weights.safetensors", build_sam("tiny", classes=3, image_size=64))
    assert main(["memory", *SMALL[2:], "--model", str(tmp_path / "weights.safetensors"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert main([*SMALL, "--json"]) == 0
    assert document == json.loads(capsys.readouterr().out)


def test_training_within_a_budget(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    how = ["--model=tiny", "--shots=3", "--steps=2", "--device=cpu"]
    train = ["train", str(toy), "--out", str(run), *how, "--budget", "9MB"]
    assert main([*train, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert 0 < result["peak_memory_bytes"] <= 9 * 10**6
    chosen = read_config(run / "config.toml").settings
    # Images of 64 x 48 pixels gain nothing from tiny's own 128; float32 would not fit.
    assert (chosen.image_size, chosen.precision, chosen.budget) == (64, "bf16", "9MB")
    assert main([*train, "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result
    assert main([*train[:-1], "10MB", "--resume"]) == 2
    assert "--budget" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_training_within_too_little_writes_nothing(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    too_little = ["--model=tiny", "--shots=3", "--budget=1MB", "--device=cpu"]
    assert main(["train", str(toy), "--out", str(run), *too_little]) == 2
    assert "at least" in capsys.readouterr().err
    assert not run.exists()
