"""Tensors stored in 8 bits: one code per element, and one scale per block of consecutive elements.

An element is divided by the scale of its block, which brings it into -1..1, and stored as the number of one of at
most 256 levels. What is stored differs in its distribution, so there are three kinds of levels:

    signed   the first moment: the dynamic levels of Dettmers et al., dense near 0, over 7 decades
    root     the second moment: its square root, in unsigned dynamic levels; so the moment spans 14 decades
    linear   orthonormal bases: 255 evenly spaced levels from -1 to 1

Sources: 8-bit optimizers via block-wise quantization (arXiv 2110.02861) for blocks and dynamic levels, Q-GaLore
(arXiv 2407.08296) for 8-bit bases. In neither: the root, the sign of the scale, a second moment that never falls to 0.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from medsaga.optim.rows import BLOCK, Row

KINDS = ("signed", "root", "linear")
DECADES = 7
CELLS = 1024
"""Cells on each side of 0 by which the level of an element is found; enough to keep all levels apart."""


@functools.cache
def levels(kind: str) -> tuple[float, ...]:
    """Return the levels of a kind, ascending: 256 for ``signed`` and ``root``, 255 for ``linear``."""
    if kind == "linear":
        return tuple(number / 127 for number in range(-127, 128))
    if kind == "root":
        return (0.0, *_dynamic_levels(fraction_bits=1), 1.0)
    assert kind == "signed", f"{kind!r} is none of {KINDS}"
    positive = _dynamic_levels(fraction_bits=0)
    return (*(-level for level in reversed(positive)), 0.0, *positive, 1.0)


def _dynamic_levels(fraction_bits: int) -> list[float]:
    """Return the levels between 0 and 1 of the dynamic data type (arXiv 2110.02861).

    Leading zero bits count the decade downwards, the next bit ends them, and the remaining ones are a linear fraction:
    every decade has twice the levels of the one below it. ``fraction_bits`` is how many the lowest decade has. A
    level is the middle of its share of the decade.
    """
    positive = []
    for decade in range(DECADES):
        count = 2 ** (decade + fraction_bits)
        unit = 10.0 ** (decade - DECADES + 1)
        positive += [unit * (0.1 + 0.9 * (number + 0.5) / count) for number in range(count)]
    return positive


@torch.no_grad()
def quantise_all(
    values: Sequence[Tensor], kind: str, generator: torch.Generator | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Store tensors of one type on one device as `quantise` does, all at once; return codes and scales of each."""
    if len(values) == 1:
        return [quantise(values[0], kind, generator)]
    row = Row.of(values)
    joined = row.join(values, torch.promote_types(values[0].dtype, torch.float32), values[0].device)
    joined, joined_scales = _quantise(joined, joined.numel(), kind, generator)
    # In memory of their own: they are kept, and what they have been computed in is not.
    codes = [torch.empty(shape, dtype=joined.dtype, device=joined.device) for shape in row.shapes]
    scales = [joined_scales.new_empty(blocks) for blocks in row.blocks()]
    torch._foreach_copy_(codes, row.split(joined))
    torch._foreach_copy_(scales, joined_scales.split(row.blocks()))
    return list(zip(codes, scales, strict=True))


