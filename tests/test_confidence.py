"""The confidence of a model in its segmentations, against Dice of masks drawn from its probabilities."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsaga.prediction.confidence import Confidence, confidence, look_first


def binary(likely: np.ndarray) -> np.ndarray:
    """Return ``(2, *shape)`` float32 from the probabilities of the one class."""
    return np.stack([1 - likely, likely]).astype(np.float32)


def blob(softness: float, size: int = 48, radius: float = 14.0) -> np.ndarray:
    """Return the probabilities of a disc with a blurred edge, ``(size, size)``."""
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    return 1 / (1 + np.exp((np.hypot(rows, columns) - radius) / softness))


def dice(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the Dice of a mask with each of many, along the last axis; 1 where both are empty."""
    total = predicted.sum(-1) + truth.sum(-1)
    return np.where(total == 0, 1.0, 2 * (predicted & truth).sum(-1) / np.maximum(total, 1))


@pytest.mark.parametrize("softness", [0.2, 1.0, 3.0])
def test_it_is_the_mean_dice_of_masks_drawn_from_the_probabilities(softness: float) -> None:
    likely = blob(softness).ravel().astype(np.float32)
    draws = np.random.default_rng(0).random((2000, likely.size)) < likely
    found = dice(likely > 0.5, draws)
    # Four standard errors, and less than 1 / n of what the score and the expectation are apart.
    tolerance = 4 * found.std() / np.sqrt(len(found)) + 1 / (likely > 0.5).sum()
    assert confidence(binary(likely))["mean"] == pytest.approx(found.mean(), abs=tolerance)


def test_every_class_of_several_is_judged_by_its_own_probabilities() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1, (4, 12, 12, 5))
    # Class 3 is never the likeliest.
    logits += 6 * np.eye(4)[rng.integers(0, 3, (12, 12, 5))].transpose(3, 0, 1, 2)
    soft = np.exp(logits) / np.exp(logits).sum(axis=0)
    drawn = (rng.random((1500, 1, 720)) > soft.reshape(4, -1).cumsum(axis=0)).sum(axis=1)
    scores = confidence(soft.astype(np.float32))
    for index in (1, 2):
        found = dice((soft.argmax(axis=0) == index).ravel(), drawn == index)
        tolerance = 4 * found.std() / np.sqrt(len(found)) + 1 / 200
        assert scores["classes"][index - 1] == pytest.approx(found.mean(), abs=tolerance)
    assert not (soft.argmax(axis=0) == 3).any()
    assert scores["classes"][2] == pytest.approx(1 - soft[3].max(), abs=1e-6)
    assert scores["mean"] == pytest.approx(np.mean(scores["classes"]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=7))
def test_it_lies_near_the_expectation_over_all_masks(likely: list[float]) -> None:
    """Few voxels are the hardest case: a sixth off for a single one of probability a half, and less with more."""
    p = np.array(likely, dtype=np.float32).astype(float)
    masks = np.array(list(product([False, True], repeat=len(p))))
    chances = np.where(masks, p, 1 - p).prod(axis=1)
    predicted = p > 0.5
    score = confidence(binary(p))["mean"]
    expected = float((chances * dice(predicted, masks)).sum())
    if predicted.any():
        assert score == pytest.approx(expected, abs=(1 / 6 + 1e-3) / predicted.sum())
    else:
        # Independence is the lower end of what the probability of an empty mask can be; the score is the upper.
        assert expected - 1e-6 <= score <= 1
        assert score == pytest.approx(1 - p.max(), abs=1e-6)


def test_softer_edges_and_doubtful_insides_lower_it() -> None:
    scores = [confidence(binary(blob(softness)))["mean"] for softness in (0.05, 0.5, 1.0, 2.0, 4.0)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.99
    inside = blob(0.5) > 0.5
    by_certainty = [
        confidence(binary(np.where(inside, certainty, 1 - certainty)))["mean"] for certainty in (0.51, 0.7, 0.9, 1.0)
    ]
    assert by_certainty == sorted(by_certainty)
    assert by_certainty[-1] == 1.0


def test_a_possible_second_lesion_that_is_not_predicted_lowers_it() -> None:
    one = blob(0.3)
    other = np.roll(one, 20, axis=0) * 0.45
    assert confidence(binary(np.maximum(one, other)))["mean"] < confidence(binary(one))["mean"] - 0.1


def test_an_absence_is_as_sure_as_the_likeliest_voxel_leaves_it() -> None:
    for highest in (0.0, 0.1, 0.49):
        likely = np.full((8, 8), 1e-3 * (highest > 0))
        likely[2, 3] = highest
        assert confidence(binary(likely))["mean"] == pytest.approx(1 - highest, abs=1e-6)


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_slices_one_after_another_give_the_whole(parts: int) -> None:
    logits = np.random.default_rng(2).normal(0, 2, (3, 7, 9, 8))
    soft = (np.exp(logits) / np.exp(logits).sum(axis=0)).astype(np.float32)
    running = Confidence(3)
    for part in np.array_split(soft, parts, axis=1):
        running.add(part)
    whole = confidence(soft)
    assert running.result()["classes"] == pytest.approx(whole["classes"], rel=1e-6)
    assert running.result()["mean"] == pytest.approx(whole["mean"], rel=1e-6)
    assert json.loads(json.dumps(whole)) == whole


def test_tensors_are_taken_as_they_are() -> None:
    torch = pytest.importorskip("torch")
    soft = binary(blob(1.0))
    running = Confidence(2)
    running.add(torch.from_numpy(soft))
    assert running.result()["mean"] == pytest.approx(confidence(soft)["mean"], rel=1e-6)


def test_values_that_are_not_finite_deserve_no_confidence() -> None:
    likely = binary(blob(1.0))
    likely[1, 3, 4] = np.nan
    assert confidence(likely)["mean"] == 0.0


def test_nothing_added_is_nothing_doubted() -> None:
    assert Confidence(2).result() == {"mean": 1.0, "classes": [1.0]}


def test_the_least_confident_come_first() -> None:
    assert look_first({"b": 0.9, "a": 0.9, "c": 0.2, "d": 1.0}) == ["c", "a", "b", "d"]
    assert look_first({}) == []
