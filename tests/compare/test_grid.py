"""A comparison runs what is missing, says what has failed, and comes to the same table however often it is stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import interrupt_in
from processes import started
from rich.console import Console

from medsaga import methods
from medsaga.cli import main
from medsaga.compare import cells, grid
from medsaga.compare.grid import check_expected, compare
from medsaga.errors import InputError, Interrupted, OutOfMemoryError, RunError
from medsaga.files import locked
from medsaga.models.sam import build_sam
from medsaga.models.weights.loading import save_model
from medsaga.prediction.segmenter import Segmenter
from medsaga.settings.options import SharedSettings
from medsaga.training import out_of_memory, step

SHARED = SharedSettings(model="tiny", steps=1, batch_size=2, image_size=64, device="cpu")


def run(data: Path, out: Path, **given: Any) -> list[dict[str, Any]]:
    """Compare with little effort."""
    options: dict[str, Any] = {
        "methods": ["medsaga", "frozen"],
        "shots": [1, 2],
        "seeds": 1,
        "console": Console(quiet=True),
        "pictures": False,
    }
    return compare(data, out, given.pop("shared", SHARED), **(options | given))


def without_times(document: Any) -> Any:
    """The same document without what a clock said."""
    if isinstance(document, dict):
        return {name: without_times(value) for name, value in document.items() if "seconds" not in name}
    return [without_times(value) for value in document] if isinstance(document, list) else document


def cells_of(out: Path) -> dict[str, Any]:
    """The files of all cells."""
    return {path.name: without_times(json.loads(path.read_text())) for path in sorted((out / "cells").glob("*.json"))}


def tables_of(out: Path) -> tuple[str, str]:
    """The Markdown without its times, and the CSV without its two columns of seconds."""
    rows = [line.rsplit(",", 2)[0] for line in (out / "results.csv").read_text().splitlines()]
    return (out / "results.md").read_text().partition("## Time")[0], "\n".join(rows)


def _command(data: Path, out: Path, methods: str, shots: str) -> list[str]:
    command = ["compare", str(data), "--out", str(out), "--methods", methods]
    command += ["--shots", shots, "--seeds", "1", "--steps", "1", "--batch-size", "2", "--image-size", "64"]
    return [*command, "--model", "tiny", "--device", "cpu"]


def _assert_same(one: Path, other: Path) -> None:
    assert cells_of(one) == cells_of(other)
    assert tables_of(one) == tables_of(other)
    # A process that was killed while it made a run folder leaves one that has no name yet; see `files.making_folder`.
    assert not [path.name for path in (one / "runs").iterdir() if not path.name.endswith(".starting")]


@pytest.mark.xdist_group("processes")
def test_killed_in_its_second_run_it_comes_to_the_same_table(toy: Path, tmp_path: Path) -> None:
    command = _command(toy, tmp_path / "killed", "frozen", "1,2")
    process = started(main, command)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed" / "runs").glob("equal-frozen-002-*")):
        assert process.exitcode is None, "the comparison ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list(cells_of(tmp_path / "killed")) == ["equal-frozen-001-shots-seed-0.json"]
    for name in ("killed", "whole"):
        assert main(_command(toy, tmp_path / name, "frozen", "1,2")) == 0
    _assert_same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.exhaustive
@pytest.mark.xdist_group("processes")
def test_killed_at_random_moments_it_comes_to_the_same_table(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    process = started(main, _command(toy, tmp_path / "whole", "medsaga,frozen", "1,3"))
    process.join()
    assert process.exitcode == 0
    whole = time.monotonic() - began
    command = _command(toy, tmp_path / "killed", "medsaga,frozen", "1,3")
    moments = random.Random(time.time_ns())  # a new moment in every run of this test
    kills = 0
    while kills < 2:
        process = started(main, command)
        process.join(moments.uniform(0.1, 0.7) * whole)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
        else:  # other work has made the first one slow
            whole /= 2
            shutil.rmtree(tmp_path / "killed")
    assert main(command) == 0
    assert "page: " in capsys.readouterr().err
    _assert_same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_all_methods_meet_the_same_cases(toy: Path, tmp_path: Path, seeds: int) -> None:
    cells = run(toy, tmp_path / "out", seeds=seeds, keep_runs=True, pictures=True)
    assert len(cells) == 4 * seeds
    splits: dict[tuple[int, int], list[Any]] = {}
    for cell in cells:
        one = cell["cell"]
        folder = tmp_path / "out" / "runs" / f"equal-{one['method']}-{one['shots']:03d}-shots-seed-{one['seed']}"
        splits.setdefault((one["seed"], one["shots"]), []).append(json.loads((folder / "split.json").read_text()))
    assert all(first == second for first, second in splits.values())
    for seed in range(seeds):
        few, more = splits[seed, 1][0], splits[seed, 2][0]
        assert few["test"] == more["test"]
        assert set(few["train"]) < set(more["train"])
        assert not set(more["train"]) & set(more["test"])
    equal = [
        {name: cell["settings"][name] for name in ("image_size", "batch_size", "steps", "precision", "dice_weight")}
        for cell in cells
    ]
    assert all(settings == equal[0] for settings in equal)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "data:image/png" in page


def test_a_page_without_pictures_does_not_say_where_the_weights_lie(toy: Path, tmp_path: Path) -> None:
    weights = tmp_path / "Doe^Jane" / "mine.safetensors"
    weights.parent.mkdir()
    save_model(weights, build_sam("tiny", classes=3, image_size=64))
    out = tmp_path / "out"
    given = {"shared": dataclasses.replace(SHARED, model=str(weights)), "methods": ["medsaga"], "shots": [1]}
    for pictures, shown in ((True, True), (False, False)):
        run(toy, out, pictures=pictures, **given)
        texts = [(out / name).read_text() for name in ("index.html", "results.md", "results.csv")]
        assert any("Doe^Jane" in text for text in texts) == shown
        assert any("mine.safetensors" in text for text in texts)


def test_only_what_is_missing_is_run(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(toy, tmp_path / "out", methods=["frozen"], shots=[1])
    ran = []
    original = cells.run_cell

    def noted(data: Path, out: Path, cell: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        ran.append((cell.method, cell.seed))
        return original(data, out, cell, *args, **kwargs)

    monkeypatch.setattr(grid, "run_cell", noted)
    run(toy, tmp_path / "out", methods=["frozen"], shots=[1])
    assert ran == []
    assert "data:image/png" not in (tmp_path / "out" / "index.html").read_text()  # `run` asks for no pictures
    assert not list((tmp_path / "out" / "cells").glob("*.npz"))
    run(toy, tmp_path / "out", methods=["frozen", "full"], shots=[1])
    assert ran == [("full", 0)]
    with pytest.raises(InputError, match="settings of this comparison"):
        run(toy, tmp_path / "out", shots=[1], shared=dataclasses.replace(SHARED, steps=2))
    (toy / "images" / "img0.png").write_bytes((toy / "images" / "img1.png").read_bytes())
    with pytest.raises(InputError, match="data of this comparison"):
        run(toy, tmp_path / "out", methods=["frozen"], shots=[1])


def _while_waiting(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]) -> None:
    def sleep(seconds: float) -> None:
        happens()
        time.sleep(seconds / 10)

    monkeypatch.setattr(cells, "time", SimpleNamespace(sleep=sleep, perf_counter=time.perf_counter))


def test_a_run_of_another_command_is_waited_for_and_not_made_again(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    documents = run(toy, out, methods=["frozen"])
    file = out / "cells" / "equal-frozen-001-shots-seed-0.json"
    document = file.read_bytes()
    file.unlink()
    lock = locked(file.with_suffix(".lock"))
    assert lock is not None

    def finish() -> None:
        file.write_bytes(document)
        lock.close()

    _while_waiting(monkeypatch, finish)
    monkeypatch.setattr(grid, "run_cell", None)
    said = io.StringIO()
    assert run(toy, out, methods=["frozen"], console=Console(file=said)) == documents
    assert said.getvalue() == "waiting for another command that runs the same: equal-frozen-001-shots-seed-0\n"
    # What a killed process has left is no lock.
    file.unlink()
    file.with_suffix(".lock").touch()
    monkeypatch.undo()
    assert without_times(run(toy, out, methods=["frozen"])) == without_times(documents)
    assert not list(out.rglob("*.lock"))


@pytest.mark.xdist_group("processes")
def test_the_same_command_twice_at_once_is_one_comparison(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    process = started(main, _command(toy, out, "frozen", "1,2"))
    assert process.pid is not None

    def go_on() -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(process.pid or 0, signal.SIGCONT)

    try:
        deadline = time.monotonic() + 120
        while not list((out / "runs").glob("equal-frozen-*")):
            assert process.exitcode is None, "the first command ended too early"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGSTOP)  # in the middle of its first run
        assert not cells_of(out)
        _while_waiting(monkeypatch, go_on)
        assert main(_command(toy, out, "frozen", "1,2")) == 0
    finally:
        go_on()
        process.join(120)
    assert [cell["status"] for cell in cells_of(out).values()] == ["done", "done"]
    monkeypatch.undo()
    assert main(_command(toy, tmp_path / "alone", "frozen", "1,2")) == 0
    _assert_same(out, tmp_path / "alone")


def _failing(monkeypatch: pytest.MonkeyPatch, method: str, error: Exception) -> None:
    def groups(*_: Any) -> Any:
        raise error

    monkeypatch.setitem(methods.METHODS, method, dataclasses.replace(methods.METHODS[method], groups=groups))


def test_what_fails_is_a_row_that_says_so(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {"full": torch.OutOfMemoryError("CUDA out of memory"), "samed": AssertionError("matrix of holes")}
    given: dict[str, Any] = {"methods": ["frozen", *errors], "shots": [1]}
    statuses = ["done", "out of memory", "failed"]
    with monkeypatch.context() as patch:
        for method, error in errors.items():
            _failing(patch, method, error)
        cells = run(toy, tmp_path / "out", **given, pictures=True)
        assert [cell["status"] for cell in cells] == statuses
        pages = [tmp_path / "out" / name for name in ("results.md", "results.csv", "index.html")]
        assert all(str(error) in page.read_text() for page in pages for error in errors.values())
        with pytest.raises(RunError, match="every run has failed"):
            run(toy, tmp_path / "alone", methods=["samed"], shots=[1])
    # Without pictures they may leave the hospital: what an error says may name a patient's file.
    assert run(toy, tmp_path / "out", **given) == cells
    assert not any(str(error) in page.read_text() for page in pages for error in errors.values())
    assert all("out of memory" in page.read_text() and "failed" in page.read_text() for page in pages)
    assert [cell["unexpected"] for cell in cells] == [False, False, True]
    (kept,) = (tmp_path / "out" / "cells").glob("*.traceback.txt")
    assert kept.name == "equal-samed-001-shots-seed-0.traceback.txt"
    assert "in groups" in kept.read_text()
    check_expected(tmp_path / "out", cells[:2])
    with pytest.raises(RunError, match="1 of 3 runs failed unexpectedly: equal-samed-001-shots-seed-0"):
        check_expected(tmp_path / "out", cells)
    retried = run(toy, tmp_path / "out", **given, retry=True)
    assert [cell["status"] for cell in retried] == ["done", "done", "done"]
    check_expected(tmp_path / "out", retried)
    assert not kept.exists()


@pytest.mark.parametrize(("step", "finished"), [pytest.param(1, 0, marks=pytest.mark.exhaustive), (3, 1)])
def test_ctrl_c_keeps_what_is_done(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, finished: int
) -> None:
    given = {"methods": ["frozen", "full"], "shots": [1], "shared": dataclasses.replace(SHARED, steps=2)}
    with monkeypatch.context() as patch:
        interrupt_in(patch, step)
        with pytest.raises(Interrupted, match=f"{finished} of 2 runs done"):
            run(toy, tmp_path / "out", **given)
    assert len(cells_of(tmp_path / "out")) == finished
    assert len(run(toy, tmp_path / "out", **given)) == 2


def test_pictures_that_cannot_be_made_are_no_failure_of_the_run(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def busy(run: Path, device: str = "auto") -> Segmenter:
        asked.append(device)
        raise OutOfMemoryError(f"{run}: another program has the GPU")

    monkeypatch.setattr(Segmenter, "load", busy)
    said = io.StringIO()
    (cell,) = run(toy, tmp_path / "out", methods=["frozen"], shots=[1], pictures=True, console=Console(file=said))
    assert (cell["status"], asked) == ("done", ["cpu"])
    assert "another program has the GPU" in cell["without_pictures"]
    assert "no pictures: OutOfMemoryError" in said.getvalue()


def test_a_run_that_was_to_go_goes_with_the_next_command(toy: Path, tmp_path: Path) -> None:
    given = {"methods": ["full"], "shots": [1]}
    for keep in (False, True):
        folder = tmp_path / f"kept-{keep}" / "runs" / "equal-full-001-shots-seed-0"
        (cell,) = run(toy, tmp_path / f"kept-{keep}", keep_runs=keep, **given)
        folder.mkdir(exist_ok=True)  # as if the process had been killed between the cell's file and this
        assert run(toy, tmp_path / f"kept-{keep}", **given) == [cell]
        assert folder.exists() == keep


@pytest.mark.parametrize("changed", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_a_run_that_was_stopped_goes_on_unless_something_else_is_asked_for(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    given = {"methods": ["full"], "shots": [1], "shared": dataclasses.replace(SHARED, steps=3)}
    with monkeypatch.context() as patch:
        interrupt_in(patch, 2)
        with pytest.raises(Interrupted):
            run(toy, tmp_path / "stopped", **given)
    if changed:
        given["shared"] = dataclasses.replace(SHARED, steps=3, batch_size=3)
    steps = []
    original = step.clip

    def counted(*args: Any, **kwargs: Any) -> bool:
        steps.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(out_of_memory, "clip", counted)
    run(toy, tmp_path / "stopped", **given)
    assert len(steps) == (3 if changed else 1)
    run(toy, tmp_path / "whole", **given)
    _assert_same(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.exhaustive
def test_published_recipes_are_a_table_of_their_own(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "short.toml"
    recipe.write_text('method = "full"\nimage_size = 96\nbatch_size = 1\nsteps = 1\nwarmup = 0\nencoder_lr = 0.01\n')
    monkeypatch.setitem(methods.METHODS, "full", dataclasses.replace(methods.METHODS["full"], recipe=str(recipe)))
    cells = run(toy, tmp_path / "out", methods=["frozen", "full"], shots=[1], published=True)
    assert [(c["cell"]["table"], c["cell"]["method"]) for c in cells] == [
        ("equal", "frozen"),
        ("equal", "full"),
        ("published", "full"),
    ]
    settings = cells[2]["settings"]
    assert (settings["image_size"], settings["batch_size"], settings["encoder_lr"]) == (96, 1, 0.01)
    assert "published" in (tmp_path / "out" / "results.md").read_text().lower()


@pytest.mark.parametrize(
    "wrong",
    [
        {"methods": ["medsaga", "sam2"]},
        {"shots": [0, 1]},
        {"shots": [6]},
        {"seeds": 0},
        {"shots": [2], "test_cases": 5},
        {"test_cases": 0},
        {"shared": dataclasses.replace(SHARED, micro_batch_size=3)},
        {"shared": dataclasses.replace(SHARED, device="cuda:99")},
        {"shared": dataclasses.replace(SHARED, precision="int8"), "methods": ["medsaga", "unet"]},
        {"shared": dataclasses.replace(SHARED, patience=3)},
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_said_before_anything_runs(toy: Path, tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        run(toy, tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out").exists()


def test_the_command_line(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = _command(toy, tmp_path / "out", "frozen", "1")
    assert main([*command, "--json"]) == 0
    (cell,) = json.loads(capsys.readouterr().out)
    assert cell["result"]["metric_protocol"] == "mm"
    assert main(command) == 0
    assert "frozen" in capsys.readouterr().out
    assert main([*command, "--shots", "one"]) == 2
    capsys.readouterr()
    # Our own fault is another exit code, though the results are printed.
    _failing(monkeypatch, "full", AssertionError("impossible"))
    assert main([*_command(toy, tmp_path / "out", "frozen,full", "1"), "--json"]) == 1
    told = capsys.readouterr()
    assert [cell["status"] for cell in json.loads(told.out)] == ["done", "failed"]
    assert "equal-full-001-shots-seed-0" in told.err
