"""What the command line says of each setting, kept in the metadata of the field itself."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Help:
    """What the command line says of a setting.

    Attributes:
        text: what it does.
        group: the heading that it stands under; `GROUPS` has their order.
        metavar: stands for the value.
        shown: the value that is taken where the user names none; as the help has it.
    """

    text: str
    group: str
    metavar: str
    shown: str


GROUPS = (
    *("data", "model", "length", "memory", "few-shot protocol", "images", "loss and optimizer", "GaLore"),
    *("precision and memory", "evaluation", "comparison with papers"),
)
"""Headings of the settings in the help: the first four have what most users need."""


def option(text: str, *, default: Any = None, group: str, metavar: str = "", shown: str = "") -> Any:
    """Return a field of the settings, with what the command line says of it."""
    return field(default=default, metadata={Help: Help(text=text, group=group, metavar=metavar, shown=shown)})


def help_of(setting: dataclasses.Field[Any]) -> Help:
    """Return what the command line says of a field of the settings."""
    found: Help = setting.metadata[Help]
    return found
