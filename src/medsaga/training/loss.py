"""The loss of the paper, in the form that a batch may be cut into micro-batches without changing its gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SMOOTHING = 1.0
"""In pixels of the low-resolution logits."""


def segmentation_loss(
    low_res_logits: Tensor, labels: Tensor, sums_elsewhere: Tensor | None = None, *, dice_weight: float
) -> Tensor:
    """Return the two terms of a weighted sum of cross-entropy and Dice on low-resolution logits, as SAMed has it.

    Dice is taken over all images of a batch together (arXiv 2304.13785, as MedSAGa keeps it), and, unlike there, over
    the classes that occur in them: an image or batch without a class would push that class towards zero everywhere,
    and small structures would be learned late or never. So it is no mean over images. A micro-batch therefore needs
    to know the sums of the rest of its batch; its gradient is then exactly its share of the whole batch's.

    Args:
        low_res_logits: (images, classes, height, width), floating point.
        labels: (images, H, W) uint8 class indices, H and W whole multiples of height and width.
        sums_elsewhere: (3, classes), `dice_sums` of the rest of the batch; None when there is no rest.
        dice_weight: share of Dice; cross-entropy has the rest. SAMed and MedSAGa have 0.8, DAE-Former 0.6.

    Returns:
        (2,) float32: the mean cross-entropy of these images and 1 - Dice of the whole batch, each times its weight.
    """
    target = _at_low_resolution(labels, low_res_logits)
    cross_entropy = functional.cross_entropy(low_res_logits.float(), target)
    intersection, predicted, true = _sums(low_res_logits, target) + (0 if sums_elsewhere is None else sums_elsewhere)
    dice = (2 * intersection + SMOOTHING) / (predicted + true + SMOOTHING)
    present = (true > 0).to(dice.dtype)
    mean_dice = (dice * present).sum() / present.sum()
    return torch.stack([(1 - dice_weight) * cross_entropy, dice_weight * (1 - mean_dice)])


def dice_sums(low_res_logits: Tensor, labels: Tensor) -> Tensor:
    """Return what Dice adds up over images: (3, classes) float32, intersections, predicted sizes and true sizes."""
    return _sums(low_res_logits, _at_low_resolution(labels, low_res_logits))


def hard_dice_sums(low_res_logits: Tensor, labels: Tensor) -> Tensor:
    """Return `dice_sums` of the labels that the logits stand for: each pixel counts for its likeliest class only."""
    classes = torch.arange(low_res_logits.shape[1], device=low_res_logits.device)[:, None, None]
    # A logit far above the others is a probability of one.
    return dice_sums((low_res_logits.argmax(1)[:, None] == classes).float() * 1e4, labels)


def _sums(low_res_logits: Tensor, target: Tensor) -> Tensor:
    classes = low_res_logits.shape[1]
    probabilities = low_res_logits.float().softmax(1).movedim(1, 0).flatten(1)  # (classes, pixels of all images)
    # A mask of one byte: one-hot numbers of eight would be the largest tensors of a step.
    elsewhere = target.flatten() != torch.arange(classes, device=target.device)[:, None]
    true = (~elsewhere).sum(1).to(probabilities.dtype)
    return torch.stack([probabilities.masked_fill(elsewhere, 0).sum(1), probabilities.sum(1), true])


def _at_low_resolution(labels: Tensor, low_res_logits: Tensor) -> Tensor:
    size = low_res_logits.shape[-2:]
    return functional.interpolate(labels[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()
