"""Few labelled cases of domains that pre-training has never seen: starter, random weights, U-Net from scratch.

    python -m benchmarks.starter.judge FOLDER_OF_DATASETS --runs RUNS

All settings are the defaults. All numbers of shots of a seed are tested on the same cases. Runs whose record is in RUNS
are not repeated, so that several of these can work side by side, each on some ``--contenders`` or ``--shots``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import medsaga
from benchmarks.machine import machine
from medsaga import files, run_folder
from medsaga.config import read_config

CONTENDERS: dict[str, dict[str, Any]] = {
    "starter": {},
    "random": {"weights": "random"},
    "unet": {"method": "unet"},
}
ASKED = (1, 4, 8)
SHOTS = {"spider_lumbar_mr": ASKED, "axondeepseg_sem": (1, 4, 6)}
"""Of the second set's 8 animals, two are left for the test."""
SEEDS = (0, 1, 2)
KEPT = ("dice_mean", "dice", "case_count", "steps", "seconds_per_step", "peak_memory_bytes", "trainable_parameters")


def measure(data: Path, runs: Path, contender: str, shots: int, seed: int) -> dict[str, Any]:
    """Train and test once, unless it has been done, and return the record."""
    name = f"{data.name}-{contender}-{shots}-{seed}"
    record = runs / f"{name}.json"
    if record.exists():
        return json.loads(record.read_text())
    settings = medsaga.Settings(shots=shots, seed=seed, test_cases=_test_cases(data.name), **CONTENDERS[contender])
    shutil.rmtree(runs / name, ignore_errors=True)
    result = medsaga.train(data, runs / name, settings)
    used = dataclasses.asdict(read_config(runs / name / run_folder.CONFIG).settings)
    document = {
        "dataset": data.name,
        "contender": contender,
        "shots": shots,
        "seed": seed,
        "settings": {name: value for name, value in used.items() if value is not None},
        **{key: result[key] for key in KEPT},
    }
    files.write_json(record, document)
    shutil.rmtree(runs / name)
    return document


def _test_cases(dataset: str) -> int:
    return {"spider_lumbar_mr": 20, "axondeepseg_sem": 2}.get(dataset, 20)


def table(records: Sequence[dict[str, Any]]) -> str:
    """Lay out the mean Dice over seeds, with the spread between them, as Markdown."""
    contenders = [name for name in CONTENDERS if any(record["contender"] == name for record in records)]
    lines = [
        f"| dataset | shots | {' | '.join(contenders)} |",
        f"|---|---|{'---|' * len(contenders)}",
    ]
    for dataset in dict.fromkeys(record["dataset"] for record in records):
        for shots in sorted({record["shots"] for record in records if record["dataset"] == dataset}):
            cells = []
            for contender in contenders:
                wanted = (dataset, shots, contender)
                found = [r["dice_mean"] for r in records if (r["dataset"], r["shots"], r["contender"]) == wanted]
                spread = f" ± {stdev(found):.3f}" if len(found) > 1 else ""
                fewer = f" ({len(found)} of {len(SEEDS)} seeds)" if len(found) < len(SEEDS) else ""
                cells.append(f"{mean(found):.3f}{spread}{fewer}" if found else "not measured")
            lines.append(f"| {dataset} | {shots} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--shots", default="1,4,8", help="of the first set; the second has 6 for 8")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    wanted = {int(k) for k in arguments.shots.split(",")}
    for seed in SEEDS:
        for dataset, shots in SHOTS.items():
            for k in (k for asked, k in zip(ASKED, shots, strict=True) if asked in wanted):
                for contender in arguments.contenders.split(","):
                    measure(arguments.datasets / dataset, arguments.runs, contender, k, seed)
    records = [json.loads(path.read_text()) for path in sorted(arguments.runs.glob("*.json"))]
    files.write_json(arguments.out / "judgement.json", {"machine": machine(), "runs": records})
    files.write_text(arguments.out / "judgement.md", table(records))


if __name__ == "__main__":
    main()
