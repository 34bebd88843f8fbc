"""From the scores of single images and volumes to the result: means, intervals, counts and the table people read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rich.text import Text

from medsaga.evaluation.protocols import LabelScore, State

STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class ItemScores:
    """The scores of one image or volume.

    Attributes:
        name: the item's name.
        case: the case it belongs to.
        scores: label name to score, without the background; the same names in the same order in every item.
    """

    name: str
    case: str
    scores: dict[str, LabelScore]


def summarise(items: Sequence[ItemScores], protocol: str, seed: int = 0, resamples: int = 2000) -> dict[str, Any]:
    """Return means, bootstrap intervals and counts as a document for JSON, with None wherever a number is undefined.

    ``dice_mean`` is the mean over labels of each label's mean over the items in which it is counted. The intervals
    are 95 % bootstrap percentile intervals (Efron and Tibshirani, 1993, chapter 13) that draw whole cases, because
    images of one patient resemble each other; a label counted in fewer than two cases has none. With few cases such
    an interval is too narrow: below about ten, read it as a lower bound of the uncertainty.

    Args:
        items: all with the same labels; none where no case was held out, which leaves every number undefined.
        protocol: the protocol they were scored by, repeated in the result.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        ``metric_protocol``, ``dice_mean``, ``dice_mean_interval``, ``dice``, ``dice_interval``, ``hd95_mean``,
        ``hd95``, ``hd95_unit`` (``mm``, ``px``, or ``mixed``: then no HD95 is averaged), ``counts``,
        ``case_count`` and ``cases``, one entry per item.
    """
    labels = list(items[0].scores) if items else []
    assert all(list(item.scores) == labels for item in items), "items with different labels"
    dice = {label: _mean([item.scores[label].dice for item in items]) for label in labels}
    units = {score.hd95_unit for item in items for score in item.scores.values()}
    hd95 = {label: _mean([item.scores[label].hd95 for item in items]) if len(units) == 1 else None for label in labels}
    mean_interval, intervals = _bootstrap(items, labels, seed, resamples)
    return {
        "metric_protocol": protocol,
        "dice_mean": _mean(list(dice.values())),
        "dice_mean_interval": mean_interval,
        "dice": dice,
        "dice_interval": dict(zip(labels, intervals, strict=True)),
        "hd95_mean": _mean(list(hd95.values())),
        "hd95": hd95,
        "hd95_unit": "mixed" if len(units) > 1 else next(iter(units), "px"),
        "counts": {label: _counts([item.scores[label].state for item in items]) for label in labels},
        "case_count": len({item.case for item in items}),
        "cases": [_case_entry(item) for item in items],
    }


def _case_entry(item: ItemScores) -> dict[str, Any]:
    return {
        "name": item.name,
        "case": item.case,
        "dice": {label: score.dice for label, score in item.scores.items()},
        "hd95": {label: score.hd95 for label, score in item.scores.items()},
        "hd95_unit": next(score.hd95_unit for score in item.scores.values()),
        "state": {label: score.state for label, score in item.scores.items()},
        "dice_mean": _mean([score.dice for score in item.scores.values()]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    counted = [value for value in values if value is not None]
    return math.fsum(counted) / len(counted) if counted else None


def _counts(states: Sequence[State]) -> dict[str, int]:
    found = Counter(states)
    return {state: found[state] for state in STATES}


def _bootstrap(
    items: Sequence[ItemScores], labels: Sequence[str], seed: int, resamples: int
) -> tuple[list[float] | None, list[list[float] | None]]:
    """Return the interval of the mean Dice and one per label; cases are drawn with replacement."""
    cases = sorted({item.case for item in items})
    if len(cases) < 2:
        return None, [None] * len(labels)
    sums = np.zeros((len(cases), len(labels)))
    counts = np.zeros((len(cases), len(labels)))
    for item in items:
        row = cases.index(item.case)
        for column, label in enumerate(labels):
            score = item.scores[label].dice
            if score is not None:
                sums[row, column] += score
                counts[row, column] += 1
    # How often each case is drawn is all that a resample needs: its means are two matrix products.
    draws = np.random.default_rng(seed).multinomial(len(cases), np.full(len(cases), 1 / len(cases)), size=resamples)
    drawn_counts = draws @ counts
    means = np.divide(draws @ sums, drawn_counts, out=np.full(drawn_counts.shape, np.nan), where=drawn_counts > 0)
    informative = (counts > 0).sum(axis=0) >= 2
    per_label = [_interval(means[:, column]) if informative[column] else None for column in range(len(labels))]
    present = ~np.isnan(means)
    totals = np.where(present, means, 0).sum(axis=1)
    overall = np.divide(totals, present.sum(axis=1), out=np.full(resamples, np.nan), where=present.any(axis=1))
    return (_interval(overall) if (counts > 0).any(axis=1).sum() >= 2 else None), per_label


def _interval(means: npt.NDArray[np.float64]) -> list[float]:
    low, high = np.percentile(means[~np.isnan(means)], [2.5, 97.5])
    return [float(low), float(high)]


def rows(result: Mapping[str, Any]) -> list[tuple[str, str, str, str, str, str, str]]:
    """Return the cells of the result's table: a line per label, and the mean last; ``-`` where nothing is defined."""
    lines = []
    for label, value in result["dice"].items():
        counts = result["counts"][label]
        counted = sum(item["dice"][label] is not None for item in result["cases"])
        lines.append(
            (
                label,
                dice_text(value),
                interval_text(result["dice_interval"][label]),
                hd95_text(result["hd95"][label]),
                str(counted),
                str(counts["only_truth"]),
                str(counts["only_prediction"]),
            )
        )
    mean = ("mean", dice_text(result["dice_mean"]), interval_text(result["dice_mean_interval"]))
    return [*lines, (*mean, hd95_text(result["hd95_mean"]), "", "", "")]


