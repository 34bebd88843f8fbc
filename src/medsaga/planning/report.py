"""What ``medsaga memory`` prints."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.table import Table

from medsaga.device import kind_of_device
from medsaga.errors import InputError
from medsaga.methods import method_named
from medsaga.planning.defaults import planned_defaults
from medsaga.planning.estimate import predict_memory
from medsaga.planning.resolve import Facts, resolve
from medsaga.settings.amounts import parse_bytes
from medsaga.settings.options import Settings, flag

SHOWN = (
    "model",
    "method",
    "image_size",
    "batch_size",
    "micro_batch_size",
    "checkpointing",
    "precision",
    "state_bits",
    "state_on_host",
    "rank",
)
"""The settings that decide over memory."""


def memory_document(settings: Settings, *, classes: int, in_channels: int) -> dict[str, Any]:
    """Predict the memory of a run; with a budget in the settings, choose what is left open so that it fits.

    Args:
        settings: as for a training run; the device is the one that it is meant for, here or elsewhere.
        classes: number of classes, background included.
        in_channels: channels of the model's input.

    Returns:
        ``peak_bytes``, ``breakdown`` and ``inference_bytes``, ``settings``, and ``budget_bytes`` where there is one.
        Where the image size is left to the data, ``finest`` has the largest that they can ask for and its
        ``peak_bytes``.

    Raises:
        InputError: the settings cannot be used, or nothing fits the budget.
    """
    for name, number, least in (("classes", classes, 2), ("in_channels", in_channels, 1)):
        if number < least:
            raise InputError(flag(name), expected=f"at least {least}", found=str(number), do="Give a larger number.")
    on_cpu = settings.budget is None or kind_of_device(settings.device) == "cpu"
    facts = Facts(
        device=planned_defaults(settings.device),
        classes=classes,
        channels=in_channels,
        memory=None if on_cpu else parse_bytes(str(settings.budget)),
    )
    resolved = resolve(settings, facts)
    prediction = predict_memory(resolved, classes=classes, in_channels=in_channels)
    document: dict[str, Any] = {} if resolved.budget is None else {"budget_bytes": parse_bytes(resolved.budget)}
    shown = {name: getattr(resolved, name) for name in SHOWN}
    finer = method_named(resolved.method).finer_sizes(resolved.model)
    if finer and settings.image_size is None and settings.budget is None:
        largest = dataclasses.replace(resolved, image_size=finer[-1])
        peak = predict_memory(largest, classes=classes, in_channels=in_channels).peak_bytes
        document["finest"] = {"image_size": finer[-1], "peak_bytes": peak}
    return {**dataclasses.asdict(prediction), **document, "settings": shown}


def memory_tables(document: dict[str, Any]) -> list[Table]:
    """Lay out what :func:`memory_document` returned: the bytes, and the options that lead to them."""
    memory = Table(title="predicted memory")
    memory.add_column("")
    memory.add_column("MiB", justify="right")
    for name, size in document["breakdown"].items():
        memory.add_row(name, _mib(size))
    memory.add_section()
    memory.add_row("peak of a training step", _mib(document["peak_bytes"]), style="bold")
    if finest := document.get("finest"):
        memory.add_row(f"where structures are fine: {finest['image_size']} px", _mib(finest["peak_bytes"]))
    memory.add_row("peak of inference", _mib(document["inference_bytes"]))
    if "budget_bytes" in document:
        memory.add_row("budget", _mib(document["budget_bytes"]))
    options = Table(title="options of `medsaga train`")
    options.add_column("option")
    options.add_column("value", justify="right")
    for name, value in document["settings"].items():
        options.add_row(flag(name), str(value).lower())
    return [memory, options]


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f}"
