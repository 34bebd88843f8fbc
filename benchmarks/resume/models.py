"""Train every model on real images, kill it between two checkpoints, resume it, evaluate it and predict an image.

    OMP_NUM_THREADS=1 python -m benchmarks.resume.models SPIDER KVASIR --runs RUNS [--only lite,vit_b]

The commands are those that a user types, one process after the other, each on one thread. A run has 20 steps from
random weights; one is left alone, another gets SIGKILL after step 13, when its last checkpoint is that of step 10, and
goes on with ``--resume``. Weights must have the same bits then, and ``result.json`` the same content up to times. The
peak of a process's memory is the kernel's (``ru_maxrss``). Exit code 1 if a run differs.

Writes models.json beside this file; with ``--only`` the other models keep what they have. Runs are removed when they
have been compared.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.machine import machine
from benchmarks.resume.outcome import differences, outcome
from benchmarks.runs import described
from medsaga import files, run_folder
from medsaga.models.weights.costs import training_costs

CHECKPOINT, KILLED_AFTER, STEPS = 10, 13, 20
FLAGS = [
    f"--steps={STEPS}", f"--evaluate-every={CHECKPOINT}", "--refresh-every=4", "--image-size=128", "--batch-size=2",
    "--shots=2", "--validation-cases=0", "--test-cases=2", "--random-weights", "--device=cpu",
]  # fmt: skip
RECORD = Path(__file__).with_name("models.json")


class Command:
    """A `medsaga` command in a process of its own.

    Attributes:
        peak_bytes: largest memory of the process, once it has ended.
        seconds: of its CPU, once it has ended.
    """

    def __init__(self, *arguments: str | Path, log: Path) -> None:
        """Start it; what it prints goes to the log."""
        self._log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "medsaga", *map(str, arguments)], stdout=file, stderr=subprocess.STDOUT
            )

    def kill_after(self, step: int, metrics: Path) -> None:
        """Kill it with SIGKILL as soon as its log has a step.

        Raises:
            RuntimeError: it has ended before.
        """
        while not any(line["step"] >= step for line in _steps(metrics)):
            if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                raise RuntimeError(self._log.read_text(encoding="utf-8"))
            time.sleep(0.02)
        self._process.kill()
        if self._wait() != -signal.SIGKILL:
            raise RuntimeError(f"{self._log}: the command ended before it was killed")

    def finish(self) -> dict[str, Any]:
        """Wait for its end, and return what it took.

        Raises:
            RuntimeError: it has failed.
        """
        if self._wait() != 0:
            raise RuntimeError(self._log.read_text(encoding="utf-8"))
        return {"peak_mib": round(self.peak_bytes / 2**20), "cpu_seconds": round(self.seconds, 1)}

    def _wait(self) -> int:
        _, status, used = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self.peak_bytes, self.seconds = 1024 * used.ru_maxrss, used.ru_utime + used.ru_stime
        return self._process.returncode


def _steps(metrics: Path) -> list[dict[str, Any]]:
    if not metrics.exists():
        return []
    return [line for line in run_folder.read_metrics(metrics.parent) if line["kind"] == "step"]


def measure(model: str, data: Path, runs: Path) -> dict[str, Any]:
    """Do all that is to be done with a model on a dataset."""
    shutil.rmtree(runs, ignore_errors=True)
    runs.mkdir(parents=True)
    whole, killed, log = runs / "whole", runs / "killed", runs / "log.txt"
    train: list[str | Path] = ["train", data, "--model", model, *FLAGS]
    taken = {"train": Command(*train, "--out", whole, log=log).finish()}
    Command(*train, "--out", killed, log=log).kill_after(KILLED_AFTER, killed / run_folder.METRICS)
    at_kill = {
        "steps": max(line["step"] for line in _steps(killed / run_folder.METRICS)),
        "evaluations": [line["step"] for line in run_folder.read_metrics(killed) if line["kind"] == "evaluation"],
    }
    taken["resume"] = Command(*train, "--out", killed, "--resume", log=log).finish()
    differs = differences(outcome(whole), outcome(killed))
    taken["evaluate"] = Command("evaluate", killed, log=log).finish()
    image = sorted((data / "images").iterdir())[0]
    taken["predict"] = Command("predict", killed, image, "--out", runs / "labels.png", log=log).finish()
    with Image.open(image) as shown, Image.open(runs / "labels.png") as labels:
        assert labels.size == shown.size
        classes = len(np.unique(np.asarray(labels)))
    dice = files.read_json(killed / run_folder.RESULT)["dice_mean"]
    shutil.rmtree(runs)
    return {"differs": differs, "killed_at": at_kill, "dice": dice, "classes_in_the_prediction": classes, **taken}


def main() -> int:
    """Do it."""
    parser = described(__doc__)
    parser.add_argument("datasets", type=Path, nargs="+")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--only", help="architectures, separated by commas")
    asked = parser.parse_args()
    rows = files.read_json(RECORD)["models"] if RECORD.exists() else {}
    for model in asked.only.split(",") if asked.only else training_costs():
        rows[model] = {}
        for data in asked.datasets:
            rows[model][data.name] = measure(model, data.resolve(), asked.runs / model / data.name)
            print(model, data.name, rows[model][data.name], flush=True)
            files.write_json(RECORD, {"machine": machine(), "flags": FLAGS, "models": rows})
    return any(row["differs"] for sets in rows.values() for row in sets.values())


if __name__ == "__main__":
    sys.exit(main())
