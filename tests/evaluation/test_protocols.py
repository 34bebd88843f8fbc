"""The conventions of both protocols, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dicom_phantoms import AFFINES, write_ct_series
from rich.console import Console
from scipy.spatial.distance import cdist

from medsaga.data.dicom.geometry import geometry_of
from medsaga.data.dicom.series import find_series
from medsaga.data.formats import nifti
from medsaga.data.types import Item
from medsaga.errors import InputError
from medsaga.evaluation.metrics import hd95
from medsaga.evaluation.protocols import PROTOCOLS, LabelScore, protocol_named
from medsaga.prediction.segmenter import Prediction, Segmenter
from medsaga.runs.evaluate import evaluate_run
from medsaga.runs.train import train
from medsaga.settings.options import Settings

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


def test_mm_is_that_of_the_patient_where_the_gantry_was_tilted(tmp_path: Path) -> None:
    """Of a series and of its NIfTI, the distance by the affine, with voxels along and against the tilt."""
    write_ct_series(tmp_path / "ct", np.zeros((6, 9, 5)), AFFINES["tilted"])
    (series,) = find_series(tmp_path / "ct")
    truth = np.zeros((6, 9, 5), np.uint8)
    grids = [geometry_of(series).grid]
    nifti.write_labels(tmp_path / "tilted.nii.gz", truth, grids[0])
    grids.append(nifti.read_header(tmp_path / "tilted.nii.gz").grid)
    truth[2, 4, 1] = 1
    for step in ((0, 0, 1), (0, 2, 3), (1, -2, 3)):
        prediction = np.zeros_like(truth)
        prediction[tuple(np.add((2, 4, 1), step))] = 1
        for grid in grids:
            assert grid.affine is not None
            score = PROTOCOLS["mm"](prediction, truth, [1], grid.to_mm)[1]
            assert score.hd95 == pytest.approx(np.linalg.norm(grid.affine[:3, :3] @ step), rel=1e-5)
            assert score.hd95_unit == "mm"
            pixels = PROTOCOLS["transunet"](prediction, truth, [1], grid.to_mm)[1]
            assert pixels.hd95 == pytest.approx(np.linalg.norm(step))


def test_a_run_is_scored_in_mm_of_the_patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    affine = np.array([[1.0, 0, 0, 0], [0, 1, 2, 0], [0, 0, 4, 0], [0, 0, 0, 1]])
    truth, prediction = np.zeros((2, 40, 36, 6), np.uint8)
    truth[20, 20, 2] = prediction[20, 19, 3] = 1
    for folder, voxels in (("images", truth * 99), ("masks", truth)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for name in "abc":
            nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "data" / folder / f"{name}.nii.gz")
    settings = Settings(model="tiny", shots=1, image_size=64, steps=1, batch_size=2, rank=4, device="cpu")
    train(tmp_path / "data", tmp_path / "run", settings)
    predicted = Segmenter.predict_item

    def one_slice_off(segmenter: Segmenter, item: Item, **options: Any) -> Prediction:
        return replace(predicted(segmenter, item, **options), labels=prediction)

    monkeypatch.setattr(Segmenter, "predict_item", one_slice_off)
    result = evaluate_run(tmp_path / "run", device="cpu", console=Console(quiet=True))
    assert list(result["hd95"].values()) == [pytest.approx(np.sqrt(1 + 4**2))]


def test_a_flat_image_in_a_format_of_volumes_is_scored_like_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, prediction = np.zeros((2, 40, 36), np.uint8)
    truth[5:30, 5:30] = 1
    prediction[9:26, 9:26] = 1
    for folder, pixels in (("images", truth * 99), ("masks", truth)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for name in "abc":
            nib.save(nib.Nifti1Image(pixels, np.diag([0.5, 2, 1, 1])), tmp_path / "data" / folder / f"{name}.nii.gz")
    settings = Settings(model="tiny", shots=1, image_size=64, steps=1, batch_size=2, rank=4, device="cpu")
    train(tmp_path / "data", tmp_path / "run", settings)
    predicted = Segmenter.predict_item

    def smaller(segmenter: Segmenter, item: Item, **options: Any) -> Prediction:
        made = predicted(segmenter, item, **options)
        return replace(made, labels=prediction.reshape(made.labels.shape))

    monkeypatch.setattr(Segmenter, "predict_item", smaller)
    result = evaluate_run(tmp_path / "run", device="cpu", console=Console(quiet=True))
    expected = PROTOCOLS["mm"](prediction, truth, [1], (0.5, 2))[1].hd95
    assert expected is not None
    assert list(result["hd95"].values()) == [pytest.approx(expected)]
    assert expected > 4, "of all pixels most lie in both masks"


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
