"""The processes that train together, and all that they ever tell each other.

A run of one process has a group too, in which every sum is the term itself; so nothing else asks how many there are.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from medsaga.distributed.environment import STORE
from medsaga.errors import MedsagaError, RunError
from medsaga.memory.tracker import is_out_of_memory

Result = TypeVar("Result")
SMALL = 2**16
"""Tensors of fewer elements travel together: a transfer takes some time whatever its size."""


class FailedElsewhereError(MedsagaError):
    """Another process has failed and says so itself; this one ends with the same exit code, and silently."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


class LostProcessError(RunError):
    """Another process has ended without a word; whoever has started it knows more."""


class PendingSum:
    """A sum over the processes that has begun; its tensor is not to be touched before it is complete.

    Args:
        work: torch's handle; None where there is one process.
        sent: what travels.
        parts: what to copy the sum into; none where it is the tensor itself.
    """

    def __init__(self, work: dist.Work | None = None, sent: Tensor | None = None, parts: Sequence[Tensor] = ()) -> None:
        self._work, self._sent, self._parts = work, sent, parts

    def is_complete(self) -> bool:
        """Whether `wait` would return at once."""
        return self._work is None or self._work.is_completed()

    @torch.no_grad()
    def wait(self) -> None:
        """Wait for the sum; it is in the tensor then."""
        if self._work is not None and self._sent is not None:
            with _noticing_losses():
                self._work.wait()
            _unpack(self._sent, self._parts)


class Group:
    """A group of one process.

    Attributes:
        rank: the number of this process; process 0 writes and prints.
        size: number of processes.
    """

    rank = 0
    size = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return which of ``count`` things, in order, this process sees to: as many as any other, or one more."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def gather(self, message: Tensor) -> Tensor:
        """Return the messages of all processes, on the CPU, ``(size, *shape)``; they are of one shape."""
        return message.cpu()[None]

    def add(self, tensors: Iterable[Tensor], narrow: torch.dtype | None = None) -> None:
        """Add up each tensor over the processes, in place; all get the same bits.

        Args:
            tensors: the same ones in all processes.
            narrow: floating-point type in which those of more bits travel; None for each in its own.
        """

    def begin_sum(self, tensor: Tensor, narrow: torch.dtype | None = None) -> PendingSum:
        """Begin to add up one tensor over the processes, in place, to the bits that `add` would give it.

        All processes begin the same sums in the same order.
        """
        return PendingSum()

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite each tensor with that of process 0."""

    def once(self, work: Callable[[], Result]) -> Result:
        """Let process 0 do something, and return to all what came of it; the others wait.

        Raises:
            FailedElsewhereError: in the others, where it has failed.
        """
        return work()

    def collect(self, own: Result) -> list[Result]:
        """Return an object of each process, all in the order of the processes."""
        return [own]

    def dealt_out(self, own: list[Result]) -> list[Result]:
        """Return the results of all, of things that were dealt out like cards, in the order of the things."""
        hands = self.collect(own)
        return [hand[place] for place in range(len(hands[0])) for hand in hands if place < len(hand)]

    def any(self, said: bool) -> bool:
        """Return whether any process says so."""
        return bool(self.gather(torch.tensor([said])).any())

    def wait(self) -> None:
        """Wait until all processes have come here."""

    def told_once(self, error: MedsagaError) -> MedsagaError:
        """Return what to raise where all processes meet the same error: process 0 alone shall say it."""
        return error if self.is_first else FailedElsewhereError(error.exit_code)


ALONE = Group()


class ProcessGroup(Group):
    """The processes of torch's default process group, which has been initialised.

    Messages and objects travel through the CPU's memory; the tensors of `add` and `copy_first` between the devices that
    they are on.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def gather(self, message: Tensor) -> Tensor:
        """Return the messages of all processes."""
        own = message.detach().cpu().contiguous()
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        with _noticing_losses():
            dist.all_gather(gathered, own)
        return torch.stack(gathered)

    @torch.no_grad()
    def add(self, tensors: Iterable[Tensor], narrow: torch.dtype | None = None) -> None:
        """Add up each tensor over the processes: small ones together in one buffer, large ones where they lie."""
        for tensor, parts in packed(tensors, narrow):
            with _noticing_losses():
                dist.all_reduce(tensor)
            _unpack(tensor, parts)

    @torch.no_grad()
    def begin_sum(self, tensor: Tensor, narrow: torch.dtype | None = None) -> PendingSum:
        """Begin to add up one tensor over the processes."""
        ((sent, parts),) = packed([tensor], narrow)
        with _noticing_losses():
            return PendingSum(dist.all_reduce(sent, async_op=True), sent, parts)

    @torch.no_grad()
    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite each tensor with that of process 0."""
        for tensor, parts in packed(tensors):
            with _noticing_losses():
                dist.broadcast(tensor, src=0)
            _unpack(tensor, parts)

    def once(self, work: Callable[[], Result]) -> Result:
        """Let process 0 do something, and return to all what came of it."""
        if self.is_first:
            try:
                result = work()
            except BaseException as error:
                code = error.exit_code if isinstance(error, MedsagaError) else RunError.exit_code
                with contextlib.suppress(MedsagaError):
                    self._send([None, code])
                    self.wait()  # until all have heard of it: the connections end with this process
                raise
            self._send([result, None])
            return result
        received = self._send([None, None])
        if received[1] is not None:
            self.wait()
            raise FailedElsewhereError(received[1])
        return received[0]

    def collect(self, own: Result) -> list[Result]:
        """Return an object of each process."""
        objects: list = [None] * self.size
        with _noticing_losses():
            dist.all_gather_object(objects, own)
        return objects

    def wait(self) -> None:
        """Wait until all processes have come here."""
        self.gather(torch.zeros(1))

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()

    def _send(self, objects: list) -> list:
        with _noticing_losses():
            dist.broadcast_object_list(objects, src=0, device=torch.device("cpu"))
        return objects


@contextlib.contextmanager
def _noticing_losses() -> Iterator[None]:
    """Say in our words what torch says when a process has gone: an error of its transport, of many texts."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        if STORE in os.environ:  # our own launcher names the process
            raise FailedElsewhereError(RunError.exit_code) from None
        said = str(error).splitlines()[0]
        raise LostProcessError(f"another process of this run has ended, or cannot be reached ({said})") from None


def packed(tensors: Iterable[Tensor], narrow: torch.dtype | None = None) -> Iterable[tuple[Tensor, Sequence[Tensor]]]:
    """Yield what travels, and the tensors to take it apart into; none where it is the tensor itself.

    The order depends on sizes and types alone, which are the same in all processes.
    """
    small: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kind = narrow if narrow and tensor.is_floating_point() and tensor.itemsize > narrow.itemsize else tensor.dtype
        if tensor.numel() < SMALL:
            small.setdefault((kind, tensor.device), []).append(tensor)
        elif kind == tensor.dtype and tensor.is_contiguous():
            yield tensor, ()
        else:
            yield tensor.to(kind).contiguous(), (tensor,)
    for (kind, _), parts in small.items():
        yield torch.cat([part.flatten().to(kind) for part in parts]), parts


def _unpack(flat: Tensor, parts: Sequence[Tensor]) -> None:
    if not parts:
        return
    for part, values in zip(parts, flat.flatten().split([part.numel() for part in parts]), strict=True):
        part.copy_(values.view(part.shape))
