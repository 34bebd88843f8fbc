"""What a run will take in memory, found by running its own code on tensors that have sizes but no values.

Nothing is allocated and no GPU is needed: two steps of the real training step run on torch's meta device, and
``TensorTracker`` counts what would be alive. (FakeTensorMode gives the same numbers, ten times slower.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from medsaga.config import ResolvedSettings
from medsaga.data.augment import AUGMENTATIONS
from medsaga.data.letterbox import unletterbox
from medsaga.inference import BATCH_SIZE
from medsaga.memory.tracker import TensorTracker
from medsaga.methods import new_optimizer
from medsaga.models.precision import WEIGHT_TYPES, cast_parameters, set_precision
from medsaga.models.sam import KClassSam, build_sam
from medsaga.training.scaling import LossScale
from medsaga.training.step import Batch, StepMeter, gather, update

META = torch.device("meta")


@dataclass(frozen=True)
class MemoryPrediction:
    """The peak of all tensors in bytes; see `medsaga.memory.tracker` for what is counted.

    Attributes:
        peak_bytes: of a training step with all its state.
        breakdown: the same by category.
        inference_bytes: of segmenting as many images at a time as training takes, at most 8.
    """

    peak_bytes: int
    breakdown: dict[str, int]
    inference_bytes: int


def predict_memory(settings: ResolvedSettings, *, classes: int, in_channels: int) -> MemoryPrediction:
    """Predict the memory of a run.

    Args:
        settings: of the run.
        classes: number of classes, background included.
        in_channels: channels of the model's input.
    """
    # A second micro-batch has to keep what the first has gathered; a third changes nothing. With a change of subspace
    # after every second step, two steps show all that a run does.
    images = min(settings.batch_size, 2 * settings.micro_batch_size)
    short = replace(settings, budget=None, batch_size=images, refresh_every=2)
    with META:
        model = _build(short, classes, in_channels)
        set_precision(model, short.precision)
        training = _follow_training(model, short)
        # A model file holds no int8 codes.
        model = _build(short, classes, in_channels)
        cast_parameters(model, WEIGHT_TYPES[short.precision])
        inference = _follow_inference(model, min(BATCH_SIZE, short.micro_batch_size))
    return MemoryPrediction(training.peak_bytes, training.breakdown, inference.peak_bytes)


def _build(settings: ResolvedSettings, classes: int, in_channels: int) -> KClassSam:
    model = build_sam(settings.model, classes=classes, image_size=settings.image_size, in_channels=in_channels)
    model.checkpoint_blocks = settings.checkpointing == "blocks"
    return model


def _follow_training(model: KClassSam, settings: ResolvedSettings) -> TensorTracker:
    optimizer = new_optimizer(model, settings)
    meter = StepMeter(META, first=0, refresh_every=settings.refresh_every)
    side = settings.image_size
    for step in range(2):
        batch = Batch(
            torch.empty(settings.batch_size, model.in_channels, side, side, dtype=torch.uint8),
            torch.empty(settings.batch_size, side, side, dtype=torch.uint8),
            seed=settings.seed,
            step=step,
            strength=AUGMENTATIONS[settings.augmentation],
        )
        scale = LossScale()
        with meter.measuring(model, optimizer, batch):
            gather(model, optimizer, batch, micro_batch_size=settings.micro_batch_size, scale=scale, meter=meter)
            update(optimizer, max_gradient_norm=settings.max_gradient_norm, scale=scale)
    return meter.tracker


@torch.no_grad()
def _follow_inference(model: KClassSam, batch_size: int) -> TensorTracker:
    """What `medsaga.inference.Segmenter` does with the slices of a volume, at the size of the model's square."""
    tracker = TensorTracker("meta")
    tracker.assign([*model.parameters(), *model.buffers()], "weights")
    side = model.image_size
    with tracker:
        logits = model.eval()(torch.empty(batch_size, model.in_channels, side, side, dtype=torch.uint8)).float()
        unletterbox(logits[:1], (side, side), side, (side, side))[0].softmax(0).argmax(0)
    return tracker
