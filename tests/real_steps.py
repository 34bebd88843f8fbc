"""Real training steps under the tracker, for tests that compare a prediction or a budget with them."""

from __future__ import annotations

import torch

from medsaga.data.augment import AUGMENTATIONS
from medsaga.memory.tracker import TensorTracker
from medsaga.methods import new_optimizer
from medsaga.models.precision import set_precision
from medsaga.models.sam import build_sam
from medsaga.settings.options import ResolvedSettings
from medsaga.training.loss import Objective
from medsaga.training.scaling import loss_scale_for
from medsaga.training.step import Batch, StepMeter, accumulate, update


def measure(of: ResolvedSettings, *, classes: int, in_channels: int) -> TensorTracker:
    """Follow two real training steps, each of which ends in a change of subspace."""
    torch.manual_seed(0)
    side = of.image_size
    model = build_sam(of.model, classes=classes, image_size=side, in_channels=in_channels).train()
    model.checkpoint_blocks = of.checkpointing == "blocks"
    set_precision(model, of.precision)
    optimizer = new_optimizer(model, of)
    for group in optimizer.param_groups:
        group["refresh_every"] = 1
    meter = StepMeter(torch.device("cpu"), first=0, refresh_every=1)
    scale = loss_scale_for(of.precision)
    for step in range(2):
        images = torch.randint(256, (of.batch_size, in_channels, side, side), dtype=torch.uint8)
        labels = torch.randint(classes, (of.batch_size, side, side), dtype=torch.uint8)
        batch = Batch(images, labels, seed=0, step=step, strength=AUGMENTATIONS[of.augmentation])
        with meter.measuring(model, optimizer, batch):
            accumulate(
                model,
                optimizer,
                batch,
                micro_batch_size=of.micro_batch_size,
                objective=Objective.of(of),
                scale=scale,
                meter=meter,
            )
            assert update(optimizer, max_gradient_norm=1.0, scale=scale)
    return meter.tracker
