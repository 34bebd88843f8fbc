"""The learning rate over a run."""

from __future__ import annotations

import itertools

import pytest

from medsaga.training.schedule import learning_rate_factor


def test_rises_linearly_then_falls_to_nearly_nothing() -> None:
    factors = [learning_rate_factor(step, steps=100, warmup=10) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert factors[10] == 1.0
    assert all(earlier > later for earlier, later in itertools.pairwise(factors[10:]))
    assert 0 < factors[-1] < 0.02


def test_polynomial_of_samed() -> None:
    assert learning_rate_factor(55, steps=100, warmup=10) == pytest.approx((1 - 45 / 90) ** 0.9)


@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_every_step_of_the_shortest_runs_moves(warmup: int) -> None:
    assert all(0 < learning_rate_factor(step, steps=5, warmup=warmup) <= 1 for step in range(5))
