"""What sites say of themselves before the first round, and what they agree on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from flwr.app import RecordDict

from medsaga.data.intensity import Intensity
from medsaga.data.symmetries import SYMMETRIES
from medsaga.errors import InputError
from medsaga.federated.keys import is_site_name
from medsaga.settings.run_config import RunConfig


def read_greeting(content: RecordDict, channels: int) -> tuple[str, tuple[Intensity, ...]]:
    """Return the name of a site, and how it would turn grey values into 8 bits.

    Args:
        content: of its message.
        channels: how many an image has.

    Raises:
        ValueError: it is no greeting, or the name is none; as do the other errors of
            `medsaga.federated.orders.MALFORMED`.
    """
    said = cast(Mapping[str, Any], content["site"])
    name, intensities = said["name"], tuple(Intensity(**each) for each in json.loads(said["intensities"]))
    if not (isinstance(name, str) and is_site_name(name)) or len(intensities) != channels:
        raise ValueError("no greeting")
    return name, intensities


def read_symmetries(content: RecordDict) -> tuple[str, ...]:
    """Return which mirrorings the labels of a site keep.

    Raises:
        LookupError: it is no such answer; as do the other errors of `medsaga.federated.orders.MALFORMED`.
    """
    found = cast(Mapping[str, Any], content["site"])["symmetries"]
    return tuple(name for name in SYMMETRIES if name in list(found))


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
    """Return the mirrorings that keep the meaning of the labels at all sites; none where no site has said."""
    return tuple(name for name in SYMMETRIES if found and all(name in names for names in found))
