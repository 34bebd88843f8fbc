"""One optimizer step: the batch goes through in micro-batches, each projected as it arrives."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medsaga.data.augment import Augmentation, augment
from medsaga.memory.meta import value_of
from medsaga.memory.tracker import ELSEWHERE, TensorTracker
from medsaga.models.base import SegmentationModel
from medsaga.optim.accumulation import AccumulatingOptimizer
from medsaga.training.agreement import Agreement
from medsaga.training.loss import Objective, dice_sums, segmentation_loss
from medsaga.training.scaling import LossScale


@dataclass(frozen=True, eq=False)
class Batch:
    """The images of one step, in the host's memory as they were stored, and how they are changed at random.

    With several processes, these are those that this one sees to.

    Attributes:
        images: (batch, channels, side, side) uint8; or what stands for them, floating point, and is not changed.
        labels: (batch, side, side) uint8 class indices.
        seed: of the run.
        step: of the run.
        strength: of the augmentation.
        symmetries: of the data, as `medsaga.data.symmetries.SYMMETRIES` names them.
        first: place of the first image in the batch of the step.
        whole: images in the batch of the step; None where these are all.
    """

    images: Tensor
    labels: Tensor
    seed: int
    step: int
    strength: Augmentation
    symmetries: tuple[str, ...] = ()
    first: int = 0
    whole: int | None = None

    def __len__(self) -> int:
        return len(self.images)

    def part(self, rows: slice, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return some images, float32 in 0..255, and their labels on the device, changed as their place decides."""
        images, labels = self.images[rows].to(device), self.labels[rows].to(device)
        return augment(
            images,
            labels,
            seed=self.seed,
            step=self.step,
            strength=self.strength,
            symmetries=self.symmetries,
            first=self.first + rows.start,
        )

    def share(self, rows: slice) -> float:
        """Return which share of the batch of the step some images are."""
        return (rows.stop - rows.start) / (self.whole or len(self))