def headings(result: Mapping[str, Any]) -> tuple[str, str, str, str, str, str, str]:
    """Return the headings that belong to ``rows``."""
    return ("label", "Dice", "95 % CI", f"HD95 [{result['hd95_unit']}]", "n", "missed", "false positive")


def title(result: Mapping[str, Any]) -> str:
    """Return the table's title, which names the protocol and how much was scored."""
    items, cases = len(result["cases"]), result["case_count"]
    scored = f"{items} image{'s' * (items != 1)} of {cases} case{'s' * (cases != 1)}"
    return f"Segmentation scores, protocol {result['metric_protocol']}, {scored}"


def table(result: Mapping[str, Any]) -> Table:
    """Return the table for a terminal."""
    grid = Table(title=Text(title(result)))
    for index, heading in enumerate(headings(result)):
        grid.add_column(Text(heading), justify="right" if index else "left", overflow="fold", no_wrap=index == 2)
    cells = rows(result)
    for index, row in enumerate(cells):
        # Text, because a label name may look like rich's markup.
        grid.add_row(*(Text(cell) for cell in row), end_section=index == len(cells) - 2)
    return grid


def markdown_table(result: Mapping[str, Any]) -> str:
    """Return the same table in Markdown, with its title as the first line."""
    lines = [title(result), ""]
    for index, row in enumerate([headings(result), *rows(result)]):
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |")
        if index == 0:
            lines.append("|---|" + "---:|" * (len(row) - 1))
    return "\n".join(lines) + "\n"


def dice_text(value: float | None) -> str:
    """Return a Dice score for reading, with three decimals."""
    return "-" if value is None else f"{value:.3f}"


def interval_text(interval: Sequence[float] | None) -> str:
    """Return an interval of Dice scores for reading."""
    return "-" if interval is None else f"{interval[0]:.3f}–{interval[1]:.3f}"


def hd95_text(value: float | None) -> str:
    """Return a distance for reading, with two decimals."""
    return "-" if value is None else f"{value:.2f}"
