"""The loss of the paper, in the form that a batch may be cut into micro-batches without changing its gradient.

It is taken at the resolution of the labels, to which inference upsamples the logits too: labels sampled down to the
logits say nothing about where within four pixels a border runs. Probabilities of that size would be among the largest
tensors of a step, so that they exist for a band of rows at a time, and once more in backward; only the low-resolution
logits are kept in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from medsaga.settings.options import DiceForm, LossResolution, ResolvedSettings

SMOOTHING: dict[DiceForm, float] = {"linear": 1.0, "squared": 1e-5}
"""In pixels."""
BAND_ELEMENTS = 2**19
"""Logits (images x classes x pixels) that exist at a time at the labels' resolution."""


@dataclass(frozen=True)
class Objective:
    """Which loss a run minimises; the attributes are arguments of `segmentation_loss`."""

    dice_weight: float
    resolution: LossResolution
    dice_form: DiceForm

    @classmethod
    def of(cls, settings: ResolvedSettings) -> Self:
        """That of a run with these settings."""
        return cls(settings.dice_weight, settings.loss_resolution, settings.dice_form)


def segmentation_loss(
    low_res_logits: Tensor,
    labels: Tensor,
    sums_elsewhere: Tensor | Callable[[Tensor], Tensor] | None = None,
    *,
    dice_weight: float,
    resolution: LossResolution,
    dice_form: DiceForm = "linear",
) -> Tensor:
    """Return the two terms of a weighted sum of cross-entropy and Dice.

    Dice is taken over all images of a batch together, so that it is no mean over images. A micro-batch therefore needs
    to know the sums of the rest of its batch; its gradient is then exactly its share of the whole batch's.

    With probabilities p and labels y, 0 or 1, of a class, the two forms of its Dice are

    - `linear`, ours: (2 sum(p y) + 1) / (sum(p) + sum(y) + 1), averaged over the classes that occur in the batch. One
      without a class would push that class towards zero everywhere, and small structures would be learned late or
      never.
    - `squared`, that of the public code of SAMed (arXiv 2304.13785, which MedSAGa keeps) and of DAE-Former
      (arXiv 2212.13504): (2 sum(p y) + 1e-5) / (sum(p^2) + sum(y^2) + 1e-5), averaged over all classes. In both forms
      the background is a class.

    Args:
        low_res_logits: (images, classes, height, width), floating point.
        labels: (images, H, W) uint8 class indices, H and W whole multiples of height and width.
        sums_elsewhere: (3, classes), `dice_sums` of the rest of the batch, in the same form; None where it is all. Or
            what returns them for those of these images, once they are known.
        dice_weight: share of Dice; cross-entropy has the rest. SAMed and MedSAGa have 0.8, DAE-Former 0.6.
        resolution: `image` upsamples the logits to the labels (bilinear, half-pixel centres, as inference does);
            `logits` samples the labels down to the logits (nearest neighbour), as SAMed and MedSAGa do.
        dice_form: `linear` or `squared`.

    Returns:
        (2,) float32, or float64 of such logits: the mean cross-entropy of these images' pixels and 1 - Dice of the
        whole batch, each times its weight.
    """
    target = _at(resolution, labels, low_res_logits)
    cross_entropy, sums = _Sums.apply(low_res_logits, target, dice_form)
    elsewhere = sums_elsewhere(sums.detach()) if callable(sums_elsewhere) else sums_elsewhere
    intersection, predicted, true = sums + (0 if elsewhere is None else elsewhere)
    smoothing = SMOOTHING[dice_form]
    dice = (2 * intersection + smoothing) / (predicted + true + smoothing)
    counted = (true > 0).to(dice.dtype) if dice_form == "linear" else torch.ones_like(dice)
    mean_dice = (dice * counted).sum() / counted.sum()
    return torch.stack([(1 - dice_weight) * cross_entropy / target.numel(), dice_weight * (1 - mean_dice)])


def dice_sums(
    low_res_logits: Tensor, labels: Tensor, *, resolution: LossResolution, dice_form: DiceForm = "linear"
) -> Tensor:
    """Return what Dice adds up over images: (3, classes) float32, intersections, predicted sizes and true sizes.

    The predicted size of a class is the sum of its probabilities; in the squared form, of their squares.
    """
    sums: Tensor = _Sums.apply(low_res_logits, _at(resolution, labels, low_res_logits), dice_form)[1]
    return sums


def hard_dice_sums(low_res_logits: Tensor, labels: Tensor) -> Tensor:
    """Return `dice_sums` of the predicted labels, (3, classes) int64: each pixel counts for its likeliest class.

    Always at the labels' resolution: this is about what comes out of a model, not about how it was trained.
    """
    bands = _Bands(low_res_logits, labels)
    classes = low_res_logits.shape[1]

    def counts(rows: slice) -> Tensor:
        logits, target = bands.at(rows)
        guess = logits.argmax(1, keepdim=True)
        agreed = torch.where(guess == target, guess, classes)  # one class more, for all other pixels
        kinds = ((agreed, classes + 1), (guess, classes), (target, classes))
        return torch.stack([torch.bincount(kind.flatten(), minlength=most)[:classes] for kind, most in kinds])

    return torch.stack([counts(rows) for rows in bands]).sum(0)


