"""Which weights are updated together: a model has hundreds, and one by one most of the time goes into the calls."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

from torch import Tensor

from medsaga.models.int8 import Int8Weight

BUCKETS = 16
"""How many a model needs at least: an update has some 30 bytes in memory for each element of a bucket."""
ELEMENTS = (2**16, 2**19)
"""The least and the most of a bucket: few calls for the smallest model, and some 15 MiB for the largest."""


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
    result: list[list[Tensor]] = []
    open_of_kind: dict[Hashable, list[list[Tensor]]] = {}
    for weight in weights:
        if isinstance(weight, Int8Weight):
            result.append([weight])
            continue
        alike = open_of_kind.setdefault((weight.dtype, weight.device, kind(weight)), [])
        bucket = next((each for each in alike if _elements(each) + weight.numel() <= most), None)
        if bucket is None:
            bucket = []
            alike.append(bucket)
            result.append(bucket)
        bucket.append(weight)
    return result


def _elements(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() for weight in weights)
