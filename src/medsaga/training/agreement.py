"""What the processes that make a step together tell each other before any weight moves."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from medsaga.distributed.group import ALONE, Group


class OutOfMemoryElsewhereError(Exception):
    """Another process has run out of memory: the step starts again in all of them."""


def travelling_type(precision: str) -> torch.dtype | None:
    """Return the type in which gradients of a precision travel; None for their own.

    Weights of 16 bits or fewer have gradients of 16: what is projected of them in float32 is known no better.
    """
    return None if precision == "fp32" else torch.bfloat16


class Agreement:
    """The messages of one training step.

    A process that runs out of memory cannot know what the others are waiting for. So all messages have one length and
    one place for saying that, and the step ends in all processes with the first message that says it.

    Args:
        group: of the processes.
        classes: of the model; the sums of Dice are the longest message.
        narrow: type in which gradients travel, where theirs has more bits; see `travelling_type`.
    """

    def __init__(self, group: Group = ALONE, classes: int = 1, narrow: torch.dtype | None = None) -> None:
        self.group = group
        self._narrow = narrow
        self._length = 1 + 3 * classes
        self._settled = False

    def add(self, gradients: Iterable[Tensor]) -> None:
        """Add up what has arrived of the gradients over all processes."""
        self.group.add(gradients, self._narrow)

    def others(self, sums: Tensor) -> Tensor:
        """Return what these sums, (3, classes), are in the other processes together.

        Raises:
            OutOfMemoryElsewhereError: one has run out of memory.
        """
        if self.group.size == 1:
            return torch.zeros_like(sums)
        gathered = self._exchange(sums)
        others = torch.cat([gathered[: self.group.rank], gathered[self.group.rank + 1 :]]).sum(0)
        return others.view(sums.shape).to(sums)

    def settle(self, loss: float) -> float:
        """Say that this process has its gradient, and return the loss of all; they add gradients up next.

        Raises:
            OutOfMemoryElsewhereError: one has run out of memory.
        """
        if self.group.size == 1:
            return loss
        total = float(self._exchange(torch.tensor([loss], dtype=torch.float64))[:, 0].sum())
        self._settled = True
        return total

    def begin(self) -> None:
        """Begin a pass: from here on, there are messages to come before gradients are added up."""
        self._settled = False

    def withdraw(self) -> bool:
        """Say to the others that memory has run out here; return whether they can still start the step again."""
        if self._settled and self.group.size > 1:
            return False
        if self.group.size > 1:
            self._gathered(torch.zeros(0), failed=True)
        return True

    def _exchange(self, values: Tensor) -> Tensor:
        gathered = self._gathered(values, failed=False)
        if gathered[:, 0].any():
            raise OutOfMemoryElsewhereError
        return gathered[:, 1 : 1 + values.numel()]

    def _gathered(self, values: Tensor, *, failed: bool) -> Tensor:
        message = torch.zeros(self._length, dtype=torch.float64)
        message[0] = failed
        message[1 : 1 + values.numel()] = values.detach().flatten().cpu()
        return self.group.gather(message)
