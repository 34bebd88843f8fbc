"""What the cells of a comparison say together: means over seeds, what is missing, and paired tests over cases.

A cell is the document of one training run, ``(method, shots, seed)``; see `medsaga.compare`. Everything here but the
seconds depends on nothing but the cells' deterministic content, in whatever order they come.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Cell = Mapping[str, Any]

DONE = "done"
NOT_RUN = "not run"
FEWEST_CASES = 6
"""With fewer pairs the signed-rank test cannot fall below 0.05, whatever the differences."""
RESAMPLES = 5000
NOISE_DIGITS = 12
"""Decimals of a difference that mean something: what is smaller comes from the order of additions."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: of the seeds' values.
        interval: 95 % t-interval of the mean (Student, Biometrika 6, 1908), or None with one seed.
        seeds: how many values there are.
    """

    mean: float
    interval: tuple[float, float] | None
    seeds: int


@dataclass(frozen=True, eq=False)
class Row:
    """All seeds of one method and number of shots, in one table.

    Attributes:
        method: its name.
        shots: number of training cases.
        seeds: how many seeds the table has.
        done: how many of them were trained and tested.
        problems: what happened to the others, and to those that gave no Dice; one line each, naming the seeds.
        dice: mean over labels, cases and seeds; None where nothing was tested.
        dice_of_label: mean over cases and seeds; None where the label was never counted.
        hd95: mean over labels, cases and seeds, where it is defined.
        hd95_unit: ``mm``, ``px`` or ``mixed``, which has no mean.
        hd95_undefined: in how many of ``hd95_counted`` it is undefined because the label was missed or made up.
        hd95_counted: how often a label of an image was scored, over all seeds.
        peak_bytes: largest over the seeds.
        memory: bytes per category in the seed with that peak.
        trainable: number of trained parameters.
        projected: number of those whose gradients are projected.
        seconds_per_step: median over the seeds.
        seconds: median duration of a cell.
    """

    method: str
    shots: int
    seeds: int
    done: int
    problems: tuple[str, ...]
    dice: Estimate | None
    dice_of_label: dict[str, float | None]
    hd95: float | None
    hd95_unit: str
    hd95_undefined: int
    hd95_counted: int
    peak_bytes: int | None
    memory: dict[str, int]
    trainable: int | None
    projected: int | None
    seconds_per_step: float | None
    seconds: float | None


@dataclass(frozen=True)
class Comparison:
    """The Dice of one method minus that of another on the same cases, after training on the same number of shots.

    Attributes:
        first: a method.
        second: the method that is subtracted.
        shots: number of training cases.
        cases: how many cases both were tested on, in the same seed.
        difference: mean over the cases; None without cases.
        interval: 95 % bootstrap percentile interval over the cases; None with fewer than two.
        p: of the two-sided Wilcoxon signed-rank test (Biometrics Bulletin 1, 1945); None with too few cases.
        adjusted: p after Holm's adjustment (Scandinavian Journal of Statistics 6, 1979) over all pairs.
    """

    first: str
    second: str
    shots: int
    cases: int
    difference: float | None
    interval: tuple[float, float] | None
    p: float | None
    adjusted: float | None = None


def cells_of(cells: Iterable[Cell], table: str) -> list[Cell]:
    """Return the cells of one table, by method, shots and seed."""
    chosen = [cell for cell in cells if cell["cell"]["table"] == table]
    return sorted(chosen, key=lambda cell: (cell["cell"]["method"], cell["cell"]["shots"], cell["cell"]["seed"]))


def results(cells: Iterable[Cell]) -> list[Mapping[str, Any]]:
    """Return the results of those cells that have one."""
    return [cell["result"] for cell in cells if cell["status"] == DONE and cell["result"] is not None]


def all_shots(cells: Iterable[Cell]) -> list[int]:
    """Return the numbers of shots that occur."""
    return sorted({cell["cell"]["shots"] for cell in cells})


def present(cells: Iterable[Cell], methods: Sequence[str]) -> list[str]:
    """Return those methods that have a cell, in their given order."""
    found = {cell["cell"]["method"] for cell in cells}
    assert found <= set(methods), f"cells of {sorted(found - set(methods))}, which is no row"
    return [method for method in methods if method in found]


def rows(cells: Sequence[Cell], methods: Sequence[str], labels: Sequence[str]) -> list[Row]:
    """Summarise the cells of one table over their seeds.

    Every method that has a cell gets a row for every number of shots in the table, so that what was not run shows.

    Args:
        cells: of one table.
        methods: in the order of the rows.
        labels: without the background.

    Returns:
        by shots, then in the order of ``methods``.
    """
    seeds = sorted({cell["cell"]["seed"] for cell in cells})
    by_place: dict[tuple[str, int], dict[int, Cell]] = defaultdict(dict)
    for cell in cells:
        place = cell["cell"]
        by_place[place["method"], place["shots"]][place["seed"]] = cell
    return [
        _row(method, shots, by_place[method, shots], seeds, labels)
        for shots in all_shots(cells)
        for method in present(cells, methods)
    ]


def _row(method: str, shots: int, of_seed: Mapping[int, Cell], seeds: Sequence[int], labels: Sequence[str]) -> Row:
    found = results(of_seed[seed] for seed in sorted(of_seed))
    undefined, scored = hd95_gaps(found, labels)
    units = {result["hd95_unit"] for result in found if result["cases"]}
    largest = max(found, key=lambda result: result.get("peak_memory_bytes") or 0, default={})
    return Row(
        method=method,
        shots=shots,
        seeds=len(seeds),
        done=len(found),
        problems=_problems(of_seed, seeds),
        dice=over_seeds(_values(result["dice_mean"] for result in found)),
        dice_of_label={label: _mean(result["dice"].get(label) for result in found) for label in labels},
        hd95=_mean(result["hd95_mean"] for result in found) if len(units) == 1 else None,
        hd95_unit="mixed" if len(units) > 1 else next(iter(units), ""),
        hd95_undefined=undefined,
        hd95_counted=scored,
        peak_bytes=largest.get("peak_memory_bytes"),
        memory=dict(largest.get("memory_breakdown") or {}),
        trainable=max(_values(result.get("trainable_parameters") for result in found), default=None),
        projected=max(_values(result.get("projected_parameters") for result in found), default=None),
        seconds_per_step=_median(result.get("seconds_per_step") for result in found),
        seconds=_median(cell.get("seconds") for cell in of_seed.values() if cell["status"] == DONE),
    )


def hd95_gaps(found: Iterable[Mapping[str, Any]], labels: Sequence[str]) -> tuple[int, int]:
    """Return how many of the scored labels of single images have no HD95, and how many were scored."""
    scored = [
        item["hd95"].get(label)
        for result in found
        for item in result["cases"]
        for label in labels
        if item["dice"].get(label) is not None
    ]
    return scored.count(None), len(scored)


def _problems(of_seed: Mapping[int, Cell], seeds: Sequence[int]) -> tuple[str, ...]:
    """Say in one line each what kept seeds out of the means; seeds with the same fate and message share a line."""
    fates: dict[str, list[int]] = defaultdict(list)
    for seed in seeds:
        cell = of_seed.get(seed)
        if cell is None:
            fates[NOT_RUN].append(seed)
        elif not results([cell]):
            message = " ".join(str(cell.get("message") or "").split())
            fates[f"{cell['status']}: {message}" if message else cell["status"]].append(seed)
        elif cell["result"]["dice_mean"] is None:
            fates["trained, but nothing was scored"].append(seed)
    lines = []
    for fate, those in fates.items():
        status, colon, message = fate.partition(": ")
        named = f"seed{'s' * (len(those) != 1)} {', '.join(map(str, those))}"
        lines.append(f"{len(those)} {status} ({named}){colon}{message}")
    return tuple(lines)


def over_seeds(values: Sequence[float]) -> Estimate | None:
    """Return the mean and its 95 % t-interval, or None without values."""
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Estimate(mean, None, 1)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(mean, (mean - half, mean + half), len(values))


def compare_methods(cells: Sequence[Cell], methods: Sequence[str], shots: int) -> list[Comparison]:
    """Compare every two methods on the cases they share, and adjust the p values over all these pairs.

    The unit is the test case: its Dice is averaged over its images and labels, then over the seeds in which both
    methods were tested on it. What one method could not finish is left out of the other's average too.

    Args:
        cells: of one table.
        methods: each is compared with all that follow.
        shots: number of training cases.
    """
    scores = {method: case_scores(cells, method, shots) for method in present(cells, methods)}
    pairs = [_compare(first, second, shots, scores) for first, second in combinations(scores, 2)]
    tested = [index for index, pair in enumerate(pairs) if pair.p is not None]
    adjusted = holm([pair.p for pair in pairs if pair.p is not None])
    for index, p in zip(tested, adjusted, strict=True):
        pairs[index] = replace(pairs[index], adjusted=p)
    return pairs


def case_scores(cells: Sequence[Cell], method: str, shots: int) -> dict[tuple[int, str], float | None]:
    """Return the Dice of each case in each seed, averaged over its images: ``(seed, case)`` to Dice.

    It is None where nothing is to be found in a case, and the method has found nothing.
    """
    images: dict[tuple[int, str], list[float]] = defaultdict(list)
    for cell in cells:
        place = cell["cell"]
        if (place["method"], place["shots"]) != (method, shots):
            continue
        for item in (item for result in results([cell]) for item in result["cases"]):
            images[place["seed"], item["case"]] += _values([item["dice_mean"]])
    return {key: _mean(values) for key, values in images.items()}


def _compare(
    first: str, second: str, shots: int, scores: Mapping[str, Mapping[tuple[int, str], float | None]]
) -> Comparison:
    of_case: dict[str, list[float]] = defaultdict(list)
    for key in sorted(scores[first].keys() & scores[second].keys()):
        one, other = (scores[method][key] for method in (first, second))
        if one is None and other is None:
            continue
        # Nothing, rightly, is as good as it can be where the other has invented something (Maier-Hein et al.,
        # Metrics reloaded, doi 10.1038/s41592-023-02151-z); without it such cases would not count at all.
        of_case[key[1]].append((1.0 if one is None else one) - (1.0 if other is None else other))
    differences = np.round([np.mean(of_case[case]) for case in sorted(of_case)], NOISE_DIGITS)
    return Comparison(
        first=first,
        second=second,
        shots=shots,
        cases=len(differences),
        difference=float(differences.mean()) if len(differences) else None,
        interval=bootstrap_interval(differences),
        p=signed_rank_p(differences),
    )


def bootstrap_interval(values: npt.NDArray[np.float64], seed: int = 0) -> tuple[float, float] | None:
    """Return the 95 % bootstrap percentile interval of the mean (Efron and Tibshirani, 1993, chapter 13)."""
    if len(values) < 2:
        return None
    draws = np.random.default_rng(seed).multinomial(len(values), np.full(len(values), 1 / len(values)), RESAMPLES)
    low, high = np.percentile(draws @ values / len(values), [2.5, 97.5])
    return float(low), float(high)


def signed_rank_p(differences: npt.NDArray[np.float64]) -> float | None:
    """Return the two-sided p of Wilcoxon's signed-rank test, or None with fewer than `FEWEST_CASES` differences.

    Differences of zero say nothing of the direction: they are left out, as Wilcoxon did.
    """
    if len(differences) < FEWEST_CASES:
        return None
    unequal = differences[differences != 0]
    return float(stats.wilcoxon(unequal).pvalue) if len(unequal) else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Return p values after Holm's step-down adjustment, in the given order."""
    adjusted = [0.0] * len(p)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda index: p[index])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = highest
    return adjusted


def smallest_adjusted_p(pairs: Sequence[Comparison]) -> float | None:
    """Return what the adjusted p of the clearest pair cannot fall below, with these numbers of cases."""
    tested = [pair for pair in pairs if pair.p is not None]
    return min(1.0, len(tested) * 2.0 / 2.0 ** max(pair.cases for pair in tested)) if tested else None


def _values(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _mean(values: Iterable[float | None]) -> float | None:
    known = _values(values)
    return math.fsum(known) / len(known) if known else None


def _median(values: Iterable[float | None]) -> float | None:
    known = _values(values)
    return float(median(known)) if known else None
