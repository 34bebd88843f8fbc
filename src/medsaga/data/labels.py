"""The labels of a dataset: their names and values, from ``dataset.json`` or from the masks themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medsaga.data.types import Labels, outer_pieces
from medsaga.errors import InputError

MOST_LABELS = 255
"""Background included, so that class indices fit a byte."""
MOST_INFERRED_LABELS = 64
"""Beyond this, masks without a ``dataset.json`` are grey images or have smoothed edges more often than labels."""
HIGHEST_VALUE = 65535
"""The highest value that a 16-bit PNG holds."""
_FORM = 'an object such as {"background": 0, "liver": 1}'


def values_in(labels: Labels) -> frozenset[int]:
    """Return the distinct values of a label map, in little memory however large it is."""
    return frozenset(counts_of(labels))


def counts_of(labels: Labels) -> dict[int, int]:
    """Return the values of a label map, ascending, with how often each occurs, in little memory however large it is."""
    counted: Counter[int] = Counter()
    for piece in outer_pieces(labels):
        values, counts = np.unique(labels[piece], return_counts=True)
        counted.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return dict(sorted(counted.items()))


def parse_labels(where: Path, document: Mapping[str, Any]) -> dict[str, int]:
    """Return label name to value, in ascending order of the values, of the content of a ``dataset.json``.

    nnU-Net's first version, ``{"0": "background"}``, is read too.

    Raises:
        InputError: there is no ``labels`` entry, it is not of this form, or there are regions or an ignore label.
    """
    entry = document.get("labels")
    if not isinstance(entry, dict) or not entry:
        raise InputError(where, expected=f'"labels": {_FORM}', found=_shown(entry), do="Write the labels there.")
    if all(isinstance(name, str) for name in entry.values()) and all(value.isdecimal() for value in entry):
        entry = _turned_round(where, entry)
    for name, value in entry.items():
        _check_label(where, name, value)
    labels = dict(sorted(entry.items(), key=lambda label: label[1]))
    _check_table(where, labels)
    return labels


def inferred_labels(values: Iterable[int]) -> dict[str, int]:
    """Return ``background`` and ``label_V`` for each other value V; `medsaga.data.plausibility` says if they can be."""
    return {"background": 0, **{f"label_{value}": value for value in sorted(values) if value != 0}}


def unknown_labels(where: Path, found: frozenset[int], labels: Mapping[str, int]) -> InputError | None:
    """Return what to tell the user of a mask that holds values outside ``labels``; None when there are none."""
    unknown = sorted(found - set(labels.values()))
    if not unknown:
        return None
    named = ", ".join(f"{value} ({name})" for name, value in list(labels.items())[:12])
    do = "Correct the mask, or add the value to the labels in dataset.json."
    if len(labels) == 2:
        do = f"{do} If any value but 0 means {list(labels)[1]}, use --binary."
    if found == {0, 255} and len(labels) == 2:
        name = list(labels)[1]
        do = (
            f'Divide the masks by 255, or write "{name}": 255 in dataset.json if all masks are like this, or use '
            f"--binary, which takes any value but 0 as {name}."
        )
    return InputError(where, expected=f"the labels {named}", found=f"the values {listed(unknown)}", do=do)


def listed(values: Iterable[object], most: int = 8) -> str:
    """Return the first few values as text, and how many more there are."""
    every = list(values)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(str(value) for value in every[:most]) + more


def _turned_round(where: Path, entry: Mapping[str, str]) -> dict[str, int]:
    turned = {name: int(value) for value, name in entry.items()}
    if len(turned) < len(entry):
        raise InputError(
            where, expected="one name per label", found="the same name twice", do="Give each label its own name."
        )
    return turned


def _check_label(where: Path, name: str, value: object) -> None:
    if isinstance(value, list):
        raise InputError(
            where,
            expected="one integer per label",
            found=f"the region {name!r} made of {_shown(value)}",
            do="Regions are not supported: name each integer of the masks as a label of its own.",
        )
    if name.lower() == "ignore":
        raise InputError(
            where,
            expected="labels that all count",
            found="an ignore label",
            do="Sparse annotation is not supported: leave out unfinished cases and the ignore label.",
        )
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= HIGHEST_VALUE:
        raise InputError(
            where,
            expected=f"label values that are integers from 0 to {HIGHEST_VALUE}",
            found=f"{_shown(value)} for {name!r}",
            do="Write the integers without quotation marks."
            if isinstance(value, str) and value.isdecimal()
            else "Give each label the integer that stands for it in the masks.",
        )


def _check_table(where: Path, labels: Mapping[str, int]) -> None:
    values = list(labels.values())
    found = None
    if values[0] != 0:
        found = "no label with the value 0"
    elif len(values) == 1:
        found = "the background alone"
    elif len(set(values)) < len(values):
        found = f"one value for several labels ({listed(labels.items())})"
    elif len(values) > MOST_LABELS:
        found = f"{len(values)} labels"
    if found is not None:
        raise InputError(
            where,
            expected=f"a background of value 0 and 1 to {MOST_LABELS - 1} other labels, each with its own value",
            found=found,
            do=f'Correct "labels": {_FORM}.',
        )


def _shown(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
