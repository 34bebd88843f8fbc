"""Large images: volumes in temporary files, tiles, mirror images and confidence, with a model of nine numbers."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from resolved import resolved
from torch import nn
from torch.nn import functional as F

from medsaga.data import volumes
from medsaga.data.inputs import find_inputs
from medsaga.data.intensity import Intensity
from medsaga.data.letterbox import content_size, letterbox, unletterbox
from medsaga.errors import InputError
from medsaga.memory.tracker import TensorTracker
from medsaga.models.base import SegmentationModel
from medsaga.prediction.confidence import confidence
from medsaga.prediction.segmenter import Segmenter
from medsaga.settings.options import Settings
from medsaga.settings.run_config import RunConfig, read_config

SIZE = 32
LABELS = {"background": 0, "liver": 3, "spleen": 260}


class Lopsided(SegmentationModel):
    """Looks at grey values above and to the left, so that flips and the edges of tiles matter."""

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__("lopsided", classes=3, image_size=SIZE, in_channels=in_channels)
        weight = torch.randn((3, in_channels, 5, 5), generator=torch.Generator().manual_seed(1))
        weight[..., 3:] = 0
        self.weight = nn.Parameter(weight)
        self.seen = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return F.avg_pool2d(F.conv2d(images.float() / 128 - 1, self.weight, padding=2), 4)


def segmenter(*, intensity: Intensity | None = None, in_channels: int = 1, **settings: Any) -> Segmenter:
    filled = resolved(**{"image_size": SIZE, **settings})
    how = intensity or Intensity("window", -1000, 2000)
    return Segmenter(Lopsided(in_channels), RunConfig("data", LABELS, ("CT",), (how,), filled), torch.device("cpu"))


def write(path: Path, shape: tuple[int, int, int], seed: int = 0) -> Path:
    smooth = np.random.default_rng(seed).normal(0, 4000, shape)
    for axis in range(3):
        smooth = (smooth + np.roll(smooth, 1, axis)) / 2
    affine = np.array([[-1.0, 0, 0, 3], [0, 1.25, 0, 8], [0, 0, -1.5, 1], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(smooth.astype(np.int16), affine), path)
    return path


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("kind", ["window", "percentile"])
def test_a_large_volume_is_segmented_like_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axis: str, kind: str
) -> None:
    path = write(tmp_path / "a.nii.gz", (30, 22, 18))
    how = Intensity(kind, 5, 95)
    one = segmenter(axis=axis, intensity=how, neighbours=1, in_channels=3)
    small = one.predict(path, probabilities=True)
    monkeypatch.setattr(volumes, "LARGEST_IN_MEMORY", 0)
    large = one.predict(path, probabilities=True)
    assert isinstance(large.labels, np.memmap)
    assert isinstance(large.probabilities, np.memmap)
    assert small.labels.dtype == large.labels.dtype == np.uint16
    assert len(np.unique(small.labels)) == 3
    np.testing.assert_array_equal(large.labels, small.labels)
    assert small.probabilities is not None
    np.testing.assert_array_equal(large.probabilities, small.probabilities)
    assert large.confidence == small.confidence
    assert small.confidence["classes"] == pytest.approx(confidence(small.probabilities)["classes"], rel=1e-5)
    assert len(large.picture) == len(small.picture) == large.view.slices
    for index in range(large.view.slices):
        np.testing.assert_array_equal(large.picture[index], small.picture[index])


def test_results_lie_slice_by_slice_in_memory(tmp_path: Path) -> None:
    prediction = segmenter(axis="sagittal").predict(write(tmp_path / "a.nii", (20, 16, 12)), probabilities=True)
    assert prediction.probabilities is not None
    assert prediction.labels[4].flags.c_contiguous or prediction.labels[4].T.flags.c_contiguous
    assert prediction.probabilities[:, 4].nbytes == np.ptp(
        [prediction.probabilities[:, n].__array_interface__["data"][0] for n in (4, 5)]
    )


@pytest.mark.parametrize("axis", ["axial", "sagittal"])
def test_memory_does_not_grow_with_the_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axis: str) -> None:
    monkeypatch.setattr(volumes, "LARGEST_IN_MEMORY", 0)
    monkeypatch.setattr(volumes, "_BLOCK_BYTES", 2**16)
    one, peaks = segmenter(axis=axis), []
    for slices in (16, 96):
        shape = (slices, 64, 96) if axis == "sagittal" else (96, 64, slices)
        path = write(tmp_path / f"{slices}.nii", shape)
        tracemalloc.start()
        one.predict(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Of a slice more, 12 KiB of voxels, hardly its bookkeeping stays.
    assert (peaks[1] - peaks[0]) / 80 < 96 * 64 * 2 * 0.05


def sliding_window(model: Lopsided, picture: npt.NDArray[np.uint8], tile: int) -> torch.Tensor:
    """Return MONAI's answer, ``(classes, height, width)``, of the same predictor on ``(height, width)``."""
    from monai.inferers.utils import sliding_window_inference

    def predictor(patch: torch.Tensor) -> torch.Tensor:
        square, content = letterbox(patch[0].numpy().astype(np.uint8), SIZE)
        return unletterbox(model(torch.from_numpy(square)[None]), content, SIZE, (tile, tile)).softmax(1)

    with torch.inference_mode():
        whole = torch.from_numpy(picture)[None, None].float()
        found = sliding_window_inference(whole, (tile, tile), 1, predictor, overlap=0.5, mode="gaussian")
    assert isinstance(found, torch.Tensor)
    return found[0]