def dequantise_all(
    stored: Sequence[tuple[Tensor, Tensor]], kind: str, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Return on a device what `quantise_all` has stored."""
    codes, scales = [each for each, _ in stored], [each.to(device) for _, each in stored]
    row = Row.of(codes)
    joined = row.join(codes, torch.uint8, device)
    return row.split(dequantise(joined, scales[0] if len(scales) == 1 else torch.cat(scales), kind, dtype))


@torch.no_grad()
def quantise(
    values: Tensor,  # (64, 3072), or any shape; not negative for "root"
    kind: str,
    generator: torch.Generator | None = None,  # on the device of the values
) -> tuple[Tensor, Tensor]:  # (64, 3072) uint8, (768,) float32
    """Store a tensor as 8-bit codes and one scale per ``BLOCK`` consecutive elements; the last block may be shorter.

    A scale is the element of largest magnitude in its block, *with its sign*, so that this element is always the
    level 1 and comes back as it was: the signed dynamic levels end at 1, but begin at -0.993. For ``root`` it is
    the square root of that element. 0 stays 0 in every kind. In ``root`` what is above 0 gets the lowest level above
    0 at least: a second moment that reads 0 would make Adam's update explode.

    Moments need a generator. One step of Adam changes them by less than half the distance of two levels, and rounded
    to the nearest one a second moment would never decay.

    Args:
        values: finite numbers in float32's range; computation is in float32, or float64 for float64 values. Nothing
            finite but 0 comes back of a block with a number that is not.
        kind: one of :data:`KINDS`.
        generator: with it, round to one of the two levels around, at random, with the expectation at the value (of
            the root, for ``root``; but not below the lowest level above 0 of ``root``, nor below the lowest of
            ``signed``). Without it, round to the nearest level.

    Returns:
        codes, contiguous in the shape of the values, and scales.
    """
    size = values.numel()
    flat = values.new_zeros(-(-size // BLOCK) * BLOCK, dtype=torch.promote_types(values.dtype, torch.float32))
    flat[:size].view(values.shape).copy_(values)
    codes, scales = _quantise(flat, size, kind, generator)
    return codes.view(values.shape), scales


def _quantise(
    flat: Tensor,  # whole blocks; used up
    size: int,  # how many elements are coded
    kind: str,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:  # (size,) uint8, (blocks,) float32
    positive = flat[:size] > 0 if kind == "root" else None
    if kind == "root":
        flat.sqrt_()
    scales = _scale(flat.view(-1, BLOCK))
    scaled = flat[:size]
    table = _table(kind, scaled.dtype, scaled.device)
    if generator is None:
        codes = table.halfway.count(scaled)
    else:
        codes = table.inner.count(scaled)
        scaled.sub_(table.levels.index_select(0, codes)).div_(table.distances.index_select(0, codes))
        codes += torch.rand(size, generator=generator, dtype=scaled.dtype, device=scaled.device) < scaled
    codes = codes.to(torch.uint8)
    return codes if positive is None else codes.clamp_(min=positive), scales


def dequantise(
    codes: Tensor,  # (64, 3072) uint8
    scales: Tensor,  # (768,) float32
    kind: str,
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # (64, 3072)
    """Return the values that ``quantise`` has stored as these codes and scales.

    In ``root``, what was above 0 comes back as the smallest normal number of ``dtype`` at least.
    """
    table = _table(kind, torch.promote_types(dtype, torch.float32), codes.device)
    values = table.levels.index_select(0, codes.flatten().int())
    whole = codes.numel() // BLOCK
    values[: whole * BLOCK].view(whole, BLOCK).mul_(scales[:whole, None])
    if codes.numel() % BLOCK:
        values[whole * BLOCK :].mul_(scales[whole:])
    if kind == "root":
        values.square_()
    values = values.to(dtype).view(codes.shape)
    return values.clamp_(min=torch.finfo(dtype).tiny).mul_(codes != 0) if kind == "root" else values


def _scale(
    blocks: Tensor,  # (768, 256), divided by the scales in place
) -> Tensor:  # (768,) float32
    """Divide each block by its element of largest magnitude, and return these elements."""
    lowest, highest = blocks.amin(1), blocks.amax(1)  # not aminmax, which MPS lacks
    extreme = torch.where(highest < -lowest, lowest, highest)
    scales = extreme.float()
    blocks.div_(scales.masked_fill(scales == 0, 1)[:, None])
    return scales


@dataclass(frozen=True)
class _Thresholds:
    """Numbers that elements are compared with, ascending, no two in one cell.

    Attributes:
        below: (2 * CELLS + 1,) int32, how many thresholds lie in lower cells, by cell.
        following: (256,), the thresholds and infinity.
    """

    below: Tensor
    following: Tensor

    @classmethod
    def of(cls, thresholds: Tensor) -> _Thresholds:
        cells = torch.arange(-CELLS, CELLS + 1, dtype=torch.int32, device=thresholds.device)
        below = torch.searchsorted(_cell(thresholds), cells, out_int32=True)
        return cls(below, torch.cat((thresholds, thresholds.new_full((1,), torch.inf))))

    def count(
        self,
        scaled: Tensor,  # (196608,), -1..1
    ) -> Tensor:  # (196608,) int32
        """Return how many thresholds are not above each element: ``torch.bucketize``, ten times as fast on a CPU.

        Thresholds in a lower cell than the element's are below it, those in a higher cell above, because ``_cell``
        never decreases; so one comparison, with the next threshold, settles the count.
        """
        counts = self.below.index_select(0, _cell(scaled).add_(CELLS))
        counts += self.following.index_select(0, counts) <= scaled
        return counts


@dataclass(frozen=True)
class _Table:
    """What is looked up to store or restore elements of a kind, on one device.

    Attributes:
        levels: (256,).
        distances: (255,), between neighbours.
        inner: to find the level below an element: all levels but the lowest and the highest.
        halfway: to find the nearest level.
    """

    levels: Tensor
    distances: Tensor
    inner: _Thresholds
    halfway: _Thresholds


@functools.cache
def _table(kind: str, dtype: torch.dtype, device: torch.device) -> _Table:
    """Make a table once, of 20 KiB: for most tensors that would take longer than all the rest.

    What is kept is for callers in all modes, and no step's memory.
    """
    with torch.inference_mode(False), _disable_current_modes():
        each = torch.tensor(levels(kind), dtype=dtype, device=device)
        return _Table(each, each.diff(), _Thresholds.of(each[1:-1]), _Thresholds.of((each[1:] + each[:-1]) / 2))


def _cell(scaled: Tensor) -> Tensor:
    """Return which of the cells around 0 holds each element, -CELLS..CELLS: narrow near 0, where levels are dense."""
    fourth_root = scaled.abs().sqrt_().sqrt_().copysign_(scaled)
    # The clamp is for NaN, whose conversion gives any number.
    return fourth_root.mul_(CELLS).int().clamp_(-CELLS, CELLS)
