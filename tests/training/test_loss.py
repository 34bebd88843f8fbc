"""The loss against plain formulas and MONAI's, the property that micro-batches rest on, and its memory."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from medsaga.config import DiceForm, LossResolution
from medsaga.memory.tracker import TensorTracker
from medsaga.training import loss as of
from medsaga.training.loss import dice_sums, hard_dice_sums, segmentation_loss

RESOLUTIONS: tuple[LossResolution, ...] = ("image", "logits")
FORMS: tuple[DiceForm, ...] = ("linear", "squared")
ONE_ROW = 1
"""A band of so few elements is a single row of the labels."""


def _batch(
    images: int = 3, classes: int = 4, height: int = 16, width: int = 16, factor: int = 4
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(images, classes, height, width, generator=generator, requires_grad=True)
    labels = torch.randint(0, classes, (images, factor * height, factor * width), generator=generator).to(torch.uint8)
    return logits, labels


def _matched(logits: Tensor, labels: Tensor, resolution: LossResolution) -> tuple[Tensor, Tensor]:
    """Logits and labels of one size, by torch's own interpolation."""
    if resolution == "logits":
        coarse = functional.interpolate(labels[:, None].float(), size=logits.shape[2:], mode="nearest-exact")[:, 0]
        return logits.float(), coarse.long()
    fine = functional.interpolate(logits.float(), size=labels.shape[1:], mode="bilinear", align_corners=False)
    return fine, labels.long()


def _plain(logits: Tensor, labels: Tensor, resolution: LossResolution) -> Tensor:
    """The same loss in a few lines, with everything in memory at once."""
    fine, target = _matched(logits, labels, resolution)
    probabilities, pixels = fine.softmax(1), (0, 2, 3)
    one_hot = functional.one_hot(target, fine.shape[1]).movedim(-1, 1)
    overlap, size = (probabilities * one_hot).sum(pixels), (probabilities + one_hot).sum(pixels)
    dice = ((2 * overlap + 1) / (size + 1))[one_hot.sum(pixels) > 0].mean()
    return 0.2 * functional.cross_entropy(fine, target) + 0.8 * (1 - dice)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_agrees_with_monai(resolution: LossResolution) -> None:
    from monai.losses import DiceCELoss

    logits, labels = _batch()
    oracle = DiceCELoss(
        to_onehot_y=True, softmax=True, smooth_nr=1.0, smooth_dr=1.0, lambda_dice=0.8, lambda_ce=0.2, batch=True
    )
    matched, target = _matched(logits, labels, resolution)
    expected = oracle(matched, target[:, None])
    loss = segmentation_loss(logits, labels, dice_weight=0.8, resolution=resolution).sum()
    torch.testing.assert_close(loss, expected)
    (ours,) = torch.autograd.grad(loss, logits)
    (theirs,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("height", "width", "factor"), [(16, 16, 4), (7, 5, 3), (5, 9, 2), (1, 1, 4), (1, 6, 5), (12, 10, 1)]
)
@pytest.mark.parametrize("band", [ONE_ROW, 3 * 4 * 7 * 16, 2**20])
def test_bands_of_any_height_give_the_value_and_the_gradient_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int, factor: int, band: int
) -> None:
    monkeypatch.setattr(of, "BAND_ELEMENTS", band)
    for dtype, resolution in itertools.product((torch.float32, torch.bfloat16), RESOLUTIONS):
        logits, labels = _batch(height=height, width=width, factor=factor)
        logits = (4 * logits.detach()).to(dtype).requires_grad_()
        loss = segmentation_loss(logits, labels, dice_weight=0.8, resolution=resolution).sum()
        expected = _plain(logits, labels, resolution)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected)
        (ours,) = torch.autograd.grad(loss, logits)
        (theirs,) = torch.autograd.grad(expected, logits)
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs)


def test_logits_of_the_labels_size_have_one_resolution() -> None:
    logits, labels = _batch(factor=1)
    at_image, at_logits = (segmentation_loss(logits, labels, dice_weight=0.8, resolution=r) for r in RESOLUTIONS)
    assert torch.equal(at_image, at_logits)


def test_only_the_image_has_a_border_between_two_logits() -> None:
    labels = torch.zeros(1, 16, 16, dtype=torch.uint8)
    moved = labels.clone()
    labels[:, :, 6:], moved[:, :, 5:] = 1, 1
    logits = torch.zeros(1, 2, 4, 4)
    logits[:, 1, :, 2:], logits[:, 0, :, :1] = 9, 9
    at_image, at_logits = (
        [segmentation_loss(logits, truth, dice_weight=0.8, resolution=r).sum() for truth in (labels, moved)]
        for r in RESOLUTIONS
    )
    assert at_logits[0] == at_logits[1]
    assert at_image[0] < 0.95 * at_image[1]


def test_a_class_that_is_nowhere_in_the_batch_has_no_dice() -> None:
    from monai.losses import DiceLoss

    logits, labels = _batch()
    labels[labels == 3] = 0
    oracle = DiceLoss(to_onehot_y=True, softmax=True, smooth_nr=1.0, smooth_dr=1.0, batch=True, reduction="none")
    matched, target = _matched(logits, labels, "image")
    per_class = oracle(matched, target[:, None]).flatten()
    dice = segmentation_loss(logits, labels, dice_weight=0.8, resolution="image")[1]
    torch.testing.assert_close(dice, 0.8 * per_class[:3].mean())


