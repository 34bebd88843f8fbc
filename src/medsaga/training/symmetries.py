"""Which mirrorings keep the meaning of the labels: the model, half trained, shows it on its own training images.

Flips help with few images, of tissue, skin or cells, and harm where left and right differ or an organ has its place.
A model that knows its training images, but none of their mirror images, segments these about as well where the labels
do not depend on the side, and badly where they do. From then on, the mirrorings that did no harm are part of the
augmentation and of prediction (``benchmarks/starter`` has what that is worth).
"""

from __future__ import annotations

import torch

from medsaga.data.samples import Samples
from medsaga.data.symmetries import SYMMETRIES
from medsaga.distributed.group import ALONE, Group
from medsaga.models.base import SegmentationModel
from medsaga.training.monitoring import monitor_dice

LOOKED_FOR_AFTER = 0.4
"""Share of the steps after which the model knows the training images well enough."""
KEPT = 0.8
"""Share of the Dice of the images that their mirror images must reach."""


def find_symmetries(
    model: SegmentationModel, samples: Samples, device: torch.device, *, batch_size: int, group: Group = ALONE
) -> list[str]:
    """Return the names of the mirrorings that keep the meaning of the labels; see the module.

    Args:
        model: trained for a while, without mirror images.
        samples: that it was trained on.
        device: of the model.
        batch_size: images at a time.
        group: of the processes that share the samples; all get the same answer.
    """

    def dice(name: str | None) -> float:
        change = None if name is None else SYMMETRIES[name]
        return monitor_dice(model, samples, device, batch_size=batch_size, group=group, change=change)

    enough = KEPT * dice(None)
    return [name for name in SYMMETRIES if 0 < enough <= dice(name)]