class StepMeter:
    """Follows the tensors of the steps in which there is something new to see.

    The first step makes the optimizer's state and the second has it; in the step before a change of subspace there are
    sketches beside the projected gradients.

    Attributes:
        tracker: holds the peak and its breakdown.
    """

    def __init__(self, device: torch.device, *, first: int, refresh_every: int) -> None:
        """Follow step ``first``, the one after it, and the next one that ends in a change of subspace."""
        self._device = device
        self._refresh_every = refresh_every
        self.restart(first)

    def restart(self, first: int) -> None:
        """Forget what has been seen: from step ``first`` on, the run is another one."""
        self.tracker = TensorTracker(self._device.type)
        self._followed = {first, first + 1, (first // self._refresh_every + 1) * self._refresh_every - 1}

    def stop(self) -> None:
        """Follow no step."""
        self._followed = set()

    def phase(self, category: str) -> None:
        """Say what is made from now on."""
        self.tracker.phase = category

    @contextlib.contextmanager
    def measuring(self, model: SegmentationModel, optimizer: AccumulatingOptimizer, batch: Batch) -> Iterator[None]:
        """Follow all tensors of one step, if it is worth following."""
        if batch.step not in self._followed:
            yield
            return
        self.tracker.assign([batch.images, batch.labels], ELSEWHERE)
        self.tracker.assign([*model.parameters(), *model.buffers()], "weights")
        self._assign_state(optimizer)

        def note_gradient(weight: Tensor) -> None:
            self.tracker.assign(optimizer.arrived(weight), "gradients")

        # These hooks come after the optimizer's own: what they see is what is kept.
        trained = (weight for weight in model.parameters() if weight.requires_grad)
        hooks = [weight.register_post_accumulate_grad_hook(note_gradient) for weight in trained]
        try:
            with self.tracker:
                yield
                self._assign_state(optimizer)
        finally:
            for hook in hooks:
                hook.remove()

    def _assign_state(self, optimizer: AccumulatingOptimizer) -> None:
        # Without a GPU the host's memory is the device's too; what a GPU would not hold is not counted.
        for tensors, on_host in optimizer.state_tensors():
            self.tracker.assign(tensors, ELSEWHERE if on_host else "optimizer")


def accumulate(
    model: SegmentationModel,
    optimizer: AccumulatingOptimizer,
    batch: Batch,
    *,
    micro_batch_size: int,
    objective: Objective,
    scale: LossScale,
    meter: StepMeter | None = None,
    agreement: Agreement | None = None,
) -> float:
    """Accumulate the gradient of a step in the optimizer; no weight moves.

    The first step of a run goes through twice: the first pass makes GaLore's bases. What has been accumulated is added
    up over the processes that ``agreement`` is with.

    Returns:
        the loss of the batch.

    Raises:
        OutOfMemoryElsewhereError: another process has run out of memory.
    """
    agreement = agreement or Agreement()
    how: dict[str, Any] = {
        "micro_batch_size": micro_batch_size,
        "objective": objective,
        "scale": scale,
        "meter": meter,
        "agreement": agreement,
    }

    def gradient() -> float:
        agreement.begin(optimizer)
        loss = agreement.settle(backward(model, batch, **how))
        agreement.add(optimizer.all_arrived())
        return loss

    if optimizer.needs_calibration():
        gradient()
        agreement.begin(optimizer)  # if memory runs out now, the next pass is there to say it in
        optimizer.calibrate()
    return gradient()


def backward(
    model: SegmentationModel,
    batch: Batch,
    *,
    micro_batch_size: int,
    objective: Objective,
    scale: LossScale,
    meter: StepMeter | None = None,
    agreement: Agreement | None = None,
) -> float:
    """Add the gradient of the batch's loss to the parameters, one micro-batch after the other.

    The gradient is that of the whole batch however it is cut: with more than one micro-batch, a first pass without
    gradients finds the sums that the Dice term takes over all images. The sums of other processes come from them.

    Args:
        model: in training mode.
        batch: on the host; only a micro-batch of it is on the model's device at a time.
        micro_batch_size: images per backward pass.
        objective: the loss.
        scale: factor of the gradient.
        meter: tells the tracker the phase, while memory is measured.
        agreement: with the processes that have the other images of the batch; None where these are all.

    Returns:
        the loss of the batch, not scaled: with several processes, terms that they add up to it.
    """
    agreement = agreement or Agreement()
    parts = [
        slice(start, min(start + micro_batch_size, len(batch))) for start in range(0, len(batch), micro_batch_size)
    ]
    sums: list[Tensor] = []
    others = torch.zeros(())
    if len(parts) > 1:
        if meter:
            meter.phase("temporary")
        with torch.no_grad():
            for part in parts:
                logits, labels = _through(model, batch, part)
                found = dice_sums(logits, labels, resolution=objective.resolution, dice_form=objective.dice_form)
                sums.append(found)
        others = agreement.others(torch.stack(sums).sum(0))
    total = torch.zeros(2, device=model.device)
    for number, part in enumerate(parts):
        if meter:
            meter.phase("activations")
        share = batch.share(part)
        cross_entropy, dice = segmentation_loss(
            *_through(model, batch, part),
            sum(sums[:number] + sums[number + 1 :], others) if sums else agreement.others,
            dice_weight=objective.dice_weight,
            resolution=objective.resolution,
            dice_form=objective.dice_form,
        )
        if meter:
            meter.phase("temporary")
        is_last = number == len(parts) - 1
        with agreement.adding_early() if is_last else contextlib.nullcontext():
            (scale.value * (share * cross_entropy + dice)).backward()
        # Every micro-batch sees the Dice of the whole batch.
        total = total + torch.stack(
            [share * cross_entropy.detach(), dice.detach() / (len(parts) * agreement.group.size)]
        )
    return value_of(total.sum(), otherwise=0.0)


def _through(model: SegmentationModel, batch: Batch, rows: slice) -> tuple[Tensor, Tensor]:
    """Some images through the model: their logits and their labels. The images themselves are not kept."""
    images, labels = batch.part(rows, model.device)
    return model(images), labels


def clip(optimizer: AccumulatingOptimizer, *, max_gradient_norm: float, scale: LossScale) -> bool:
    """Undo the scale of the loss in the accumulated gradient and clip it; return whether it is finite."""
    optimizer.scale_gradients(1 / scale.value)
    return math.isfinite(value_of(optimizer.clip_gradients(max_gradient_norm), otherwise=1.0))


def update(optimizer: AccumulatingOptimizer, *, max_gradient_norm: float, scale: LossScale) -> bool:
    """Clip the accumulated gradient and make the step; skip it when the gradient is not finite.

    Returns:
        whether the step was made. In a step that follows a failed calibration, bases are made and no weight moves.
    """
    ready = not optimizer.needs_calibration()
    if finite := clip(optimizer, max_gradient_norm=max_gradient_norm, scale=scale):
        optimizer.step()
    optimizer.zero_grad()
    scale.adapt(finite=finite)
    return finite and ready
