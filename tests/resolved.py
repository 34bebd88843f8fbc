"""Resolved settings for tests of what comes after them: of a CPU, without data."""

from __future__ import annotations

import dataclasses
from typing import Any

from medsaga.config import ResolvedSettings, Settings
from medsaga.planning.defaults import DeviceDefaults
from medsaga.planning.resolve import Facts, resolve

CPU = DeviceDefaults("fp32", 32)


def resolved(settings: Settings | None = None, *, suits: DeviceDefaults = CPU, **given: Any) -> ResolvedSettings:
    """Return settings in which what is open is filled in, on a device that some precision suits."""
    asked = dataclasses.replace(settings or Settings(), **given)
    return resolve(asked, Facts(device=suits, classes=3, channels=3))
