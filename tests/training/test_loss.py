"""The loss against MONAI's, and the property that micro-batches rest on."""

from __future__ import annotations

import torch
from torch import Tensor

from medsaga.training.loss import overlap_counts, segmentation_loss


def _batch(batch: int = 3, classes: int = 4, side: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, classes, side, side, generator=generator, requires_grad=True)
    labels = torch.randint(0, classes, (batch, 4 * side, 4 * side), generator=generator).to(torch.uint8)
    return logits, labels


def _at_low_resolution(labels: Tensor) -> Tensor:
    # The nearest low-resolution pixel of a 4 x 4 block is the one right of and below its centre.
    return labels[:, 2::4, 2::4]


def test_agrees_with_monai() -> None:
    from monai.losses import DiceCELoss

    logits, labels = _batch()
    oracle = DiceCELoss(
        to_onehot_y=True, softmax=True, smooth_nr=1.0, smooth_dr=1.0, lambda_dice=0.8, lambda_ce=0.2, batch=False
    )
    expected = oracle(logits, _at_low_resolution(labels)[:, None].long())
    loss = segmentation_loss(logits, labels)
    torch.testing.assert_close(loss, expected)
    (ours,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs)


def test_a_batch_is_the_mean_of_its_images() -> None:
    logits, labels = _batch()
    apart = torch.stack([segmentation_loss(logits[i : i + 1], labels[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(segmentation_loss(logits, labels), apart.mean())


def test_is_nearly_zero_for_a_sure_and_right_answer() -> None:
    _, labels = _batch()
    right = torch.nn.functional.one_hot(_at_low_resolution(labels).long(), 4).movedim(-1, 1).float() * 50
    assert segmentation_loss(right, labels) < 1e-3
    assert segmentation_loss(-right, labels) > 1


def test_overlap_counts_give_dice() -> None:
    logits, labels = _batch()
    both, sizes = overlap_counts(logits, labels)
    guess, truth = logits.argmax(1), _at_low_resolution(labels)
    for image in range(3):
        for label in range(4):
            a, b = guess[image] == label, truth[image] == label
            assert both[image, label] == (a & b).sum()
            assert sizes[image, label] == a.sum() + b.sum()
