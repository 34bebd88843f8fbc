"""Training steps on images of noise: predicted and measured peaks, times, and the optimizer's and loading's share."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from rich.console import Console

from benchmarks.gpu.place import Place
from benchmarks.memory.measured import measure
from benchmarks.training_steps import CLASSES, TrainingSteps
from medsaga.data.samples import batch_indices
from medsaga.planning.resolve import Facts, resolve
from medsaga.runs.prepare import new_run
from medsaga.settings.options import ResolvedSettings, Settings

MODELS = {
    "vit_b": (512, 1024),
    "vit_h": (1024,),
    "sam2.1_hiera_tiny": (512, 1024),
    "sam2.1_hiera_large": (1024,),
    "lite": (192, 512),
}
"""Model to its image sizes."""
WAYS: list[dict[str, Any]] = [
    {"precision": "bf16"},
    {"precision": "fp16"},
    {"precision": "bf16", "batch_size": 4, "micro_batch_size": 2},
]
"""How each model is trained at its first size; at the others in the first of these ways."""
MORE: list[dict[str, Any]] = [
    {"model": "vit_b", "image_size": 512, "precision": "int8"},
    {"model": "vit_b", "image_size": 512, "precision": "fp32", "state_bits": 32, "checkpointing": "none"},
    {"model": "vit_b", "image_size": 512, "precision": "bf16", "method": "full"},
]
CLOSE = 0.1
"""The prediction is good within this share."""
CONTENDERS: dict[str, dict[str, Any]] = {
    "medsaga, lean, bf16": {"precision": "bf16", "checkpointing": "blocks"},
    "medsaga, plain, bf16": {"precision": "bf16", "checkpointing": "none"},
    "medsaga, plain, fp32": {"precision": "fp32", "checkpointing": "none", "state_bits": 32},
    "samed, fp32": {"method": "samed", "precision": "fp32", "checkpointing": "none", "state_bits": 32},
    "samed, bf16": {"method": "samed", "precision": "bf16", "checkpointing": "none"},
    "full, AdamW, bf16": {"method": "full", "precision": "bf16", "checkpointing": "none"},
}
SMALL: dict[str, Any] = {"model": "tiny", "image_size": 64, "batch_size": 2}
"""What is trained where only the way is tried."""


def peaks(place: Place) -> dict[str, Any]:
    """Compare the planner's peak with the allocator's, in twenty settings; on a CPU with that of all tensors."""
    rows = []
    for given in _settings(place):
        settings = _resolved(place, {"batch_size": 1, **given, "refresh_every": 2})
        try:
            numbers = measure(settings, place.device, steps=4)
        except torch.OutOfMemoryError as error:
            numbers = {"out_of_memory": str(error).splitlines()[0]}
        rows.append({"settings": given, **numbers})
        torch.cuda.empty_cache()
    ratios = [row["predicted_to_measured"] for row in rows if "predicted_to_measured" in row]
    close = sum(abs(ratio - 1) <= CLOSE for ratio in ratios)
    return {"settings": len(rows), "within_a_tenth": close, "least": min(ratios), "most": max(ratios), "rows": rows}


def step_times(place: Place) -> dict[str, Any]:
    """Time whole steps of several methods, in turns, at 512 px and batches of 12; seconds and ratios to samed's."""
    given = SMALL if place.small else {"model": "vit_b", "image_size": 512, "batch_size": 12}
    medians = {}
    # One at a time: four models of this batch need not fit a card together.
    for name, changes in CONTENDERS.items():
        steps = TrainingSteps(_resolved(place, {**given, **changes}), place.device)
        times = [_seconds(place, steps.step) for _ in range(place.rounds)]
        medians[name] = median(times[2:])
        del steps
        torch.cuda.empty_cache()
    of = {
        other: {name: round(value / medians[other], 3) for name, value in medians.items()}
        for other in ("samed, fp32", "samed, bf16")
    }
    return {"settings": given, "seconds": medians, "ratio_to": of}


def shares(place: Place) -> dict[str, Any]:
    """Say what share of a step the optimizer takes, and what share loading a batch of real images would, unhidden."""
    found: dict[str, Any] = {}
    for model, size, batch in (tuple(SMALL.values()),) if place.small else (("vit_b", 512, 12), ("lite", 192, 4)):
        settings = _resolved(place, {"model": model, "image_size": size, "batch_size": batch})
        steps = TrainingSteps(settings, place.device)
        whole = median([_seconds(place, steps.step) for _ in range(place.rounds)][2:])
        optimizer = median([_update_seconds(place, steps) for _ in range(place.rounds)][2:])
        loading = _loading_seconds(place, settings)
        found[f"{model}, {size} px, batch {batch}"] = {
            "step_seconds": whole,
            "optimizer_share": optimizer / whole,
            "loading_share": loading / whole,
        }
    return found


def _loading_seconds(place: Place, settings: ResolvedSettings) -> float:
    """Return the median time of reading a batch of prepared images, by nobody else's thread."""
    asked = Settings(
        model=settings.model,
        image_size=settings.image_size,
        batch_size=settings.batch_size,
        device=place.device.type,
        random_weights=settings.weights is None,
    )
    samples = new_run(place.dataset(), place.folder / settings.model, asked, Console(quiet=True)).train
    indices = [batch_indices(samples, 0, step, settings.batch_size) for step in range(place.rounds)]
    return median(_seconds(place, partial(samples.batch, each)) for each in indices)


def _update_seconds(place: Place, steps: TrainingSteps) -> float:
    steps.accumulate()
    return _seconds(place, steps.update)


def _settings(place: Place) -> list[dict[str, Any]]:
    if place.small:
        return [SMALL | WAYS[0]]
    models = [
        {"model": model, "image_size": size, **way}
        for model, sizes in MODELS.items()
        for size in sizes
        for way in (WAYS if size == sizes[0] else WAYS[:1])
    ]
    return [*models, *MORE]


def _resolved(place: Place, given: dict[str, Any]) -> ResolvedSettings:
    return resolve(Settings(**given), Facts(device=place.defaults, classes=CLASSES, channels=3))


def _seconds(place: Place, work: Callable[[], Any]) -> float:
    place.synchronise()
    began = time.perf_counter()
    work()
    place.synchronise()
    return time.perf_counter() - began
