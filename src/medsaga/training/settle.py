"""The settings of a run: what the user asked for, completed from recipe, method, device and data."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from medsaga.config import ResolvedSettings, RunConfig, Settings, flag
from medsaga.data.intensity import choose_intensity
from medsaga.data.slices import common_axis, slice_view
from medsaga.data.splits import Split
from medsaga.data.tiles import tile_shape
from medsaga.data.types import Dataset
from medsaga.device import defaults_for
from medsaga.errors import InputError
from medsaga.methods import method_named
from medsaga.models.weights.loading import detect_architecture
from medsaga.models.weights.registry import RANDOM, STARTER, weights_named
from medsaga.models.weights.sources import locate
from medsaga.planning.plan import plan, useful_sizes
from medsaga.presets import METHOD, fill_in
from medsaga.recipes import with_recipe


def requested(settings: Settings) -> dict[str, Any]:
    """Return what the user asked for other than the defaults, as JSON has it.

    The device is left out: it may change when a run goes on.
    """
    asked = {
        option.name: getattr(settings, option.name)
        for option in dataclasses.fields(Settings)
        if option.name != "device" and getattr(settings, option.name) != option.default
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asked.items()}


def settled(settings: Settings) -> Settings:
    """Return the settings with the method, the architecture and the source of the weights settled.

    SAM in the architecture of ``starter`` starts from these weights unless others are named, or ``random``; in another
    architecture from random ones. The weights of a method that trains another model than SAM stay None.

    Raises:
        InputError: there is no such recipe, method or model, or they do not go together.
    """
    settings = with_recipe(settings)
    name = settings.method or METHOD
    method = method_named(name)
    model, weights = settings.model, settings.weights
    if model is None and method.trains_sam and weights not in (None, RANDOM):
        model = detect_architecture(weights)
    model = model or method.architectures[0]
    if model not in method.architectures:
        if not method.trains_sam:
            only = ", ".join(method.architectures)
            raise InputError("--model", expected=f"{only} for {name}", found=model, do="Leave --model out.")
        if weights is not None:
            raise InputError(
                "--model",
                expected=f"one of {', '.join(method.architectures)} beside --weights",
                found=model,
                do="Name the weights once.",
            )
        model, weights = detect_architecture(model), model
    for flag_name, given in (("--weights", weights), ("--precision int8", settings.precision == "int8")):
        if given and not method.trains_sam:
            raise InputError(
                flag_name, expected=f"no such option for {name}", found=str(weights or "int8"), do="Leave it out."
            )
    if weights is None and method.trains_sam:
        weights = STARTER if model == weights_named(STARTER).architecture else RANDOM
    if settings.optimizer == "sgd" and method.ranks:
        raise InputError("--optimizer", expected="adamw: GaLore is made for it", found="sgd", do="Leave it out.")
    return dataclasses.replace(settings, method=name, model=model, weights=weights)


def find_weights(settings: Settings) -> None:
    """Raise InputError if the weights of settled settings are not there, before anything that takes long."""
    if settings.weights not in (None, RANDOM):
        locate(settings.weights)


def resolved(settings: Settings, dataset: Dataset, split: Split, device: torch.device) -> RunConfig:
    """Fill in all that the user has left open, from the preset, the budget, the device and the data."""
    items = dataset.items_of(split.train)
    # One axis for the whole run: a volume with other spacing must not be cut another way at prediction.
    axis: Any = common_axis((item.header.grid for item in items), settings.axis)
    settings = dataclasses.replace(settings, axis=axis)
    config = RunConfig(
        data=str(dataset.root.resolve()),
        labels=dataset.labels,
        channels=dataset.channels,
        intensities=choose_intensity(dataset, items, settings.intensity, settings.window),
        settings=fill_in(settings, defaults=defaults_for(device)),
    )
    if settings.budget is None:
        return config
    side = max(max(tile_shape(slice_view(item.header.grid, axis).slice_shape, settings.tile)) for item in items)
    fitting = plan(
        settings,
        sizes=useful_sizes(config.settings, side),
        classes=len(config.labels),
        in_channels=config.in_channels,
        defaults=defaults_for(device),
    )
    return dataclasses.replace(config, settings=fitting.settings)


def with_named_weights(config: RunConfig) -> RunConfig:
    """Say what a run without weights starts from: before ``starter`` existed, no name meant random ones."""
    settings = config.settings
    if settings.weights is not None or not method_named(settings.method).trains_sam:
        return config
    return dataclasses.replace(config, settings=dataclasses.replace(settings, weights=RANDOM))


def check_same(asked: dict[str, Any], before: dict[str, Any], kept: ResolvedSettings) -> None:
    """Raise InputError unless every setting is as it was asked for when the run began, or as it was resolved then."""
    for name, value in asked.items():
        if value not in (before.get(name), getattr(kept, name)):
            raise InputError(
                flag(name),
                expected=f"the run's own setting, {before.get(name, getattr(kept, name))}, with --resume",
                found=str(value),
                do="Leave it out, or start a new run.",
            )
