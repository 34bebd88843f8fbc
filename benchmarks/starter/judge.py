"""Few labelled cases of five kinds of images: starter, random weights, U-Net from scratch.

    python -m benchmarks.starter.judge FOLDER_OF_DATASETS --runs RUNS

All settings are the defaults. All numbers of shots of a seed are tested on the same cases. Runs whose record is in RUNS
are not repeated, so that several of these can work side by side, each on some ``--contenders`` or ``--shots``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import medsaga
from benchmarks.machine import machine
from benchmarks.runs import measured_once, parser_for
from medsaga import files, run_folder
from medsaga.settings.run_config import read_config

CONTENDERS: dict[str, dict[str, Any]] = {
    "starter": {},
    "random": {"random_weights": True},
    "unet": {"method": "unet"},
}
ASKED = (1, 4, 8)
SHOTS = {
    "spider_lumbar_mr": ASKED,
    "kvasir_seg_polyp": ASKED,
    "dsb2018_nuclei": ASKED,
    "hc18_fetal_us": ASKED,
    "axondeepseg_sem": (1, 4, 6),
}
"""Of the last set's 8 animals, two are left for the test."""
SEEDS = (0, 1, 2)
KEPT = ("dice_mean", "dice", "case_count", "steps", "seconds_per_step", "peak_memory_bytes", "trainable_parameters")


def measure(data: Path, runs: Path, contender: str, shots: int, seed: int) -> dict[str, Any]:
    """Train and test once, unless it has been done, and return the record."""
    settings = medsaga.Settings(shots=shots, seed=seed, test_cases=_test_cases(data.name), **CONTENDERS[contender])

    def make(run: Path) -> dict[str, Any]:
        result = medsaga.train(data, run, settings)
        used = dataclasses.asdict(read_config(run / run_folder.CONFIG).settings)
        return {
            "dataset": data.name,
            "contender": contender,
            "shots": shots,
            "seed": seed,
            "settings": {name: value for name, value in used.items() if value is not None},
            **{key: result[key] for key in KEPT},
        }

    return measured_once(runs / f"{data.name}-{contender}-{shots}-{seed}", make)


def _test_cases(dataset: str) -> int:
    return 2 if dataset == "axondeepseg_sem" else 20


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
    parser = parser_for(__doc__, Path(__file__).parent)
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--shots", default="1,4,8", help="numbers of labelled cases; axons have 6 for 8")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--sets", default=",".join(SHOTS))
    arguments = parser.parse_args()
    wanted = {int(k) for k in arguments.shots.split(",")}
    for seed in map(int, arguments.seeds.split(",")):
        for dataset in arguments.sets.split(","):
            for k in (k for asked, k in zip(ASKED, SHOTS[dataset], strict=True) if asked in wanted):
                for contender in arguments.contenders.split(","):
                    measure(arguments.datasets / dataset, arguments.runs, contender, k, seed)
    records = [json.loads(path.read_text()) for path in sorted(arguments.runs.glob("*.json"))]
    files.write_json(arguments.out / "judgement.json", {"machine": machine(), "runs": records})
    files.write_text(arguments.out / "judgement.md", table(records))


if __name__ == "__main__":
    main()
