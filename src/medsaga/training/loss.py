"""The loss of the paper, in the form that a batch may be cut into micro-batches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

CROSS_ENTROPY_WEIGHT = 0.2
DICE_WEIGHT = 0.8
# One pixel's worth: a class that is absent from an image gives a small, bounded gradient instead of a jump.
SMOOTHING = 1.0


def segmentation_loss(low_res_logits: Tensor, labels: Tensor) -> Tensor:
    """0.2 cross-entropy + 0.8 Dice on the low-resolution logits (SAMed, arXiv 2304.13785, as MedSAGa keeps it).

    The Dice term is taken per image and averaged over classes and images (SAMed sums over the whole batch), so that
    the loss of a batch is the mean of the losses of its micro-batches.

    Args:
        low_res_logits: (batch, classes, height, width), floating point.
        labels: (batch, H, W) uint8 class indices, H and W whole multiples of height and width.

    Returns:
        scalar float32.
    """
    classes, height, width = low_res_logits.shape[1:]
    target = functional.interpolate(labels[:, None].float(), size=(height, width), mode="nearest-exact")[:, 0].long()
    log_probabilities = functional.log_softmax(low_res_logits.float(), dim=1)
    cross_entropy = functional.nll_loss(log_probabilities, target)
    probabilities = log_probabilities.exp().flatten(2)  # (batch, classes, pixels)
    truth = functional.one_hot(target.flatten(1), classes).transpose(1, 2).to(probabilities.dtype)
    intersection = (probabilities * truth).sum(-1)
    dice = (2 * intersection + SMOOTHING) / (probabilities.sum(-1) + truth.sum(-1) + SMOOTHING)
    return CROSS_ENTROPY_WEIGHT * cross_entropy + DICE_WEIGHT * (1 - dice).mean()


@torch.no_grad()
def overlap_counts(low_res_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Count what Dice needs, at the low resolution, so that counts of several batches can be added.

    Args:
        low_res_logits: (batch, classes, height, width).
        labels: (batch, H, W) uint8 class indices.

    Returns:
        intersection and sum of sizes, each (batch, classes) int64 on the CPU.
    """
    classes, height, width = low_res_logits.shape[1:]
    target = functional.interpolate(labels[:, None].float(), size=(height, width), mode="nearest-exact")[:, 0].long()
    prediction = low_res_logits.argmax(1)
    truth = functional.one_hot(target.flatten(1), classes)
    guess = functional.one_hot(prediction.flatten(1), classes)
    return (truth * guess).sum(1).cpu(), (truth.sum(1) + guess.sum(1)).cpu()
