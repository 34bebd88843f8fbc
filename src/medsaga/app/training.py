"""Training on what has been labelled: which cases, which command, and how far it is."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from medsaga import files, run_folder
from medsaga.app.project import Project
from medsaga.app.training_set import changed_since, fold_of, kept_by_folds, make_set
from medsaga.data.splits import Split
from medsaga.data.types import Item
from medsaga.errors import InputError
from medsaga.run_folder import read_metrics
from medsaga.settings.amounts import parse_bytes
from medsaga.settings.run_config import read_config

STEPS = {"quick": 60, "usual": None, "long": 2400}
"""Of the three lengths of a run that the page offers; None for what a run has by itself."""
MODELS = ("lite", "auto", "unet")
_LEAST_TO_TEST = 5
"""Labelled cases from which on a fifth is held back, if the user does not say otherwise."""
_LATEST = 60
_CURVE_POINTS = 600


@dataclass(frozen=True)
class Choice:
    """What the page asks before a training.

    Attributes:
        steps: of the optimizer; None for as many as a run has by itself.
        memory: that it may take, such as ``4GB``; None for no limit.
        model: ``lite``, ``auto``, ``unet``, or any other that ``--model`` takes.
        hold_back: whether a part of the cases is kept for the test.
        image_size: side of the model's square; None for the model's own.
    """

    steps: int | None
    memory: str | None
    model: str
    hold_back: bool
    image_size: int | None = None

    @classmethod
    def of(cls, document: dict[str, Any]) -> Choice:
        """Read it from what the page sends.

        Raises:
            InputError: it is none.
        """
        try:
            time, memory, model = document["time"], document.get("memory") or None, str(document.get("model", "lite"))
            steps = STEPS[time] if time in STEPS else int(time)
            size = document.get("image_size")
            image_size = None if size is None else int(size)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("the choices", expected="time, memory and model", found=str(error), do="Choose.") from None
        if steps is not None and not 1 <= steps <= 100_000:
            raise InputError("the time", expected="1 to 100,000 steps", found=str(steps), do="Choose fewer steps.")
        if memory is not None:
            memory = str(memory)
            parse_bytes(memory)
        if model.startswith("-"):
            raise InputError("the model", expected="a name", found=repr(model), do="Choose one of the list.")
        return cls(steps, memory, model, bool(document.get("hold_back", True)), image_size)

    def arguments(self) -> list[str]:
        """Return what the command line is told of it."""
        model = ["--method", "unet"] if self.model == "unet" else ["--model", self.model]
        budget = ["--budget", self.memory] if self.memory else []
        size = ["--image-size", str(self.image_size)] if self.image_size else []
        return [*_steps(self.steps), *model, *budget, *size]


def _steps(steps: int | None) -> list[str]:
    return [] if steps is None else ["--steps", str(steps)]


def labelled_cases(project: Project) -> list[str]:
    """Return the cases of which every image has a finished mask, sorted."""
    by_case: dict[str, list[Item]] = {}
    for item in project.items.values():
        by_case.setdefault(item.case, []).append(item)
    return sorted(case for case, items in by_case.items() if all(item.masks for item in items))


def train_command(project: Project, choice: Choice) -> tuple[list[str], Path]:
    """Return the arguments of a training on all labelled cases, and its run folder.

    Raises:
        InputError: nothing is labelled, or nothing that ``splits_final.json`` lets a run train on.
    """
    cases = labelled_cases(project)
    if not cases:
        raise InputError(
            "training", expected="a labelled case", found="none", do="Outline a case and finish it, then train."
        )
    hold_back = choice.hold_back and len(cases) >= _LEAST_TO_TEST
    fold = fold_of(project, cases, hold_back=hold_back)
    out = project.runs.new()
    data = make_set(project, cases, out.name, fold)
    is_left_open = fold is None and not project.dataset.test
    shots = ["--shots", str(len(cases))] if is_left_open and not hold_back else []
    return ["train", str(data), "--out", str(out), *shots, *choice.arguments(), "--json"], out


def continue_command(project: Project, run: Path, steps: int | None) -> tuple[list[str], Path]:
    """Return the arguments of a training that goes on from a run with what was labelled since, and its run folder.

    Raises:
        InputError: nothing was, or the labels are others now.
    """
    config = read_config(run / run_folder.CONFIG)
    if config.labels != project.dataset.labels:
        raise InputError(
            "going on from the run",
            expected="the labels that it was trained with",
            found="others",
            do="Start a new training.",
        )
    cases = labelled_since(project, run)
    if not cases:
        raise InputError(
            "going on from the run",
            expected="a case that was labelled, accepted or mended since",
            found="none",
            do="Accept or mend a prediction first.",
        )
    out = project.runs.new()
    data = make_set(project, cases, out.name)
    return ["continue", str(run), str(data), "--out", str(out), *_steps(steps), "--json"], out


def labelled_since(project: Project, run: Path) -> list[str]:
    """Return the labelled cases that a run has not been trained on as they are now; none that is kept for a test.

    Raises:
        InputError: the run, or the folds of the data, cannot be read.
    """
    split = _split(run)
    if split is None:
        return []
    config, begun = read_config(run / run_folder.CONFIG), (run / run_folder.SPLIT).stat().st_mtime
    held = {*split.validation, *split.test, *kept_by_folds(project)}
    cases = [case for case in labelled_cases(project) if case not in held]
    trained = set(split.train)
    known = project.dataset.items_of(tuple(case for case in cases if case in trained))
    changed = changed_since(project, map(Path, (config.data, *config.added)), known, begun)
    return [case for case in cases if case not in trained or case in changed]


def role_of(item: Item, run: Path) -> str:
    """Return what an image is to a run: ``train``, ``validation``, ``test`` or ``new``."""
    split = _split(run)
    for name in ("train", "validation", "test"):
        if split is not None and item.case in getattr(split, name):
            return name
    return "new"


def resume_command(run: Path) -> list[str]:
    """Return the arguments that finish an interrupted run."""
    return ["train", "--out", str(run), "--resume", "--json"]


def evaluated_step(run: Path) -> int:
    """Return after how many steps a run was evaluated last, and its weights saved; 0 before."""
    return max((int(line["step"]) for line in _metrics(run) if line["kind"] == "evaluation"), default=0)


def progress(run: Path, *, running: bool) -> dict[str, Any]:
    """Return where a run stands: its curves, what is left, and the memory that it was expected to take."""
    lines = _metrics(run)
    steps = [line for line in lines if line["kind"] == "step"]
    made = int(lines[-1]["step"]) if lines else 0
    total = 0
    with contextlib.suppress(InputError):
        total = read_config(run / run_folder.CONFIG).settings.steps
    stopped = [line for line in lines if line["kind"] == "stopped"]
    start = next((line for line in lines if line["kind"] == "start"), {})
    pace = median(line["seconds"] for line in steps[-_LATEST:]) if steps else None
    stride = max(1, len(steps) // _CURVE_POINTS)
    result, split = run / run_folder.RESULT, _split(run)
    complete = bool(stopped) and result.exists()
    if complete:
        state = "done"
    elif running:
        state = "testing" if stopped else "training" if steps else "preparing"
    else:
        state = "interrupted"
    return {
        "state": state,
        "step": made,
        "steps": total,
        "loss": [[line["step"], line["loss"]] for line in steps[::stride] if line["loss"] is not None],
        "dice": [[line["step"], line["dice"]] for line in lines if line["kind"] == "evaluation"],
        "followed": "validation cases" if split is not None and split.validation else "training images",
        "seconds_left": None if pace is None or stopped else max(0.0, (total - made) * pace),
        "expected_bytes": start.get("predicted_peak_memory_bytes"),
        "peak_bytes": max((line.get("peak_memory_bytes") or 0 for line in lines), default=0) or None,
        "result": _summary(result) if complete else None,
    }


def _metrics(run: Path) -> list[dict[str, Any]]:
    path = run / run_folder.METRICS
    if not path.exists():
        return []
    state = path.stat()
    return _read_metrics(run, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=32)
def _read_metrics(run: Path, changed: int, size: int) -> list[dict[str, Any]]:
    """Return the lines of a run's log, read once as long as the file stays as it is: the page asks every second."""
    return read_metrics(run)


def _summary(path: Path) -> dict[str, Any]:
    result = files.read_json(path)
    names = ("dice_mean", "dice", "cases_trained_on", "metric_protocol", "steps")
    return {name: result.get(name) for name in names} | {"tested_on": len(result.get("cases", []))}


def _split(run: Path) -> Split | None:
    path = run / run_folder.SPLIT
    return _read_split(path, path.stat().st_mtime_ns) if path.exists() else None


@lru_cache(maxsize=32)
def _read_split(path: Path, changed: int) -> Split:
    """Return a split, read once as long as the file stays as it is: the page asks for the role of every image."""
    return Split.from_json(files.read_json(path))
