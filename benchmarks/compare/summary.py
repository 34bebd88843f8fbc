"""Keep the pages of all comparisons here, and one table of them: mean Dice over seeds by method, dataset and shots.

    python -m benchmarks.compare.summary --runs RUNS

RUNS is that of ``benchmarks.compare.run``. Without it the table is made again from the ``*/results.csv`` that are here.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from statistics import mean, median

from benchmarks.compare.run import RANDOM, SHOTS
from benchmarks.runs import described
from medsaga import files

HERE = Path(__file__).parent
PAGES = ("index.html", "results.md", "results.csv")
MIB = 2**20


def main() -> None:
    """Do it."""
    parser = described(__doc__)
    parser.add_argument("--runs", type=Path)
    runs = parser.parse_args().runs
    if runs is not None:
        for page in (path for name in PAGES for path in sorted(runs.glob(f"*/{name}"))):
            files.write_text(HERE / page.parent.name / page.name, page.read_text(encoding="utf-8"))
    text = table(HERE)
    files.write_text(HERE / "summary.md", text)
    print(text, end="")


def table(folder: Path) -> str:
    """Lay out the results in the folders of comparisons as Markdown; in brackets how many seeds where not all agree."""
    dice: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    peaks: dict[str, list[float]] = defaultdict(list)
    paces: dict[str, list[float]] = defaultdict(list)
    for name in SHOTS:
        for path in (folder / name / "results.csv", folder / f"{name}-{RANDOM}" / "results.csv"):
            for row in _rows(path):
                method = row["method"] if path.parent.name == name else RANDOM
                dice[name, int(row["shots"])][method].append(float(row["dice_mean"]))
                peaks[method].append(float(row["peak_memory_bytes"]) / MIB)
                paces[method].append(float(row["seconds_per_step"]))
    most = max(len(scores) for place in dice.values() for scores in place.values())
    lines = ["| dataset | shots | " + " | ".join(peaks) + " |", "|---|---:|" + "---:|" * len(peaks)]
    for (name, shots), place in dice.items():
        lines.append(f"| {name} | {shots} | " + " | ".join(_mean(place[method], most) for method in peaks) + " |")
    lines.append("| peak of a step, MiB | | " + " | ".join(f"{max(peaks[method]):,.0f}" for method in peaks) + " |")
    lines.append("| seconds per step | | " + " | ".join(f"{median(paces[method]):.2f}" for method in peaks) + " |")
    return "\n".join(lines) + "\n"


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["table"] == "equal" and row["dice_mean"]]


def _mean(scores: list[float], most: int) -> str:
    if not scores:
        return "-"
    return f"{mean(scores):.3f}" + (f" ({len(scores)})" if len(scores) < most else "")


if __name__ == "__main__":
    main()
