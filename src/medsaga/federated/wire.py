"""Tensors as they travel: a safetensors file in one of Flower's array records, in 32 or 16 bits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, Message
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

_FILE = "safetensors"
_SCALE = "#scale"
"""Behind the name of a tensor of 16 bits: what its numbers are to be multiplied by."""
_FULL = 2.0**14
"""What the largest number of a tensor becomes in float16, whose relative precision is the same from here to 6e-5."""


def to_record(tensors: Mapping[str, Tensor], bits: int) -> ArrayRecord:
    """Pack tensors by name, as one array that holds a safetensors file.

    Flower fetches every array of a message in requests of its own, on each of its ways: hundreds of small ones would
    take longer than the numbers in them.

    Args:
        tensors: floating point, of any shape. float64 stays float64 in 32 bits: a double run loses nothing.
        bits: 32, or 16: float16 with a scale per tensor, which is exact to 2^-11 of each number, and of the smallest
            to 2^-39 of the largest.
    """
    packed: dict[str, npt.NDArray[Any]] = {}
    for name, tensor in tensors.items():
        values = tensor.detach().cpu()
        if bits == 32:
            packed[name] = (values if values.dtype == torch.float64 else values.float()).numpy()
            continue
        largest = values.abs().amax().double() if values.numel() else torch.ones((), dtype=torch.float64)
        # A power of two: the scale itself rounds nothing.
        scale = torch.exp2(torch.floor(torch.log2(largest / _FULL))) if largest > 0 else torch.ones(())
        packed[name] = (values.double() / scale).to(torch.float16).numpy()
        packed[name + _SCALE] = np.array(float(scale), dtype=np.float32)
    content = save({name: np.asarray(values, order="C") for name, values in packed.items()})
    return ArrayRecord({_FILE: Array(dtype="uint8", shape=(len(content),), stype=_FILE, data=content)})


def from_record(record: ArrayRecord) -> dict[str, Tensor]:
    """Unpack what `to_record` has packed; 16 bits become float32.

    Raises:
        KeyError: there is no file, or not the scale of a tensor of 16 bits.
        ValueError: the file is none.
    """
    try:
        packed = load(record[_FILE].data)
    except SafetensorError as error:
        raise ValueError(f"no safetensors file: {error}") from None
    tensors = {}
    for name, array in packed.items():
        if name.endswith(_SCALE):
            continue
        values = torch.from_numpy(array.copy())
        if values.dtype == torch.float16:
            values = values.float() * float(packed[name + _SCALE])
        tensors[name] = values
    return tensors


def rounded(tensors: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """Return tensors as they arrive."""
    return from_record(to_record(tensors, bits))


def size_of(message: Message) -> int:
    """Return how many bytes the content of a message takes: arrays with their names, and everything else as JSON."""
    if not message.has_content():
        return 0
    size = 0
    for name, record in message.content.items():
        size += len(name)
        if isinstance(record, ArrayRecord):
            size += record.count_bytes()
        else:
            size += len(json.dumps({key: str(value) for key, value in record.items()}))
    return size


def total_size(messages: Iterable[Message]) -> int:
    """Return how many bytes several messages take."""
    return sum(map(size_of, messages))