def test_tiles_are_blended_as_monai_does(tmp_path: Path) -> None:
    tile = 48
    one = segmenter(tile=tile, intensity=Intensity("identity", 0, 255))
    picture = np.random.default_rng(0).integers(0, 256, (9, 13)).repeat(12, 0).repeat(12, 1).astype(np.uint8)
    seen: list[tuple[int, int]] = []
    prediction = one.predict(picture, probabilities=True, progress=lambda done, total: seen.append((done, total)))
    assert isinstance(one.model, Lopsided)
    expected = sliding_window(one.model, picture, tile)
    assert prediction.probabilities is not None
    np.testing.assert_allclose(prediction.probabilities, expected.numpy(), atol=1e-5)
    values = np.array(list(LABELS.values()))
    agree = prediction.labels == values[expected.argmax(0).numpy()]
    assert agree.mean() > 0.999
    assert seen == [(n, 4 * 6) for n in range(1, 25)]


def test_slices_of_volumes_are_tiled_too_and_smaller_ones_are_not(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", (70, 50, 4))
    whole, tiled, loose = (segmenter(axis="axial", tile=tile).predict(path) for tile in (None, 32, 70))
    np.testing.assert_array_equal(whole.labels, loose.labels)
    assert (whole.labels != tiled.labels).any()
    one = segmenter(tile=32, intensity=Intensity("identity", 0, 255))
    shown = tiled.view.of_labels(tiled.labels)
    for index in range(4):
        np.testing.assert_array_equal(shown[index], one.predict(tiled.picture[index][0]).labels)


def test_mirror_images_are_averaged(tmp_path: Path) -> None:
    one = segmenter(intensity=Intensity("identity", 0, 255))
    picture = np.random.default_rng(2).integers(0, 256, (40, 27), dtype=np.uint8)
    prediction = one.predict(picture, probabilities=True, tta="all")
    expected = torch.zeros((3, 40, 27))
    for axes in ((), (0,), (1,), (0, 1)):
        square, content = letterbox(np.flip(picture, axes)[None], SIZE)
        assert content == content_size((40, 27), SIZE)
        with torch.inference_mode():
            maps = unletterbox(one.model(torch.from_numpy(square)[None]), content, SIZE, (40, 27))[0].softmax(0)
        expected += maps.flip([axis + 1 for axis in axes]) / 4
    assert prediction.probabilities is not None
    np.testing.assert_allclose(prediction.probabilities, expected.numpy(), atol=1e-6)
    mirrored = one.predict(picture[:, ::-1].copy(), tta="all")
    np.testing.assert_array_equal(mirrored.labels[:, ::-1], prediction.labels)
    assert (one.predict(picture[:, ::-1].copy()).labels[:, ::-1] != one.predict(picture).labels).any()


@pytest.mark.parametrize("tta", ["none", "all"])
def test_a_large_picture_is_mapped_back_strip_by_strip(tta: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.random.default_rng(4).integers(0, 256, (30, 20)).repeat(20, 0).repeat(20, 1).astype(np.uint8)
    one = segmenter(intensity=Intensity("identity", 0, 255))
    whole = one.predict(picture, probabilities=True, tta=tta)
    found = []
    for rows in (7, 70):
        monkeypatch.setattr("medsaga.prediction.segmenter.LARGEST_STRIP", rows * 400)
        with TensorTracker() as tracker:
            strips = one.predict(picture, tta=tta)
        found.append(tracker.peak_bytes)
        np.testing.assert_array_equal(strips.labels, whole.labels)
        assert strips.confidence["classes"] == pytest.approx(whole.confidence["classes"], abs=1e-6)
    # Coordinates, a sum, a pass of 3 classes, and what is made of it: at most 20 numbers for each pixel of the rows.
    assert found[1] - found[0] < 63 * 400 * 20 * 4
    soft = one.predict(picture, probabilities=True, tta=tta).probabilities
    assert soft is not None
    assert whole.probabilities is not None
    np.testing.assert_allclose(soft, whole.probabilities, atol=1e-6)


def test_four_passes_of_every_slice(tmp_path: Path) -> None:
    one = segmenter(axis="axial", batch_size=3)
    one.predict_item(find_inputs(write(tmp_path / "a.nii", (20, 16, 11)))[0], tta="all")
    assert isinstance(one.model, Lopsided)
    assert one.model.seen == 4 * 11


def test_a_run_keeps_its_tile(tmp_path: Path) -> None:
    config = segmenter(tile=64).config
    config.write(tmp_path / "config.toml")
    assert read_config(tmp_path / "config.toml") == config
    with pytest.raises(InputError, match="--tile"):
        Settings(tile=8)
