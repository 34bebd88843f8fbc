"""The loss against MONAI's, and the property that micro-batches rest on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medsaga.training.loss import dice_sums, hard_dice_sums, segmentation_loss


def _batch(images: int = 3, classes: int = 4, side: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(images, classes, side, side, generator=generator, requires_grad=True)
    labels = torch.randint(0, classes, (images, 4 * side, 4 * side), generator=generator).to(torch.uint8)
    return logits, labels


def _at_low_resolution(labels: Tensor) -> Tensor:
    # The nearest low-resolution pixel of a 4 x 4 block is the one right of and below its centre.
    return labels[:, 2::4, 2::4]


def test_agrees_with_monai() -> None:
    from monai.losses import DiceCELoss

    logits, labels = _batch()
    oracle = DiceCELoss(
        to_onehot_y=True, softmax=True, smooth_nr=1.0, smooth_dr=1.0, lambda_dice=0.8, lambda_ce=0.2, batch=True
    )
    expected = oracle(logits, _at_low_resolution(labels)[:, None].long())
    loss = segmentation_loss(logits, labels, dice_weight=0.8).sum()
    torch.testing.assert_close(loss, expected)
    (ours,) = torch.autograd.grad(loss, logits)
    (theirs,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs)


def test_a_class_that_is_nowhere_in_the_batch_has_no_dice() -> None:
    from monai.losses import DiceLoss

    logits, labels = _batch()
    labels[labels == 3] = 0
    oracle = DiceLoss(to_onehot_y=True, softmax=True, smooth_nr=1.0, smooth_dr=1.0, batch=True, reduction="none")
    per_class = oracle(logits, _at_low_resolution(labels)[:, None].long()).flatten()
    torch.testing.assert_close(segmentation_loss(logits, labels, dice_weight=0.8)[1], 0.8 * per_class[:3].mean())


@pytest.mark.parametrize("cuts", [[1, 2], [2, 1], [1, 1, 1]])
def test_micro_batches_that_know_of_each_other_give_the_gradient_of_the_batch(cuts: list[int]) -> None:
    logits, labels = _batch()
    (whole,) = torch.autograd.grad(segmentation_loss(logits, labels, dice_weight=0.8).sum(), logits)
    parts = list(zip(logits.detach().split(cuts), labels.split(cuts), strict=True))
    everything = dice_sums(logits.detach(), labels)
    gradients = []
    for part, truth in parts:
        part.requires_grad_()
        cross_entropy, dice = segmentation_loss(
            part, truth, everything - dice_sums(part.detach(), truth), dice_weight=0.8
        )
        gradients += torch.autograd.grad(len(part) / 3 * cross_entropy + dice, part)
    torch.testing.assert_close(torch.cat(gradients), whole)


def test_is_nearly_zero_for_a_sure_and_right_answer() -> None:
    _, labels = _batch()
    right = torch.nn.functional.one_hot(_at_low_resolution(labels).long(), 4).movedim(-1, 1).float() * 50
    assert segmentation_loss(right, labels, dice_weight=0.8).sum() < 1e-3
    assert segmentation_loss(-right, labels, dice_weight=0.8).sum() > 1


def test_hard_sums_count_pixels() -> None:
    logits, labels = _batch()
    intersection, predicted, true = hard_dice_sums(logits, labels)
    guess, truth = logits.argmax(1), _at_low_resolution(labels)
    for label in range(4):
        a, b = guess == label, truth == label
        assert intersection[label] == (a & b).sum()
        assert (predicted[label], true[label]) == (a.sum(), b.sum())
