"""Mirrorings that keep the meaning of labels: told by the masks, kept in the model file, used in training and after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from medsaga.data.augment import Augmentation, augment
from medsaga.data.letterbox import letterbox_labels
from medsaga.data.samples import Samples
from medsaga.data.symmetries import SYMMETRIES, flips, symmetries_of
from medsaga.models.sam import build_sam
from medsaga.models.weights.loading import load_model, save_model

SIDE = 32


FIRST, SECOND, ALL = slice(1, SIDE // 2 - 2), slice(SIDE // 2 + 2, SIDE - 1), slice(0, SIDE)


def masks(*places: tuple[int, slice, slice], n: int = 40) -> npt.NDArray[np.uint8]:
    """Label maps with a square of each class somewhere in the rows and columns that are its own."""
    random = np.random.default_rng(0)
    labels = np.zeros((n, SIDE, SIDE), np.uint8)
    for image in labels:
        for value, rows, columns in places:
            row, column = (int(random.integers(part.start, part.stop - 5)) for part in (rows, columns))
            image[row : row + 5, column : column + 5] = value
    return labels


def samples_of(
    labels: npt.NDArray[np.uint8],
    content: tuple[int, int] = (SIDE, SIDE),
    windows: npt.NDArray[np.float64] | None = None,
) -> Samples:
    """Samples with these labels, each of which is a whole slice unless it is said to be a part of one."""
    return Samples(
        images=np.zeros((len(labels), 1, SIDE, SIDE), np.uint8),
        labels=labels,
        item_names=("x",) * len(labels),
        slice_indices=np.zeros(len(labels), np.int64),
        content=np.tile(content, (len(labels), 1)),
        windows=np.tile([0.0, 0.0, 1.0, 1.0], (len(labels), 1)) if windows is None else windows,
        foreground=np.ones(len(labels), np.bool_),
    )


@pytest.mark.parametrize(
    ("places", "kept"),
    [
        pytest.param([(1, FIRST, FIRST)], ["left-right", "up-down", "transposed"], id="one label alone"),
        pytest.param([(1, ALL, ALL), (2, ALL, ALL)], ["left-right", "up-down", "transposed"], id="two kinds of cells"),
        pytest.param([(1, ALL, FIRST), (2, ALL, SECOND)], ["up-down"], id="left and right kidney"),
        pytest.param([(1, FIRST, ALL), (2, SECOND, ALL)], ["left-right"], id="layers of a retina"),
        pytest.param([(1, FIRST, FIRST), (2, SECOND, FIRST), (3, FIRST, SECOND)], [], id="three places"),
    ],
)
def test_a_mirroring_that_takes_a_label_to_the_place_of_another_is_left_out(
    places: list[tuple[int, slice, slice]], kept: list[str]
) -> None:
    labels = masks(*places)
    assert list(symmetries_of(samples_of(labels), 1 + len(places))) == kept
    # Nor does it matter how much padding there is beside or below an image.
    for stretch, content in (((2, 1), (SIDE, SIDE // 2)), ((1, 3), (round(SIDE / 3), SIDE))):
        stretched = [np.kron(image, np.ones(stretch, np.uint8)).astype(np.uint8) for image in labels]
        padded = np.stack([letterbox_labels(image, SIDE) for image in stretched])
        assert list(symmetries_of(samples_of(padded, content), 1 + len(places))) == kept


def test_where_a_tile_lies_in_its_slice_counts() -> None:
    left, right = masks((1, ALL, ALL)), masks((2, ALL, ALL))
    windows = np.repeat([[0.0, 0.0, 1.0, 0.5], [0.0, 0.5, 1.0, 0.5]], len(left), axis=0)
    tiles = samples_of(np.concatenate([left, right]), (SIDE, SIDE), windows)
    assert symmetries_of(tiles, 3) == ("up-down",)


def test_a_label_that_no_image_has_tells_nothing() -> None:
    assert symmetries_of(samples_of(masks((1, ALL, ALL))), 4) == tuple(SYMMETRIES)


def test_images_and_labels_are_mirrored_alike_half_of_the_time_and_nothing_else_changes() -> None:
    grid = torch.arange(SIDE * SIDE).reshape(SIDE, SIDE).remainder(251).to(torch.uint8)
    images, labels = grid.expand(400, 1, SIDE, SIDE), grid.expand(400, SIDE, SIDE)
    strength = Augmentation(mirror=0.5)
    for name, mirrored in SYMMETRIES.items():
        changed, classes = augment(images, labels, seed=1, step=0, strength=strength, symmetries=[name])
        assert torch.equal(changed[:, 0], classes.float())
        turned = [torch.equal(one, mirrored(grid)) for one in classes]
        kept = [torch.equal(one, grid) for one in classes]
        assert all(a != b for a, b in zip(turned, kept, strict=True))
        assert 150 < sum(turned) < 250
    strong = Augmentation(rotate=1, scale=1, noise=1, mirror=0.0)
    before, after = (
        augment(images[:3], labels[:3], seed=1, step=0, strength=strong, symmetries=names)[0]
        for names in ([], ["up-down"])
    )
    assert torch.equal(before, after)


def test_the_passes_of_test_time_augmentation() -> None:
    assert flips([]) == [()]
    assert flips(["left-right", "transposed"]) == [(), (2,)]
    assert flips(SYMMETRIES) == [(), (1,), (2,), (1, 2)]
    square = torch.arange(9.0).reshape(3, 3)
    for mirrored in SYMMETRIES.values():
        assert not torch.equal(mirrored(square), square)
        assert torch.equal(mirrored(mirrored(square)), square)


def test_a_model_file_keeps_the_symmetries(tmp_path: Path) -> None:
    model = build_sam("tiny", classes=2, image_size=64)
    save_model(tmp_path / "none.safetensors", model)
    assert load_model(tmp_path / "none.safetensors").symmetries == ()
    model.symmetries = ("up-down",)
    save_model(tmp_path / "one.safetensors", model)
    assert load_model(tmp_path / "one.safetensors").symmetries == ("up-down",)
