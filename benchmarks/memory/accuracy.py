"""What each step towards less memory costs in Dice: the same runs in several modes, on real data, over seeds.

    python -m benchmarks.memory.accuracy FOLDER_OF_DATASETS --runs RUNS --out benchmarks/memory

Only runs that are not in RUNS yet are made, and interrupted ones go on. Checkpointing and micro-batches are not among
the modes: they give the same result (tests/training).
"""

from __future__ import annotations

import io
import itertools
import math
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from rich.console import Console
from scipy import stats

import medsaga
from benchmarks.machine import machine
from benchmarks.runs import parser_for
from medsaga import files, run_folder

DATASETS = {"hc18_fetal_us": 8, "dsb2018_nuclei": 8, "axondeepseg_sem": 4}
"""Shots per dataset."""
REFERENCES = ("full fp32", "galore fp32")
MODES: dict[str, dict[str, Any]] = {
    "full fp32": {"method": "full", "precision": "fp32", "state_bits": 32},
    "galore fp32": {"precision": "fp32", "state_bits": 32},
    "galore bf16": {"precision": "bf16", "state_bits": 32},
    "galore bf16, 8-bit state": {"precision": "bf16", "state_bits": 8},
    "galore int8 weights, 8-bit state": {"precision": "int8", "state_bits": 8},
}


class Experiment(NamedTuple):
    """What is run of one model: settings that all its runs share, modes of `MODES`, and how many seeds."""

    settings: dict[str, Any]
    modes: tuple[str, ...]
    seeds: int


MODELS = {
    "tiny": Experiment(
        {"model": "tiny", "random_weights": True, "steps": 300, "image_size": 128, "batch_size": 8}, tuple(MODES), 3
    ),
    "lite": Experiment({"steps": 400, "image_size": 192}, ("galore fp32", "galore bf16, 8-bit state"), 2),
}
"""A small vision transformer from random weights, and the default model from its starter."""
KEPT = ("dice_mean", "peak_memory_bytes", "predicted_peak_memory_bytes", "memory_breakdown", "seconds_per_step")


def measure(data: Path, run: Path, settings: medsaga.Settings) -> dict[str, Any]:
    """Make one run on one thread, unless it has been made, and return its numbers."""
    torch.set_num_threads(1)
    if not (run / run_folder.RESULT).exists():
        quiet = Console(file=io.StringIO())
        medsaga.train(data, run, settings, resume=(run / run_folder.CONFIG).exists(), console=quiet)
    result = files.read_json(run / run_folder.RESULT)
    return {name: result[name] for name in KEPT}


def compare(cells: list[dict[str, Any]], modes: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row per mode: mean Dice, and the paired differences to the references with their 95 % t-intervals."""
    by_mode: dict[str, dict[tuple[str, int], float]] = {mode: {} for mode in modes}
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
                    name: difference(scores, by_mode[name]) for name in REFERENCES if name in modes[: modes.index(mode)]
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
    parser = parser_for(__doc__, Path(__file__).parent)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs at once, of one thread each")
    arguments = parser.parse_args()
    jobs = [
        (model, seed, name, mode)
        for model, of_model in MODELS.items()
        for seed, name, mode in itertools.product(range(of_model.seeds), DATASETS, of_model.modes)
    ]
    # Processes that are started afresh: torch's threads do not survive a fork.
    with ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = [
            pool.submit(
                measure,
                arguments.datasets / name,
                arguments.runs / model / name / mode.replace(" ", "_").replace(",", "") / str(seed),
                medsaga.Settings(**MODELS[model].settings, **MODES[mode], shots=DATASETS[name], seed=seed),
            )
            for model, seed, name, mode in jobs
        ]
        found: dict[str, list[dict[str, Any]]] = {model: [] for model in MODELS}
        for (model, seed, name, mode), future in zip(jobs, running, strict=True):
            found[model].append({"dataset": name, "mode": mode, "seed": seed, **future.result()})
            print(f"{model}, {name}, {mode}, seed {seed}: {found[model][-1]['dice_mean']:.3f}", flush=True)
    models = {
        model: {"settings": MODELS[model].settings, "modes": compare(cells, MODELS[model].modes), "cells": cells}
        for model, cells in found.items()
    }
    files.write_json(arguments.out / "accuracy.json", {"machine": machine(), "shots": DATASETS, "models": models})
    print(table(models))


def table(models: dict[str, dict[str, Any]]) -> str:
    """Lay the rows out as Markdown."""
    columns = ("model", "mode", "Dice", *DATASETS, *(f"to {name}" for name in REFERENCES), "peak MiB")
    lines = [
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
    ]
    for model, document in models.items():
        for row in document["modes"]:
            points = (row["points_to"].get(name) for name in REFERENCES)
            cells = [
                *(f"{dice:.3f}" for dice in (row["dice_mean"], *row["dice_per_dataset"].values())),
                *(f"{p['mean']:+.2f} ({p['low']:+.2f} to {p['high']:+.2f})" if p else "" for p in points),
            ]
            lines.append(f"| {model} | {row['mode']} | {' | '.join(cells)} | {row['peak_mib']:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
