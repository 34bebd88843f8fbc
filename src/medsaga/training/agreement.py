"""What the processes that make a step together tell each other before any weight moves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from medsaga.distributed.group import ALONE, Group
from medsaga.optim.accumulation import AccumulatingOptimizer
from medsaga.training.overlap import EarlySums


class OutOfMemoryElsewhereError(Exception):
    """Another process has run out of memory: the step starts again in all of them."""


def travelling_type(precision: str) -> torch.dtype | None:
    """Return the type in which gradients of a precision travel; None for their own.

    Weights of 16 bits or fewer have gradients of 16: what is projected of them in float32 is known no better.
    """
    return None if precision == "fp32" else torch.bfloat16


class Agreement:
    """The messages of one training step.

    A pass has two messages, of which the first has the sums of Dice and the second the loss; between them, gradients
    begin to travel. A process that runs out of memory cannot know what the others are waiting for. So both messages
    have one length and one place for saying that, and the step ends in all processes with the first message that says
    it. Between the two, the process first takes part in the sums that the others have begun.

    Args:
        group: of the processes.
        classes: of the model; the sums of Dice are the longest message.
        narrow: type in which gradients travel, where theirs has more bits; see `travelling_type`.
    """

    def __init__(self, group: Group = ALONE, classes: int = 1, narrow: torch.dtype | None = None) -> None:
        self.group = group
        self._narrow = narrow
        self._length = 1 + 3 * classes
        self._early: EarlySums | None = None
        self._sums_begin = False
        self._settled = False

    def begin(self, optimizer: AccumulatingOptimizer) -> None:
        """Begin a pass whose gradients an optimizer keeps."""
        self._early = EarlySums(self.group, self._narrow, optimizer)
        self._sums_begin = self._settled = False

    def others(self, sums: Tensor) -> Tensor:
        """Return what these sums, (3, classes), are in the other processes together.

        Raises:
            OutOfMemoryElsewhereError: one has run out of memory.
        """
        if self.group.size == 1:
            return torch.zeros_like(sums)
        gathered = self._exchange(sums)
        self._sums_begin = True
        others = torch.cat([gathered[: self.group.rank], gathered[self.group.rank + 1 :]]).sum(0)
        return others.view(sums.shape).to(sums)

    @contextlib.contextmanager
    def adding_early(self) -> Iterator[None]:
        """Begin to add gradients up in the course of the pass's last backward pass."""
        with self._early.beginning() if self._early else contextlib.nullcontext():
            yield

    def settle(self, loss: float) -> float:
        """Say that this process has its gradient, and return the loss of all; they add up the other gradients next.

        Raises:
            OutOfMemoryElsewhereError: one has run out of memory.
        """
        if self.group.size == 1:
            return loss
        assert self._early is not None
        self._early.begin_others()
        try:
            total = float(self._exchange(torch.tensor([loss], dtype=torch.float64))[:, 0].sum())
        except OutOfMemoryElsewhereError:
            self._early.wait()
            raise
        self._settled = True
        return total

    def add(self, gradients: Iterable[Tensor]) -> None:
        """Have what has arrived of the gradients added up over all processes."""
        early = {id(gradient) for gradient in self._early.wait()} if self._early else set()
        self.group.add((gradient for gradient in gradients if id(gradient) not in early), self._narrow)

    def withdraw(self) -> bool:
        """Say to the others that memory has run out here; return whether they can still start the step again.

        What has arrived here is gone: the memory of it may be needed to hear the others out.
        """
        if self.group.size == 1:
            return True
        if self._settled:
            return False
        if self._sums_begin and self._early is not None:
            self._early.give_up()
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
