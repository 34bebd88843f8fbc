"""Cleaning label maps, against flood fills written out by hand."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsaga.data.types import Grid
from medsaga.errors import InputError
from medsaga.prediction.postprocess import PostProcessing, apply

Voxel = tuple[int, ...]
Voxels = set[Voxel]


def neighbours(voxel: Voxel, shape: Voxel) -> list[Voxel]:
    """Return the voxels that share a face with a voxel."""
    steps = [(axis, step) for axis in range(len(shape)) for step in (-1, 1)]
    moved = [tuple(at + step * (n == axis) for n, at in enumerate(voxel)) for axis, step in steps]
    return [each for each in moved if all(0 <= at < size for at, size in zip(each, shape, strict=True))]


def flood(left: Voxels, shape: Voxel) -> list[Voxels]:
    """Divide voxels into connected pieces, in the order of their first voxels."""
    pieces, left = [], set(left)
    while left:
        piece, edge = set[Voxel](), [min(left)]
        left.remove(edge[0])
        while edge:
            voxel = edge.pop()
            piece.add(voxel)
            new = [each for each in neighbours(voxel, shape) if each in left]
            left.difference_update(new)
            edge += new
        pieces.append(piece)
    return pieces


def at_edge(piece: Voxels, shape: Voxel) -> bool:
    """Whether a piece reaches the outside, which is not above or below an image of one slice."""
    last = [size - 1 for size in shape]
    return max(shape) == 1 or any(
        at in (0, end) for voxel in piece for at, end in zip(voxel, last, strict=True) if end > 0
    )


def cleaned_by_hand(labels: np.ndarray, values: list[int], post: PostProcessing, voxel_size: float) -> np.ndarray:
    shape = labels.shape
    everywhere = set(product(*map(range, shape)))
    now = {voxel: int(labels[voxel]) for voxel in everywhere}
    for value in values:
        pieces = flood({voxel for voxel in everywhere if now[voxel] == value}, shape)
        keep = [piece for piece in pieces if len(piece) * voxel_size >= post.min_size_mm3 - 1e-9]
        if post.largest_component:
            keep = [piece for piece in keep if piece is max(pieces, key=len)]
        for voxel in set().union(*pieces) - set().union(*keep):
            now[voxel] = 0
    if post.fill_holes:
        holes = [
            (len(hole), value, hole)
            for value in values
            for hole in flood({voxel for voxel in everywhere if now[voxel] != value}, shape)
            if not at_edge(hole, shape)
        ]
        for voxel in everywhere:
            around = [(size, value) for size, value, hole in holes if voxel in hole]
            if now[voxel] == 0 and around:
                now[voxel] = -min(around)[1]
    return np.array([abs(now[voxel]) for voxel in sorted(everywhere)], dtype=labels.dtype).reshape(shape)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(9, 11), (13, 6), (5, 6, 5), (6, 7, 1), (1, 9, 8), (4, 1, 1), (1, 1)]),
    share=st.sampled_from([0.2, 0.5, 0.75]),
    post=st.builds(PostProcessing, st.booleans(), st.booleans(), st.sampled_from([0.0, 3.0, 7.5])),
)
def test_it_does_what_flood_fills_do(seed: int, shape: Voxel, share: float, post: PostProcessing) -> None:
    rng = np.random.default_rng(seed)
    values = [2, 5, 7]
    labels = rng.choice(np.array([0, *values], np.uint16), shape, p=[1 - share, *[share / 3] * 3])
    spacing = (1.5, 0.5, 2.0)[: len(shape)]
    found = apply(labels, Grid(shape, spacing), post, values=[0, *values])
    expected = cleaned_by_hand(labels, values, post, math.prod(spacing))
    assert np.array_equal(found, expected)
    assert found.dtype == labels.dtype


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    post=st.builds(PostProcessing, st.booleans(), st.booleans(), st.sampled_from([0.0, 4.0])),
)
def test_again_changes_nothing_and_no_voxel_changes_hands(seed: int, post: PostProcessing) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, (12, 12), p=[0.3, 0.4, 0.3]).astype(np.uint8)
    original = labels.copy()
    grid = Grid(labels.shape, (1.0, 1.0))
    once = apply(labels, grid, post, values=[1, 2])
    assert np.array_equal(labels, original)
    assert np.array_equal(apply(once, grid, post, values=[1, 2]), once)
    both = (labels != 0) & (once != 0)
    if not (post.largest_component or post.min_size_mm3):
        assert np.array_equal(labels[both], once[both])
    # The order of the classes does not matter.
    assert np.array_equal(apply(labels, grid, post, values=[2, 1]), once)


def test_holes_go_to_the_innermost_class() -> None:
    labels = np.full((13, 13), 0, np.uint8)
    labels[1:12, 1:12] = 1
    labels[3:10, 3:10] = 0
    labels[4:9, 4:9] = 2
    labels[6, 6] = 0
    found = apply(labels, Grid(labels.shape), PostProcessing(fill_holes=True), values=[1, 2])
    assert found[6, 6] == 2
    assert found[3, 3] == 1
    assert (found == 0).sum() == 13 * 13 - 11 * 11
    assert (found == 2).sum() == 25


def test_a_speck_inside_another_class_becomes_that_class() -> None:
    labels = np.ones((7, 7, 7), np.uint8)
    labels[3, 3, 3] = 2
    found = apply(labels, Grid(labels.shape, (1, 1, 1)), PostProcessing(False, True, 2.0), values=[1, 2])
    assert (found == 1).all()


def test_voxels_that_meet_at_edges_are_apart_and_yet_a_closed_wall() -> None:
    labels = np.zeros((5, 5), np.uint8)
    for row, column in ((1, 2), (2, 1), (2, 3), (3, 2)):
        labels[row, column] = 1
    filled = apply(labels, Grid((5, 5)), PostProcessing(fill_holes=True), values=[1])
    assert filled[2, 2] == 1
    assert filled.sum() == 5
    assert apply(labels, Grid((5, 5)), PostProcessing(largest_component=True), values=[1]).sum() == 1


def test_a_volume_of_one_slice_is_cleaned_as_an_image() -> None:
    ring = np.ones((3, 3, 1), np.uint8)
    ring[1, 1] = 0
    labels = np.pad(ring, ((1, 1), (1, 1), (0, 0)))
    for turned in (labels, labels.transpose(2, 0, 1), labels.transpose(0, 2, 1)):
        assert apply(turned, Grid(turned.shape), PostProcessing(fill_holes=True), values=[1]).sum() == 9


def test_a_tunnel_through_a_volume_is_no_hole() -> None:
    labels = np.ones((5, 5, 5), np.uint8)
    labels[2, 2, :] = 0
    assert np.array_equal(apply(labels, Grid(labels.shape), PostProcessing(fill_holes=True), values=[1]), labels)
    labels[2, 2, 0] = labels[2, 2, -1] = 1
    assert apply(labels, Grid(labels.shape), PostProcessing(fill_holes=True), values=[1]).all()


SHEARED = np.array([[1.0, 0.5, 0, 3], [0, 2, 0, 4], [0.2, 0, 1.5, 5], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("grid", "size"),
    [
        (Grid((6, 6, 1), (0.5, 0.5, 4.0)), 1.0),
        (Grid((6, 6, 1), (1.02, 2.06, 1.5), SHEARED), 3.0),
        (Grid((6, 6), (0.1, 0.1)), 0.01),
        (Grid((6, 6)), 1.0),
        (Grid((6, 6, 1), None, SHEARED), 1.0),
    ],
)
def test_sizes_are_physical_where_the_spacing_is_known(grid: Grid, size: float) -> None:
    labels = np.zeros((6, 6), np.uint8)
    labels[0, :3] = 1
    labels[2, :2] = 1
    labels = labels.reshape(grid.shape)
    just = apply(labels, grid, PostProcessing(min_size_mm3=3 * size), values=[1])
    assert just.sum() == 3
    more = apply(labels, grid, PostProcessing(min_size_mm3=3.01 * size), values=[1])
    assert more.sum() == 0


def test_of_equally_large_pieces_the_first_stays() -> None:
    labels = np.array([[1, 1, 0, 1, 1]], np.uint8)
    assert apply(labels, Grid((1, 5)), PostProcessing(largest_component=True), values=[1]).tolist() == [[1, 1, 0, 0, 0]]


@pytest.mark.parametrize("post", [PostProcessing(), PostProcessing(True, True, 10.0)])
def test_nothing_to_do(post: PostProcessing) -> None:
    for labels in (np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8)):
        assert np.array_equal(apply(labels, Grid((4, 4), (1, 1)), post, values=[1]), labels)
        assert np.array_equal(apply(labels, Grid((4, 4), (1, 1)), post, values=[]), labels)


@pytest.mark.parametrize("size", [-1.0, math.nan, math.inf])
def test_sizes_that_are_none_are_refused(size: float) -> None:
    with pytest.raises(InputError, match="min_size_mm3: expected a volume of 0 mm3 or more"):
        PostProcessing(min_size_mm3=size)
