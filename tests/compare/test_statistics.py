"""Means over seeds and paired tests, against scipy and numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from medsaga.compare.statistics import (
    Comparison,
    bootstrap_interval,
    case_scores,
    cells_of,
    compare_methods,
    holm,
    over_seeds,
    rows,
    signed_rank_p,
    smallest_adjusted_p,
)

MIB = 2**20


def item(name: str, case: str, dice: float | None, hd95: float | None = 2.0) -> dict[str, Any]:
    return {"name": name, "case": case, "dice": {"disc": dice}, "hd95": {"disc": hd95}, "dice_mean": dice}


def cell(method: str, shots: int, seed: int, items: list[dict[str, Any]], **result: Any) -> dict[str, Any]:
    counted = [one["dice_mean"] for one in items if one["dice_mean"] is not None]
    mean = sum(counted) / len(counted) if counted else None
    document = {"dice_mean": mean, "dice": {"disc": mean}, "hd95": {"disc": 2.0}, "hd95_mean": 2.0, "hd95_unit": "mm"}
    return {
        "cell": {"table": "equal", "method": method, "shots": shots, "seed": seed},
        "status": "done",
        "message": None,
        "settings": {},
        "result": {**document, "cases": items, "peak_memory_bytes": 100 * MIB, **result},
        "seconds": 10.0,
    }


def lost(method: str, shots: int, seed: int, status: str, message: str | None = None) -> dict[str, Any]:
    return {**cell(method, shots, seed, []), "status": status, "message": message, "result": None}


def one_item_per_case(dices: list[float]) -> list[dict[str, Any]]:
    return [item(f"i{number}", f"c{number}", dice) for number, dice in enumerate(dices)]


def test_the_interval_over_seeds_is_students() -> None:
    values = [0.81, 0.84, 0.78, 0.80]
    estimate = over_seeds(values)
    assert estimate is not None
    assert estimate.interval is not None
    expected = stats.ttest_1samp(values, 0.8).confidence_interval(0.95)
    np.testing.assert_allclose(estimate.interval, (expected.low, expected.high), rtol=1e-12)
    # By hand: the mean of 0 and 1 is 0.5, its standard error 0.5, and t for one degree of freedom 12.706.
    two = over_seeds([0.0, 1.0])
    assert two is not None
    assert two.interval == pytest.approx((0.5 - 6.3531, 0.5 + 6.3531), abs=1e-4)


def test_one_seed_has_no_interval_and_none_no_mean() -> None:
    single = over_seeds([0.7])
    assert single is not None
    assert (single.mean, single.interval, single.seeds) == (0.7, None, 1)
    assert over_seeds([]) is None


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(p: list[float]) -> None:
    adjusted = holm(p)
    for before, after in zip(p, adjusted, strict=True):
        assert before <= after <= min(1.0, len(p) * before) + 1e-12
    ranked = [adjusted[index] for index in np.argsort(p, kind="stable")]
    assert ranked == sorted(ranked)


def test_the_signed_rank_test_is_scipys() -> None:
    differences = np.array([0.03, -0.01, 0.02, 0.05, 0.04, 0.06, 0.011])
    assert signed_rank_p(differences) == pytest.approx(stats.wilcoxon(differences).pvalue)
    # All of six positive: 2 of the 64 equally likely signs are as extreme.
    assert signed_rank_p(np.arange(1.0, 7.0)) == pytest.approx(2 / 64)
    assert signed_rank_p(np.arange(1.0, 6.0)) is None
    assert signed_rank_p(np.zeros(8)) == 1.0
    with_zeros = np.array([0.0, 0.0, *differences])
    assert signed_rank_p(with_zeros) == pytest.approx(stats.wilcoxon(differences).pvalue)


def test_the_bootstrap_agrees_with_scipys() -> None:
    values = np.random.default_rng(3).normal(0.02, 0.05, 30)
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    found = bootstrap_interval(values)
    assert found is not None
    assert found == pytest.approx((expected.low, expected.high), abs=0.0015)
    assert bootstrap_interval(values) == found
    assert bootstrap_interval(values[:1]) is None


def test_a_case_counts_once_however_many_images_it_has() -> None:
    first = cell("a", 4, 0, [item("x1", "x", 0.8), item("x2", "x", 0.6), item("x3", "x", None), item("y1", "y", 0.5)])
    assert case_scores([first], "a", 4) == {(0, "x"): pytest.approx(0.7), (0, "y"): 0.5}
    second = cell("b", 4, 0, [item("x1", "x", 0.5), item("y1", "y", 0.9)])
    (pair,) = compare_methods([first, second], ["a", "b"], 4)
    assert pair.cases == 2
    assert pair.difference == pytest.approx(((0.7 - 0.5) + (0.5 - 0.9)) / 2)


def test_who_invents_something_where_nothing_is_does_not_get_away_with_it() -> None:
    """Healthy cases have no Dice for who rightly finds nothing in them: they would drop out where it matters."""
    healthy = [f"healthy{n}" for n in range(8)]
    found = [item(f"ill{n}", f"ill{n}", 0.8) for n in range(8)]
    cells = [
        cell("a", 4, 0, [*found, *(item(name, name, None) for name in healthy)]),
        cell("b", 4, 0, [*found, *(item(name, name, 0.0) for name in healthy)]),
        cell("c", 4, 0, [*found, *(item(name, name, None) for name in healthy)]),
    ]
    pairs = {(pair.first, pair.second): pair for pair in compare_methods(cells, ["a", "b", "c"], 4)}
    assert (pairs["a", "b"].cases, pairs["a", "b"].difference) == (16, 0.5)
    assert pairs["a", "b"].p == pytest.approx(stats.wilcoxon(np.ones(8)).pvalue)
    assert (pairs["b", "c"].cases, pairs["b", "c"].difference) == (16, -0.5)
    assert (pairs["a", "c"].cases, pairs["a", "c"].difference) == (8, 0.0)


def test_only_seeds_that_both_methods_finished_are_compared() -> None:
    """A hard seed that ran out of memory for one method must not count against the other."""
    cells = [
        cell("a", 4, 0, one_item_per_case([0.8, 0.7])),
        cell("a", 4, 1, one_item_per_case([0.2, 0.1])),
        cell("b", 4, 0, one_item_per_case([0.7, 0.7])),
        lost("b", 4, 1, "out of memory"),
    ]
    (pair,) = compare_methods(cells, ["a", "b"], 4)
    assert pair.difference == pytest.approx(0.05)
    assert pair.cases == 2


def test_pairs_are_adjusted_together_and_other_shots_are_apart() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.5, 0.7, 10)
    dices = {"a": base + 0.1, "b": base + rng.normal(0, 0.05, 10), "c": base}
    cells = [cell(method, 1, 0, one_item_per_case(list(values))) for method, values in dices.items()]
    cells += [cell(method, 16, 0, one_item_per_case([0.9] * 3)) for method in dices]
    pairs = compare_methods(cells, ["a", "b", "c"], 1)
    assert [(pair.first, pair.second) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    expected = holm([float(stats.wilcoxon(dices[pair.first] - dices[pair.second]).pvalue) for pair in pairs])
    assert [pair.adjusted for pair in pairs] == pytest.approx(expected)
    assert all(pair.p is None and pair.adjusted is None for pair in compare_methods(cells, ["a", "b", "c"], 16))


def test_equal_methods_differ_by_nothing_whatever_the_rounding() -> None:
    cells = [cell(m, 1, s, one_item_per_case([0.1 * (k + 1) / 3 for k in range(8)])) for m in "ab" for s in range(3)]
    (pair,) = compare_methods(cells, ["a", "b"], 1)
    assert (pair.difference, pair.interval, pair.p) == (0.0, (0.0, 0.0), 1.0)


def test_no_common_case() -> None:
    cells = [cell("a", 1, 0, [item("x", "x", 0.5)]), lost("b", 1, 0, "failed")]
    (pair,) = compare_methods(cells, ["a", "b"], 1)
    assert pair == Comparison("a", "b", 1, 0, None, None, None)
    assert smallest_adjusted_p([pair]) is None


def test_what_few_cases_can_show_at_best() -> None:
    cells = [cell(m, 1, 0, one_item_per_case([v + k / 100 for k in range(6)])) for m, v in (("a", 0.5), ("b", 0.3))]
    assert smallest_adjusted_p(compare_methods(cells, ["a", "b"], 1)) == pytest.approx(2 / 64)


def test_rows_name_every_cell_that_is_not_in_the_mean() -> None:
    cells = [
        cell("a", 4, 0, [item("x", "x", 0.8)], peak_memory_bytes=50 * MIB, memory_breakdown={"weights": 50 * MIB}),
        cell("a", 4, 1, [item("x", "x", 0.6)], peak_memory_bytes=90 * MIB, memory_breakdown={"weights": 90 * MIB}),
        lost("a", 4, 2, "out of memory", "needed\n9 GiB: too much"),
        cell("b", 4, 0, [item("x", "x", 0.5)]),
        lost("b", 4, 1, "failed"),
        cell("a", 1, 0, [item("x", "x", None)]),
    ]
    by_place = {(row.method, row.shots): row for row in rows(cells, ["b", "a"], ["disc"])}
    assert list(by_place) == [("b", 1), ("a", 1), ("b", 4), ("a", 4)]
    assert by_place["a", 4].problems == ("1 out of memory (seed 2): needed 9 GiB: too much",)
    assert by_place["a", 4].dice == over_seeds([0.8, 0.6])
    assert (by_place["a", 4].done, by_place["a", 4].seeds) == (2, 3)
    assert (by_place["a", 4].peak_bytes, by_place["a", 4].memory) == (90 * MIB, {"weights": 90 * MIB})
    assert by_place["b", 4].problems == ("1 failed (seed 1)", "1 not run (seed 2)")
    assert by_place["b", 1].problems == ("3 not run (seeds 0, 1, 2)",)
    assert by_place["a", 1].problems[0] == "1 trained, but nothing was scored (seed 0)"
    assert by_place["a", 1].dice is None


def test_undefined_distances_are_counted_over_the_labels_that_were_scored() -> None:
    items = [item("x", "x", 0.8, 3.0), item("y", "y", 0.0, None), item("z", "z", None, None)]
    (row,) = rows([cell("a", 1, 0, items)], ["a"], ["disc"])
    assert (row.hd95_undefined, row.hd95_counted) == (1, 2)


def test_distances_of_different_units_are_not_averaged() -> None:
    one = [item("x", "x", 0.8)]
    (row,) = rows([cell("a", 1, 0, one), cell("a", 1, 1, one, hd95_unit="px")], ["a"], ["disc"])
    assert (row.hd95, row.hd95_unit) == (None, "mixed")


def test_tables_are_not_mixed_and_the_order_of_the_cells_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    cells = [cell(m, 1, s, one_item_per_case(list(rng.uniform(0, 1, 9)))) for m in "ab" for s in range(3)]
    other = cell("a", 1, 0, one_item_per_case([0.0] * 9))
    other["cell"]["table"] = "published"
    forth, back = (cells_of(given_cells, "equal") for given_cells in ([*cells, other], [other, *reversed(cells)]))
    assert forth == back
    assert len(forth) == 6
    assert compare_methods(forth, ["a", "b"], 1) == compare_methods(back, ["a", "b"], 1)
