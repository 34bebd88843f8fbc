"""A training step that makes itself smaller when memory runs out, and goes on to the same result."""

from __future__ import annotations

import gc
from collections.abc import Callable

from medsaga.device import release_cached_memory
from medsaga.distributed.group import ALONE, Group
from medsaga.errors import OutOfMemoryError
from medsaga.memory.tracker import is_out_of_memory, reset_device_peak
from medsaga.methods import method_named
from medsaga.models.base import SegmentationModel
from medsaga.optim.accumulation import AccumulatingOptimizer
from medsaga.settings.options import ResolvedSettings
from medsaga.training.agreement import Agreement, OutOfMemoryElsewhereError, travelling_type
from medsaga.training.checkpoint import Counters
from medsaga.training.interrupts import Interrupts
from medsaga.training.loss import Objective
from medsaga.training.step import Batch, StepMeter, accumulate, clip


def step_within_memory(
    model: SegmentationModel,
    optimizer: AccumulatingOptimizer,
    batch: Batch,
    *,
    settings: ResolvedSettings,
    counters: Counters,
    meter: StepMeter,
    notice: Callable[[str], None],
    interrupts: Interrupts,
    group: Group = ALONE,
) -> tuple[float, bool]:
    """Make one optimizer step; when memory runs out, start it again in smaller micro-batches.

    No weight moves before the whole gradient has been accumulated, so that nothing is lost or counted twice. The
    smaller size is kept in ``counters`` for all steps to come. When memory runs out in the update itself, the update
    goes on with the task at which it stopped.

    Args:
        model: in training mode.
        optimizer: of its weights.
        batch: of this step.
        settings: of the run.
        counters: where the run stands; afterwards, one step further.
        meter: follows the memory.
        notice: tells the user what has changed.
        interrupts: keeps Ctrl-C out of the update.
        group: of the processes that make the step together; when memory runs out in one, all start again.

    Returns:
        the loss of the batch, and whether the step was made (a gradient that is not finite skips it).

    Raises:
        OutOfMemoryError: nothing is left that could be made smaller with the same result.
    """
    calibrates = optimizer.needs_calibration()
    agreement = Agreement(group, model.classes, travelling_type(settings.precision))
    while True:
        shortage, is_here = None, False
        with meter.measuring(model, optimizer, batch):
            try:
                loss = accumulate(
                    model,
                    optimizer,
                    batch,
                    micro_batch_size=counters.micro_batch_size,
                    objective=Objective.of(settings),
                    scale=counters.loss_scale,
                    meter=meter,
                    agreement=agreement,
                )
                finite = clip(optimizer, max_gradient_norm=settings.max_gradient_norm, scale=counters.loss_scale)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                shortage, is_here = str(error), True
            except OutOfMemoryElsewhereError:
                shortage = "out of memory in another process"
            if shortage is None:
                # After a failed calibration, the step makes bases and moves no weight.
                ready = not optimizer.needs_calibration()
                with interrupts.shielded():
                    if finite:
                        _update(optimizer, settings)
                    optimizer.zero_grad()
                    counters.loss_scale.adapt(finite=finite)
                    counters.note_step(made=finite and ready)
                return loss, finite and ready
        # Only here, after the except clause, are the tensors free that the error's traceback has held.
        optimizer.zero_grad()
        _release()
        if is_here and not agreement.withdraw():
            raise OutOfMemoryError(f"{shortage}\n{next_smaller(settings)}")
        if calibrates and group.size > 1:
            optimizer.state.clear()  # one may have made its bases, and another not
        counters.micro_batch_size = min(counters.micro_batch_size, -(-settings.batch_size // group.size))
        change = make_smaller(counters, settings)
        if change is None:
            raise group.told_once(OutOfMemoryError(f"{shortage}\n{next_smaller(settings)}"))
        model.checkpoint_blocks = counters.checkpoint_blocks
        notice(f"out of memory in step {batch.step + 1}; going on with {change}: the same result, more time")
        counters.peak_bytes, counters.device_peak_bytes = 0, None
        reset_device_peak(model.device)
        meter.restart(batch.step)


def _update(optimizer: AccumulatingOptimizer, settings: ResolvedSettings) -> None:
    """Make the optimizer's step; when memory runs out in it, free what nothing uses and go on while that helps."""
    done = -1
    while True:
        try:
            optimizer.step()
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            shortage = str(error)
        if optimizer.done == done:
            raise OutOfMemoryError(f"{shortage}\n{next_smaller(settings)}")
        done = optimizer.done
        _release()


def _release() -> None:
    """Give memory back that nothing uses any more."""
    gc.collect()
    release_cached_memory()


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
    if settings.state_bits == 32 and settings.optimizer == "adamw":  # momentum stays in 32
        return "Try --state-bits 8."
    if settings.precision == "fp32":
        return "Try --precision bf16 (or fp16 on a GPU without bfloat16)."
    sizes = method_named(settings.method).image_sizes(settings.model)
    smaller = [size for size in sizes if size < settings.image_size]
    if smaller:
        return f"Try --image-size {smaller[-1]}, or let `medsaga memory --budget` choose."
    return "No setting takes less: try a smaller --model, or --device cpu."
