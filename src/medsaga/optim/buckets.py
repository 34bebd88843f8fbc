"""Which weights are updated together: a model has hundreds, and one by one most of the time goes into the calls."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from torch import Tensor

from medsaga.models.int8 import Int8Weight

BUCKETS = 16
"""Into how many a model is divided, as far as `ELEMENTS` lets it: while a bucket is updated, each of its elements takes
some 30 bytes."""
ELEMENTS = (2**16, 2**19)
"""Bounds of the most elements that several weights of a bucket have together; a larger weight is alone."""


def buckets(
    weights: Iterable[Tensor], kind: Callable[[Tensor], Hashable], *, trained_elements: int
) -> list[list[Tensor]]:
    """Deal weights out among buckets: each comes into the first that has room for it.

    When memory runs out, and what has been updated is left out the next time, the rest comes into the same buckets:
    random numbers that belong to a bucket are drawn as they would have been.

    Args:
        weights: of any types and devices.
        kind: only weights of one kind come into one bucket, and only those of one type and device.
        trained_elements: of all weights that the optimizer has.

    Returns:
        buckets of at least one weight; int8 weights, which are written by code of their own, are alone.
    """
    most = min(max(trained_elements // BUCKETS, ELEMENTS[0]), ELEMENTS[1])
    result: list[_Bucket] = []
    open_of_kind: dict[Hashable, list[_Bucket]] = {}
    for weight in weights:
        if isinstance(weight, Int8Weight):
            result.append(_Bucket([weight]))
            continue
        alike = open_of_kind.setdefault((weight.dtype, weight.device, kind(weight)), [])
        bucket = next((each for each in alike if each.elements + weight.numel() <= most), None)
        if bucket is None:
            bucket = _Bucket([])
            alike.append(bucket)
            result.append(bucket)
        bucket.weights.append(weight)
        bucket.elements += weight.numel()
    return [bucket.weights for bucket in result]


@dataclass
class _Bucket:
    weights: list[Tensor]
    elements: int = 0
