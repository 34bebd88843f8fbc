"""Train on the cases that `medsaga suggest` chooses before anything is labelled, and on as many drawn at random.

    python -m benchmarks.suggest.run FOLDER_OF_DATASETS --runs RUNS --out benchmarks/suggest

For each seed and dataset the test cases are drawn, `suggest` sees the images of all others without their masks, and
the model is trained once on its choice and once on a random one, with the same seed and settings, and tested on the
same cases. What is already in RUNS is not repeated.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from rich.console import Console

import medsaga
from benchmarks.machine import machine
from benchmarks.runs import measured_once, parser_for
from medsaga import files
from medsaga.data.dataset import read_dataset
from medsaga.data.types import Dataset
from medsaga.suggest.run import suggest

TEST_CASES = {"spider_lumbar_mr": 16, "hc18_fetal_us": 30, "kvasir_seg_polyp": 30, "dsb2018_nuclei": 30}
CHOSEN = 4
SEEDS = 5
ARMS = ("suggest", "random")
MODEL = "starter"
SETTINGS: Mapping[str, Any] = {
    "model": "lite",
    "image_size": 128,
    "steps": 100,
    "batch_size": 4,
    "validation_cases": 0,
    "evaluate_every": 100,
    "device": "cpu",
}
RESAMPLES = 10_000


def chosen_cases(dataset: Dataset, seed: int, work: Path) -> dict[str, list[str]]:
    """Return the test cases, and the cases to train on in either arm."""
    random = np.random.default_rng(seed)
    order = [dataset.cases[index] for index in random.permutation(len(dataset.cases))]
    number = TEST_CASES[dataset.root.name]
    test, candidates = sorted(order[:number]), sorted(order[number:])
    unlabelled = view(dataset, candidates, work / "unlabelled", masks=False)
    found = suggest(unlabelled, model=MODEL, count=CHOSEN, console=Console(quiet=True))
    return {
        "test": test,
        "suggest": [suggestion["case"] for suggestion in found["suggestions"]],
        "random": [candidates[index] for index in random.choice(len(candidates), CHOSEN, replace=False)],
    }


def view(dataset: Dataset, cases: Iterable[str], folder: Path, *, masks: bool) -> Path:
    """Make a dataset of links to some of the cases of another, with or without its masks."""
    items = dataset.items_of(tuple(cases))
    for kind in ("images", "masks") if masks else ("images",):
        (folder / kind).mkdir(parents=True)
        for item in items:
            for path in item.images if kind == "images" else item.masks:
                assert isinstance(path, Path)
                (folder / kind / path.name).symlink_to(path.resolve())
    shutil.copy(dataset.root / "dataset.json", folder)
    with (folder / "cases.csv").open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("name", "case"), *((item.name, item.case) for item in items)])
    return folder


def measure(dataset: Dataset, seed: int, runs: Path) -> list[dict[str, Any]]:
    """Choose, train and test for one seed, unless it has been done."""
    place = runs / f"{dataset.root.name}-{seed}"
    cases = measured_once(place / "choice", partial(chosen_cases, dataset, seed))
    rows = []
    for arm in ARMS:

        def make(work: Path, arm: str = arm) -> dict[str, Any]:
            data = view(dataset, (*cases[arm], *cases["test"]), work / "data", masks=True)
            files.write_json(data / "splits_final.json", [{"train": cases[arm], "val": cases["test"]}])
            settings = medsaga.Settings(**SETTINGS, seed=seed)
            result = medsaga.train(data, work / "run", settings, console=Console(quiet=True))
            return {
                "dataset": dataset.root.name,
                "seed": seed,
                "arm": arm,
                "cases": cases[arm],
                "images": len(dataset.items_of(tuple(cases[arm]))),
                "test_cases": result["case_count"],
                **{name: result[name] for name in ("dice_mean", "dice", "seconds_per_step")},
            }

        rows.append(measured_once(place / arm, make))
        print(rows[-1]["dataset"], seed, arm, f"{rows[-1]['dice_mean']:.3f}", flush=True)
    return rows


def compared(rows: list[dict[str, Any]], dataset: str) -> dict[str, Any]:
    """Return the means of both arms, and their difference with an interval over the seeds (bootstrap, 95 %)."""
    by_arm = {arm: [row for row in rows if row["dataset"] == dataset and row["arm"] == arm] for arm in ARMS}
    pairs = list(zip(by_arm["suggest"], by_arm["random"], strict=True))
    differences = np.array([ours["dice_mean"] - theirs["dice_mean"] for ours, theirs in pairs])
    drawn = np.random.default_rng(0).choice(differences, (RESAMPLES, len(differences))).mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {
        "dataset": dataset,
        "test_cases": by_arm["suggest"][0]["test_cases"],
        **{f"{arm}_dice": mean(row["dice_mean"] for row in found) for arm, found in by_arm.items()},
        **{f"{arm}_images": mean(row["images"] for row in found) for arm, found in by_arm.items()},
        "difference": float(differences.mean()),
        "interval": [float(low), float(high)],
        "seeds_won": int((differences > 0).sum()),
        "seeds": len(differences),
    }


def table(summaries: list[dict[str, Any]]) -> str:
    """Lay the numbers out as Markdown."""
    lines = [
        "| dataset | test cases | suggested | random | difference, 95 % interval | seeds won | images of 4 cases |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in summaries:
        low, high = row["interval"]
        cells = [
            row["dataset"],
            row["test_cases"],
            f"{row['suggest_dice']:.3f}",
            f"{row['random_dice']:.3f}",
            f"{row['difference']:+.3f}, {low:+.3f} to {high:+.3f}",
            f"{row['seeds_won']} of {row['seeds']}",
            f"{row['suggest_images']:.1f}, {row['random_images']:.1f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Do it."""
    arguments = parser_for(__doc__, Path(__file__).parent).parse_args()
    datasets = [read_dataset(arguments.datasets / name) for name in TEST_CASES]
    rows = []
    for seed in range(SEEDS):
        for dataset in datasets:
            rows += measure(dataset, seed, arguments.runs)
    summaries = [compared(rows, name) for name in TEST_CASES]
    settings = {name: value for name, value in asdict(medsaga.Settings(**SETTINGS)).items() if value is not None}
    document = {"machine": machine(), "settings": settings, "cases_chosen": CHOSEN, "summary": summaries, "runs": rows}
    files.write_json(arguments.out / "results.json", document)
    files.write_text(arguments.out / "results.md", table(summaries))
    print(table(summaries))


if __name__ == "__main__":
    main()