def _at(resolution: LossResolution, labels: Tensor, low_res_logits: Tensor) -> Tensor:
    """The labels that the loss is about; the nearest one is that right of and below a logit's centre."""
    if resolution == "image":
        return labels
    down, right = (fine // coarse for fine, coarse in zip(labels.shape[1:], low_res_logits.shape[2:], strict=True))
    return labels[:, down // 2 :: down, right // 2 :: right]


class _Sums(torch.autograd.Function):
    """The cross-entropy of all pixels added up, and `dice_sums`, at the labels' resolution; keeps its inputs only."""

    @staticmethod
    def forward(ctx: Any, low_res_logits: Tensor, labels: Tensor, dice_form: DiceForm) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(low_res_logits, labels)
        ctx.dice_form = dice_form
        bands = _Bands(low_res_logits, labels)
        parts = [_band_sums(*bands.at(rows), dice_form) for rows in bands]
        return torch.stack([part[0] for part in parts]).sum(), torch.stack([part[1] for part in parts]).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_cross_entropy: Tensor, grad_sums: Tensor) -> tuple[Tensor, None, None]:
        low_res_logits, labels = ctx.saved_tensors
        bands = _Bands(low_res_logits, labels)
        gradient = torch.zeros_like(low_res_logits, dtype=bands.dtype)
        for rows in bands:
            # No name for what is added: it would keep a band while the next one is computed.
            bands.add_adjoint(
                gradient, rows, _band_gradient(*bands.at(rows), grad_cross_entropy, grad_sums, ctx.dice_form)
            )
        return gradient.to(low_res_logits.dtype), None, None


def _band_sums(logits: Tensor, target: Tensor, dice_form: DiceForm) -> tuple[Tensor, Tensor]:
    """What a band adds to the sums, from its logits and its labels as in `_Bands.at`; overwrites the logits."""
    pixels = (0, 2, 3)
    log_probabilities = logits.log_softmax(1)
    cross_entropy = -log_probabilities.gather(1, target).sum()
    classes = torch.arange(logits.shape[1], device=logits.device, dtype=logits.dtype)
    one_hot = torch.eq(target.to(logits.dtype), classes[:, None, None], out=logits)
    true = one_hot.sum(pixels)
    probabilities = log_probabilities.exp_()
    intersection = one_hot.mul_(probabilities).sum(pixels)
    predicted = (probabilities.square_() if dice_form == "squared" else probabilities).sum(pixels)
    return cross_entropy, torch.stack([intersection, predicted, true])


def _band_gradient(
    logits: Tensor, target: Tensor, grad_cross_entropy: Tensor, grad_sums: Tensor, dice_form: DiceForm
) -> Tensor:
    """The gradient of `_band_sums` with respect to the logits, in whose memory it is written.

    With g = dL/dp, that of the softmax p is p (g - <p, g>); that of the cross-entropy is p - onehot.
    """
    probabilities = logits.softmax(1)
    of_true, of_predicted = grad_sums[0], grad_sums[1, :, None, None]
    extra = probabilities.gather(1, target) * of_true[target]
    if dice_form == "squared":
        gradient = torch.mul(probabilities, 2 * of_predicted, out=logits).mul_(probabilities)
        mean = gradient.sum(1, keepdim=True) + extra - grad_cross_entropy
    else:
        mean = torch.mul(probabilities, of_predicted, out=logits).sum(1, keepdim=True) + extra
        gradient = torch.mul(probabilities, of_predicted + grad_cross_entropy, out=logits)
    gradient.addcmul_(probabilities, mean, value=-1)
    return gradient.scatter_add_(1, target, extra - grad_cross_entropy)


class _Bands:
    """Low-resolution logits beside finer labels, in bands of rows of the labels' size.

    Bilinear upsampling is a matrix from the left and one from the right. For a few dozen rows that takes no longer
    than torch's own kernel, whose gradient on a GPU differs from one call to the next.
    """

    def __init__(self, low_res_logits: Tensor, labels: Tensor) -> None:
        images, classes, height, width = low_res_logits.shape
        assert not labels.shape[1] % height, "whole multiples"
        assert not labels.shape[2] % width, "whole multiples"
        self.dtype = torch.promote_types(low_res_logits.dtype, torch.float32)
        self._logits, self._labels = low_res_logits.to(self.dtype), labels
        self._rows = max(1, BAND_ELEMENTS // (images * classes * labels.shape[2]))
        self._factor = labels.shape[1] // height
        self._same_size = labels.shape[1:] == low_res_logits.shape[2:]
        if not self._same_size:
            self._down = _linear(height, labels.shape[1], labels.device).to(self.dtype)
            self._right = _linear(width, labels.shape[2], labels.device).to(self.dtype)

    def __iter__(self) -> Iterator[slice]:
        height = self._labels.shape[1]
        return (slice(top, min(top + self._rows, height)) for top in range(0, height, self._rows))

    def at(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return a band's logits, (images, classes, rows, W) float32, new memory, and labels, (images, 1, rows, W)."""
        target = self._labels[:, None, rows].long()
        if self._same_size:
            return self._logits[:, :, rows].clone(), target
        source = self._source(rows)
        return self._down[rows, source] @ (self._logits[:, :, source] @ self._right.T), target

    def add_adjoint(self, gradient: Tensor, rows: slice, of_band: Tensor) -> None:
        """Add a gradient with respect to a band's logits to that of the low-resolution logits."""
        if self._same_size:
            gradient[:, :, rows] += of_band
        else:
            source = self._source(rows)
            gradient[:, :, source] += self._down[rows, source].T @ of_band @ self._right

    def _source(self, rows: slice) -> slice:
        """The low-resolution rows that a band lies between: its own and, where there is one, another on each side."""
        return slice(max(0, rows.start // self._factor - 1), -(-rows.stop // self._factor) + 1)


def _linear(old: int, new: int, device: torch.device) -> Tensor:
    """The matrix, (new, old) float32, that interpolates linearly between pixel centres."""
    unit = torch.eye(old, dtype=torch.float32, device=device)[None]
    return functional.interpolate(unit, size=new, mode="linear", align_corners=False)[0].T
