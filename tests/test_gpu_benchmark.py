"""The script for a GPU runs here on small models, so that it does not fail there for a fault of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.exhaustive
def test_every_part_of_the_script_for_a_gpu_runs_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.run", "--device", "cpu", "--small", "--seconds", "1500"]
    root = Path(__file__).parents[1]
    subprocess.run([*command, "--out", str(tmp_path)], cwd=root, check=True, timeout=1600)
    results = json.loads((tmp_path / "results.json").read_text())
    parts = {name: part["result"] for name, part in results["parts"].items()}
    assert max(parts["attention"]["fp32"][f"{what}_off_by"] for what in ("output", "gradient")) < 1e-5
    assert parts["peaks"]["within_a_tenth"] == parts["peaks"]["settings"] > 0
    assert parts["same_bits"] == {"again": "the same", "killed_and_resumed": "the same"}
    assert parts["two_processes"]["largest_difference_of_losses"] < 1e-4
    assert set(parts["out_of_memory"]) == {"not_measured"}
    assert parts["few_shot"]["steps"] == 3
