"""The Dice by which a run is followed."""

from __future__ import annotations

import torch

from medsaga.data.samples import Samples
from medsaga.distributed.group import ALONE, Group
from medsaga.models.base import SegmentationModel
from medsaga.training.loss import hard_dice_sums

MONITORED_SAMPLES = 64


@torch.no_grad()
def monitor_dice(
    model: SegmentationModel,
    samples: Samples,
    device: torch.device,
    *,
    batch_size: int,
    group: Group = ALONE,
) -> float:
    """Return the Dice in the model's square, averaged over labels, of at most 64 evenly spaced samples together.

    It is quick and good for following a run. Published numbers come from ``medsaga evaluate``, on the native grid.

    Args:
        model: that segments the samples.
        samples: images, or what the model takes in place of them.
        device: of the model.
        batch_size: samples at a time.
        group: of the processes that share the samples; all get the same Dice.
    """
    stride = max(1, -(-len(samples) // MONITORED_SAMPLES))
    indices = list(range(0, len(samples), stride))
    model.eval()
    sums = torch.zeros(3, model.classes, dtype=torch.int64)
    for start in range(0, len(indices), batch_size)[group.rank :: group.size]:
        images, labels = samples.batch(indices[start : start + batch_size])
        sums += hard_dice_sums(model(images.to(device, torch.float32)), labels.to(device)).cpu()
    model.train()
    group.add([sums])
    intersection, size = sums[0, 1:], sums[1, 1:] + sums[2, 1:]
    there = size > 0
    return float((2 * intersection[there] / size[there]).mean()) if there.any() else 0.0
