"""A run that is killed or interrupted goes on to where it would have ended."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import fit_only, interrupt_in, no_more_than
from resolved import resolved
from rich.console import Console

from medsaga.data.samples import build_samples
from medsaga.distributed.group import Group
from medsaga.errors import InputError, Interrupted, OutOfMemoryError
from medsaga.files import read_json, remove_temporary, sha256, write_json
from medsaga.memory.tracker import TensorTracker
from medsaga.optim.galore import GaLoreAdamW
from medsaga.planning.estimate import predict_memory
from medsaga.run_folder import read_metrics
from medsaga.runs import prepare
from medsaga.runs import train as loop
from medsaga.runs.evaluate import evaluate_run
from medsaga.runs.prepare import new_run
from medsaga.runs.train import fit, is_complete, train
from medsaga.settings.options import Settings
from medsaga.training import out_of_memory, step, trainer
from medsaga.training.events import Event, Saved, Stepped, Stopped
from medsaga.training.trainer import Trainer

pytestmark = pytest.mark.xdist_group("uninterrupted")

ROOT = Path(__file__).parents[2]


@pytest.mark.exhaustive
def test_killed_at_random_moments_it_comes_to_the_same_bits(tmp_path: Path) -> None:
    out = tmp_path / "killed.json"
    command = [sys.executable, "-m", "benchmarks.resume.kill", "--moments", "2", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    killed = read_json(out)
    assert killed["same"] == 2
    assert killed["kills"] >= 1, "all ended before they were killed"


def test_a_stop_holds_when_the_run_was_killed_in_its_test(
    toy: Path, tmp_path: Path, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, settings = tmp_path / "run", dataclasses.replace(quick, steps=20, evaluate_every=1, validation_cases=1)
    settings = dataclasses.replace(settings, patience=2)

    def interrupted(*_: Any, **__: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "monitor_dice", lambda *_, **__: 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate_run", interrupted)
        with pytest.raises(Interrupted, match="its test is not"):
            train(toy, run, settings)
    model, lines = sha256(run / "model.safetensors"), read_metrics(run)
    assert lines[-1] == {"kind": "stopped", "step": 3, "reason": "patience"}
    (run / ".0123abcd.model.safetensors").write_bytes(b"half")
    result = train(toy, run, settings, resume=True)
    assert sha256(run / "model.safetensors") == model
    assert read_metrics(run) == lines
    assert not (run / ".0123abcd.model.safetensors").exists()
    # Once it is complete, its result is what there is.
    said = io.StringIO()
    assert train(toy, run, settings, resume=True, console=Console(file=said, width=300)) == result
    assert "the run is complete" in said.getvalue()


def test_a_second_ctrl_c_drops_the_step_and_saves_the_one_before(
    toy: Path,
    tmp_path: Path,
    quick: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    uninterrupted: Callable[[Settings], Path],
) -> None:
    original, calls = step.accumulate, 0

    def pressed_twice(*args: Any, **how: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 4:
            os.kill(os.getpid(), signal.SIGINT)
            loss = original(*args, **how)  # gradients have arrived when the second one comes
            os.kill(os.getpid(), signal.SIGINT)
            return loss
        return original(*args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(out_of_memory, "accumulate", pressed_twice)
        with pytest.raises(Interrupted, match="after step 3 of 4"):
            fit_only(toy, tmp_path / "run", quick, console=Console(stderr=True))
    assert "finishing step 4, then saving" in capsys.readouterr().err
    fit_only(toy, tmp_path / "run", quick, resume=True)
    assert sha256(tmp_path / "run" / "model.safetensors") == sha256(uninterrupted(quick) / "model.safetensors")


def _press_twice_in_the_update(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    original, updates = GaLoreAdamW.step, 0

    def pressed(optimizer: GaLoreAdamW, *given: Any) -> Any:
        nonlocal updates
        updates += 1
        if updates == number:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
        return original(optimizer, *given)

    monkeypatch.setattr(GaLoreAdamW, "step", pressed)


def test_a_second_ctrl_c_in_the_update_loses_no_line_of_the_log(
    toy: Path,
    tmp_path: Path,
    quick: Settings,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[Settings], Path],
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        _press_twice_in_the_update(patch, 3)
        with pytest.raises(
            Interrupted, match=rf"after step 3 of 4.*medsaga train --resume --out {re.escape(str(run))}"
        ):
            fit_only(toy, run, quick)
    assert [line["step"] for line in read_metrics(run) if line["kind"] == "step"] == [1, 2, 3]
    train(toy, run, quick, resume=True)
    assert is_complete(run)
    assert sha256(run / "model.safetensors") == sha256(uninterrupted(quick) / "model.safetensors")


def test_a_run_whose_log_lacks_a_line_is_complete_and_one_tested_too_early_is_not(
    tmp_path: Path, quick: Settings, uninterrupted: Callable[[Settings], Path]
) -> None:
    whole = uninterrupted(quick)
    lines = [line for line in read_metrics(whole) if (line["kind"], line["step"]) != ("step", 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for steps, complete in ((3, True), (2, False)):
        write_json(tmp_path / "result.json", {"steps": steps})
        assert is_complete(tmp_path) == complete


def test_ctrl_c_in_the_last_step_is_heard(
    toy: Path, tmp_path: Path, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_in(patch, quick.steps or 0)
        with pytest.raises(Interrupted, match=r"its test is not.*medsaga train --resume"):
            train(toy, tmp_path / "run", quick)
    assert read_metrics(tmp_path / "run")[-1]["kind"] == "stopped"
    assert train(toy, tmp_path / "run", quick, resume=True)["steps"] == quick.steps


def test_a_run_is_trained_by_one_command_at_a_time(
    toy: Path, tmp_path: Path, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New and resumed, while its images are prepared and while it is trained."""
    run, refused = tmp_path / "run", 0

    def meanwhile() -> None:
        nonlocal refused
        with pytest.raises(InputError, match="that no other command is training; found one that is"):
            train(toy, run, quick, resume=True)
        refused += 1

    def after(original: Callable[..., Any]) -> Callable[..., Any]:
        def called(*given: Any, **how: Any) -> Any:
            meanwhile()
            return original(*given, **how)

        return called

    for resume in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(prepare, "build_samples", after(build_samples))
            interrupt_in(patch, 1)
            patch.setattr(out_of_memory, "clip", after(vars(out_of_memory)["clip"]))
            with pytest.raises(Interrupted):
                train(toy, run, quick, resume=resume)
    assert refused == 4
    (run / "training.lock").touch()  # as a killed process leaves it
    train(toy, run, quick, resume=True)
    assert not (run / "training.lock").exists()


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), (OutOfMemoryError, "--state-bits 8")),
        (OSError(errno.EIO, "Input/output error"), (OSError, "Input/output error")),
    ],
)
def test_a_state_is_not_called_damaged_for_want_of_memory(
    toy: Path,
    tmp_path: Path,
    quick: Settings,
    monkeypatch: pytest.MonkeyPatch,
    problem: Exception,
    told: tuple[type[Exception], str],
) -> None:
    run = new_run(toy, tmp_path / "run", quick, Console(quiet=True))
    with _trainer(run, []) as begun:
        begun.run(steps=1)

    def failing(*_: Any) -> None:
        raise problem

    monkeypatch.setattr(GaLoreAdamW, "load_state_dict", failing)
    with pytest.raises(told[0], match=told[1]):
        train(toy, tmp_path / "run", quick, resume=True)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limits")
