"""Whether tensors are the same to the bit, wherever they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def digest_of(tensors: Iterable[tuple[str, Tensor]], *facts: object) -> str:
    """Return the SHA-256 of named tensors, in the order in which they come: names, dtypes, shapes and bits.

    Args:
        tensors: on any device.
        facts: what else tells one from another; their ``repr`` counts.
    """
    digest = hashlib.sha256(repr(facts).encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # numpy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
