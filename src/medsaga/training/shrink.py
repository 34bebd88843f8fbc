"""A training step that makes itself smaller when memory runs out, and goes on to the same result."""

from __future__ import annotations

import gc

import torch
from rich.console import Console

from medsaga.config import ResolvedSettings
from medsaga.errors import OutOfMemoryError
from medsaga.memory.tracker import is_out_of_memory, reset_device_peak
from medsaga.models.base import SegmentationModel
from medsaga.optim.gathering import GatheringOptimizer
from medsaga.training.checkpoint import Counters
from medsaga.training.step import Batch, StepMeter, gather, update


def step_within_memory(
    model: SegmentationModel,
    optimizer: GatheringOptimizer,
    batch: Batch,
    *,
    settings: ResolvedSettings,
    counters: Counters,
    meter: StepMeter,
    console: Console,
) -> tuple[float, bool]:
    """Make one optimizer step; when memory runs out, start it again in smaller micro-batches.

    No weight moves before the whole gradient has been gathered, so that nothing is lost or counted twice. The smaller
    size is kept in ``counters`` for all steps to come.

    Returns:
        the loss of the batch, and whether the step was made (a gradient that is not finite skips it).

    Raises:
        OutOfMemoryError: nothing is left that could be made smaller with the same result.
    """
    while True:
        with meter.measuring(model, optimizer, batch):
            try:
                loss = gather(
                    model,
                    optimizer,
                    batch,
                    micro_batch_size=counters.micro_batch_size,
                    dice_weight=settings.dice_weight,
                    loss_resolution=settings.loss_resolution,
                    dice_form=settings.dice_form,
                    scale=counters.loss_scale,
                    meter=meter,
                )
                shortage = None
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                shortage = str(error)
            if shortage is None:
                made = update(optimizer, max_gradient_norm=settings.max_gradient_norm, scale=counters.loss_scale)
                return loss, made
        # Only here, after the except clause, are the tensors free that the error's traceback has held.
        optimizer.zero_grad()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        change = make_smaller(counters, settings)
        if change is None:
            raise OutOfMemoryError(f"{shortage}\n{next_smaller(settings)}")
        model.checkpoint_blocks = counters.checkpoint_blocks
        console.print(f"out of memory in step {batch.step + 1}; going on with {change}: the same result, more time")
        counters.peak_bytes = 0
        reset_device_peak(model.device)
        meter.restart(batch.step)


def make_smaller(counters: Counters, settings: ResolvedSettings) -> str | None:
    """Choose what the next steps do in less memory and to the same result; say what, or None if nothing is left."""
    size = counters.micro_batch_size
    if size > 1:
        counters.micro_batch_size = max(d for d in range(1, size // 2 + 1) if settings.batch_size % d == 0)
        return f"{counters.micro_batch_size} image(s) at a time"
    if not counters.checkpoint_blocks:
        counters.checkpoint_blocks = True
        return "the encoder's blocks computed again in the backward pass"
    return None


def next_smaller(settings: ResolvedSettings) -> str:
    """Return a sentence that names the next smaller setting, for a run in which only other results are left."""
    if settings.state_bits == 32:
        return "Try --state-bits 8."
    if settings.precision == "fp32":
        return "Try --precision bf16 (or fp16 on a GPU without bfloat16)."
    smaller = max(64, settings.image_size // 32 * 16)
    return f"Try --image-size {smaller}, or let `medsaga memory --budget` choose."
