"""Gradients that processes add up early, and late: what the processes of a test do, which import this module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from medsaga.distributed.group import Group, PendingSum, ProcessGroup
from medsaga.optim.galore import GaLoreAdamW
from medsaga.training.agreement import Agreement, OutOfMemoryElsewhereError

SIDE, RANK, OUT = 512, 128, 200


class Noting(ProcessGroup):
    """A group that notes the sums that begin early, and when the gradients were complete."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[Any] = []

    def begin_sum(self, tensor: Tensor, narrow: torch.dtype | None = None) -> PendingSum:
        """Note its shape."""
        self.noted.append(tuple(tensor.shape))
        return super().begin_sum(tensor, narrow)


class Learner:
    """A few layers, of which the first three are projected, and their optimizer."""

    def __init__(self, group: Group, refresh: str) -> None:
        torch.manual_seed(0)
        sizes = [(SIDE, SIDE)] * 3 + [(SIDE, OUT)]
        self.layers = [nn.Linear(*size) for size in sizes]
        self.network = nn.Sequential(*self.layers)
        weights = [layer.weight for layer in self.layers]
        biases = [layer.bias for layer in self.layers]
        projected: dict[str, Any] = {"params": weights[:3], "rank": RANK, "refresh": refresh}
        self.optimizer = GaLoreAdamW([projected, {"params": [weights[3], *biases]}], refresh_every=3)
        self._group = group

    def backward(self, step: int) -> None:
        """Accumulate the gradient of images of this process's own."""
        generator = torch.Generator().manual_seed(10 * step + self._group.rank)
        self.network(torch.randn(8, SIDE, generator=generator)).square().mean().backward()

    def arrived(self) -> list[bytes]:
        """The bits of all that is kept."""
        return [each.numpy().tobytes() for each in self.optimizer.all_arrived()]

    def steps(self, count: int, narrow: torch.dtype | None) -> None:
        """Make steps whose sums are made after the pass."""
        for step in range(count):
            for _ in range(1 + self.optimizer.needs_calibration()):
                self.backward(step)
                self._group.add(self.optimizer.all_arrived(), narrow)
                self.optimizer.step()
                self.optimizer.zero_grad()


def both_ways(group: Group, refresh: str, narrow: torch.dtype | None, steps: int) -> tuple[bool, list[Any]]:
    """Say whether the sums of a step are the same bits when they begin early, and in which order they began."""
    noting, learner = Noting(), Learner(group, refresh)
    learner.steps(steps, narrow)
    learner.backward(steps)
    group.add(learner.optimizer.all_arrived(), narrow)
    late = learner.arrived()
    learner.optimizer.zero_grad()
    agreement = Agreement(noting, 1, narrow)
    agreement.begin(learner.optimizer)
    agreement.others(torch.zeros(3, 1))
    with agreement.adding_early():
        learner.backward(steps)
    noting.noted.append("complete")
    agreement.settle(0.0)
    agreement.add(learner.optimizer.all_arrived())
    return learner.arrived() == late, noting.noted


def short_of_memory(group: Group, layer: int) -> dict[str, Any]:
    """Let memory run out in process 1 when the gradient of a layer arrives, and make the step again."""
    noting, learner = Noting(), Learner(group, "sketch")
    learner.steps(1, None)
    with _shortage(learner.layers[layer].weight) if group.rank == 1 else contextlib.nullcontext():
        agreement = Agreement(noting)
        agreement.begin(learner.optimizer)
        agreement.others(torch.zeros(3, 1))
        heard: Any = None
        try:
            with agreement.adding_early():
                learner.backward(1)
            agreement.settle(0.0)
        except torch.OutOfMemoryError:
            learner.optimizer.zero_grad()
            heard = agreement.withdraw()
        except OutOfMemoryElsewhereError:
            heard = "elsewhere"
    begun = len(noting.noted)
    learner.optimizer.zero_grad()
    agreement.begin(learner.optimizer)
    agreement.others(torch.zeros(3, 1))
    with agreement.adding_early():
        learner.backward(1)
    loss = agreement.settle(1.0 + group.rank)
    agreement.add(learner.optimizer.all_arrived())
    again = learner.arrived()
    learner.optimizer.zero_grad()
    learner.backward(1)
    group.add(learner.optimizer.all_arrived())
    return {"heard": heard, "begun": begun, "loss": loss, "same": learner.arrived() == again}


@contextlib.contextmanager
def _shortage(weight: Tensor) -> Iterator[None]:
    def run_out(_: Tensor) -> None:
        raise torch.OutOfMemoryError("out of memory")

    hook = weight.register_post_accumulate_grad_hook(run_out)
    try:
        yield
    finally:
        hook.remove()
