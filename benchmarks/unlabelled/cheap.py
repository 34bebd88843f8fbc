"""What unlabelled images can give without labels of any kind: their grey values, and their statistics."""

from __future__ import annotations

from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from medsaga.data.samples import Samples
from medsaga.models import blocks
from medsaga.models.base import SegmentationModel
from medsaga.models.blocks import FrozenBatchNorm2d
from medsaga.models.encoders import lite

_QUANTILES = np.linspace(0, 1, 33)
MOST_IMAGES = 32


def with_their_greys(images: Tensor, others: Tensor, *, seed: int, step: int, chance: float) -> Tensor:
    """Give some images the distribution of values of others, channel by channel, to a random degree.

    The padding, which is 0 in all channels, stays.

    Args:
        images: ``(b, channels, side, side)`` uint8.
        others: as many.
        seed: of the run.
        step: of the run.
        chance: of an image to be changed.
    """
    random = np.random.default_rng([seed, step, 55])
    changed = images.clone()
    for image, other in zip(changed, others, strict=True):
        amount = random.random() if random.random() < chance else 0.0
        inside, there = ((each > 0).any(0) for each in (image, other))
        if amount == 0 or inside.sum() < 100 or there.sum() < 100:
            continue
        for channel, wanted in zip(image, other, strict=True):
            old = np.quantile(channel[inside].numpy(), _QUANTILES) + np.linspace(0, 1e-3, len(_QUANTILES))
            new = np.quantile(wanted[there].numpy(), _QUANTILES)
            values = channel[inside].numpy().astype(np.float64)
            matched = (1 - amount) * values + amount * np.interp(values, old, new)
            channel[inside] = torch.from_numpy(matched.round().clip(0, 255).astype(np.uint8))
    return changed


@torch.no_grad()
def take_statistics(model: SegmentationModel, pools: list[Samples], *, share: float) -> None:
    """Let the frozen norms have statistics of these images, mixed with those of pre-training.

    Args:
        model: ``lite``.
        pools: samples, of which at most `MOST_IMAGES` are looked at.
        share: of the new statistics.
    """

    def calibrating(inputs: Tensor, convolution: nn.Conv2d, norm: FrozenBatchNorm2d) -> Tensor:
        plain = convolution._conv_forward(inputs, convolution.weight, None)
        norm.running_mean.lerp_(plain.mean((0, 2, 3)), share)
        norm.running_var.lerp_(plain.var((0, 2, 3)), share)
        return blocks.normalised_convolution(inputs, convolution, norm)

    images = torch.cat([pool.batch(range(min(len(pool), MOST_IMAGES // len(pools))))[0] for pool in pools])
    with mock.patch.object(lite, "normalised_convolution", calibrating):
        model.eval()(images.float())
    model.train()
