"""Dice and HD95 against brute force, against MONAI, and by hand."""

from __future__ import annotations

import math
import warnings

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.spatial.distance import cdist

from medsaga.evaluation.metrics import dice, hd95, surface_distances

Mask = npt.NDArray[np.bool_]
SPACINGS = st.floats(0.3, 6.0, allow_nan=False)


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[Mask, Mask, tuple[float, ...]]:
    """Two non-empty masks of one shape, 2-D or 3-D, and a spacing."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=8))
    first = draw(hnp.arrays(bool, shape))
    second = draw(hnp.arrays(bool, shape))
    assume(first.any() and second.any())
    return first, second, tuple(draw(SPACINGS) for _ in shape)


def brute_force_surface(mask: Mask) -> npt.NDArray[np.int64]:
    """Mask voxels of which a face neighbour is no mask voxel, or lies outside."""
    voxels = {tuple(int(i) for i in index) for index in np.argwhere(mask)}
    edge = []
    for voxel in sorted(voxels):
        neighbours = [
            (*voxel[:axis], voxel[axis] + step, *voxel[axis + 1 :]) for axis in range(mask.ndim) for step in (-1, 1)
        ]
        if any(neighbour not in voxels for neighbour in neighbours):
            edge.append(voxel)
    return np.array(edge)


@given(mask_pairs())
@settings(max_examples=60, deadline=None)
def test_hd95_equals_brute_force(pair: tuple[Mask, Mask, tuple[float, ...]]) -> None:
    first, second, spacing = pair
    apart = cdist(brute_force_surface(first) * spacing, brute_force_surface(second) * spacing)
    expected = max(np.percentile(apart.min(axis=1), 95), np.percentile(apart.min(axis=0), 95))
    assert hd95(first, second, spacing) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(mask_pairs(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_hd95_on_a_sheared_grid_equals_brute_force(pair: tuple[Mask, Mask, tuple[float, ...]], seed: int) -> None:
    first, second, spacing = pair
    steps = np.random.default_rng(seed).normal(size=(3, first.ndim))
    apart = cdist(brute_force_surface(first) @ steps.T, brute_force_surface(second) @ steps.T)
    expected = max(np.percentile(apart.min(axis=1), 95), np.percentile(apart.min(axis=0), 95))
    assert hd95(first, second, steps) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert hd95(first, second, np.diag(spacing)) == hd95(first, second, spacing)


@given(mask_pairs())
@settings(max_examples=60, deadline=None)
def test_metrics_are_symmetric_and_perfect_on_identity(pair: tuple[Mask, Mask, tuple[float, ...]]) -> None:
    first, second, spacing = pair
    assert dice(first, second) == dice(second, first)
    assert hd95(first, second, spacing) == hd95(second, first, spacing)
    assert dice(first, first) == 1.0
    assert hd95(first, first, spacing) == 0.0


@given(mask_pairs())
@settings(max_examples=60, deadline=None)
def test_dice_is_the_harmonic_mean_of_precision_and_recall(pair: tuple[Mask, Mask, tuple[float, ...]]) -> None:
    prediction, truth, _ = pair
    both = (prediction & truth).sum()
    precision, recall = both / prediction.sum(), both / truth.sum()
    assert dice(prediction, truth) == pytest.approx(
        2 * precision * recall / (precision + recall) if both else 0.0, rel=1e-12
    )


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy.*:FutureWarning")
@pytest.mark.parametrize("shape", [(60, 47), (24, 30, 11)])
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_monai(shape: tuple[int, ...], seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from monai.metrics import DiceMetric, compute_hausdorff_distance

    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.normal(size=shape), 2.0) for _ in range(2)]
    first, second = (field > np.quantile(field, 0.8) for field in fields)
    spacing = tuple(rng.uniform(0.4, 5.0, len(shape)))
    tensors = [torch.from_numpy(mask)[None, None].float() for mask in (first, second)]
    distance = compute_hausdorff_distance(
        tensors[0], tensors[1], include_background=True, percentile=95, spacing=list(spacing)
    )
    assert hd95(first, second, spacing) == pytest.approx(float(distance), rel=1e-5)
    assert dice(first, second) == pytest.approx(float(DiceMetric()(tensors[0], tensors[1])), rel=1e-6)


@pytest.mark.parametrize(("axis", "step"), [(0, 3), (1, 2), (2, 4)])
def test_a_moved_voxel_is_as_far_as_it_was_moved(axis: int, step: int) -> None:
    first, second = np.zeros((9, 9, 9), dtype=bool), np.zeros((9, 9, 9), dtype=bool)
    place = [2, 2, 2]
    first[tuple(place)] = True
    place[axis] += step
    second[tuple(place)] = True
    spacing = (0.7, 1.3, 5.0)
    assert hd95(first, second, spacing) == pytest.approx(step * spacing[axis])
    assert hd95(first, second) == step
    assert dice(first, second) == 0.0


def test_a_moved_plate_is_as_far_as_it_was_moved() -> None:
    first, second = np.zeros((20, 30), dtype=bool), np.zeros((20, 30), dtype=bool)
    first[4], second[9] = True, True
    assert hd95(first, second, (2.5, 1.0)) == pytest.approx(12.5)


def test_the_larger_direction_counts() -> None:
    """A speck far away in the prediction counts only in the direction from the prediction."""
    truth = np.zeros((40, 40), dtype=bool)
    truth[5, 5] = True
    prediction = truth.copy()
    prediction[5, 25] = True
    there, back = surface_distances(prediction, truth)
    assert sorted(there) == [0, 20]
    assert list(back) == [0]
    assert hd95(prediction, truth) == pytest.approx(19.0)
    assert hd95(truth, prediction) == pytest.approx(19.0)


def test_beyond_the_edge_is_background() -> None:
    """A mask that fills the image has its surface on the image's rim."""
    full = np.ones((7, 7), dtype=bool)
    centre = np.zeros((7, 7), dtype=bool)
    centre[3, 3] = True
    there, back = surface_distances(full, centre)
    assert len(there) == 24
    assert list(back) == [3]


@pytest.mark.parametrize("order", ["C", "F"])
def test_takes_views_of_any_memory_order(order: str) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 12, 9, 7)) > 0.7
    expected = hd95(first, second, (1, 2, 3))
    assert hd95(first.T, second.T, (3, 2, 1)) == pytest.approx(expected)
    assert hd95(np.asarray(first, order=order), second[::1], (1, 2, 3)) == expected  # type: ignore[call-overload]
    assert hd95(first[::-1], second[::-1], (1, 2, 3)) == pytest.approx(expected)


def test_undefined_where_a_mask_is_empty() -> None:
    empty, full = np.zeros((4, 4), dtype=bool), np.ones((4, 4), dtype=bool)
    assert dice(empty, full) == 0.0
    assert math.isnan(dice(empty, empty))
    for pair in [(empty, full), (full, empty), (empty, empty)]:
        assert math.isnan(hd95(*pair))


def test_shapes_and_spacing_must_fit() -> None:
    with pytest.raises(AssertionError):
        dice(np.ones((2, 2), dtype=bool), np.ones((2, 3), dtype=bool))
    with pytest.raises(AssertionError):
        hd95(np.ones((2, 2), dtype=bool), np.ones((2, 2), dtype=bool), (1.0, 1.0, 1.0))
    with pytest.raises(AssertionError):
        hd95(np.ones((2, 2), dtype=bool), np.ones((2, 2), dtype=bool), np.eye(3))
