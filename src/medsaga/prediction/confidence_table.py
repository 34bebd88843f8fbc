"""The table of a folder's label maps and how sure the model is of them: the order to look at them in."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from medsaga import files
from medsaga.prediction.confidence import ConfidenceScores, look_first

CONFIDENCE = "confidence.csv"
"""Every case with the confidence of the model in it, the least confident first."""
_FIRST_COLUMNS = ("case", "confidence")


def write_csv(
    path: Path,
    scores: Mapping[str, ConfidenceScores],
    classes: Sequence[str],
    earlier: Mapping[str, Sequence[float]],
) -> None:
    """Write one line per case: its name, the mean confidence, and that in each class.

    Args:
        path: the file, written whole or not at all.
        scores: of the cases that have been segmented now, by name.
        classes: names of the classes but the background.
        earlier: lines of an earlier table, `read_csv`; those of cases that are among ``scores`` are left out.
    """
    lines = {**earlier, **{name: (score["mean"], *score["classes"]) for name, score in scores.items()}}
    order = look_first({name: line[0] for name, line in lines.items()})
    rows = [[name, *(f"{value:.4f}" for value in lines[name])] for name in order]
    files.write_csv(path, [[*_FIRST_COLUMNS, *classes], *rows])


def read_csv(path: Path, classes: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Return the numbers of each case in a table that `write_csv` wrote, the mean first.

    Args:
        path: the file.
        classes: None for any; of a table of others nothing is returned.
    """
    with path.open(newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    if classes is not None and header != [*_FIRST_COLUMNS, *classes]:
        return {}
    return {name: [float(value) for value in values] for name, *values in lines}
