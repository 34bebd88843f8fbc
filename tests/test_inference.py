"""The Python functions do what the command line does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import medsaga


def test_train_and_segment_from_python(toy: Path, tmp_path: Path, quick: medsaga.Settings) -> None:
    result = medsaga.train(toy, tmp_path / "run", dataclasses.replace(quick, steps=2))
    assert medsaga.evaluate(tmp_path / "run") == result
    segmenter = medsaga.Segmenter.load(tmp_path / "run", device="cpu")
    image = toy / "images" / "img0.png"
    from_file = segmenter.predict(image, probabilities=True)
    from_array = segmenter.predict(np.array(Image.open(image)))
    np.testing.assert_array_equal(from_file.labels, from_array.labels)
    assert from_file.labels.shape == (48, 64)
    assert from_file.probabilities is not None
    np.testing.assert_allclose(from_file.probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(from_file.probabilities.argmax(0), from_file.labels)
    assert from_array.probabilities is None


def test_a_volume_is_segmented_slice_by_slice(trained_toy: Path) -> None:
    segmenter = medsaga.Segmenter.load(trained_toy / "run", device="cpu")
    image = np.array(Image.open(trained_toy / "data" / "images" / "img0.png"))
    volume = np.repeat(image[:, :, None], 11, axis=2)
    seen: list[tuple[int, int]] = []
    prediction = segmenter.predict(volume, spacing=(1, 1, 5), progress=lambda done, total: seen.append((done, total)))
    assert prediction.labels.shape == volume.shape
    assert all((prediction.labels[..., k] == prediction.labels[..., 0]).all() for k in range(11))
    assert seen == [(n, 11) for n in range(1, 12)]


@pytest.mark.parametrize("shape", [(48, 64, 2, 3, 4), (2, 8, 8, 8)])
def test_arrays_of_other_shapes_are_refused(trained_toy: Path, shape: tuple[int, ...]) -> None:
    segmenter = medsaga.Segmenter.load(trained_toy / "run", device="cpu")
    with pytest.raises(medsaga.InputError, match="array"):
        segmenter.predict(np.zeros(shape, np.uint8))