def _published(logits: Tensor, labels: Tensor, resolution: LossResolution, dice_weight: float) -> Tensor:
    """The loss as the public code of SAMed and DAE-Former defines it.

    ``DiceLoss`` in ``utils.py`` of hitachinsk/SAMed and of mindflow-institue/DAEFormer: each class by itself, the
    background too; sums of squares below the line; 1e-5 above and below it; the mean of all classes, present or not.
    """
    fine, target = _matched(logits, labels, resolution)
    probabilities = fine.softmax(1)
    losses = []
    for label in range(fine.shape[1]):
        p, y = probabilities[:, label].flatten(), (target == label).float().flatten()
        losses.append(1 - (2 * (p @ y) + 1e-5) / (p @ p + y @ y + 1e-5))
    return (1 - dice_weight) * functional.cross_entropy(fine, target) + dice_weight * torch.stack(losses).mean()


@pytest.mark.parametrize(
    ("resolution", "factor", "dice_weight"), [("logits", 4, 0.8), ("image", 1, 0.6), ("image", 4, 0.8)]
)
@pytest.mark.parametrize("missing", [None, 0, 3])
@pytest.mark.parametrize("band", [ONE_ROW, 2**20])
def test_the_squared_form_is_that_of_the_publications_code(
    monkeypatch: pytest.MonkeyPatch,
    resolution: LossResolution,
    factor: int,
    dice_weight: float,
    missing: int | None,
    band: int,
) -> None:
    monkeypatch.setattr(of, "BAND_ELEMENTS", band)
    logits, labels = _batch(factor=factor)
    if missing is not None:
        labels[labels == missing] = 1
    expected = _published(logits, labels, resolution, dice_weight)
    loss = segmentation_loss(logits, labels, dice_weight=dice_weight, resolution=resolution, dice_form="squared").sum()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("band", [ONE_ROW, 2**20])
@pytest.mark.parametrize("cuts", [[1, 2], [2, 1], [1, 1, 1]])
def test_micro_batches_that_know_of_each_other_give_the_gradient_of_the_batch(
    monkeypatch: pytest.MonkeyPatch, cuts: list[int], band: int, resolution: LossResolution, form: DiceForm
) -> None:
    monkeypatch.setattr(of, "BAND_ELEMENTS", band)
    logits, labels = _batch()
    whole_loss = segmentation_loss(logits, labels, dice_weight=0.8, resolution=resolution, dice_form=form).sum()
    (whole,) = torch.autograd.grad(whole_loss, logits)
    parts = list(zip(logits.detach().split(cuts), labels.split(cuts), strict=True))
    everything = dice_sums(logits.detach(), labels, resolution=resolution, dice_form=form)
    gradients = []
    for part, truth in parts:
        part.requires_grad_()
        elsewhere = everything - dice_sums(part.detach(), truth, resolution=resolution, dice_form=form)
        cross_entropy, dice = segmentation_loss(
            part, truth, elsewhere, dice_weight=0.8, resolution=resolution, dice_form=form
        )
        gradients += torch.autograd.grad(len(part) / 3 * cross_entropy + dice, part)
    torch.testing.assert_close(torch.cat(gradients), whole)


def test_is_nearly_zero_for_a_sure_and_right_answer() -> None:
    _, labels = _batch()
    right = functional.one_hot(labels.long(), 4).movedim(-1, 1).float() * 50
    assert segmentation_loss(right, labels, dice_weight=0.8, resolution="image").sum() < 1e-3
    assert segmentation_loss(-right, labels, dice_weight=0.8, resolution="image").sum() > 1


@pytest.mark.parametrize("band", [ONE_ROW, 2**20])
def test_hard_sums_count_pixels_at_the_labels_resolution(monkeypatch: pytest.MonkeyPatch, band: int) -> None:
    monkeypatch.setattr(of, "BAND_ELEMENTS", band)
    logits, labels = _batch()
    labels[labels == 3] = 0
    intersection, predicted, true = hard_dice_sums(logits.detach(), labels)
    matched, truth = _matched(logits, labels, "image")
    guess = matched.argmax(1)
    for label in range(4):
        a, b = guess == label, truth == label
        assert intersection[label] == (a & b).sum()
        assert (predicted[label], true[label]) == (a.sum(), b.sum())


def test_its_memory_does_not_grow_with_the_resolution() -> None:
    def peak(loss_of: object) -> int:
        assert callable(loss_of)
        logits = torch.empty(1, 9, 256, 256, dtype=torch.bfloat16, device="meta", requires_grad=True)
        labels = torch.empty(1, 1024, 1024, dtype=torch.uint8, device="meta")
        with TensorTracker("meta") as tracker:
            loss_of(logits, labels).backward()
        return tracker.peak_bytes

    whole = 9 * 1024 * 1024 * 4
    for form in FORMS:
        ours = partial(segmentation_loss, dice_weight=0.8, resolution="image", dice_form=form)
        assert peak(lambda *both, ours=ours: ours(*both).sum()) < 0.4 * whole
    assert peak(lambda *both: _on_meta(*both)) > 3 * whole


def _on_meta(logits: Tensor, labels: Tensor) -> Tensor:
    """The greater part of `_plain`: a mask of a meta tensor has no size."""
    fine, target = _matched(logits, labels, "image")
    return functional.cross_entropy(fine, target) + fine.softmax(1).square().sum()
