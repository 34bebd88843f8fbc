"""Choosing cases that stand for all: against brute force, and what is asked of it with labelled cases and weights."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial.distance import cdist

from medsaga.suggest.coverage import Choice, choose, distances_between, standardised

Points = npt.NDArray[np.float64]


def cloud(n: int, d: int = 3, seed: int = 0) -> Points:
    """Random points."""
    return np.random.default_rng(seed).normal(size=(n, d))


def chosen(points: Points, count: int, weights: Points | None = None, labelled: tuple[int, ...] = ()) -> list[Choice]:
    """Choose, by default with equal weights and nothing labelled."""
    mask = np.zeros(len(points), bool)
    mask[list(labelled)] = True
    return choose(points, weights=np.ones(len(points)) if weights is None else weights, labelled=mask, count=count)


def rows(choices: list[Choice]) -> list[int]:
    """The rows of the choices."""
    return [choice.index for choice in choices]


def cost(points: Points, centres: list[int], weights: Points) -> float:
    """Sum of weight times distance to the nearest centre."""
    return float(weights @ cdist(points, points[centres]).min(axis=1))


@pytest.mark.parametrize("seed", range(5))
def test_each_choice_is_the_best_next_one(seed: int) -> None:
    points, random = cloud(25, seed=seed), np.random.default_rng(seed)
    weights = random.uniform(0.1, 1, len(points))
    labelled = [3, 11] if seed % 2 else []
    weights[labelled] = 0
    made = list(labelled)
    for index in rows(chosen(points, 5, weights, tuple(labelled))):
        open_ones = [row for row in range(len(points)) if row not in made]
        assert index == min(open_ones, key=lambda row: cost(points, [*made, row], weights))
        made.append(index)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_near_the_best_of_all_subsets(seed: int) -> None:
    """Nemhauser, Wolsey and Fisher (1978): greedy gains at least 1 - 1/e of what the best subset gains."""
    points, ones = cloud(14, seed=seed), np.ones(14)
    nothing = 14 * cdist(points, points).max()
    best = min(cost(points, list(subset), ones) for subset in itertools.combinations(range(14), 3))
    ours = cost(points, rows(chosen(points, 3)), ones)
    assert nothing - ours >= (1 - np.exp(-1)) * (nothing - best)
    assert ours <= np.mean([cost(points, list(subset), ones) for subset in itertools.combinations(range(14), 3)])


def test_one_case_of_each_group() -> None:
    centres = np.array([[0.0, 0], [20, 0], [0, 20]])
    sizes = (12, 6, 3)
    points = np.concatenate([c + 0.5 * cloud(n, 2, seed=n) for c, n in zip(centres, sizes, strict=True)])
    group = np.repeat([0, 1, 2], sizes)
    choices = chosen(points, 3)
    assert sorted(group[rows(choices)]) == [0, 1, 2]
    assert {group[choice.index]: choice.stands_for for choice in choices} == {0: 12, 1: 6, 2: 3}


def test_a_group_comes_before_an_outlier_that_is_further_away() -> None:
    """k-centre would take the outlier second, and so would squared distances."""
    points = np.concatenate([0.3 * cloud(12, 2), [0, 3.0] + 0.3 * cloud(10, 2, seed=1), [[15.0, 0]]])
    first, second = rows(chosen(points, 2))
    assert {first < 12, second < 12} == {True, False}
    assert 22 not in (first, second)
    assert rows(chosen(points, 3))[2] == 22


def test_choices_are_nested_and_do_not_depend_on_the_order_of_the_cases() -> None:
    points = cloud(40)
    assert rows(chosen(points, 4)) == rows(chosen(points, 9))[:4]
    shuffled = np.random.default_rng(1).permutation(40)
    assert [int(shuffled[row]) for row in rows(chosen(points[shuffled], 6))] == rows(chosen(points, 6))


def test_what_lies_near_labelled_cases_waits() -> None:
    points = np.concatenate([0.3 * cloud(20, 2), [8.0, 0] + 0.3 * cloud(5, 2, seed=1)])
    assert rows(chosen(points, 1))[0] < 20
    choice = chosen(points, 1, labelled=(0, 1))[0]
    assert choice.index >= 20
    assert choice.stands_for == 5
    assert choice.distance == pytest.approx(cdist(points[[choice.index]], points[:2]).min())


def test_uncertain_cases_draw_the_choice() -> None:
    points = np.concatenate([0.3 * cloud(20, 2), [8.0, 0] + 0.3 * cloud(5, 2, seed=1)])
    weights = np.where(np.arange(25) < 20, 0.01, 0.9)
    assert rows(chosen(points, 1, weights))[0] >= 20
    assert rows(chosen(points, 3, np.zeros(25))) == rows(chosen(points, 3))


def test_distances_and_shares() -> None:
    points = cloud(30)
    choices = chosen(points, 6)
    assert choices[0].distance is None
    for number, choice in enumerate(choices[1:], start=1):
        earlier = points[rows(choices)[:number]]
        assert choice.distance == pytest.approx(cdist(points[[choice.index]], earlier).min())
    nearest = cdist(points, points[rows(choices)]).argmin(axis=1)
    assert [choice.stands_for for choice in choices] == np.bincount(nearest, minlength=6).tolist()


def test_equal_cases_are_each_chosen_once() -> None:
    assert rows(chosen(np.zeros((4, 2)), 4)) == [0, 1, 2, 3]


def test_standardised_points_are_two_apart_in_the_square_on_average() -> None:
    points = cloud(400, 5) * [1, 10, 100, 1000, 1] + 7
    points[:, 4] = 3.0
    made = standardised(points)
    assert made.mean(axis=0) == pytest.approx(np.zeros(5))
    assert made[:, :4].std(axis=0) == pytest.approx(np.full(4, 5**-0.5))
    assert (made[:, 4] == 0).all()
    full = standardised(cloud(400, 5))
    pairs = distances_between(full, full)[np.triu_indices(400, 1)]
    assert (pairs**2).mean() == pytest.approx(2, rel=0.01)


def test_distances_are_those_of_scipy() -> None:
    one, other = cloud(7), cloud(9, seed=1)
    assert distances_between(one, other) == pytest.approx(cdist(one, other))
    assert np.isfinite(distances_between(one, one)).all()
