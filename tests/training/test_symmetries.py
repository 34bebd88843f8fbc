"""Mirrorings that keep the meaning of the labels: found by the model, kept in its file, used in training and after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from medsaga.data.augment import Augmentation, augment
from medsaga.data.samples import Samples
from medsaga.data.symmetries import SYMMETRIES, flips
from medsaga.models.base import SegmentationModel
from medsaga.models.sam import build_sam
from medsaga.models.weights.loading import load_model, save_model
from medsaga.training.symmetries import find_symmetries

SIDE = 32


class Thresholds(SegmentationModel):
    """Labels what is bright; where asked to, only in one half of the image, or its rows only."""

    def __init__(self, half: str) -> None:
        super().__init__("thresholds", classes=2, image_size=SIDE, in_channels=1)
        self.half = half

    def forward(self, images: Tensor) -> Tensor:
        """``(b, 1, s, s)`` to ``(b, 2, s, s)``."""
        seen = torch.zeros(SIDE, SIDE)
        seen[{"all": slice(None), "top": slice(SIDE // 2), "left": slice(None)}[self.half]] = 1
        if self.half == "left":
            seen[:, SIDE // 2 :] = 0
        bright = torch.where(seen > 0, images[:, 0] - 100.0, -100.0)
        return torch.stack([-bright, bright], dim=1)


def samples(half: str, n: int = 6) -> Samples:
    """Bright squares on a dark ground, all of them labelled in the given half."""
    random = np.random.default_rng(0)
    images = np.zeros((n, 1, SIDE, SIDE), np.uint8)
    for image in images[:, 0]:
        row, column = random.integers(2, SIDE // 2 - 8, 2)
        image[row : row + 6, column : column + 6] = 200
    labels = (images[:, 0] > 100).astype(np.uint8)
    return Samples(
        images=images,
        labels=labels,
        item_names=tuple(map(str, range(n))),
        slice_indices=np.zeros(n, np.int64),
        content=np.full((n, 2), SIDE),
        foreground=np.ones(n, bool),
    )


@pytest.mark.parametrize(
    ("half", "kept"),
    [
        ("all", ["left-right", "up-down", "transposed"]),
        ("top", ["left-right", "transposed"]),
        ("left", ["up-down", "transposed"]),
    ],
)
def test_a_mirroring_is_kept_where_the_model_segments_mirror_images_as_well(half: str, kept: list[str]) -> None:
    found = find_symmetries(Thresholds(half), samples(half), torch.device("cpu"), batch_size=4)
    assert found == kept


def test_a_model_that_knows_nothing_yet_has_no_symmetries() -> None:
    blind = samples("all")
    blind.labels[:] = 0
    blind.labels[:, -1, -1] = 1
    assert find_symmetries(Thresholds("top"), blind, torch.device("cpu"), batch_size=4) == []


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
