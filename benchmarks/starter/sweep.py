"""What the defaults of few-shot runs are chosen by: one thing changed at a time, on all datasets.

    python -m benchmarks.starter.sweep FOLDER_OF_DATASETS --runs RUNS

A run has 4 cases, 128 px to save time, and the settings of `BASE` but for what its name says. Runs whose record is in
RUNS are not repeated, so that several of these can work side by side, each on some ``--variants``.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import medsaga
from benchmarks.machine import machine
from benchmarks.runs import measured_once, parser_for
from medsaga import files
from medsaga.data.augment import AUGMENTATIONS, Augmentation

DATASETS = {"spider_lumbar_mr": 20, "axondeepseg_sem": 2, "hc18_fetal_us": 20, "kvasir_seg_polyp": 100}
"""And the number of cases to test on: most for the polyps, which are found or not."""
SEEDS = (1, 2)
SHOTS = 4
BASE: dict[str, Any] = {
    "image_size": 128,
    "steps": 250,
    "batch_size": 4,
    "encoder_lr": 1e-3,
    "decoder_lr": 1e-3,
    "rank": 64,
    "refresh_every": 12,
}
"""Written out, so that the sweep stays the same when the defaults follow from it; the rest is as `train` picks it."""
MILD = Augmentation(
    rotate=0.3,
    degrees=10,
    scale=0.3,
    scale_range=(0.9, 1.1),
    shift=0.3,
    shift_limit=0.05,
    elastic=0.15,
    tone=0.5,
    noise=0.1,
    blur=0.1,
)
"""The augmentation of version 0.1.0."""
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "half the learning rates": {"encoder_lr": 5e-4, "decoder_lr": 5e-4},
    "twice the learning rates": {"encoder_lr": 2e-3, "decoder_lr": 2e-3},
    "three times the learning rates": {"encoder_lr": 3e-3, "decoder_lr": 3e-3},
    "four times the learning rates": {"encoder_lr": 4e-3, "decoder_lr": 4e-3},
    "400 steps": {"steps": 400, "refresh_every": 20},
    "mild augmentation": {"augmentation": MILD},
    "no changes of colour": {"augmentation": replace(AUGMENTATIONS["fewshot"], colour=0)},
    "rank 16": {"rank": 16},
    "subspace changed 5 times, not 20": {"refresh_every": 50},
}


def measure(data: Path, runs: Path, variant: str, seed: int) -> dict[str, Any]:
    """Train and test once, unless it has been done, and return the record."""
    given = BASE | VARIANTS[variant]
    augmentation = given.pop("augmentation", None)
    settings = medsaga.Settings(shots=SHOTS, seed=seed, test_cases=DATASETS[data.name], **given)

    def make(run: Path) -> dict[str, Any]:
        with _augmented(augmentation):
            result = medsaga.train(data, run, settings)
        return {
            "dataset": data.name,
            "variant": variant,
            "seed": seed,
            **{key: result[key] for key in ("dice_mean", "dice", "case_count", "steps", "seconds_per_step")},
        }

    return measured_once(runs / f"{data.name}-{variant.replace(' ', '_').replace(',', '')}-{seed}", make)


@contextlib.contextmanager
def _augmented(augmentation: Augmentation | None) -> Iterator[None]:
    """Let the default name stand for another augmentation for a while."""
    usual = AUGMENTATIONS["fewshot"]
    AUGMENTATIONS["fewshot"] = augmentation or usual
    try:
        yield
    finally:
        AUGMENTATIONS["fewshot"] = usual


def table(records: list[dict[str, Any]]) -> str:
    """Lay out the Dice of each seed, and the mean difference to the base over the pairs there are, as Markdown."""
    dice = {(r["variant"], r["dataset"], r["seed"]): r["dice_mean"] for r in records}
    pairs = {(dataset, seed) for variant, dataset, seed in dice if variant == "base"}
    lines = [f"| changed | {' | '.join(DATASETS)} | difference | pairs |", f"|---|{'---|' * (len(DATASETS) + 2)}"]
    for variant in VARIANTS:
        cells, differences = [], []
        for dataset in DATASETS:
            found = {seed: dice[variant, dataset, seed] for seed in SEEDS if (variant, dataset, seed) in dice}
            cells.append(", ".join(f"{value:.3f}" for value in found.values()) or "not measured")
            differences += [v - dice["base", dataset, seed] for seed, v in found.items() if (dataset, seed) in pairs]
        if differences:
            lines.append(f"| {variant} | {' | '.join(cells)} | {mean(differences):+.3f} | {len(differences)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Do it."""
    parser = parser_for(__doc__, Path(__file__).parent)
    parser.add_argument("--variants", help="names, separated by semicolons; default all")
    arguments = parser.parse_args()
    for seed in SEEDS:
        for variant in (arguments.variants or ";".join(VARIANTS)).split(";"):
            for dataset in DATASETS:
                measure(arguments.datasets / dataset, arguments.runs, variant, seed)
    records = [json.loads(path.read_text()) for path in sorted(arguments.runs.glob("*.json"))]
    files.write_json(arguments.out / "sweep.json", {"machine": machine(), "shots": SHOTS, "runs": records})
    files.write_text(arguments.out / "sweep.md", table(records))
    print(table(records))


if __name__ == "__main__":
    main()
