"""The U-Net with as much time as the starter takes, which is a fifth of its steps.

    python -m benchmarks.starter.equal_time FOLDER_OF_DATASETS --runs RUNS [--sets SET,SET]

One run for each set, with the most cases and seed 0; all other settings are those of ``benchmarks.starter.judge``,
whose numbers stand beside it. What is in RUNS, a folder of its own, is not repeated; with ``--sets`` the others keep
what they have. The table for the README is printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from benchmarks.compare.run import MOST_TEST_CASES, SHOTS, TEST_CASES
from benchmarks.machine import machine
from benchmarks.runs import parser_for
from benchmarks.starter.judge import ASKED, Record, dice, record_of, with_earlier
from medsaga import files
from medsaga.compare.cells import CELLS, Cell, each_free, finished, run_cell
from medsaga.compare.grid import settings_of
from medsaga.runs.loading import load_data
from medsaga.settings.options import Settings, SharedSettings

STEPS = 160
"""Of the 800 by default: a step of the U-Net takes about five times one of the starter."""


def made(data: Path, out: Path) -> dict[str, Any]:
    """Return the cell of a dataset, made or found in ``out``."""
    console = Console(stderr=True)
    cell = Cell("equal", "unet", SHOTS[data.name][-1], 0)
    loaded = load_data(data, Settings(), console)
    tested = TEST_CASES.get(data.name, MOST_TEST_CASES)
    # Its image size is the starter's.
    settings = settings_of(cell, SharedSettings(steps=STEPS), ["medsaga"], tested, loaded)
    (out / CELLS).mkdir(parents=True, exist_ok=True)
    for free in each_free(out, [cell], console):
        if (found := finished(out, free, settings, loaded.fingerprint)) is not None:
            return found
        options: dict[str, Any] = {"loaded": loaded, "examples": (), "keep_run": False, "console": console}
        return run_cell(data, out, free, settings, **options)
    raise AssertionError("each cell comes once")


def table(judged: Sequence[Record], ours: Sequence[Record]) -> str:
    """Lay out the Dice of the starter, of the U-Net in its time, and of the U-Net with all steps, as Markdown."""
    asked, seed = ASKED[-1], "0"
    rows = []
    for name, of in dice(ours).items():
        all_steps = dice(judged)[name][asked]
        rows.append((name, all_steps["starter"][seed], of[asked]["U-Net"][seed], all_steps["U-Net"][seed]))
    rows.append(("mean", *(mean(column) for column in list(zip(*rows, strict=True))[1:])))
    lines = ["| dataset | starter | U-Net, a fifth of the steps | U-Net, all steps |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {' | '.join(f'{score:.3f}' for score in scores)} |" for name, *scores in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Do it."""
    parser = parser_for(__doc__, Path(__file__).parent)
    parser.add_argument("--sets", default=",".join(SHOTS))
    given = parser.parse_args()
    cells = {name: made(given.datasets / name, given.runs / name) for name in given.sets.split(",")}
    done = [record_of(name, cell) for name, cell in cells.items() if cell["status"] == "done"]
    records = with_earlier(done, given.out / "equal_time.json")
    document = {"machine": machine(), "mean": mean(record["dice_mean"] for record in records), "runs": records}
    files.write_json(given.out / "equal_time.json", document)
    judged = files.read_json(given.out / "judgement.json")["runs"]
    print(table(judged, records), end="")


if __name__ == "__main__":
    main()
