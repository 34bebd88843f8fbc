"""Counting the bytes of all tensors alive, on any device, by what they are for."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

CATEGORIES = ("weights", "gradients", "optimizer", "activations", "temporary")
ELSEWHERE = "elsewhere"
"""The category of storages that do not count: they lie in the host's memory, or would if there were a GPU."""
_OUT_OF_MEMORY = (
    "can't allocate memory",  # torch's allocator of the CPU on Linux and macOS
    "not enough memory",  # on Windows
    "bad_alloc",  # C++ itself
    "out of memory",  # CUDA's runtime, MPS
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What stands in the message of a RuntimeError that says so."""


class TensorTracker(TorchDispatchMode):
    """While active, follows every storage that an operation makes, and remembers the largest sum of bytes.

    Storages count once, however many views they have, from the operation that made them until they are freed; so
    does what autograd saves. What a kernel allocates and frees inside itself is not seen.

    A storage made during ``phase`` counts as that category until ``assign`` says better.

    Args:
        device: count only tensors on devices of this type; None for all.

    Attributes:
        phase: the category of what is made from now on.
        peak_bytes: the largest sum so far.
        breakdown: bytes per category at that peak; it adds up to ``peak_bytes``.
    """

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.phase = "temporary"
        self.peak_bytes = 0
        self.breakdown = dict.fromkeys(CATEGORIES, 0)
        self._device = device
        self._now = dict.fromkeys((*CATEGORIES, ELSEWHERE), 0)
        self._alive: dict[int, tuple[int, str]] = {}

    def assign(self, tensors: Iterable[Tensor | None], category: str) -> None:
        """Count the storages of these tensors as ``category``, whether they were known before or not."""
        for tensor in tensors:
            if tensor is not None:
                self._follow(tensor, category, reassign=True)
        self._note_peak()

    def recall(self, peak_bytes: int, breakdown: Mapping[str, int]) -> None:
        """Take a peak over that was followed before, of work that is not done again."""
        if peak_bytes > self.peak_bytes:
            self.peak_bytes, self.breakdown = peak_bytes, dict(breakdown)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and follow the storages of its results."""
        result = func(*args, **(kwargs or {}))
        for leaf in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf, self.phase, reassign=False)
        self._note_peak()
        return result

    def _follow(self, tensor: Tensor, category: str, *, reassign: bool) -> None:
        for part in (tensor,) if type(tensor) is Tensor else _parts(tensor):
            if self._device in (None, part.device.type):
                self._follow_storage(part.untyped_storage(), category, reassign=reassign)

    def _follow_storage(self, storage: torch.UntypedStorage, category: str, *, reassign: bool) -> None:
        key = storage._cdata
        if key in self._alive:
            size, old = self._alive[key]
            if reassign and old != category:
                self._now[old] -= size
                self._now[category] += size
                self._alive[key] = (size, category)
            return
        size = storage.nbytes()
        self._alive[key] = (size, category)
        self._now[category] += size
        weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        size, category = self._alive.pop(key)
        self._now[category] -= size

    def _note_peak(self) -> None:
        total = sum(self._now.values()) - self._now[ELSEWHERE]
        if total > self.peak_bytes:
            self.peak_bytes = total
            self.breakdown = {category: self._now[category] for category in CATEGORIES}


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that hold the memory: a quantised weight has no storage of its own, only its codes and scales do."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: CUDA has a type for it, its libraries, the CPU and MPS a message."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def reset_device_peak(device: torch.device) -> None:
    """Start the accelerator's own count of its peak afresh."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def device_peak(device: torch.device) -> int | None:
    """Return the peak of the accelerator's allocator in bytes since its reset, or None where none is counted."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
