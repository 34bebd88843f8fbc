"""Writing float32 numbers into weights that are kept in fewer bits, right on the average.

An update is often smaller than half the distance between two neighbouring bfloat16 numbers; rounded to the nearest one,
the weight would never move. Stochastic rounding goes up with a probability that is the share of the distance (Gupta
et al., arXiv 1502.02551), so that the mean of what is written is the number itself, and no float32 copy is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from medsaga.models.int8 import Int8Weight, store
from medsaga.optim.rows import Row

DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}
"""Bits of the significand that float32 has and the type has not."""


def write_weight(
    weight: Tensor,  # (768, 3072), any type
    values: Tensor,  # the same shape, float32 or float64; used up
    generator: torch.Generator,
) -> None:
    """Write values into a weight: stochastically rounded to bfloat16, float16 or int8, else as they are."""
    if isinstance(weight, Int8Weight):
        store(weight, values, generator)
        return
    _round(values, weight.dtype, generator)
    if values is not weight:
        weight.copy_(values)


@contextmanager
def precisely(
    weights: Sequence[Tensor],  # of one type, on one device; an int8 weight is alone
    dtype: torch.dtype,  # float32 or float64
    generator: torch.Generator,
) -> Iterator[list[Tensor]]:
    """Yield the values of weights in ``dtype``, to be changed in place, and write them into the weights at the end.

    They are rounded as `write_weight` does it. Weights that have ``dtype`` already are changed at once: nothing may be
    allocated after the first change. Others are written at the end, and an error before it leaves them as they were.
    """
    if len(weights) == 1:
        value = weights[0].to(dtype)
        yield [value]
        write_weight(weights[0], value, generator)
    elif weights[0].dtype == dtype:
        yield list(weights)
    else:
        row = Row.of(weights)
        joined = row.join(weights, dtype, weights[0].device)
        values = row.split(joined)
        yield values
        _round(joined, weights[0].dtype, generator)
        # In their own type first: then the last copies allocate nothing on any device.
        torch._foreach_copy_(list(weights), row.split(joined.to(weights[0].dtype)))


def _round(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> None:
    if dtype in DROPPED_BITS and values.dtype == torch.float32:
        round_stochastically(values, dtype, generator)


def round_stochastically(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Round float32 values in place to numbers that ``dtype`` holds exactly, up or down at random.

    The bits that the type lacks are a number between 0 and 1 in units of its last bit; adding a random number of the
    same range and cutting off carries over with just that probability, and away from zero for either sign. float16
    below 6e-5 has fewer bits than that: there the copy rounds to the nearest, with a spacing of 6e-8.
    """
    bits = values.view(torch.int32)
    steps = 1 << DROPPED_BITS[dtype]
    bits += torch.randint(0, steps, values.shape, generator=generator, device=values.device, dtype=torch.int32)
    bits &= -steps
