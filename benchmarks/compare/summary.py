"""One table of all comparisons in this folder: mean Dice over seeds per method, dataset and number of shots.

    python -m benchmarks.compare.summary

Reads ``*/results.csv`` and writes ``summary.md``.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from statistics import mean, median

from medsaga import files

HERE = Path(__file__).parent
MIB = 2**20


def main() -> None:
    """Do it."""
    dice: dict[str, dict[tuple[str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    peaks: dict[str, list[float]] = defaultdict(list)
    paces: dict[str, list[float]] = defaultdict(list)
    for path in sorted(HERE.glob("*/results.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["table"] == "equal" and row["dice_mean"]:
                    dice[row["method"]][path.parent.name, int(row["shots"])].append(float(row["dice_mean"]))
                    peaks[row["method"]].append(float(row["peak_memory_bytes"]) / MIB)
                    paces[row["method"]].append(float(row["seconds_per_step"]))
    places = sorted({place for of_method in dice.values() for place in of_method})
    head = ["method", *(f"{name}, {shots}" for name, shots in places), "peak MiB", "s/step"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for method, of_method in dice.items():
        scores = [f"{mean(of_method[place]):.3f}" if place in of_method else "-" for place in places]
        cells = [method, *scores, f"{max(peaks[method]):,.0f}", f"{median(paces[method]):.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    files.write_text(HERE / "summary.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
