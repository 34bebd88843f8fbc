"""All parts in one go, each in a process of its own with a time limit; results are written as they come.

    python -m benchmarks.gpu.run --device cuda --seconds 540 --data DATASET       # what run.sh does
    python -m benchmarks.gpu.run --device cpu --small --out FOLDER                # every line of it, on small models

Without ``--data``, few-shot training and loading are measured on the generated CT of `medsaga demo`. A part that fails
or takes too long is written down as such, and the next one begins. Exit code 1 if one failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gpu import kernels, steps, trainings
from benchmarks.gpu.place import Place
from benchmarks.machine import machine
from benchmarks.runs import described
from medsaga import files
from medsaga.device import choose_device


class Part(NamedTuple):
    """What is measured, and the most seconds that it may take on a GPU."""

    measure: Callable[[Place], Any]
    seconds: int


PARTS = {
    "attention": Part(kernels.attention, 40),
    "peaks": Part(steps.peaks, 120),
    "step_times": Part(steps.step_times, 90),
    "shares": Part(steps.shares, 60),
    "same_bits": Part(trainings.same_bits, 70),
    "out_of_memory": Part(trainings.out_of_memory, 50),
    "two_processes": Part(trainings.two_processes, 60),
    "few_shot": Part(trainings.few_shot, 120),
}


def measure(name: str, arguments: argparse.Namespace) -> None:
    """Measure one part in this process, and write what came out."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(choose_device(arguments.device), arguments.small, arguments.data, Path(folder))
        try:
            result: dict[str, Any] = {"result": PARTS[name].measure(place)}
        except Exception as error:
            traceback.print_exc()
            result = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    files.write_json(arguments.out / f"{name}.json", result)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all parts for which there is time; return their results by name."""
    began = time.monotonic()
    results: dict[str, Any] = {}
    for name, part in PARTS.items():
        left = arguments.seconds - (time.monotonic() - began)
        limit = min(part.seconds, left) if not arguments.small else left
        written = arguments.out / f"{name}.json"
        written.unlink(missing_ok=True)
        started = time.monotonic()
        if limit < 5:
            results[name] = {"failed": "no time was left"}
        else:
            try:
                subprocess.run(
                    [sys.executable, "-m", "benchmarks.gpu.run", "--part", name, *sys.argv[1:]], timeout=limit
                )
                results[name] = files.read_json(written) if written.exists() else {"failed": "it died"}
            except subprocess.TimeoutExpired:
                results[name] = {"failed": f"it took more than {limit:.0f} s"}
        results[name]["seconds"] = round(time.monotonic() - started, 1)
        written.unlink(missing_ok=True)
        print(name, json.dumps(results[name]), flush=True)
        files.write_json(arguments.out / "results.json", {"machine": machine(), **device(arguments), "parts": results})
    return results


def device(arguments: argparse.Namespace) -> dict[str, Any]:
    """Say what was measured, and on what."""
    of = choose_device(arguments.device)
    name = torch.cuda.get_device_name(of) if of.type == "cuda" else of.type
    return {"device": name, "small": arguments.small}


def main() -> int:
    """Do it."""
    parser = described(__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--small", action="store_true", help="small models and few steps, for a CPU")
    parser.add_argument("--data", type=Path, help="dataset folder with at least 12 cases")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.part:
        measure(arguments.part, arguments)
        return 0
    return int(any("failed" in result for result in run(arguments).values()))


if __name__ == "__main__":
    sys.exit(main())
