"""Label colours, overlays and triptychs."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsaga.colours import label_colours
from medsaga.prediction.overlay import GAP, SMALLEST_PANEL, overlay, save_png, triptych

# Linear RGB as seen without the long, middle or short cones (Machado, Oliveira and Fernandes, 2009, severity 1).
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def cielab(linear: np.ndarray) -> np.ndarray:
    """(n, 3) linear sRGB to CIELAB under D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = np.clip(linear, 0, 1) @ to_xyz.T / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("vision", list(VISION))
def test_ten_colours_are_told_apart_with_any_colour_vision(vision: str) -> None:
    """A difference of about 2.3 in CIELAB is just noticeable; areas apart from each other need several times that."""
    srgb = label_colours(10) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = cielab(linear @ np.array(VISION[vision]).T)
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 12


def test_colours_are_stable_and_distinct() -> None:
    colours = label_colours(40)
    assert colours.shape == (40, 3)
    assert colours.dtype == np.uint8
    assert len({tuple(colour) for colour in colours}) == 40
    np.testing.assert_array_equal(label_colours(4), colours[:4])
    assert label_colours(0).shape == (0, 3)


def test_overlay_blends_inside_and_leaves_the_background() -> None:
    image = np.full((20, 20), 100, dtype=np.uint8)
    labels = np.zeros((20, 20), dtype=np.uint8)
    labels[5:12, 5:12] = 2
    painted = overlay(image, labels, alpha=0.5)
    colour = label_colours(2)[1]
    assert (painted[labels == 0] == 100).all()
    np.testing.assert_array_equal(painted[8, 8], np.rint(0.5 * colour + 50))
    np.testing.assert_array_equal(painted[5, 8], colour)
    rim = np.zeros((20, 20), dtype=bool)
    rim[5:12, 5:12] = True
    rim[6:11, 6:11] = False
    np.testing.assert_array_equal((painted == colour).all(axis=-1), rim)
    flat = overlay(image, labels, alpha=0.5, contour=False)
    assert len(np.unique(flat[labels == 2], axis=0)) == 1
    assert (image == 100).all()


def test_a_label_that_fills_the_image_has_no_outline() -> None:
    painted = overlay(np.zeros((6, 6), np.uint8), np.ones((6, 6), np.uint8), alpha=0.5)
    assert len(np.unique(painted.reshape(-1, 3), axis=0)) == 1


def test_rgb_is_kept_and_other_channel_counts_show_the_first() -> None:
    labels = np.zeros((4, 5), dtype=np.uint8)
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (3, 4, 5), dtype=np.uint8)
    np.testing.assert_array_equal(overlay(rgb, labels), np.moveaxis(rgb, 0, -1))
    for channels in (1, 2, 4):
        image = rng.integers(0, 256, (channels, 4, 5), dtype=np.uint8)
        np.testing.assert_array_equal(overlay(image, labels), np.repeat(image[0][..., None], 3, axis=-1))


def test_triptych_shows_image_truth_and_prediction_side_by_side() -> None:
    image = np.full((1, SMALLEST_PANEL, 400), 60, dtype=np.uint8)
    truth, prediction = np.zeros((2, SMALLEST_PANEL, 400), dtype=np.uint8)
    truth[:100], prediction[-100:] = 1, 2
    picture = triptych(image, truth, prediction)
    assert picture.shape == (SMALLEST_PANEL, 3 * 400 + 2 * GAP, 3)
    left, middle, right = (picture[:, start : start + 400] for start in (0, 400 + GAP, 800 + 2 * GAP))
    assert (left == 60).all()
    np.testing.assert_array_equal(middle, overlay(image, truth))
    np.testing.assert_array_equal(right, overlay(image, prediction))
    assert (picture[:, 400 : 400 + GAP] == 255).all()


def test_triptych_enlarges_small_images_by_whole_numbers() -> None:
    truth = np.zeros((64, 48), dtype=np.uint8)
    picture = triptych(np.zeros((64, 48), np.uint8), truth, truth)
    assert picture.shape == (5 * 64, 3 * 5 * 48 + 2 * GAP, 3)


def test_triptych_has_true_proportions() -> None:
    truth = np.zeros((100, 400), dtype=np.uint8)
    picture = triptych(np.zeros((100, 400), np.uint8), truth, truth, spacing=(5.0, 1.0))
    assert picture.shape == (500, 3 * 400 + 2 * GAP, 3)


def test_png_comes_back_as_it_was(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    save_png(tmp_path / "new" / "picture.png", rgb)
    with Image.open(tmp_path / "new" / "picture.png") as image:
        np.testing.assert_array_equal(np.asarray(image), rgb)
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["picture.png"]
