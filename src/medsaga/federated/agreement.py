"""What all sites must have in common before the first round, and what they agree on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from medsaga.data.intensity import Intensity
from medsaga.data.symmetries import SYMMETRIES
from medsaga.errors import InputError
from medsaga.settings.run_config import RunConfig


def agreed_intensities(proposed: Mapping[str, Sequence[Intensity]]) -> tuple[Intensity, ...]:
    """Return how grey values become 8 bits at every site: of windows that differ, the one that holds them all.

    Args:
        proposed: by site, one per channel, as each would have chosen on its own cases.

    Raises:
        InputError: the kinds differ.
    """
    agreed: list[Intensity] = []
    for channel in zip(*proposed.values(), strict=True):
        kinds = {intensity.kind for intensity in channel}
        if len(kinds) > 1:
            found = ", ".join(f"{site} {each[len(agreed)].kind}" for site, each in proposed.items())
            do = "Choose one for all with --intensity, or --window LOW HIGH."
            raise InputError("--intensity", expected="the same kind of images at all sites", found=found, do=do)
        low, high = min(each.low for each in channel), max(each.high for each in channel)
        agreed.append(Intensity(kinds.pop(), low, high))
    return tuple(agreed)


def agreed_config(configs: Mapping[str, RunConfig]) -> RunConfig:
    """Return the configuration that all sites train with; they differ in intensities and image sizes at most.

    All see as many pixels as the site with the finest structures asks for.

    Raises:
        InputError: the kinds of images differ.
    """
    first = next(iter(configs.values()))
    intensities = agreed_intensities({site: config.intensities for site, config in configs.items()})
    size = max(config.settings.image_size for config in configs.values())
    settings = dataclasses.replace(first.settings, image_size=size)
    return dataclasses.replace(first, intensities=intensities, settings=settings)


def agreed_symmetries(found: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the mirrorings that keep the meaning of the labels at all sites."""
    return tuple(name for name in SYMMETRIES if all(name in names for names in found))