def test_a_state_that_the_disk_has_no_room_for_is_an_error_of_the_disk(
    toy: Path, tmp_path: Path, quick: Settings
) -> None:
    run = new_run(toy, tmp_path / "run", quick, Console(quiet=True))
    with _trainer(run, []) as begun, no_more_than(2**16), pytest.raises(OSError, match="File too large"):
        begun.save()
    assert not (tmp_path / "run" / "state.pt").exists()


def test_only_what_a_killed_write_left_is_removed(tmp_path: Path) -> None:
    for name in (".deadbeef.state.pt", ".gitignore", ".deadbee.state.pt", "state.pt"):
        (tmp_path / name).touch()
    remove_temporary(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".deadbee.state.pt", ".gitignore", "state.pt"]


@pytest.fixture
def begun(toy: Path, tmp_path: Path, quick: Settings) -> Any:
    """A run that can start."""
    return new_run(toy, tmp_path / "run", quick, Console(quiet=True))


def _trainer(run: Any, events: list[Event]) -> Trainer:
    return Trainer(
        run.folder,
        run.config.settings,
        run.model,
        train=run.train,
        monitor=run.monitor,
        chooses=False,
        listeners=[events.append],
    )


def test_another_thread_may_cancel_and_the_rest_follows(
    begun: Any, quick: Settings, uninterrupted: Callable[[Settings], Path]
) -> None:
    events: list[Event] = []
    with _trainer(begun, events) as first:
        canceller = threading.Thread(target=first.cancel)

        def at_step_3(event: Event) -> None:
            if isinstance(event, Stepped) and event.step == 3:
                canceller.start()
                canceller.join()

        first.listeners.append(at_step_3)
        worker = threading.Thread(target=first.run)
        worker.start()
        worker.join()
    assert events[-1] == Stopped(step=3, reason="cancelled")
    assert [event.step for event in events if isinstance(event, Saved)] == [2, 3]
    fit(begun, Console(quiet=True))
    assert sha256(begun.folder / "model.safetensors") == sha256(uninterrupted(quick) / "model.safetensors")


