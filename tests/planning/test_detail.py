"""The image size follows how fine the labelled structures are."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from medsaga.data.labels import counts_of
from medsaga.data.outlines import outlines_of
from medsaga.data.types import Grid, Labels
from medsaga.planning.defaults import planned_defaults
from medsaga.planning.detail import ENOUGH, Outlined, side_for
from medsaga.planning.resolve import Facts, resolve
from medsaga.settings.options import Settings

SIZES = (192, 256, 320)


def labelled(labels: Labels, **grid: Any) -> Outlined:
    return Outlined(Grid(labels.shape, **grid), counts_of(labels), outlines_of(labels))


def stripes(side: int, width: int, gap: int) -> Labels:
    """Vertical lines, an area of ``width`` / 2 for each pixel of outline."""
    columns = (np.arange(side) + gap // 2) % (width + gap) < width
    return np.broadcast_to(columns, (side, side)).astype(np.uint8)


def test_as_many_pixels_as_the_finest_label_needs_and_no_more() -> None:
    for size in SIZES:
        # Lines that have exactly ENOUGH at this size.
        width = round(2 * ENOUGH / size * 3840)
        image = np.zeros((3840, 3840), np.uint8)
        image[:, 500 : 500 + width] = 1
        assert side_for(SIZES, [labelled(image)], "auto", None) == size
        image[:, 2000 : 2000 + 2 * width] = 2
        assert side_for(SIZES, [labelled(image)], "auto", None) == size
    assert side_for(SIZES, [labelled(stripes(960, 2, 2))], "auto", None) == 320


def test_a_tile_shows_more_of_a_structure() -> None:
    image = np.zeros((960, 960), np.uint8)
    image[:, 100:116] = 1
    assert side_for(SIZES, [labelled(image)], "auto", None) == 256
    assert side_for(SIZES, [labelled(image)], "auto", 480) == 192


def test_only_what_is_seen_of_a_volume_counts() -> None:
    volume = np.zeros((64, 64, 20), np.uint8)
    volume[16:48, 16:48, ::2] = 1
    one = labelled(volume, affine=np.diag([1.0, 1.0, 5.0, 1.0]))
    assert side_for(SIZES, [one], "axial", None) == 192
    assert side_for(SIZES, [one], "coronal", None) == 256


def test_labels_count_over_all_images_and_background_and_absence_say_nothing() -> None:
    fine, empty = labelled(stripes(100, 2, 50)), labelled(np.zeros((100, 100), np.uint8))
    assert side_for(SIZES, [], "auto", None) == 192
    assert side_for(SIZES, [empty], "auto", None) == 192
    assert side_for(SIZES, [empty, fine], "auto", None) == side_for(SIZES, [fine], "auto", None) == 256
    coarse = labelled(stripes(100, 50, 50))
    assert side_for(SIZES, [fine] + 9 * [coarse], "auto", None) == 192


@pytest.mark.parametrize(
    ("given", "usual", "fine"),
    [
        ({}, 192, 320),
        ({"method": "unet"}, 192, 320),
        ({"image_size": 192}, 192, 192),
        ({"method": "daeformer"}, 224, 224),
        ({"model": "vit_b", "random_weights": True}, 1024, 1024),
        ({"budget": "40MB", "rank": 16, "precision": "bf16", "state_bits": 8}, 192, 192),
        ({"budget": "100GB"}, 192, 320),
    ],
    ids=str,
)
def test_lite_and_the_unet_follow_the_data_within_what_the_user_says(
    given: dict[str, Any], usual: int, fine: int
) -> None:
    unknown = Facts(device=planned_defaults("cpu"), classes=2, channels=1)
    assert resolve(Settings(**given), unknown).image_size == usual
    lines = dataclasses.replace(unknown, labelled=[labelled(stripes(960, 3, 9))])
    assert resolve(Settings(**given), lines).image_size == fine
