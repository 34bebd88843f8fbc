"""The conventions of both protocols, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from medsaga.errors import InputError
from medsaga.evaluation.metrics import hd95
from medsaga.evaluation.protocols import PROTOCOLS, LabelScore, protocol_named

SPACING = (2.0, 0.5)


def label_maps() -> tuple[np.ndarray, np.ndarray]:
    """Label 1 in both, 2 only in the truth, 4 only in the prediction, 7 in neither."""
    truth = np.zeros((16, 16), dtype=np.uint8)
    prediction = np.zeros((16, 16), dtype=np.int64)
    truth[2:6, 2:6] = 1
    prediction[3:7, 2:6] = 1
    truth[10, 10] = 2
    prediction[12:14, 3] = 4
    return prediction, truth


def test_mm_counts_a_miss_and_a_false_positive_as_dice_0_without_hd95() -> None:
    scores = PROTOCOLS["mm"](*label_maps(), [1, 2, 4, 7], SPACING)
    assert scores == {
        1: LabelScore(0.75, 2.0, "both", "mm"),
        2: LabelScore(0.0, None, "only_truth", "mm"),
        4: LabelScore(0.0, None, "only_prediction", "mm"),
        7: LabelScore(None, None, "neither", "mm"),
    }


def test_mm_without_spacing_is_in_pixels() -> None:
    score = PROTOCOLS["mm"](*label_maps(), [1], None)[1]
    assert (score.hd95, score.hd95_unit) == (1.0, "px")


def test_transunet_keeps_the_published_conventions() -> None:
    scores = PROTOCOLS["transunet"](*label_maps(), [1, 2, 4, 7], SPACING)
    assert scores == {
        1: LabelScore(0.75, 1.0, "both", "px"),
        2: LabelScore(0.0, 0.0, "only_truth", "px"),
        4: LabelScore(1.0, 0.0, "only_prediction", "px"),
        7: LabelScore(0.0, 0.0, "neither", "px"),
    }


def test_transunet_pools_both_directions_before_the_percentile() -> None:
    """The published HD95 is numpy's 95th percentile over the stacked distances of both surfaces."""
    truth = np.zeros((40, 40), dtype=np.uint8)
    truth[5:35, 8] = 1
    prediction = truth.copy()
    prediction[20, 30:33] = 1
    apart = cdist(np.argwhere(prediction), np.argwhere(truth))
    expected = np.percentile(np.hstack([apart.min(axis=1), apart.min(axis=0)]), 95)
    score = PROTOCOLS["transunet"](prediction, truth, [1], None)[1]
    assert score.hd95 == pytest.approx(expected)
    # Every pixel is on a surface here: the three stray ones are 4.8 % of the pool, but 9 % of one direction.
    assert score.hd95 == 0.0
    assert hd95(prediction > 0, truth > 0) > 20


def test_a_perfect_volume_scores_1_and_0() -> None:
    truth = np.random.default_rng(0).integers(0, 4, (9, 8, 5))
    for protocol in PROTOCOLS.values():
        scores = protocol(truth, truth, [1, 2, 3], (1.0, 1.0, 5.0))
        assert all((score.dice, score.hd95, score.state) == (1.0, 0.0, "both") for score in scores.values())


def test_unknown_protocol_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="one of mm, transunet; found 'iou'"):
        protocol_named("iou")
    assert protocol_named("mm") is PROTOCOLS["mm"]
