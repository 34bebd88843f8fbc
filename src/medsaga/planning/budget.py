"""Choosing the settings of a run that fits a given amount of memory.

What matters most for the result is kept longest: first the image size, then the rank of the projection, then the
precision of the weights and of the optimizer's state. What changes only the time (micro-batches, recomputing the
encoder's blocks) is spent first, and taken back at the end as far as the memory allows.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from medsaga.errors import InputError
from medsaga.methods.base import Method
from medsaga.settings.amounts import parse_bytes
from medsaga.settings.options import Precision, ResolvedSettings, Settings, flag

USABLE = 0.9
"""Share of a budget that tensors may take: the allocator's rounding and the GPU's own context take the rest."""
PRECISIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "fp32": (
        {"precision": "fp32", "state_bits": 32},
        {"precision": "bf16", "state_bits": 32},
        {"precision": "bf16", "state_bits": 8},
        {"precision": "int8", "state_bits": 8},
    ),
    "bf16": (
        {"precision": "bf16", "state_bits": 32},
        {"precision": "bf16", "state_bits": 8},
        {"precision": "int8", "state_bits": 8},
    ),
    "fp16": ({"precision": "fp16", "state_bits": 32}, {"precision": "fp16", "state_bits": 8}),
}
"""From the most exact to the leanest, by the most exact one that suits the device."""


def plan(
    settings: Settings,
    complete: Callable[..., ResolvedSettings],
    method: Method,
    *,
    peak: Callable[[ResolvedSettings], int],
    sizes: Sequence[int],
    precision: Precision,
    int8: bool,
    processes: int = 1,
) -> ResolvedSettings:
    """Choose what the user has left open, so that training and inference fit the budget of the settings.

    Args:
        settings: with a budget, and with the recipe's values.
        complete: makes complete settings of these with an ``image_size`` and other changes, given by name.
        method: of the run.
        peak: returns the memory of a run in bytes.
        sizes: image sizes that make sense, ascending; not used when the settings name one.
        precision: the most exact one that suits the device.
        int8: whether the model has what int8 is for.
        processes: that share each batch; the budget is for each of them.

    Returns:
        complete settings that fit.

    Raises:
        InputError: nothing fits; the message names the smallest budget that would do.
    """
    assert settings.budget is not None
    budget = parse_bytes(settings.budget)

    def resolved(**changes: Any) -> ResolvedSettings:
        return complete(**{"image_size": sizes[-1], **changes})

    def fits(**changes: Any) -> bool:
        return peak(resolved(**changes)) <= USABLE * budget

    ranks = _open(settings, [{"rank": rank} for rank in method.ranks]) or [{}]
    precisions = [how for how in PRECISIONS[precision] if int8 or how["precision"] != "int8"]
    precisions = _open(settings, precisions)
    speeds = _speeds(settings, resolved().batch_size, processes)
    sizes = [settings.image_size] if settings.image_size else sizes
    quality = _best_quality(sizes, ranks, precisions, lambda quality: fits(**quality, **speeds[-1]))
    if quality is None:
        least = resolved(image_size=sizes[0], **ranks[-1], **precisions[-1], **speeds[-1])
        raise _too_little(least, peak(least), method)
    speed = _first(speeds, lambda speed: fits(**quality, **speed))
    assert speed is not None, "the slowest way fits"
    return resolved(**quality, **speed)


def _best_quality(
    sizes: Sequence[int],
    ranks: Sequence[dict[str, Any]],
    precisions: Sequence[dict[str, Any]],
    fits: Callable[[dict[str, Any]], bool],
) -> dict[str, Any] | None:
    """Return the largest image size that fits, with the highest rank that does, with the best precision that does."""
    size: int | None = sizes[-1]
    best = {"image_size": size, **ranks[0], **precisions[0]}
    if fits(best):
        return best
    leanest = precisions[-1]
    if not fits({"image_size": size, **ranks[0], **leanest}):
        size = _first(sizes[::-1], lambda size: fits({"image_size": size, **ranks[-1], **leanest}))
        if size is None:
            return None
    rank = _first(ranks, lambda rank: fits({"image_size": size, **rank, **leanest}))
    assert rank is not None, "the lowest fits"
    precision = _first(precisions, lambda precision: fits({"image_size": size, **rank, **precision}))
    assert precision is not None, "the leanest fits"
    return {"image_size": size, **rank, **precision}


T = TypeVar("T")


def _first(candidates: Sequence[T], fits: Callable[[T], bool]) -> T | None:
    """Return the first candidate that fits, of some that need less and less; None if not even the last one does."""
    # A prediction takes seconds. It mostly is the first that fits, or else one of those in the middle.
    if fits(candidates[0]):
        return candidates[0]
    if not fits(candidates[-1]):
        return None
    return candidates[bisect.bisect_left(candidates, True, 1, len(candidates) - 1, key=fits)]


def _is_open(settings: Settings, name: str) -> bool:
    return getattr(settings, name) in (None, "auto")


def _open(settings: Settings, choices: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices, in their order, as far as the user has left them open."""
    left = [{name: value for name, value in choice.items() if _is_open(settings, name)} for choice in choices]
    return [choice for number, choice in enumerate(left) if choice not in left[:number]]


def _too_little(least: ResolvedSettings, peak: int, method: Method) -> InputError:
    names = ["image_size", "micro_batch_size", "checkpointing", "precision"]
    names += ["state_bits"] * (least.optimizer == "adamw") + ["rank"] * bool(method.ranks)
    return InputError(
        flag("budget"),
        expected=f"at least {math.ceil(peak / USABLE / 1e6)}MB for {least.model}",
        found=str(least.budget),
        do=f"Give as much, or name a smaller model. The least that could be chosen is "
        f"{' '.join(f'{flag(name)} {getattr(least, name)}' for name in names)}.",
    )


def largest_share(batch_size: int, processes: int) -> int:
    """Return how many images of a batch the process has that has most of them."""
    return -(-batch_size // processes)


def _speeds(settings: Settings, batch_size: int, processes: int) -> list[dict[str, Any]]:
    """Ways to the same result, from the fastest to the leanest."""
    share = largest_share(batch_size, processes)
    whole = next(size for size in range(share, batch_size + 1) if batch_size % size == 0)
    divisors = [size for size in range(whole, 0, -1) if batch_size % size == 0]
    sizes = [settings.micro_batch_size] if settings.micro_batch_size else divisors
    # Computing the blocks again costs less time than halving the micro-batch, and saves far more.
    first = [] if settings.checkpointing == "blocks" else [{"checkpointing": "none", "micro_batch_size": sizes[0]}]
    way = "none" if settings.checkpointing == "none" else "blocks"
    return first + [{"checkpointing": way, "micro_batch_size": size} for size in sizes]
