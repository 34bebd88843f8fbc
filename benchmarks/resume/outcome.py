"""What a run that was killed and resumed must have in common with one that was left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medsaga import run_folder
from medsaga.files import read_json, sha256

TIMES = {"seconds_per_step"}
"""What may differ in ``result.json``."""


def outcome(run: Path) -> dict[str, Any]:
    """Return what has to be the same, and the names of what lies in the folder."""
    result = {key: value for key, value in read_json(run / run_folder.RESULT).items() if key not in TIMES}
    lines = [json.loads(line) for line in (run / run_folder.METRICS).read_text(encoding="utf-8").splitlines()]
    return {
        "model": sha256(run / run_folder.MODEL),
        "result": result,
        "lines": [(line["kind"], line["step"], line.get("loss"), line.get("dice")) for line in lines],
        "files": sorted(path.name for path in run.iterdir()),
    }


def differences(expected: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return what differs between two outcomes, as pairs."""
    return {key: [expected[key], found[key]] for key in expected if expected[key] != found[key]}
