"""One optimizer step: the batch goes through in micro-batches, each projected as it arrives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from medsaga.memory import TensorTracker
from medsaga.models.sam import KClassSam
from medsaga.optim.galore import GaLoreAdamW
from medsaga.training.loss import dice_sums, segmentation_loss


@dataclass
class StepMeter:
    """Follows the tensors of the first steps, when there is something new to see.

    Attributes:
        tracker: holds the peak and its breakdown.
        steps_left: how many more steps are worth following: the first makes the state, the second has it.
    """

    tracker: TensorTracker = field(default_factory=TensorTracker)
    steps_left: int = 2

    def phase(self, category: str) -> None:
        """Say what is made from now on."""
        self.tracker.phase = category

    @contextlib.contextmanager
    def measuring(self, model: KClassSam, optimizer: GaLoreAdamW) -> Iterator[None]:
        """Follow all tensors of one step."""
        self.assign_known(model, optimizer)
        with self.tracker:
            yield
            self.assign_known(model, optimizer)
        self.steps_left -= 1

    def assign_known(self, model: KClassSam, optimizer: GaLoreAdamW) -> None:
        """Tell the tracker which storages are weights, gradients and optimizer state."""
        self.tracker.assign([*model.parameters(), *model.buffers()], "weights")
        self.tracker.assign([p.grad for p in model.parameters()], "gradients")
        self.tracker.assign(optimizer.accumulators(), "gradients")
        state = (value for entry in optimizer.state.values() for value in entry.values())
        self.tracker.assign([value for value in state if isinstance(value, Tensor)], "optimizer")


def backward(
    model: KClassSam, images: Tensor, labels: Tensor, *, micro_batch_size: int, meter: StepMeter | None = None
) -> float:
    """Add the gradient of the batch's loss to the parameters, one micro-batch after the other.

    The gradient is that of the whole batch however it is cut: with more than one micro-batch, a first pass without
    gradients finds the sums that the Dice term takes over all images.

    Args:
        model: in training mode.
        images: (batch, channels, side, side) float32 in 0..255, on the model's device.
        labels: (batch, side, side) uint8 class indices.
        micro_batch_size: images per backward pass.
        meter: tells the tracker the phase, while memory is measured.

    Returns:
        the loss of the batch.
    """
    parts = [slice(start, start + micro_batch_size) for start in range(0, len(images), micro_batch_size)]
    sums: list[Tensor] = []
    if len(parts) > 1:
        if meter:
            meter.phase("temporary")
        with torch.no_grad():
            sums = [dice_sums(model(images[part]), labels[part]) for part in parts]
    total = torch.zeros(2, device=images.device)
    for number, part in enumerate(parts):
        if meter:
            meter.phase("activations")
        elsewhere = sum(sums[:number] + sums[number + 1 :], torch.zeros(3, 1, device=images.device))
        share = len(labels[part]) / len(labels)
        cross_entropy, dice = segmentation_loss(model(images[part]), labels[part], elsewhere)
        if meter:
            meter.phase("temporary")
        (share * cross_entropy + dice).backward()
        # Every micro-batch sees the Dice of the whole batch.
        total += torch.stack([share * cross_entropy.detach(), dice.detach() / len(parts)])
    return float(total.sum())


def update(optimizer: GaLoreAdamW, *, max_gradient_norm: float) -> bool:
    """Clip the gathered gradient and make the step; skip it when the gradient is not finite.

    Returns:
        whether the step was made.
    """
    norm = optimizer.clip_gradients(max_gradient_norm)
    if finite := bool(torch.isfinite(norm)):
        optimizer.step()
    optimizer.zero_grad()
    return finite
