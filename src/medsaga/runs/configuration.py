"""From the user's settings and what a dataset is like to the configuration of a run, in which nothing is left open."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from medsaga.data.intensity import choose_intensity
from medsaga.data.splits import Split
from medsaga.device import free_memory
from medsaga.methods import method_named
from medsaga.models.weights.registry import RANDOM, known_as
from medsaga.planning.defaults import defaults_for
from medsaga.planning.detail import Outlined
from medsaga.planning.resolve import Facts, resolve
from medsaga.runs.loading import LoadedData
from medsaga.settings.options import ResolvedSettings, Settings
from medsaga.settings.run_config import RunConfig


def facts_of(loaded: LoadedData, split: Split, device: torch.device, processes: int = 1) -> Facts:
    """Return what the settings of a run that trains on some cases of a dataset depend on."""
    surveyed = loaded.survey.of(loaded.dataset.items_of(split.train))
    return Facts(
        device=defaults_for(device),
        classes=len(loaded.dataset.labels),
        channels=len(loaded.dataset.channels),
        labelled=[Outlined(each.item.header.grid, each.voxels, each.outlines) for each in surveyed],
        memory=free_memory(device),
        processes=processes,
    )


def new_config(
    settings: Settings, loaded: LoadedData, split: Split, device: torch.device, processes: int = 1
) -> RunConfig:
    """Return the configuration of a new run, in which nothing is left open."""
    dataset = loaded.dataset
    resolved = resolve(settings, facts_of(loaded, split, device, processes))
    surveyed = loaded.survey.of(dataset.items_of(split.train))
    return RunConfig(
        data=str(dataset.root.resolve()),
        labels=dataset.labels,
        channels=dataset.channels,
        intensities=choose_intensity(dataset, surveyed, resolved.intensity, resolved.window),
        settings=resolved,
    )


def found_from_anywhere(config: RunConfig) -> RunConfig:
    """Return a configuration whose weights are found from other folders too, if they are a file or a folder."""
    weights = config.settings.weights
    if weights in (None, RANDOM) or known_as(str(weights)) is not None or not Path(str(weights)).exists():
        return config
    # Not resolved: what a link leads to may lack the suffix by which a format is known.
    return dataclasses.replace(
        config, settings=dataclasses.replace(config.settings, weights=str(Path(str(weights)).absolute()))
    )


def note_on_size(asked: Settings, used: ResolvedSettings) -> str | None:
    """Say why a run sees more pixels, in more memory, than its method does by default; None where it does not."""
    usual = method_named(used.method).image_sizes(used.model)[-1]
    if asked.image_size is not None or used.image_size <= usual:
        return None
    return (
        f"the labels mark fine structures: images are seen at {used.image_size} px instead of {usual}, which takes "
        f"more memory. --image-size {usual} takes less."
    )
