"""What each lean switch costs in time: ratios of whole training steps, taken in turns within one process.

python -m benchmarks.memory.step_time --out benchmarks/memory
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.training_steps import CLASSES, TrainingSteps
from medsaga import files
from medsaga.planning.defaults import DeviceDefaults
from medsaga.planning.resolve import Facts, resolve
from medsaga.settings.options import Settings

PLAIN = "plain: fp32, nothing recomputed, 32-bit state"
MODES: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "AdamW on full gradients": {"method": "full"},
    "blocks computed again": {"checkpointing": "blocks"},
    "one image at a time": {"micro_batch_size": 1},
    "8-bit state": {"state_bits": 8},
    "bf16 weights": {"precision": "bf16"},
    "int8 weights": {"precision": "int8"},
    "all: bf16, 8-bit state, blocks, one image at a time": {
        "precision": "bf16",
        "state_bits": 8,
        "checkpointing": "blocks",
        "micro_batch_size": 1,
    },
}
WORKLOADS: dict[str, tuple[dict[str, Any], int]] = {
    "tiny, 256 px, batch 4": ({"model": "tiny", "image_size": 256, "batch_size": 4}, 12),
    "vit_b, 224 px, batch 2": ({"model": "vit_b", "image_size": 224, "batch_size": 2}, 7),
}
"""Settings and rounds; the first two rounds do not count."""


def stepper(given: dict[str, Any], changes: dict[str, Any]) -> Callable[[], float]:
    """Return a function that makes one step of a mode and returns its time in seconds."""
    facts = Facts(device=DeviceDefaults("fp32", 32), classes=CLASSES, channels=3)
    settings = resolve(Settings(**{"checkpointing": "none", **given, **changes}), facts)
    steps = TrainingSteps(settings, torch.device("cpu"))

    def step() -> float:
        began = time.perf_counter()
        steps.step()
        return time.perf_counter() - began

    return step


def measure(given: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    """Return the median time of each mode, and its ratio to the plain one."""
    steppers = {mode: stepper(given, changes) for mode, changes in MODES.items()}
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    for _ in range(rounds):
        for mode, step in steppers.items():
            times[mode].append(step())
    medians = {mode: median(values[2:]) for mode, values in times.items()}
    return [
        {"mode": mode, "seconds": seconds, "ratio_to_plain": seconds / medians[PLAIN]}
        for mode, seconds in medians.items()
    ]


def main() -> None:
    """Do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name, (given, rounds) in WORKLOADS.items():
        results[name] = {"rounds": rounds - 2, "modes": measure(given, rounds)}
        for row in results[name]["modes"]:
            print(f"{name}, {row['mode']}: {row['seconds']:.2f} s, {row['ratio_to_plain']:.2f}", flush=True)
    document = {"device": "CPU", "torch": torch.__version__, "threads": torch.get_num_threads(), "workloads": results}
    files.write_json(arguments.out / "step_time.json", document)


if __name__ == "__main__":
    main()
