"""Which sets of parameters of a large test run each time, and which only where everything is run."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

import pytest


def spread(*axes: Collection[Any]) -> list[Any]:
    """Return all combinations of some values for ``parametrize``; `exhaustive` but for a few that hold each value.

    The few run along the diagonal: each value of each axis is in one of them at least.
    """
    values = [list(axis) for axis in axes]
    few = {tuple(n % len(axis) for axis in values) for n in range(max(map(len, values)))}
    return [
        _parameters([axis[n] for axis, n in zip(values, place, strict=True)], place not in few)
        for place in itertools.product(*(range(len(axis)) for axis in values))
    ]


def _parameters(values: list[Any], is_exhaustive: bool) -> Any:
    name = "-".join(str(getattr(value, "__name__", value)) for value in values)
    return pytest.param(*values, id=name, marks=[pytest.mark.exhaustive] if is_exhaustive else [])
