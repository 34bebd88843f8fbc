"""What lies in a run folder, and under which names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medsaga import files

CONFIG = "config.toml"
"""Every resolved setting: `medsaga.config.RunConfig`."""
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
"""Scores and costs: `medsaga.evaluation.run`."""
REPORT = "report.html"
"""The same for people: `medsaga.report`."""
CACHE = "cache"
"""Prepared images, while the run goes on: `medsaga.data.samples`."""


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
        """Append one line."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of ``metrics.jsonl``; a last line that a killed run left half-written is dropped."""
    path = run / METRICS
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
