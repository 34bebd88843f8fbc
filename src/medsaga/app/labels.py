"""The labels as the user names them on the page: names that may be given, the file that has them, chosen colours."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medsaga import files
from medsaga.colours import label_colours
from medsaga.data.descriptions import read_description
from medsaga.data.labels import parse_labels
from medsaga.data.names import normal
from medsaga.errors import InputError

_COLOUR = re.compile(r"#[0-9a-f]{6}")
_LONGEST = 60
_UNWRITTEN = ("Cc", "Cs", "Zl", "Zp")
"""Of Unicode: control characters, halves of characters, ends of lines."""
_MOST = 254


def added(labels: dict[str, int], name: str) -> dict[str, int]:
    """Return label values by name with another one behind them.

    Raises:
        InputError: the name is empty, too long or taken, or there are 254 labels.
    """
    if len(labels) > _MOST:
        raise InputError("the labels", expected=f"at most {_MOST}", found="one more", do="Do without it.")
    return {**labels, _new(labels, name): max(labels.values()) + 1}


def renamed(labels: dict[str, int], value: int, name: str) -> dict[str, int]:
    """Return label values by name, in their order, one of them with another name.

    Raises:
        InputError: the name is empty, too long or taken, or there is no such label.
    """
    before = name_of(labels, value)
    others = {each: of for each, of in labels.items() if each != before}
    after = _new(others, name)
    return {after if each == before else each: of for each, of in labels.items()}


def name_of(labels: dict[str, int], value: int) -> str:
    """Return the name of a label that is not the background.

    Raises:
        InputError: there is none.
    """
    for name, of in labels.items():
        if of == value and value != 0:
            return name
    raise InputError("the labels", expected="one that there is", found=str(value), do="Load the page again.")


def _new(labels: dict[str, int], name: str) -> str:
    name = normal(name)
    if any(unicodedata.category(each) in _UNWRITTEN for each in name):
        found, do = "one that cannot be written", "Choose another name."
        raise InputError("the labels", expected="names of letters, digits and signs", found=found, do=do)
    if not name or len(name) > _LONGEST or name in labels or name.lower() == "background":
        raise InputError(
            "the labels",
            expected=f"a name of its own of at most {_LONGEST} characters for each",
            found=repr(name),
            do="Choose another name.",
        )
    return name


def are_written(path: Path) -> bool:
    """Whether a ``dataset.json`` is there and names labels.

    Raises:
        InputError: it cannot be read.
    """
    return path.exists() and "labels" in read_description(path)


def require_readable(path: Path) -> None:
    """Require that the labels of a ``dataset.json`` can be read, if it is there and names any.

    Raises:
        InputError: they cannot.
    """
    if are_written(path):
        parse_labels(path, read_description(path))


def write(path: Path, labels: dict[str, int], kept: Path) -> None:
    """Write labels into a ``dataset.json``.

    Args:
        path: the file, which need not exist; what else it says stays.
        labels: label values by name.
        kept: where a copy of it goes the first time.

    Raises:
        InputError: what is there cannot be read, or the labels are no table of labels.
    """
    document = dict(read_description(path)) if path.exists() else {}
    if path.exists() and not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        with files.replacing(kept) as temporary:
            shutil.copyfile(path, temporary)
    document["labels"] = labels
    parse_labels(path, document)
    files.write_json(path, document)


class Colours:
    """The colours of labels: those of the reports, or those that the user has chosen.

    Args:
        path: where the chosen ones are kept, by the name of the label.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def of(self, names: Iterable[str]) -> list[str]:
        """Return a colour, ``#rrggbb``, for each label, background first."""
        names, chosen = list(names), self._chosen()
        usual = ["#000000", *("#" + bytes(rgb).hex() for rgb in label_colours(len(names) - 1))]
        return [chosen.get(name, colour) for name, colour in zip(names, usual, strict=True)]

    def choose(self, name: str, colour: str | None) -> None:
        """Give a label a colour, ``#rrggbb``; anything else is left aside."""
        if colour is not None and _COLOUR.fullmatch(colour.lower()):
            self._write({**self._chosen(), name: colour.lower()})

    def rename(self, before: str, after: str) -> None:
        """Keep the colour of a label whose name has changed."""
        chosen = self._chosen()
        if before in chosen:
            self._write({after if name == before else name: colour for name, colour in chosen.items()})

    def _chosen(self) -> dict[str, str]:
        found: dict[str, Any] = files.read_json(self._path) if self._path.exists() else {}
        return dict(found.get("colours", {}))

    def _write(self, chosen: dict[str, str]) -> None:
        files.write_json(self._path, {"colours": chosen})
