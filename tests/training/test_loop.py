"""A training run: the same seed gives the same bits, whatever interrupts it, and nothing is lost when it fails."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import fit_only, interrupt_in
from PIL import Image
from processes import started
from resolved import resolved
from rich.console import Console
from torch import Tensor

from medsaga import methods
from medsaga.data.known import digests_of_cases
from medsaga.errors import InputError, Interrupted, OutOfMemoryError, RunError
from medsaga.files import sha256
from medsaga.models.encoders import ENCODERS
from medsaga.models.encoders.sam_vit import SamVitSpec
from medsaga.models.sam import build_sam
from medsaga.models.weights.loading import save_model
from medsaga.prediction.segmenter import Segmenter
from medsaga.run_folder import read_metrics
from medsaga.runs import prepare
from medsaga.runs import train as loop
from medsaga.runs.train import train
from medsaga.settings.options import ResolvedSettings, Settings
from medsaga.training import loss, out_of_memory, step, trainer
from medsaga.training.out_of_memory import next_smaller

pytestmark = pytest.mark.xdist_group("uninterrupted")


def _steps(run: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key != "seconds"}
        for line in read_metrics(run)
        if line["kind"] == "step"
    ]


def test_writes_the_whole_run_folder(uninterrupted: Callable[[Settings], Path], quick: Settings) -> None:
    run = uninterrupted(quick)
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.toml",
        "split.json",
        "manifest.json",
        "digests.json",
        "metrics.jsonl",
        "result.json",
        "model.safetensors",
        "state.pt",
        "report.html",
    }
    result = json.loads((run / "result.json").read_text())
    tiny = ENCODERS["tiny"]
    assert isinstance(tiny, SamVitSpec)
    # Of the encoder's blocks alone: qkv, proj and the two layers of the perceptron.
    assert result["projected_parameters"] > (3 + 1 + 4 + 4) * tiny.hidden_size**2 * tiny.layers
    assert result["trainable_parameters"] > result["projected_parameters"]
    assert sum(result["memory_breakdown"].values()) == result["peak_memory_bytes"]
    assert set(result["dice"]) == {"disc", "bar"}
    assert len(_steps(run)) == quick.steps
    split = json.loads((run / "split.json").read_text())
    assert len(split["train"]) == 3
    assert not set(split["train"]) & set(split["test"])


@pytest.mark.exhaustive
def test_learns_an_easy_task(toy: Path, tmp_path: Path, quick: Settings) -> None:
    settings = dataclasses.replace(quick, steps=60, batch_size=4, evaluate_every=60, encoder_lr=1e-3, decoder_lr=2e-3)
    assert train(toy, tmp_path / "run", settings)["dice_mean"] > 0.6


def test_two_runs_with_a_seed_are_bitwise_equal(
    toy: Path, tmp_path: Path, quick: Settings, uninterrupted: Callable[[Settings], Path]
) -> None:
    first = uninterrupted(quick)
    result = train(toy, tmp_path / "again", quick)
    assert result["cases"] == json.loads((first / "result.json").read_text())["cases"]
    assert sha256(tmp_path / "again" / "model.safetensors") == sha256(first / "model.safetensors")
    assert _steps(tmp_path / "again") == _steps(first)
    fit_only(toy, tmp_path / "other", dataclasses.replace(quick, seed=1))
    assert sha256(tmp_path / "other" / "model.safetensors") != sha256(first / "model.safetensors")


@pytest.mark.exhaustive
def test_micro_batches_train_like_the_whole_batch_at_each_resolution_of_the_loss(
    toy: Path, tmp_path: Path, quick: Settings
) -> None:
    losses: dict[str, list[list[float]]] = {}
    for resolution in ("image", "logits"):
        settings = dataclasses.replace(quick, loss_resolution=resolution, steps=3, evaluate_every=100)
        for size in (None, 1):
            run = tmp_path / f"{resolution}_{size}"
            fit_only(toy, run, dataclasses.replace(settings, micro_batch_size=size))
            losses.setdefault(resolution, []).append([line["loss"] for line in _steps(run)])
        assert losses[resolution][0] == pytest.approx(losses[resolution][1], rel=1e-4)
    assert losses["image"][0] != pytest.approx(losses["logits"][0], rel=1e-3)


@pytest.mark.xdist_group("processes")
def test_killed_and_resumed_equals_never_interrupted(toy: Path, tmp_path: Path, quick: Settings) -> None:
    settings = dataclasses.replace(quick, steps=10)
    fit_only(toy, tmp_path / "whole", settings)
    killed = tmp_path / "killed"
    process = started(train, toy, killed, settings)
    deadline = time.monotonic() + 120
    while not (killed / "state.pt").exists():
        assert process.exitcode is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (killed / "result.json").exists()
    train(toy, killed, settings, resume=True)
    assert sha256(killed / "model.safetensors") == sha256(tmp_path / "whole" / "model.safetensors")
    assert _steps(killed) == _steps(tmp_path / "whole")


def test_ctrl_c_saves_and_the_run_goes_on_to_the_same_bits(
    toy: Path,
    tmp_path: Path,
    quick: Settings,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[Settings], Path],
) -> None:
    interrupt_in(monkeypatch, 3)  # between two evaluations: the state must be saved for its own sake
    with pytest.raises(Interrupted, match="--resume"):
        train(toy, tmp_path / "run", quick)
    monkeypatch.undo()
    with pytest.raises(InputError, match="--rank"):
        train(toy, tmp_path / "run", dataclasses.replace(quick, rank=4), resume=True)
    train(toy, tmp_path / "run", quick, resume=True)
    assert sha256(tmp_path / "run" / "model.safetensors") == sha256(uninterrupted(quick) / "model.safetensors")
    assert _steps(tmp_path / "run") == _steps(uninterrupted(quick))


def test_the_same_command_resumes_whatever_its_settings_were_resolved_to(
    toy: Path, tmp_path: Path, quick: Settings
) -> None:
    torch.manual_seed(0)
    save_model(tmp_path / "own.safetensors", build_sam("tiny", classes=4, image_size=64))
    settings = dataclasses.replace(quick, model=str(tmp_path / "own.safetensors"), warmup=100, axis="k", steps=1)
    result = train(toy, tmp_path / "run", settings)
    assert train(toy, tmp_path / "run", settings, resume=True)["dice"] == result["dice"]
    with pytest.raises(InputError, match="--model"):
        train(toy, tmp_path / "run", dataclasses.replace(settings, model="vit_b"), resume=True)


def test_the_final_test_runs_on_the_device_of_the_run(
    toy: Path, tmp_path: Path, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device] = []

    def note_device(*_: Any, segmenter: Segmenter, **__: Any) -> dict[str, Any]:
        asked.append(segmenter.device)
        return {}

    monkeypatch.setattr(loop, "evaluate_run", note_device)
    train(toy, tmp_path / "run", dataclasses.replace(quick, steps=1))
    assert asked == [torch.device("cpu")]


def test_resume_refuses_changed_data(
    toy: Path, tmp_path: Path, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_in(monkeypatch, 1)
    with pytest.raises(Interrupted):
        train(toy, tmp_path / "run", quick)
    (toy / "images" / "img0.png").write_bytes((toy / "images" / "img1.png").read_bytes())
    with pytest.raises(InputError, match="that the run began with"):
        train(toy, tmp_path / "run", quick, resume=True)


def test_resume_goes_on_without_cases_that_came_later(
    toy: Path,
    tmp_path: Path,
    quick: Settings,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[Settings], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = uninterrupted(quick)
    interrupt_in(monkeypatch, 3)
    with pytest.raises(Interrupted):
        train(toy, tmp_path / "run", quick)
    monkeypatch.undo()
    for folder in ("images", "masks"):
        (toy / folder / "new.png").write_bytes((toy / folder / "img0.png").read_bytes())
    train(toy, tmp_path / "run", quick, resume=True)
    assert "new came after the run began" in capsys.readouterr().err
    assert sha256(tmp_path / "run" / "model.safetensors") == sha256(whole / "model.safetensors")
    result, expected = (json.loads((run / "result.json").read_text()) for run in (tmp_path / "run", whole))
    assert result["dice"] == expected["dice"]


def _spoil(monkeypatch: pytest.MonkeyPatch, calls: set[int] | None) -> None:
    """Make the loss NaN at these calls of it; at all of them for None."""
    original, count = loss.segmentation_loss, 0

    def spoiled(logits: Tensor, labels: Tensor, elsewhere: Tensor, **how: Any) -> Tensor:
        nonlocal count
        value = original(logits, labels, elsewhere, **how)
        if logits.is_meta:  # the prediction of the run's memory
            return value
        count += 1
        return value * float("nan") if calls is None or count in calls else value

    monkeypatch.setattr(step, "segmentation_loss", spoiled)


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    toy: Path, tmp_path: Path, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _spoil(monkeypatch, {1, 4})  # the calibration and one step
    result = train(toy, tmp_path / "run", quick)
    assert result["skipped_steps"] == 2
    assert result["dice_mean"] is not None
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in text  # which is not JSON
    assert [line["loss"] for line in read_metrics(tmp_path / "run") if line["kind"] == "step"].count(None) >= 1


@pytest.mark.exhaustive
def test_too_many_in_a_row_end_the_run_with_the_last_good_checkpoint(
    toy: Path, tmp_path: Path, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(quick, steps=30, evaluate_every=10)
    _spoil(monkeypatch, set(range(4, 1000)))
    with pytest.raises(RunError, match="not finite"):
        train(toy, tmp_path / "run", settings)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state["model"].values())


def test_a_run_that_projects_nothing_is_an_error(
    toy: Path, tmp_path: Path, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    medsaga = methods.METHODS["medsaga"]

    def without_rank(model: Any, settings: ResolvedSettings) -> Any:
        return [{**group, "rank": None} for group in medsaga.groups(model, settings)]

    monkeypatch.setitem(methods.METHODS, "medsaga", dataclasses.replace(medsaga, groups=without_rank))
    with pytest.raises(RunError, match="No parameter would be projected"):
        train(toy, tmp_path / "run", quick)


def _more_than_there_is() -> None:
    torch.empty(2**55, dtype=torch.uint8)


def _as_cuda_says_it() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("run_out", [pytest.param(_more_than_there_is, marks=pytest.mark.exhaustive), _as_cuda_says_it])
def test_out_of_memory_names_the_next_smaller_setting(
    toy: Path, tmp_path: Path, quick: Settings, monkeypatch: pytest.MonkeyPatch, run_out: Callable[[], None]
) -> None:
    def exhausted(*_: Any, **__: Any) -> float:
        run_out()
        return 0.0

    monkeypatch.setattr(out_of_memory, "accumulate", exhausted)
    with pytest.raises(OutOfMemoryError, match="--state-bits 8"):
        train(toy, tmp_path / "run", quick)
    open_settings = resolved(state_bits=32, image_size=256)
    assert "--state-bits 8" in next_smaller(open_settings)
    assert "--precision bf16" in next_smaller(dataclasses.replace(open_settings, state_bits=8))
    least = dataclasses.replace(open_settings, state_bits=8, precision="bf16")
    assert "--image-size 192" in next_smaller(least)
    assert "--image-size 160" in next_smaller(dataclasses.replace(least, image_size=192))
    assert "--image-size 896" in next_smaller(dataclasses.replace(least, model="sam2.1_hiera_tiny", image_size=1024))
    assert "--image-size" not in next_smaller(dataclasses.replace(least, image_size=96))
    momentum = resolved(method="daeformer")
    assert momentum.optimizer == "sgd"
    assert "--precision bf16" in next_smaller(momentum)


def test_early_stop_keeps_the_best_weights(
    toy: Path, tmp_path: Path, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.3, 0.5, 0.4, 0.2, 0.9])
    monkeypatch.setattr(trainer, "monitor_dice", lambda *_, **__: next(scores))
    settings = dataclasses.replace(quick, steps=5, evaluate_every=1, validation_cases=1, patience=2)
    fit_only(toy, tmp_path / "run", settings)
    assert len(_steps(tmp_path / "run")) == 4
    best = dataclasses.replace(settings, patience=None)
    scores = iter([0.3, 0.5, 0.4, 0.2, 0.1])
    monkeypatch.setattr(trainer, "monitor_dice", lambda *_, **__: next(scores))
    fit_only(toy, tmp_path / "best", best)
    assert sha256(tmp_path / "run" / "model.safetensors") == sha256(tmp_path / "best" / "model.safetensors")


def test_patience_without_validation_cases_is_refused(toy: Path, tmp_path: Path, quick: Settings) -> None:
    settings = dataclasses.replace(quick, patience=2)
    with pytest.raises(InputError) as refused:
        train(toy, tmp_path / "run", settings)
    assert str(refused.value) == (
        "--patience: expected validation cases beside it; found none, with 3 training cases. Add --validation-cases N."
    )
    assert not (tmp_path / "run").exists()


def test_an_existing_folder_is_left_alone(toy: Path, tmp_path: Path, quick: Settings) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("keep")
    with pytest.raises(InputError, match="--resume"):
        train(toy, tmp_path / "run", quick)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["precious.txt"]


def test_a_run_that_another_command_has_begun_meanwhile_is_left_alone(
    toy: Path, tmp_path: Path, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found no such folder when they were started; the data were read meanwhile."""

    def overtaken(*given: Any) -> Any:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.toml").write_text("of the other")
        return digests_of_cases(*given)

    monkeypatch.setattr(prepare, "digests_of_cases", overtaken)
    with pytest.raises(InputError, match=r"that does not exist yet.*--resume"):
        train(toy, tmp_path / "run", quick)
    assert [path.read_text() for path in (tmp_path / "run").iterdir()] == ["of the other"]
    assert {path.name for path in tmp_path.iterdir()} == {"toy", "run"}


def test_nothing_is_written_for_data_that_cannot_be_used(toy: Path, tmp_path: Path, quick: Settings) -> None:
    (toy / "masks" / "img2.png").unlink()
    with pytest.raises(InputError, match="img2"):
        train(toy, tmp_path / "run", quick)
    assert not (tmp_path / "run").exists()


def test_training_on_every_case_works_and_leaves_nothing_to_test_on(toy: Path, tmp_path: Path, quick: Settings) -> None:
    said = io.StringIO()
    console = Console(file=said, width=200)
    result = train(toy, tmp_path / "run", dataclasses.replace(quick, shots=6, steps=1), console=console)
    assert "warning: all 6 cases are trained on, so nothing will be tested" in said.getvalue()
    assert result["dice_mean"] is None
    assert result["cases"] == []
    assert result["projected_parameters"] > 0
    assert (tmp_path / "run" / "report.html").exists()


def test_masks_without_a_label_are_refused_before_anything_is_written(
    toy: Path, tmp_path: Path, quick: Settings
) -> None:
    for mask in (toy / "masks").iterdir():
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(mask)
    with pytest.raises(InputError, match="labelled pixels"):
        train(toy, tmp_path / "run", quick)
    assert not (tmp_path / "run").exists()
