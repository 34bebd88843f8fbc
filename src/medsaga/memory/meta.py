"""What code has to know that may run on meta tensors, which have sizes but no values, to predict its memory."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def on_meta() -> Iterator[None]:
    """Make modules on the meta device, without drawing their initial weights.

    Torch imports its compiler to draw numbers that are none, which takes seconds.
    """
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.randn:
            func = torch.empty
            kwargs.pop("generator", None)
        # torch.nn.init hands some of its functions over whole: what they call inside does not come here.
        drawing = func in (Tensor.uniform_, Tensor.normal_) or getattr(func, "__module__", None) == "torch.nn.init"
        return (args or (kwargs.get("tensor"),))[0] if drawing else func(*args, **kwargs)


def value_of(tensor: Tensor, *, otherwise: float) -> float:
    """Return the value of a one-element tensor; of a meta tensor, ``otherwise``, so that a prediction goes that way."""
    return otherwise if tensor.is_meta else float(tensor)


def seeded_generator(device: torch.device, seed: int) -> torch.Generator:
    """Return a random generator for tensors on a device; the meta device takes the CPU's and draws nothing."""
    return torch.Generator("cpu" if device.type == "meta" else device).manual_seed(seed)


def keyed_generator(device: torch.device, *key: int | str) -> torch.Generator:
    """Return random numbers that depend on the key alone, so that a resumed run meets the same ones."""
    return seeded_generator(device, zlib.crc32(repr(key).encode()))
