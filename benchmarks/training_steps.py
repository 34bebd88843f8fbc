"""Training steps on images of noise, for benchmarks: neither memory nor time depends on what images show."""

from __future__ import annotations

import torch

from medsaga.data.augment import AUGMENTATIONS
from medsaga.methods import build_model, method_named, new_optimizer
from medsaga.models.precision import set_precision
from medsaga.settings.options import ResolvedSettings
from medsaga.training.loss import Objective
from medsaga.training.scaling import loss_scale_for
from medsaga.training.step import Batch, accumulate, update

CLASSES = 9
MAX_NORM = 1.0


class TrainingSteps:
    """A model of random weights as its method trains it, and its steps, one after the other on the same batch.

    Args:
        settings: of the run that they would be a part of.
        device: where.
    """

    def __init__(self, settings: ResolvedSettings, device: torch.device) -> None:
        torch.manual_seed(0)
        self._settings, self._number = settings, 0
        self._model = build_model(settings, classes=CLASSES, in_channels=3).train()
        method_named(settings.method).adapt(self._model, settings)
        self._model.checkpoint_blocks = settings.checkpointing == "blocks"
        set_precision(self._model, settings.precision)
        self._model.to(device)
        self._optimizer = new_optimizer(self._model, settings)
        self._scale = loss_scale_for(settings.precision)
        side = settings.image_size
        self._images = torch.randint(0, 256, (settings.batch_size, 3, side, side), dtype=torch.uint8)
        self._labels = torch.randint(0, CLASSES, (settings.batch_size, side, side), dtype=torch.uint8)

    def step(self) -> None:
        """Make a whole step."""
        self.accumulate()
        self.update()

    def accumulate(self) -> None:
        """Make the gradient of a step."""
        settings = self._settings
        strength = AUGMENTATIONS[settings.augmentation]
        accumulate(
            self._model,
            self._optimizer,
            Batch(self._images, self._labels, settings.seed, self._number, strength),
            micro_batch_size=settings.micro_batch_size,
            objective=Objective.of(settings),
            scale=self._scale,
        )
        self._number += 1

    def update(self) -> None:
        """Make the optimizer's part of it."""
        update(self._optimizer, max_gradient_norm=MAX_NORM, scale=self._scale)
