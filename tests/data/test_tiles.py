"""Tiles cover a slice, windows overlap, and their maps are blended as MONAI blends them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsaga.data.tiles import blended, covering, overlapping, tile_corners, tile_shape, window_weights

LENGTHS = st.integers(1, 40).flatmap(lambda tile: st.tuples(st.integers(tile, 300), st.just(tile)))


@settings(deadline=None)
@given(LENGTHS)
def test_tiles_cover_everything_with_as_few_as_possible(lengths: tuple[int, int]) -> None:
    length, tile = lengths
    starts = covering(length, tile)
    assert {place for start in starts for place in range(start, start + tile)} == set(range(length))
    assert len(starts) == -(-length // tile)
    assert starts == sorted(set(starts))


@settings(deadline=None)
@given(LENGTHS)
def test_windows_repeat_at_least_half_of_the_one_before(lengths: tuple[int, int]) -> None:
    length, tile = lengths
    starts = overlapping(length, tile)
    assert starts[0] == 0
    assert starts[-1] + tile == length
    steps = np.diff(starts)
    assert (steps >= 1).all()
    assert (steps <= max(1, tile // 2)).all()


def test_tiles_of_a_slice_in_rows() -> None:
    assert tile_corners((5, 7), None) == [(0, 0)]
    assert tile_shape((5, 70), 32) == (5, 32)
    assert tile_corners((5, 70), 32) == [(0, 0), (0, 32), (0, 38)]
    assert tile_corners((64, 40), 32) == [(0, 0), (0, 8), (32, 0), (32, 8)]


def windows_of(image: torch.Tensor, tile: int) -> tuple[Iterator[torch.Tensor], list[int], list[int]]:
    """Return maps that depend on where in its window a pixel lies, so that blending matters."""
    height, width = tile_shape((image.shape[1], image.shape[2]), tile)
    tops, lefts = overlapping(image.shape[1], height), overlapping(image.shape[2], width)
    maps = (edgy(image[None, :, y : y + height, x : x + width])[0] for y in tops for x in lefts)
    return maps, tops, lefts


def edgy(patch: torch.Tensor) -> torch.Tensor:
    ramp = torch.linspace(0, 1, patch.shape[-1]) + torch.linspace(0, 2, patch.shape[-2])[:, None]
    return torch.cat([patch * ramp, patch - ramp], dim=1)


@pytest.mark.parametrize(("shape", "tile"), [((64, 96), 32), ((70, 51), 32), ((45, 33), 33), ((100, 101), 40)])
def test_blending_agrees_with_monai(shape: tuple[int, int], tile: int) -> None:
    from monai.inferers.utils import sliding_window_inference

    image = torch.rand((1, *shape), generator=torch.Generator().manual_seed(0))
    expected = sliding_window_inference(image[None], (tile, tile), 1, edgy, overlap=0.5, mode="gaussian")
    assert isinstance(expected, torch.Tensor)
    strips = [*blended(*windows_of(image, tile), shape)]
    assert [top for top, _ in strips] == overlapping(shape[0], tile)
    joined = torch.cat([strip for _, strip in strips], dim=1)
    torch.testing.assert_close(joined, expected[0], atol=1e-5, rtol=1e-5)


def test_probabilities_stay_probabilities() -> None:
    windows = (torch.rand((3, 8, 8)).softmax(0) for _ in range(1000))
    for _, strip in blended(windows, overlapping(50, 8), overlapping(30, 8), (50, 30)):
        torch.testing.assert_close(strip.sum(0), torch.ones(strip.shape[1:]), atol=1e-5, rtol=0)


def test_a_single_window_is_the_slice_and_only_its_own_windows_are_taken() -> None:
    maps = [torch.full((2, 8, 8), float(n)) for n in range(10)]
    source = iter(maps)
    ((top, strip),) = blended(source, [0], [0], (8, 8))
    assert top == 0
    assert strip is maps[0]
    assert len([*blended(source, [0, 4], [0], (12, 8))]) == 2
    assert next(source) is maps[3]


def test_the_memory_is_that_of_a_row_of_windows() -> None:
    largest = max(strip.numel() for _, strip in blended(*windows_of(torch.rand((1, 900, 40)), 32), (900, 40)))
    assert largest <= 2 * 32 * 40


def test_the_middle_of_a_window_counts_most() -> None:
    weights = window_weights((9, 17))
    assert weights[4, 8] == weights.max() == 1
    assert weights.min() >= 1e-3
    torch.testing.assert_close(weights, weights.flip(0, 1))
