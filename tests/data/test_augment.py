"""Augmentation: labels follow images, the same step gives the same bits, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medsaga.data.augment import AUGMENTATIONS, Augmentation, augment

SIZE = 64
GEOMETRY = Augmentation(turn_and_flip=0.3, rotate=0.7, scale=0.7, shift=0.7, elastic=0.7)


def batch(n: int = 6, channels: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Large soft shapes, painted with their label: what is drawn at value 40 * label is label."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    labels = np.zeros((n, SIZE, SIZE), np.uint8)
    for one in labels:
        for label in (1, 2, 3):
            cy, cx, r = random.uniform(12, 52), random.uniform(12, 52), random.uniform(8, 16)
            one[(y - cy) ** 2 + (x - cx) ** 2 < r**2] = label
    images = np.repeat(labels[:, None] * 40, channels, axis=1)
    return torch.from_numpy(images), torch.from_numpy(labels)


def changed(strength: Augmentation, step: int, n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return augment(*batch(n), seed=5, step=step, strength=strength)


@pytest.mark.parametrize("strength", [GEOMETRY, AUGMENTATIONS["samed"]])
def test_labels_follow_their_image(strength: Augmentation) -> None:
    # One channel per label, 200 where the label is. The nearest of four neighbours has at least a quarter of the
    # bilinear weight, so that these bounds hold for every pixel, edges too, if and only if both use one map.
    _, labels = batch()
    images = torch.stack([(labels == label) * 200 for label in (1, 2, 3)], dim=1).to(torch.uint8)
    seen = 0
    for step in range(12):
        pictures, classes = augment(images, labels, seed=5, step=step, strength=strength)
        assert set(classes.unique().tolist()) <= {0, 1, 2, 3}
        for channel, label in enumerate((1, 2, 3)):
            assert (pictures[:, channel][classes == label] >= 49.9).all()
            assert (pictures[:, channel][classes != label] <= 150.1).all()
        seen += not torch.equal(classes, labels)
    assert seen == 12


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_types_shapes_and_range(name: str) -> None:
    random = torch.randint(0, 256, (5, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = batch(5)[1]
    before = random.clone(), labels.clone()
    for step in range(6):
        images, classes = augment(random, labels, seed=0, step=step, strength=AUGMENTATIONS[name])
        assert (images.dtype, classes.dtype) == (torch.float32, torch.uint8)
        assert (images.shape, classes.shape) == (random.shape, labels.shape)
        assert images.min() >= 0
        assert images.max() <= 255
        assert images.isfinite().all()
    assert torch.equal(random, before[0])
    assert torch.equal(labels, before[1])


def test_none_changes_nothing() -> None:
    images, labels = batch()
    pictures, classes = augment(images, labels, seed=0, step=0, strength=AUGMENTATIONS["none"])
    assert torch.equal(pictures, images.float())
    assert torch.equal(classes, labels)


@pytest.mark.parametrize("name", ["fewshot", "samed"])
def test_seed_and_step_decide_everything(name: str) -> None:
    strength = AUGMENTATIONS[name]
    first = changed(strength, 3)
    torch.manual_seed(99)
    np.random.seed(99)
    torch.rand(10)
    again = changed(strength, 3)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], changed(strength, 4)[0])
    assert not torch.equal(first[0], augment(*batch(), seed=6, step=3, strength=strength)[0])


def test_the_global_generators_are_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    changed(AUGMENTATIONS["fewshot"], 0)
    assert torch.equal(torch.rand(1), expected)


def test_turns_and_flips_are_exact_and_all_of_them_happen() -> None:
    image = torch.arange(SIZE * SIZE).reshape(1, 1, SIZE, SIZE).remainder(251).to(torch.uint8)
    label = image[:, 0] % 7
    eight = [torch.rot90(picture, turns) for picture in (image[0, 0], image[0, 0].flip(0)) for turns in range(4)]
    seen = set()
    for step in range(80):
        pictures, labels = augment(image, label, seed=0, step=step, strength=Augmentation(turn_and_flip=1))
        close = [n for n, one in enumerate(eight) if (pictures[0, 0] - one).abs().max() < 0.02]
        assert len(close) == 1
        assert torch.equal(labels[0], eight[close[0]] % 7)
        seen |= set(close)
    assert seen == {4, 5, 6, 7}, "a flip comes with every turn"


def test_scale_zooms_by_its_factor_about_the_middle() -> None:
    image = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.uint8)
    image[..., 24:40, 24:40] = 200
    _, labels = augment(
        image, image[:, 0] // 200, seed=0, step=0, strength=Augmentation(scale=1, scale_range=(1.5, 1.5))
    )
    rows, columns = labels[0].nonzero(as_tuple=True)
    ends = [int(end) for end in (rows.min(), rows.max(), columns.min(), columns.max())]
    assert ends == [20, 43, 20, 43]


def test_shift_brings_in_zeros_and_stays_within_its_limit() -> None:
    image = torch.full((1, 1, SIZE, SIZE), 200, dtype=torch.uint8)
    empty = []
    for step in range(30):
        pictures, labels = augment(
            image, image[:, 0] // 200, seed=0, step=step, strength=Augmentation(shift=1, shift_limit=0.25)
        )
        assert (pictures[0, 0][labels[0] == 0] <= 100.01).all()
        empty.append(max(int((labels[0] == 0).all(dim).sum()) for dim in (0, 1)))
    assert max(empty) <= SIZE // 4
    assert max(empty) > SIZE // 8


def test_rotation_by_a_known_angle() -> None:
    # A point right of the middle, turned by 90 degrees about it, is above or below it.
    image = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.uint8)
    image[..., 30:34, 50:54] = 255
    angles = []
    for step in range(40):
        _, labels = augment(image, image[:, 0] // 255, seed=2, step=step, strength=Augmentation(rotate=1))
        y, x = (labels[0].nonzero().float().mean(0) + 0.5 - SIZE / 2).tolist()
        assert np.hypot(x, y) == pytest.approx(20, abs=0.7)
        angles.append(np.degrees(np.arctan2(y, x)))
    assert max(map(abs, angles)) < 22
    assert min(angles) < -12
    assert max(angles) > 12


def test_samed_leaves_a_quarter_of_the_samples_as_they_are() -> None:
    images, labels = batch(50)
    same = 0
    for step in range(8):
        pictures, _ = augment(images, labels, seed=0, step=step, strength=AUGMENTATIONS["samed"])
        same += int(((pictures - images).abs().amax((1, 2, 3)) < 0.05).sum())
    assert same / 400 == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize(
    "strength", [Augmentation(tone=1), Augmentation(noise=1), Augmentation(blur=1), Augmentation(elastic=1)]
)
def test_every_change_changes_images(strength: Augmentation) -> None:
    images, labels = batch()
    pictures, classes = augment(images, labels, seed=0, step=0, strength=strength)
    assert ((pictures - images).abs().amax((1, 2, 3)) > 0.5).all()
    assert torch.equal(classes, labels) == (strength.elastic == 0)


def test_colours_change_by_a_factor_for_each_channel_and_grey_stays_grey() -> None:
    coloured = (
        torch.tensor([60, 90, 120], dtype=torch.uint8)[None, :, None, None].expand(40, 3, SIZE, SIZE).contiguous()
    )
    labels = torch.zeros(40, SIZE, SIZE, dtype=torch.uint8)
    pictures, _ = augment(coloured, labels, seed=0, step=0, strength=Augmentation(colour=1, colour_limit=0.3))
    factors = pictures / coloured
    assert (factors.amax((2, 3)) - factors.amin((2, 3))).max() < 1e-5
    factors = factors[:, :, 0, 0]
    assert 0.7 <= factors.min() < 0.75
    assert 1.25 < factors.max() <= 1.3
    # No channel follows another.
    assert torch.corrcoef(factors.T).fill_diagonal_(0).abs().max() < 0.5

    grey = coloured[:, :1].expand(-1, 3, -1, -1).contiguous()
    without, with_colour = (
        augment(grey, labels, seed=0, step=0, strength=Augmentation(noise=1, tone=1, scale=1, colour=colour))[0]
        for colour in (0, 1)
    )
    assert torch.equal(with_colour, without)


def test_noise_has_no_bias_and_blur_keeps_the_mean() -> None:
    grey = torch.full((4, 1, SIZE, SIZE), 128, dtype=torch.uint8)
    noisy, _ = augment(grey, grey[:, 0], seed=0, step=0, strength=Augmentation(noise=1, noise_limit=0.1))
    assert (noisy.mean((1, 2, 3)) - 128).abs().max() < 1.5
    assert noisy.std() < 26
    blurred, _ = augment(grey, grey[:, 0], seed=0, step=0, strength=Augmentation(blur=1))
    torch.testing.assert_close(blurred, grey.float(), atol=1e-3, rtol=0)


def test_elastic_deformation_is_smooth() -> None:
    # A ramp from left to right stays one: no folds.
    ramp = torch.arange(0, 4 * SIZE, 4, dtype=torch.uint8).expand(8, 1, SIZE, SIZE).contiguous()
    pictures, _ = augment(ramp, ramp[:, 0], seed=0, step=0, strength=Augmentation(elastic=1))
    inner = pictures[:, 0, 12:-12, 12:-12]
    assert (inner.diff(dim=-1) > 0).all()
    assert (pictures - ramp).abs().max() > 2


def test_a_batch_in_parts_is_changed_to_the_same_bits() -> None:
    images, labels = batch(5)
    strength = AUGMENTATIONS["fewshot"]
    for step in range(6):
        whole = augment(images, labels, seed=3, step=step, strength=strength)
        for part in (slice(0, 2), slice(2, 5)):
            pictures, classes = augment(
                images[part], labels[part], seed=3, step=step, strength=strength, first=part.start
            )
            assert torch.equal(pictures, whole[0][part])
            assert torch.equal(classes, whole[1][part])
