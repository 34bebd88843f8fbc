"""Kill a training run at random moments, resume it, and compare with the run that was left alone.

    OMP_NUM_THREADS=1 python -m benchmarks.resume.kill --moments 100 --out benchmarks/resume/results.json

A dataset of six small images is made; the run stops early for want of a better Dice, and is then tested. Each child is
forked from a process that has imported everything, so that the moments fall into the run. One killed run in three is
killed a second time while it goes on. ``model.safetensors`` must have the same bits, and ``result.json`` the same
content up to times. Exit code 1 if one differs.
"""

from __future__ import annotations

import faulthandler
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import medsaga.runs.evaluate
import medsaga.runs.train  # noqa: F401 - the children should not spend their time on imports
from benchmarks.machine import machine
from benchmarks.resume.outcome import differences, outcome
from benchmarks.runs import described
from medsaga.cli import main
from medsaga.files import write_json

LONGEST = 300
"""Seconds after which a child hangs: it then says where each of its threads is, and ends with an error."""
FLAGS = [
    "--shots=3", "--validation-cases=1", "--image-size=64", "--steps=40", "--batch-size=2", "--evaluate-every=2",
    "--refresh-every=3", "--rank=4", "--patience=2", "--device=cpu",
]  # fmt: skip


def phantom(root: Path) -> Path:
    """Write six images of 64 x 48 pixels with a bright rectangle each, and its mask."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(6):
        mask = np.zeros((48, 64), np.uint8)
        top, left = rng.integers(4, 20, 2)
        mask[top : top + 20, left : left + 24] = 1
        image = (rng.integers(0, 60, mask.shape) + 150 * mask).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"img{number}.png")
        Image.fromarray(mask).save(root / "masks" / f"img{number}.png")
    return root


def start(arguments: list[str], log: Path) -> int:
    """Run medsaga in a child; return its process id."""
    child = os.fork()
    if child:
        return child
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    faulthandler.dump_traceback_later(LONGEST, exit=True, file=descriptor)
    os._exit(main(arguments))


def train(data: Path, run: Path, *, kill_after: float | None = None) -> bool:
    """Begin or resume a run, and kill it after some seconds if it has not ended; return whether it has.

    Raises:
        RuntimeError: it ended with an error.
    """
    resume = ["--resume"] if run.exists() else []
    log = run.with_suffix(".log")
    child = start(["train", str(data), "--out", str(run), *FLAGS, *resume], log)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)  # a child that has ended stays until it is waited for
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(log.read_text())
    return True


def measure(moments: int, seed: int) -> dict[str, Any]:
    """Return how the killed runs compare, and what differs where they do."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        data = phantom(Path(folder) / "data")
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        began = time.monotonic()
        train(data, whole)
        seconds = time.monotonic() - began
        expected = outcome(whole)
        rows: list[dict[str, Any]] = []
        for number in range(moments):
            kills = []
            for _ in range(2 if number % 3 == 0 else 1):
                moment = rng.uniform(0, seconds)
                done = train(data, killed, kill_after=moment)
                written = sorted(path.name for path in killed.iterdir()) if killed.exists() else None
                kills.append({"seconds": round(moment, 3), "ended": done, "files": written})
            train(data, killed)
            found = outcome(killed)
            differs = differences(expected, found)
            rows.append({"kills": kills, "differs": differs})
            print(number + 1, kills, differs or "the same", file=sys.stderr, flush=True)
            shutil.rmtree(killed)
    same = sum(not row["differs"] for row in rows)
    reached = sum(not kill["ended"] for row in rows for kill in row["kills"])
    return {"moments": moments, "seed": seed, "same": same, "kills": reached, "stopped_at": expected["lines"][-1][1],
            "seconds_of_a_run": round(seconds, 2), "runs": rows}  # fmt: skip


if __name__ == "__main__":
    parser = described(__doc__)
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    measured = measure(given.moments, given.seed)
    if given.out:
        write_json(given.out, {"machine": machine(), **measured})
    print({key: value for key, value in measured.items() if key != "runs"})
    sys.exit(measured["same"] != measured["moments"])
