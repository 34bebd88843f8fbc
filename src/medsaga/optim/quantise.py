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

import torch
from torch import Tensor

BLOCK = 256
"""Elements that share a scale."""
KINDS = ("signed", "root", "linear")
DECADES = 7
CELLS = 1024
"""Cells on each side of 0 by which the level of an element is found; enough to keep all levels apart."""


@functools.cache
def levels(kind: str) -> tuple[float, ...]:
    """Return the levels of a kind, ascending: 256 for ``signed`` and ``root``, 255 for ``linear``.

    Numbers rather than a tensor: a tensor that is kept would tie later calls to a device, a dtype or a fake mode.
    """
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
    blocks = -(-size // BLOCK)
    scaled = values.new_zeros(blocks * BLOCK, dtype=torch.promote_types(values.dtype, torch.float32))
    scaled[:size].view(values.shape).copy_(values)
    if kind == "root":
        scaled.sqrt_()
    scales = _scale(scaled.view(blocks, BLOCK))
    scaled = scaled[:size]
    table = torch.tensor(levels(kind), dtype=scaled.dtype, device=scaled.device)
    if generator is None:
        codes = _count(scaled, (table[1:] + table[:-1]) / 2)
    else:
        codes = _count(scaled, table[1:-1])
        scaled.sub_(table.index_select(0, codes)).div_(table.diff().index_select(0, codes))
        codes += torch.rand(size, generator=generator, dtype=scaled.dtype, device=scaled.device) < scaled
    codes = codes.to(torch.uint8).view(values.shape)
    return codes.clamp_(min=values > 0) if kind == "root" else codes, scales


def dequantise(
    codes: Tensor,  # (64, 3072) uint8
    scales: Tensor,  # (768,) float32
    kind: str,
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # (64, 3072)
    """Return the values that ``quantise`` has stored as these codes and scales.

    In ``root``, what was above 0 comes back as the smallest normal number of ``dtype`` at least.
    """
    table = torch.tensor(levels(kind), dtype=torch.promote_types(dtype, torch.float32), device=codes.device)
    values = table.index_select(0, codes.flatten().int())
    whole = codes.numel() // BLOCK
    values[: whole * BLOCK].view(whole, BLOCK).mul_(scales[:whole, None])
    values[whole * BLOCK :].mul_(scales[whole:])  # a short last block and its scale, or nothing and nothing
    if kind == "root":
        values.square_()
    values = values.to(dtype).view(codes.shape)
    return values.clamp_(min=torch.finfo(dtype).tiny).mul_(codes != 0) if kind == "root" else values


def _scale(
    blocks: Tensor,  # (768, 256), divided by the scales in place
) -> Tensor:  # (768,) float32
    """Divide each block by its element of largest magnitude, and return these elements."""
    lowest, highest = blocks.amin(1), blocks.amax(1)
    extreme = torch.where(highest < -lowest, lowest, highest)
    scales = extreme.float()
    blocks.div_(torch.where(scales == 0, 1, scales)[:, None])
    return scales


def _count(
    scaled: Tensor,  # (196608,), -1..1
    thresholds: Tensor,  # (255,), ascending, no two in one cell
) -> Tensor:  # (196608,) int32
    """Return how many thresholds are not above each element: ``torch.bucketize``, ten times as fast on a CPU.

    Thresholds in a lower cell than the element's are below it, those in a higher cell above, because ``_cell`` never
    decreases; so one comparison, with the next threshold, settles the count.
    """
    cells = torch.arange(-CELLS, CELLS + 1, dtype=torch.int32, device=scaled.device)
    below = torch.searchsorted(_cell(thresholds), cells, out_int32=True)
    counts = below.index_select(0, _cell(scaled).add_(CELLS))
    following = torch.cat((thresholds, thresholds.new_full((1,), torch.inf)))
    counts += following.index_select(0, counts) <= scaled
    return counts


def _cell(scaled: Tensor) -> Tensor:
    """Return which of the cells around 0 holds each element, -CELLS..CELLS: narrow near 0, where levels are dense."""
    fourth_root = scaled.abs().sqrt_().sqrt_().copysign_(scaled)
    # The clamp is for NaN, whose conversion gives any number.
    return fourth_root.mul_(CELLS).int().clamp_(-CELLS, CELLS)
