"""Sums over processes that begin during the backward pass: the same bits, one order, and a way out of it."""

from __future__ import annotations

from pathlib import Path

import overlap_work
import pytest
import torch
from overlap_work import OUT, RANK, SIDE
from processes import together

pytestmark = pytest.mark.xdist_group("processes")

WHOLE, LOW_RANK, FULL = (OUT, SIDE), (SIDE, RANK), (SIDE, SIDE)


@pytest.mark.parametrize(
    ("refresh", "narrow", "steps", "early"),
    [
        ("sketch", None, 1, [WHOLE, *[LOW_RANK] * 3, "complete"]),
        pytest.param("sketch", torch.bfloat16, 2, [WHOLE, *[LOW_RANK] * 3, "complete"], id="with sketches, bf16"),
        # Before the first update it is not known what will arrive.
        pytest.param("sketch", None, 0, ["complete"], marks=pytest.mark.exhaustive),
        pytest.param("exact", None, 3, [WHOLE, *[FULL] * 3, "complete"], marks=pytest.mark.exhaustive),
    ],
)
def test_sums_begin_with_the_last_layer_during_the_pass_and_are_the_same_bits(
    tmp_path: Path, refresh: str, narrow: torch.dtype | None, steps: int, early: list[object]
) -> None:
    for each in together(2, tmp_path, overlap_work.both_ways, refresh, narrow, steps):
        assert each == (True, early)


@pytest.mark.parametrize("layer", [1, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_memory_that_runs_out_in_between_leaves_no_process_waiting(tmp_path: Path, layer: int) -> None:
    first, second = together(2, tmp_path, overlap_work.short_of_memory, layer)
    expected = {"begun": 4, "loss": 3.0, "same": True}
    assert first == {"heard": "elsewhere", **expected}
    assert second == {"heard": True, **expected}
