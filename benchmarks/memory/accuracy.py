"""What each step towards less memory costs in Dice: the same runs in several modes, on real data, over seeds.

    python -m benchmarks.memory.accuracy FOLDER_OF_DATASETS --runs RUNS --out benchmarks/memory

Only runs that are not in RUNS yet are made, and interrupted ones go on. Checkpointing and micro-batches are not among
the modes: they give the same result (tests/training).
"""

from __future__ import annotations

import io
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.console import Console
from scipy import stats

import medsaga
from benchmarks.runs import parser_for
from medsaga import files, run_folder

DATASETS = {"hc18_fetal_us": 8, "dsb2018_nuclei": 8, "axondeepseg_sem": 4}
"""Shots per dataset."""
SEEDS = (0, 1, 2)
REFERENCES = ("full fp32", "galore fp32")
MODES: dict[str, dict[str, Any]] = {
    "full fp32": {"method": "full", "precision": "fp32", "state_bits": 32},
    "galore fp32": {"precision": "fp32", "state_bits": 32},
    "galore bf16": {"precision": "bf16", "state_bits": 32},
    "galore bf16, 8-bit state": {"precision": "bf16", "state_bits": 8},
    "galore int8 weights, 8-bit state": {"precision": "int8", "state_bits": 8},
}
COMMON: dict[str, Any] = {"model": "tiny", "steps": 300, "image_size": 128, "batch_size": 8}
KEPT = ("dice_mean", "peak_memory_bytes", "predicted_peak_memory_bytes", "memory_breakdown", "seconds_per_step")


def measure(data: Path, run: Path, settings: medsaga.Settings) -> dict[str, Any]:
    """Make one run on one thread, unless it has been made, and return its numbers."""
    torch.set_num_threads(1)
    if not (run / run_folder.RESULT).exists():
        quiet = Console(file=io.StringIO())
        medsaga.train(data, run, settings, resume=(run / run_folder.CONFIG).exists(), console=quiet)
    result = files.read_json(run / run_folder.RESULT)
    return {name: result[name] for name in KEPT}


def compare(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per mode: mean Dice, and the paired differences to the references with their 95 % t-intervals."""
    by_mode: dict[str, dict[tuple[str, int], float]] = {mode: {} for mode in MODES}
    for cell in cells:
        by_mode[cell["mode"]][cell["dataset"], cell["seed"]] = cell["dice_mean"]
    rows = []
    for mode, scores in by_mode.items():
        of_mode = [cell for cell in cells if cell["mode"] == mode]
        rows.append(
            {
                "mode": mode,
                "dice_mean": mean(scores.values()),
                "dice_per_dataset": {
                    name: mean(dice for (dataset, _), dice in scores.items() if dataset == name) for name in DATASETS
                },
                "points_to": {
                    name: difference(scores, by_mode[name])
                    for name in REFERENCES
                    if list(MODES).index(name) < list(MODES).index(mode)
                },
                "peak_mib": mean(cell["peak_memory_bytes"] for cell in of_mode) / 2**20,
            }
        )
    return rows


def difference(scores: dict[tuple[str, int], float], reference: dict[tuple[str, int], float]) -> dict[str, float]:
    """Return the mean paired difference in Dice points, and the ends of its 95 % t-interval."""
    points = [100 * (dice - reference[pair]) for pair, dice in scores.items()]
    half = stats.t.ppf(0.975, len(points) - 1) * stdev(points) / math.sqrt(len(points))
    return {"mean": mean(points), "low": mean(points) - half, "high": mean(points) + half}


def main() -> None:
    """Do it."""
    arguments = parser_for(__doc__, Path(__file__).parent).parse_args()
    jobs = [(seed, name, mode) for seed in SEEDS for name in DATASETS for mode in MODES]
    # Processes that are started afresh: torch's threads do not survive a fork.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        running = [
            pool.submit(
                measure,
                arguments.datasets / name,
                arguments.runs / name / mode.replace(" ", "_").replace(",", "") / str(seed),
                medsaga.Settings(**COMMON, **MODES[mode], shots=DATASETS[name], seed=seed),
            )
            for seed, name, mode in jobs
        ]
        cells = []
        for (seed, name, mode), future in zip(jobs, running, strict=True):
            cells.append({"dataset": name, "mode": mode, "seed": seed, **future.result()})
            print(f"{name}, {mode}, seed {seed}: {cells[-1]['dice_mean']:.3f}", flush=True)
    rows = compare(cells)
    document = {"torch": torch.__version__, "settings": COMMON, "shots": DATASETS, "modes": rows, "cells": cells}
    files.write_json(arguments.out / "accuracy.json", document)
    for row in rows:
        print(f"{row['mode']}: Dice {row['dice_mean']:.4f}")
        for name, points in row["points_to"].items():
            print(f"    {points['mean']:+.2f} [{points['low']:+.2f}, {points['high']:+.2f}] points to {name}")


if __name__ == "__main__":
    main()
