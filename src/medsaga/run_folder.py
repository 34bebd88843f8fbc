"""What lies in a run folder, and under which names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medsaga import files
from medsaga.errors import InputError

CONFIG = "config.toml"
"""Every resolved setting: `medsaga.settings.run_config.RunConfig`."""
SPLIT = "split.json"
"""The training, validation and test cases: `medsaga.data.splits.Split`."""
MANIFEST = "manifest.json"
"""Versions, seed, device, fingerprints of the data and of the weights."""
METRICS = "metrics.jsonl"
"""A line per step or evaluation: `MetricsLog`."""
MODEL = "model.safetensors"
"""The chosen weights: `medsaga.models.weights.loading.save_model`."""
STATE = "state.pt"
"""Everything that resuming needs: `medsaga.training.checkpoint`."""
DIGESTS = "digests.json"
"""SHA-256 of the image files of each case, by which they are known again: `medsaga.data.known`."""
RESULT = "result.json"
"""Scores and costs: `medsaga.runs.evaluate`."""
REPORT = "report.html"
"""The same for people: `medsaga.reports.run`."""
CACHE = "cache"
"""Prepared images, while the run goes on: `medsaga.data.samples`."""
LOCK = "training.lock"
"""Held while a command trains the run; it goes at the end."""


def resuming(run: Path) -> str:
    """Return the command that finishes a run, whichever verb has begun it."""
    return f"medsaga train --resume --out {run}"


def require_model(path: Path) -> None:
    """Raise InputError if a file is the model of a run that has none yet."""
    run = path.parent
    if path.exists() or path.name != MODEL or not (run / CONFIG).exists():
        return
    if not any(line["kind"] == "evaluation" for line in read_metrics(run)):
        raise _unfinished(run, "first evaluation")


def require_finished(run: Path) -> None:
    """Raise InputError if the log of a run says that it has not made all of its steps."""
    lines = read_metrics(run)
    if lines and not any(line["kind"] == "stopped" for line in lines):
        has_model = any(line["kind"] == "evaluation" for line in lines)
        raise _unfinished(run, "last step" if has_model else "first evaluation")


def said_if_unfinished(run: Path) -> list[str]:
    """Return a warning if the log of a run says that it has not made all of its steps, or else none."""
    lines = read_metrics(run)
    steps = [line["step"] for line in lines if line["kind"] == "evaluation"]
    if not steps or any(line["kind"] == "stopped" for line in lines):
        return []
    return [f"{run} has not been trained to its end: this is its model up to step {max(steps)}"]


def _unfinished(run: Path, before: str) -> InputError:
    return InputError(
        run,
        expected="a run that has trained",
        found=f"one that was stopped before its {before}",
        do=f"Finish it: {resuming(run)}.",
    )


@contextmanager
def in_training(run: Path) -> Iterator[None]:
    """Keep other commands from training a run in the block.

    Raises:
        InputError: one does.
    """
    with files.holding(run / LOCK) as is_ours:
        if not is_ours:
            raise InputError(
                run,
                expected="a run that no other command is training",
                found="one that is being trained",
                do="Wait for it, or stop it first.",
            )
        yield


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsLog:
    """``metrics.jsonl``: a line per step or evaluation, as it happens."""

    def __init__(self, run: Path, *, step: int, evaluated_step: int) -> None:
        """Open the log of a run that goes on; what a killed run wrote beyond its last state goes.

        Args:
            run: the run folder.
            step: steps that have been made.
            evaluated_step: after how many of them the last evaluation was.
        """
        path = run / METRICS
        until = {"start": step, "step": step, "evaluation": evaluated_step}
        kept = [line for line in read_metrics(run) if line["step"] <= until.get(line["kind"], -1)] if step else []
        files.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one line; a number that is not finite is null in it."""
        known = {name: _finite(value) for name, value in values.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, **known}, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of ``metrics.jsonl``, None for numbers that were not finite.

    A last line that a killed run left half-written is dropped.
    """
    path = run / METRICS
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text, parse_constant=lambda _: None))  # which earlier versions wrote
        except json.JSONDecodeError:
            break
    return lines
