"""Does the confidence of a model put the cases that need correcting first? Its rank correlation to the Dice, measured.

    python -m benchmarks.confidence.run FOLDER_OF_DATASETS --runs RUNS --out benchmarks/confidence

Each model is trained on a few cases and predicts the others, as it is and averaged over flips. Beside Spearman's
correlation stands the share of the worst fifth of the cases that is found among the fifth to be looked at first; by
chance it is a fifth. What is already in RUNS is not repeated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from scipy.stats import spearmanr

import medsaga
from benchmarks.machine import machine
from benchmarks.runs import measured_once, parser_for
from medsaga import files
from medsaga.data.dataset import read_dataset
from medsaga.data.items import read_mask
from medsaga.data.splits import Split
from medsaga.evaluation.metrics import dice
from medsaga.run_folder import SPLIT

DATASETS = ("hc18_fetal_us", "dsb2018_nuclei", "kvasir_seg_polyp", "spider_lumbar_mr")
SEEDS = (0, 1)
SETTINGS: dict[str, Any] = {"shots": 8, "image_size": 128, "steps": 100, "evaluate_every": 100, "device": "cpu"}
FIRST = 0.2
"""The share of the cases that somebody has time to look at."""


def measure(data: Path, runs: Path, seed: int) -> dict[str, Any]:
    """Train, predict with and without flips, and return confidence and Dice of every test image; once."""
    return measured_once(runs / f"{data.name}-{seed}", partial(_measure, data, seed))


def _measure(data: Path, seed: int, run: Path) -> dict[str, Any]:
    medsaga.train(data, run, medsaga.Settings(seed=seed, **SETTINGS))
    segmenter = medsaga.Segmenter.load(run, "cpu")
    split = Split.from_json(files.read_json(run / SPLIT))
    images = []
    for item in read_dataset(data).items_of(split.test):
        truth = read_mask(item)
        scores = {}
        for name in ("plain", "flips"):
            prediction = segmenter.predict_item(item, tta="all" if name == "flips" else "none")
            present = [v for v in segmenter.label_values[1:] if (truth == v).any() or (prediction.labels == v).any()]
            scores[name] = {
                "confidence": round(prediction.confidence["mean"], 4),
                "dice": round(mean([dice(prediction.labels == v, truth == v) for v in present]), 4)
                if present
                else None,
            }
        images.append({"name": item.name, **scores})
    return {"dataset": data.name, "seed": seed, "images": images}


def summary(document: dict[str, Any], way: str) -> dict[str, float]:
    """Return mean Dice, Spearman's correlation and the share of the worst images among those to look at first."""
    pairs = [
        (each[way]["confidence"], each[way]["dice"]) for each in document["images"] if each[way]["dice"] is not None
    ]
    confidence, scores = (np.array(column) for column in zip(*pairs, strict=True))
    count = max(1, round(FIRST * len(pairs)))
    first, worst = (set(np.argsort(values, kind="stable")[:count].tolist()) for values in (confidence, scores))
    return {
        "images": len(pairs),
        "dice": float(scores.mean()),
        "spearman": float(spearmanr(confidence, scores).statistic),
        "found": len(first & worst) / count,
    }


def table(documents: Sequence[dict[str, Any]]) -> str:
    """Lay the results out as Markdown."""
    lines = [
        "| dataset | seed | images | Dice | flips | rank correlation | flips | worst fifth found | flips |",
        f"|{'---|' * 9}",
    ]
    for document in documents:
        plain, flips = summary(document, "plain"), summary(document, "flips")
        cells = [document["dataset"], document["seed"], plain["images"]]
        for key in ("dice", "spearman", "found"):
            cells += [f"{each[key]:.2f}" for each in (plain, flips)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Do it."""
    arguments = parser_for(__doc__, Path(__file__).parent).parse_args()
    documents = [measure(arguments.datasets / name, arguments.runs, seed) for name in DATASETS for seed in SEEDS]
    # A line per run: as a table it would have ten thousand lines.
    runs = ",\n".join(json.dumps(document) for document in documents)
    head = json.dumps({"machine": machine(), "settings": SETTINGS})[:-1]
    files.write_text(arguments.out / "confidence.json", f'{head}, "runs": [\n{runs}\n]}}\n')
    files.write_text(arguments.out / "confidence.md", table(documents))


if __name__ == "__main__":
    main()
