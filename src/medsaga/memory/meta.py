"""What code has to know that may run on meta tensors, which have sizes but no values, to predict its memory."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor


def value_of(tensor: Tensor, *, otherwise: float) -> float:
    """Return the value of a one-element tensor; of a meta tensor, ``otherwise``, so that a prediction goes that way."""
    return otherwise if tensor.is_meta else float(tensor)


def seeded_generator(device: torch.device, seed: int) -> torch.Generator:
    """Return a random generator for tensors on a device; the meta device takes the CPU's and draws nothing."""
    return torch.Generator("cpu" if device.type == "meta" else device).manual_seed(seed)


def keyed_generator(device: torch.device, *key: int | str) -> torch.Generator:
    """Return random numbers that depend on the key alone, so that a resumed run meets the same ones."""
    return seeded_generator(device, zlib.crc32(repr(key).encode()))
