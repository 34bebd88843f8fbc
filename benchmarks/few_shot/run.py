"""Train, test and predict on each of several datasets with the same settings, and write a table of what came out.

    python -m benchmarks.few_shot.run FOLDER_OF_DATASETS --runs RUNS --out benchmarks/few_shot

Each dataset is a folder in FOLDER_OF_DATASETS. Runs that are already in RUNS are not repeated.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import medsaga
from benchmarks.machine import machine
from benchmarks.runs import measured_once, parser_for
from medsaga import files
from medsaga.prediction.files import predict_files

FEWER_SHOTS = {"axondeepseg_sem": 4}
SHOTS = 8
KEPT = ("dice_mean", "dice_mean_interval", "dice", "hd95", "hd95_unit", "case_count", "metric_protocol", "steps")
COSTS = ("peak_memory_bytes", "memory_breakdown", "seconds_per_step", "trainable_parameters", "projected_parameters")


def measure(data: Path, run: Path) -> dict[str, Any]:
    """Train on a dataset, predict all of its images, and return the numbers."""
    settings = medsaga.Settings(model="tiny", shots=FEWER_SHOTS.get(data.name, SHOTS), seed=0)
    began = time.perf_counter()
    result = medsaga.train(data, run, settings)
    trained = time.perf_counter()
    predictions = predict_files(run, data / "images", run / "predictions")
    predicted = time.perf_counter()
    return {
        "dataset": data.name,
        "settings": {name: value for name, value in asdict(settings).items() if value is not None},
        **{name: result[name] for name in (*KEPT, *COSTS)},
        "seconds_train_and_test": trained - began,
        "seconds_per_predicted_image": (predicted - trained) / len(predictions),
    }


def table(records: list[dict[str, Any]]) -> str:
    """Lay the numbers out as Markdown."""
    lines = [
        "| dataset | shots | test cases | Dice | 95 % interval | Dice per label | peak MiB | s per step |"
        " train and test | s per image |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        low, high = record["dice_mean_interval"]
        labels = ", ".join(f"{name} {dice:.3f}" for name, dice in record["dice"].items())
        cells = [
            record["dataset"],
            record["settings"]["shots"],
            record["case_count"],
            f"{record['dice_mean']:.3f}",
            f"{low:.3f} to {high:.3f}",
            labels,
            f"{record['peak_memory_bytes'] / 2**20:.0f}",
            f"{record['seconds_per_step']:.2f}",
            f"{record['seconds_train_and_test'] / 60:.1f} min",
            f"{record['seconds_per_predicted_image']:.2f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Do it."""
    arguments = parser_for(__doc__, Path(__file__).parent).parse_args()
    folders = sorted(path for path in arguments.datasets.iterdir() if (path / "images").is_dir())
    records = [measured_once(arguments.runs / folder.name, partial(measure, folder)) for folder in folders]
    files.write_json(arguments.out / "results.json", {"machine": machine(), "runs": records})
    files.write_text(arguments.out / "results.md", table(records))


if __name__ == "__main__":
    main()
