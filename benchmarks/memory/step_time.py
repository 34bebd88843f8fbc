"""What each lean switch costs in time: ratios of whole training steps, taken in turns within one process.

OMP_NUM_THREADS=1 python -m benchmarks.memory.step_time --out benchmarks/memory
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.runs import described
from benchmarks.training_steps import CLASSES, TrainingSteps
from medsaga import files
from medsaga.planning.defaults import DeviceDefaults
from medsaga.planning.resolve import Facts, resolve
from medsaga.settings.options import Settings

PLAIN = "plain: fp32, nothing recomputed, 32-bit state"
SAMED = "SAMed's LoRA, plain"
MODES: dict[str, dict[str, Any]] = {
    PLAIN: {},
    SAMED: {"method": "samed"},
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


@dataclass(frozen=True)
class Workload:
    """What the modes are measured on.

    Attributes:
        given: settings of all modes.
        rounds: how often each mode makes a step; the first one does not count.
        without: modes that mean nothing here.
    """

    given: dict[str, Any]
    rounds: int
    without: Collection[str] = ()


WORKLOADS = {
    "lite, 192 px, batch 4": Workload({"model": "lite", "image_size": 192, "batch_size": 4}, 8, ["int8 weights"]),
    "vit_b, 224 px, batch 2": Workload({"model": "vit_b", "image_size": 224, "batch_size": 2}, 5),
    "vit_b, 512 px, batch 1": Workload(
        {"model": "vit_b", "image_size": 512, "batch_size": 1}, 4, ["one image at a time"]
    ),
}


def stepper(given: dict[str, Any], changes: dict[str, Any]) -> Callable[[], float]:
    """Return a function that makes one step of a mode and returns its time in seconds."""
    facts = Facts(device=DeviceDefaults("fp32", 32), classes=CLASSES, channels=3)
    settings = resolve(Settings(**{"checkpointing": "none", **given, **changes}), facts)
    steps = TrainingSteps(settings, torch.device("cpu"))

    def step() -> float:
        began = time.process_time()
        steps.step()
        return time.process_time() - began

    return step


def measure(workload: Workload) -> list[dict[str, Any]]:
    """Return the least CPU time of each mode, and its ratios to the plain one and to SAMed."""
    steppers = {
        mode: stepper(workload.given, changes) for mode, changes in MODES.items() if mode not in workload.without
    }
    times: dict[str, list[float]] = {mode: [] for mode in steppers}
    for _ in range(workload.rounds):
        for mode, step in steppers.items():
            times[mode].append(step())
    least = {mode: min(values[1:]) for mode, values in times.items()}
    return [
        {
            "mode": mode,
            "seconds": seconds,
            "ratio_to_plain": seconds / least[PLAIN],
            "ratio_to_samed": seconds / least[SAMED],
        }
        for mode, seconds in least.items()
    ]


def main() -> None:
    """Do it."""
    parser = described(__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name, workload in WORKLOADS.items():
        results[name] = {"rounds": workload.rounds - 1, "modes": measure(workload)}
        for row in results[name]["modes"]:
            print(f"{name}, {row['mode']}: {row['seconds']:.2f} s, {row['ratio_to_plain']:.2f}", flush=True)
    files.write_json(arguments.out / "step_time.json", {"machine": machine(), "workloads": results})


if __name__ == "__main__":
    main()
