"""All methods on few labelled cases of five kinds of images, by `medsaga compare` with its defaults.

    python -m benchmarks.compare.run FOLDER_OF_DATASETS --runs RUNS
    python -m benchmarks.compare.summary --runs RUNS

Every dataset has a comparison of its own in RUNS, which goes on where it was stopped and grows when methods or seeds
are added; several can work side by side on other ``--sets``. The second command writes what is kept here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.runs import parser_for
from medsaga.compare.grid import compare
from medsaga.methods import METHODS
from medsaga.settings.options import SharedSettings

SHOTS = {
    "spider_lumbar_mr": (1, 4, 8),
    "kvasir_seg_polyp": (1, 4, 8),
    "dsb2018_nuclei": (1, 4, 8),
    "hc18_fetal_us": (1, 4, 8),
    "axondeepseg_sem": (1, 4, 6),
}
"""Of the last set's 8 animals, two are left for the test."""
TEST_CASES = {"axondeepseg_sem": 2}
MOST_TEST_CASES = 20
SEEDS = 3
RANDOM = "random"
"""The default method from random weights, which is a comparison beside that of the methods."""


def arguments_for(doc: str | None, out: Path, methods: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of a command that compares ``methods``, unless it is told others."""
    parser = parser_for(doc, out)
    parser.add_argument("--methods", default=",".join(methods), help=f"of medsaga train, and {RANDOM}")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many")
    parser.add_argument("--sets", default=",".join(SHOTS))
    most_cases = ",".join(map(str, next(iter(SHOTS.values()))))
    parser.add_argument("--shots", default=most_cases, help=f"some of {most_cases}, which stand for 1,4,6 of the axons")
    return parser.parse_args()


def measure(given: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Run what is missing, seed by seed, and return the cells of all methods asked for, by dataset.

    Cells of the start from random weights have the method ``random``.
    """
    chosen = given.methods.split(",")
    found: dict[str, list[dict[str, Any]]] = {}
    for seeds in range(1, given.seeds + 1):
        for name in given.sets.split(","):
            found[name] = _of_one(given.datasets / name, given.runs, chosen, shots_of(name, given.shots), seeds)
    return found


def shots_of(dataset: str, asked: str) -> list[int]:
    """Return the numbers of cases of a dataset for numbers of cases of the first one, comma-separated."""
    usual = next(iter(SHOTS.values()))
    return [SHOTS[dataset][usual.index(int(shots))] for shots in asked.split(",")]


def _of_one(data: Path, runs: Path, chosen: Sequence[str], shots: Sequence[int], seeds: int) -> list[dict[str, Any]]:
    console = Console(stderr=True)
    common: dict[str, Any] = {
        "shots": shots,
        "seeds": seeds,
        "test_cases": TEST_CASES.get(data.name, MOST_TEST_CASES),
        "pictures": False,
        "console": console,
    }
    cells = []
    methods = [name for name in METHODS if name in chosen]
    if methods:
        cells += compare(data, runs / data.name, SharedSettings(), methods=methods, **common)
    if RANDOM in chosen:
        out = runs / f"{data.name}-{RANDOM}"
        alone = compare(data, out, SharedSettings(random_weights=True), methods=["medsaga"], **common)
        cells += [{**cell, "cell": {**cell["cell"], "method": RANDOM}} for cell in alone]
    return cells


def main() -> None:
    """Do it."""
    measure(arguments_for(__doc__, Path(__file__).parent, [*METHODS, RANDOM]))


if __name__ == "__main__":
    main()