def test_a_signal_that_comes_after_the_processes_have_spoken_is_for_the_next_step(begun: Any) -> None:
    """The others do not know of it yet: a process that stopped at once would leave them with half of a step."""
    events: list[Event] = []
    with _trainer(begun, events) as run:

        class SignalledLate(Group):
            def any(self, said: bool) -> bool:
                heard = super().any(said)
                run.cancel()
                return heard

        run.group = SignalledLate()
        run.run()
    assert events[-1] == Stopped(step=1, reason="cancelled")


@pytest.mark.exhaustive
def test_steps_may_be_made_in_portions_and_weights_exchanged_between_them(begun: Any) -> None:
    events: list[Event] = []
    with _trainer(begun, events) as run:
        assert run.run(steps=2) == Stopped(step=2, reason="paused")
        weights = run.weights()
        halved = {name: tensor / 2 if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
        run.load_weights(halved)
        name = next(iter(dict(run.model.named_parameters())))
        assert torch.equal(dict(run.model.named_parameters())[name], weights[name] / 2)
        run.step()
        assert not torch.equal(dict(run.model.named_parameters())[name], weights[name] / 2)
        assert run.run().reason == "finished"
    assert [event.step for event in events if isinstance(event, Stepped)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "precision", ["fp32", *(pytest.param(narrow, marks=pytest.mark.exhaustive) for narrow in ("bf16", "int8"))]
)
def test_the_final_test_takes_no_more_than_the_plan(
    precision: Any, toy: Path, tmp_path: Path, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(quick, steps=1, precision=precision, state_bits=8)
    tracker, original = TensorTracker("cpu"), loop._test

    def followed(*given: Any) -> Any:
        run = given[0]
        tracker.assign([*run.model.parameters(), *run.model.buffers()], "weights")
        with tracker:
            return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_test", followed)
        result = train(toy, tmp_path / "run", settings)
    planned = resolved(settings, batch_size=2)
    plan = predict_memory(planned, classes=3, in_channels=1)
    assert plan.inference_bytes * 0.8 < tracker.peak_bytes <= 1.02 * max(plan.peak_bytes, plan.inference_bytes)
    # The same bits as those of another process.
    assert evaluate_run(tmp_path / "run")["cases"] == result["cases"]
