"""Images go into the square and predictions come out of it at the place where the image was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsaga.data.letterbox import content_size, letterbox, letterbox_labels, unletterbox


def test_content_keeps_the_aspect_ratio() -> None:
    assert content_size((100, 200), 64) == (32, 64)
    assert content_size((512, 512), 64) == (64, 64)
    assert content_size((3, 1000), 64) == (1, 64)


@settings(deadline=None, max_examples=60)
@given(height=st.integers(1, 90), width=st.integers(1, 90), channels=st.integers(1, 4), size=st.sampled_from([16, 48]))
def test_a_constant_image_stays_constant_and_padding_is_zero(height: int, width: int, channels: int, size: int) -> None:
    square, (rows, columns) = letterbox(np.full((channels, height, width), 200, np.uint8), size)
    assert square.shape == (channels, size, size)
    assert max(rows, columns) == size
    assert (square[:, :rows, :columns] == 200).all()
    assert not square[:, rows:].any()
    assert not square[:, :, columns:].any()


def test_an_image_of_the_right_size_is_untouched() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 32, 20), dtype=np.uint8)
    square, content = letterbox(image, 32)
    assert content == (32, 20)
    np.testing.assert_array_equal(square[:, :, :20], image)


def test_shrinking_averages_rather_than_picks() -> None:
    checkerboard = (255 * (np.indices((128, 128)).sum(0) % 2)).astype(np.uint8)
    square, _ = letterbox(checkerboard[None], 32)
    assert np.abs(square[0, 2:-2, 2:-2].astype(int) - 127).max() <= 1


def test_labels_are_never_mixed_and_follow_the_image() -> None:
    blocks = np.kron(np.array([[0, 7], [3, 1]], np.uint8), np.ones((30, 45), np.uint8)).astype(np.uint8)
    square = letterbox_labels(blocks, 48)
    assert set(np.unique(square)) == {0, 1, 3, 7}
    image, (rows, columns) = letterbox((blocks == 7).astype(np.uint8)[None] * 255, 48)
    assert ((square == 7) == (image[0] > 127)).all()
    assert not square[rows:].any()
    assert columns == 48


@pytest.mark.parametrize("reduction", [1, 4])
@pytest.mark.parametrize("shape", [(50, 97), (97, 50), (64, 64), (300, 211), (33, 20)])
def test_a_ramp_comes_back_where_it_was(shape: tuple[int, int], reduction: int) -> None:
    # Bilinear interpolation reproduces a linear function exactly, except beyond the outermost pixel centres. In the
    # square the ramp is a function of the place alone, so that any shift or stretch shows.
    size = 64
    content = content_size(shape, size)
    places = (torch.arange(size // reduction, dtype=torch.float32) + 0.5) * reduction
    maps = torch.stack(
        [
            (places / content[0])[:, None].expand(-1, len(places)),
            (places / content[1])[None, :].expand(len(places), -1),
        ]
    )[None]
    result = unletterbox(maps, content, size, shape)
    assert result.shape == (1, 2, *shape)
    rows = (torch.arange(shape[0]) + 0.5) / shape[0]
    columns = (torch.arange(shape[1]) + 0.5) / shape[1]
    half = reduction / 2
    inner_rows = (rows * content[0] > half) & (rows * content[0] < content[0] - half)
    inner_columns = (columns * content[1] > half) & (columns * content[1] < content[1] - half)
    expected_rows = rows[:, None].expand(*shape)
    expected_columns = columns[None, :].expand(*shape)
    torch.testing.assert_close(result[0, 0][inner_rows], expected_rows[inner_rows], atol=2e-5, rtol=0)
    torch.testing.assert_close(result[0, 1][:, inner_columns], expected_columns[:, inner_columns], atol=2e-5, rtol=0)


@pytest.mark.parametrize("reduction", [1, 4])
def test_padding_never_enters_a_prediction(reduction: int) -> None:
    size, shape = 64, (37, 90)
    content = content_size(shape, size)
    rows = -(-content[0] // reduction)
    maps = torch.full((2, 3, size // reduction, size // reduction), float("nan"))
    maps[:, :, :rows] = 5
    result = unletterbox(maps, content, size, shape)
    assert result.shape == (2, 3, *shape)
    torch.testing.assert_close(result, torch.full_like(result, 5.0))


def test_agrees_with_interpolate_when_there_is_no_padding() -> None:
    maps = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(maps, (100, 100), mode="bilinear", align_corners=False)
    torch.testing.assert_close(unletterbox(maps, (64, 64), 64, (100, 100)), expected, atol=1e-5, rtol=1e-5)


def test_a_mask_survives_the_way_there_and_back() -> None:
    mask = np.zeros((150, 220), np.uint8)
    mask[30:110, 50:180] = 1
    boxed = torch.from_numpy(letterbox_labels(mask, 64)).float()
    back = unletterbox(torch.stack([1 - boxed, boxed])[None], content_size(mask.shape, 64), 64, mask.shape)
    found = back[0].argmax(0).numpy()
    assert 2 * (found & mask).sum() / (found.sum() + mask.sum()) > 0.96
