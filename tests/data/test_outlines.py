"""Lengths of outlines: against a count voxel by voxel."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from medsaga.data import types
from medsaga.data.outlines import outlines_of
from medsaga.data.types import Labels


def counted(labels: Labels) -> dict[int, tuple[int, ...]]:
    """Count by looking at every voxel and its next one."""
    along: list[Counter[int]] = [Counter() for _ in labels.shape]
    for place in np.ndindex(labels.shape):
        for axis, counts in enumerate(along):
            after = tuple(index + (n == axis) for n, index in enumerate(place))
            if after[axis] < labels.shape[axis] and labels[place] != labels[after]:
                counts[int(labels[place])] += 1
                counts[int(labels[after])] += 1
    return {value: tuple(counts[value] for counts in along) for value in sorted(set().union(*along))}


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=3, max_side=5), elements=st.integers(0, 3)), st.booleans())
def test_every_pair_of_neighbours_counts_for_both(labels: Labels, turned: bool) -> None:
    stored = np.asfortranarray(labels) if turned else labels
    assert outlines_of(stored) == counted(labels)


def test_a_large_label_map_is_counted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (7, 6, 5)).astype(np.uint8)
    monkeypatch.setattr(types, "_PIECE", 31)
    assert outlines_of(labels) == counted(labels)


def test_a_square_has_four_sides_and_the_border_is_no_outline() -> None:
    labels = np.zeros((20, 30), np.uint8)
    labels[4:9, 6:16] = 2
    assert outlines_of(labels) == {0: (20, 10), 2: (20, 10)}
    labels[:, :16] = 2
    assert outlines_of(labels) == {0: (0, 20), 2: (0, 20)}
    assert outlines_of(np.ones((3, 3), np.uint8)) == {}
