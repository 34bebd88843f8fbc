"""Choosing the settings of a run that fits a given amount of memory.

What matters most for the result is kept longest: first the image size, then the rank of the projection, then the
precision of the weights and of the optimizer's state. What changes only the time (micro-batches, recomputing the
encoder's blocks) is spent first, and taken back at the end as far as the memory allows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from medsaga.config import Precision, ResolvedSettings, Settings, parse_bytes
from medsaga.errors import InputError
from medsaga.memory.predict import MemoryPrediction, predict_memory
from medsaga.models.sam import ARCHITECTURES, PATCH_SIZE
from medsaga.presets import DeviceDefaults, fill_in

USABLE = 0.9
"""Share of a budget that tensors may take: the allocator's rounding and the GPU's own context take the rest."""
RANKS = (64, 16, 4)
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


@dataclass(frozen=True)
class Plan:
    """Settings that fit, and the memory that they take."""

    settings: ResolvedSettings
    prediction: MemoryPrediction


def useful_sizes(architecture: str, side: int | None = None) -> list[int]:
    """Return image sizes, ascending, in which SAM's windows waste nothing, up to the architecture's own size.

    Args:
        architecture: key of ``ARCHITECTURES``.
        side: longer side of the images in pixels; what would only enlarge them further is left out.
    """
    size = ARCHITECTURES[architecture]
    window = size.window * PATCH_SIZE
    sizes = [*range(window, size.image_size, window), size.image_size]
    enough = next((at_least for at_least in sizes if side is not None and at_least >= side), sizes[-1])
    return [at_most for at_most in sizes if at_most <= enough]


def plan(settings: Settings, *, sizes: Sequence[int], classes: int, in_channels: int, defaults: DeviceDefaults) -> Plan:
    """Choose what the user has left open, so that training and inference fit the budget of the settings.

    Args:
        settings: with a budget, and a model of ``ARCHITECTURES``.
        sizes: image sizes that make sense, ascending; not used when the settings name one.
        classes: number of classes, background included.
        in_channels: channels of the model's input.
        defaults: what suits the device.

    Raises:
        InputError: nothing fits; the message names the smallest budget that would do.
    """
    assert settings.budget is not None
    budget = parse_bytes(settings.budget)

    def resolved(**changes: Any) -> ResolvedSettings:
        return fill_in(dataclasses.replace(settings, **changes), image_size=sizes[-1], defaults=defaults)

    def peak(candidate: ResolvedSettings) -> int:
        prediction = predict_memory(candidate, classes=classes, in_channels=in_channels)
        return max(prediction.peak_bytes, prediction.inference_bytes)

    def fits(candidate: ResolvedSettings) -> bool:
        return peak(candidate) <= USABLE * budget

    qualities = list(_qualities(settings, defaults.precision))
    speeds = _speeds(settings, resolved().batch_size)
    slowest = speeds[-1]
    sizes = [settings.image_size] if settings.image_size else sizes
    least = resolved(image_size=sizes[0], **qualities[-1], **slowest)
    # From large to small: it mostly is the largest that fits, and the others need not be looked at.
    pairs = ((size, quality) for size in reversed(sizes) for quality in (qualities[0], qualities[-1]))
    found = next((pair for pair in pairs if fits(resolved(image_size=pair[0], **pair[1], **slowest))), None)
    if found is None:
        raise InputError(
            "--budget",
            expected=f"at least {math.ceil(peak(least) / USABLE / 1e6)}MB for {least.model}",
            found=settings.budget,
            do=f"That would do for {least.image_size} px images one at a time. Name a smaller model, or more memory.",
        )
    size, quality = found
    if quality != qualities[0]:
        quality = next(q for q in qualities[1:] if fits(resolved(image_size=size, **q, **slowest)))
    speed = next(s for s in speeds if fits(resolved(image_size=size, **quality, **s)))
    chosen = resolved(image_size=size, **quality, **speed)
    return Plan(chosen, predict_memory(chosen, classes=classes, in_channels=in_channels))


def _qualities(settings: Settings, precision: Precision) -> Iterator[dict[str, Any]]:
    """What may be given up, from nothing to everything, of what the user has left open."""
    seen: list[dict[str, Any]] = []
    for rank in RANKS:
        for bits in PRECISIONS[precision]:
            quality = {"rank": rank, **bits}
            kept = {name: value for name, value in quality.items() if getattr(settings, name) in (None, "auto")}
            if kept not in seen:
                seen.append(kept)
                yield kept


def _speeds(settings: Settings, batch_size: int) -> list[dict[str, Any]]:
    """Ways to the same result, from the fastest to the leanest."""
    divisors = [size for size in range(batch_size, 0, -1) if batch_size % size == 0]
    sizes = [settings.micro_batch_size] if settings.micro_batch_size else divisors
    # Computing the blocks again costs less time than halving the micro-batch, and saves far more.
    first = [] if settings.checkpointing == "blocks" else [{"checkpointing": "none", "micro_batch_size": sizes[0]}]
    way = "none" if settings.checkpointing == "none" else "blocks"
    return first + [{"checkpointing": way, "micro_batch_size": size} for size in sizes]
