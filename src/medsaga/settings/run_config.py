"""What a run was resolved to, written to ``config.toml``."""

from __future__ import annotations

import dataclasses
import os
import tomllib
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

import tomli_w

from medsaga import files
from medsaga.data.intensity import Intensity
from medsaga.data.labels import HIGHEST_VALUE
from medsaga.data.names import normal
from medsaga.errors import InputError
from medsaga.settings.kinds import require_kinds
from medsaga.settings.options import ResolvedSettings

_FILE = "file://"


@dataclass(frozen=True)
class RunConfig:
    """Everything that prediction needs to know about a run; ``config.toml`` holds just this.

    Attributes:
        data: the dataset folder it was trained on.
        labels: label name to label value, background first; the position is the class index.
        channels: names of the image channels, in order.
        intensities: one resolved intensity mapping per channel.
        settings: nothing that training needs is left open.
        added: the dataset folders whose cases were added, one after the other, by continuing a run.
    """

    data: str
    labels: dict[str, int]
    channels: tuple[str, ...]
    intensities: tuple[Intensity, ...]
    settings: ResolvedSettings
    added: tuple[str, ...] = ()

    @property
    def in_channels(self) -> int:
        """Number of channels of the model's input: neighbouring slices count."""
        return len(self.channels) * (2 * self.settings.neighbours + 1)

    def write(self, path: Path) -> None:
        """Write ``config.toml``, whole or not at all."""
        files.write_text(path, self.text())

    def text(self) -> str:
        """Return the content of ``config.toml``."""
        document = {
            "data": _as_text(self.data),
            "added": [_as_text(path) for path in self.added],
            "channels": list(self.channels),
            "settings": {k: v for k, v in dataclasses.asdict(self.settings).items() if v is not None},
            "labels": self.labels,
            "intensities": [dataclasses.asdict(i) for i in self.intensities],
        }
        return tomli_w.dumps(document)


def read_config(path: Path) -> RunConfig:
    """Read ``config.toml`` of a run folder.

    Raises:
        InputError: the file is missing, is no TOML, or holds unknown or contradictory settings.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            path.parent, expected="a run folder with config.toml", found="none", do="Name the --out of a training run."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise _no_settings(path, error) from None
    return parse_config(path, text)


def parse_config(path: Path, text: str) -> RunConfig:
    """Return what `RunConfig.text` has written.

    Args:
        path: of the file that holds it.
        text: in TOML.

    Raises:
        InputError: it is no TOML, holds unknown or contradictory settings, or is of 0.1.0.
    """
    try:
        document: dict[str, Any] = tomllib.loads(text)
        settings = dict(document["settings"])
        if "preset" in settings:  # which 0.1.0 alone has had
            raise InputError(
                path,
                expected="the settings of a run of medsaga 0.2.0 or later",
                found="a run of an earlier version",
                do="Train again, or use the version that made it.",
            )
        settings = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
        known = {option.name for option in dataclasses.fields(ResolvedSettings)}
        if unknown := sorted(settings.keys() - known):
            raise InputError(
                path,
                expected="settings that this version knows",
                found=f"others: {', '.join(map(ascii, unknown))}",
                do="Install a newer medsaga, or restore the file.",
            )
        require_kinds(settings, ResolvedSettings)
        return RunConfig(
            data=_as_path(document["data"]),
            labels=_labels(document["labels"]),
            channels=tuple(map(_name, document["channels"])),
            intensities=tuple(Intensity(**entry) for entry in document["intensities"]),
            settings=ResolvedSettings(**settings),
            added=tuple(_as_path(path) for path in document.get("added", ())),
        )
    except InputError:
        raise
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _no_settings(path, error) from None


def _labels(found: dict[str, Any]) -> dict[str, int]:
    """Return the labels of a run; ValueError where no label map can hold them."""
    labels = {_name(name): value for name, value in found.items()}
    if len(labels) != len(found) or len({*labels.values()}) != len(labels):
        raise ValueError("two labels with one name or value")
    for name, value in labels.items():
        if type(value) is not int or not 0 <= value <= HIGHEST_VALUE:
            raise ValueError(f"the label {name!a} = {value!r}")
    return labels


def _name(text: str) -> str:
    """Return the name of a label or a channel; ValueError where a terminal would obey it."""
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise ValueError(f"the name {text!a}")
    return normal(text)


def _no_settings(path: Path, error: Exception) -> InputError:
    do = "Restore the file or train again."
    return InputError(path, expected="the settings of a run", found=str(error), do=do)


def _as_text(path: str) -> str:
    """Return an absolute path as TOML can hold it: one that is no UTF-8 as an address, ``file:///data/%FF``."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return _FILE + quote_from_bytes(os.fsencode(path))
    return path


def _as_path(text: object) -> str:
    address = str(text)
    return os.fsdecode(unquote_to_bytes(address.removeprefix(_FILE))) if address.startswith(_FILE) else address
