"""Adding up gradients over processes while the rest of them is still being computed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from medsaga.distributed.group import SMALL, Group, PendingSum
from medsaga.optim.accumulation import AccumulatingOptimizer


class EarlySums:
    """The sums of a pass that begin during its last backward pass: of each large gradient, as soon as it is complete.

    All processes begin the same sums in the same order, which is fixed before the pass: from the last weight to the
    first, which is about the order in which backward makes their gradients. One that is complete before its turn waits
    for those before it. Only weights that have been updated before are among them, because only of these is it known
    what will arrive; the others, small tensors and sketches are added up after the pass.

    Args:
        group: of the processes.
        narrow: type in which gradients travel, where theirs has more bits; None for their own.
        optimizer: keeps what arrives.
    """

    def __init__(self, group: Group, narrow: torch.dtype | None, optimizer: AccumulatingOptimizer) -> None:
        self._group, self._narrow, self._optimizer = group, narrow, optimizer
        expected = optimizer.expected_gradients() if group.size > 1 else ()
        self._turns = [(weight, like) for weight, like in expected if like.numel() >= SMALL][::-1]
        self._next = 0
        self._complete: set[Tensor] = set()
        self._summed: list[Tensor] = []
        self._pending: list[PendingSum] = []

    @contextlib.contextmanager
    def beginning(self) -> Iterator[None]:
        """Begin the sums in the course of a backward pass, after which nothing more arrives for any weight."""
        # These hooks come after the optimizer's own: what they see is what is kept.
        hooks = [weight.register_post_accumulate_grad_hook(self._note) for weight, _ in self._turns]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def begin_others(self) -> None:
        """Begin those that have not begun: after this, all processes have begun all."""
        while self._next < len(self._turns):
            weight, like = self._turns[self._next]
            gradient = self._optimizer.kept_gradient(weight)
            self._begin(torch.zeros_like(like, device=weight.device) if gradient is None else gradient)

    def wait(self) -> list[Tensor]:
        """Wait for all that have begun, and return their tensors, which are sums over the processes then."""
        while self._pending:
            self._pending.pop(0).wait()
        return self._summed

    def give_up(self) -> None:
        """Take part in the sums that are left, with nothing: other processes wait for them, and then drop them all.

        What has arrived here is gone. There is memory for one of them at a time.
        """
        self.wait().clear()
        for weight, like in self._turns[self._next :]:
            self._begin(torch.zeros_like(like, device=weight.device))
            self.wait().clear()

    def _note(self, weight: Tensor) -> None:
        self._complete.add(weight)
        while self._next < len(self._turns) and self._turns[self._next][0] in self._complete:
            gradient = self._optimizer.kept_gradient(self._turns[self._next][0])
            assert gradient is not None
            self._begin(gradient)

    def _begin(self, gradient: Tensor) -> None:
        like = self._turns[self._next][1]
        assert (gradient.shape, gradient.dtype) == (like.shape, like.dtype)
        self._pending.append(self._group.begin_sum(gradient, self._narrow))
        self._summed.append(gradient)
        self._next += 1
        # A copy that travels in a narrower type is freed as soon as it has arrived.
        while self._pending and self._pending[0].is_complete():
            self._pending.pop(0).wait()
