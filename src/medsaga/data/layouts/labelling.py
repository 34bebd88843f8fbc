"""What describes a dataset: its labels, channels and cases, from its files or from its masks."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medsaga.data.descriptions import channel_names, read_cases, read_description
from medsaga.data.formats import format_of
from medsaga.data.labels import inferred_labels, parse_labels, values_in
from medsaga.data.named_masks import is_named, names_in
from medsaga.data.names import normal
from medsaga.errors import InputError, collecting

BACKGROUND = {"background": 0}
DESCRIPTION = "dataset.json"
CASES = "cases.csv"
_NUMBERED = re.compile(r"(.+)[_-][^\W\d_]*\d+")
"""A name that ends in ``_0``, ``-12`` or ``_slice3``."""


def described(
    root: Path, problems: list[InputError]
) -> tuple[dict[str, int], tuple[str, ...] | None, dict[str, Any] | None]:
    """Return labels, channels and the content of the ``dataset.json`` of a layout that cannot do without."""
    path = root / DESCRIPTION
    labels, channels, description = dict(BACKGROUND), None, None
    if not path.exists():
        problems.append(
            InputError(
                path,
                expected="a file that names labels and channels",
                found="none",
                do='Write it, such as {"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}}.',
            )
        )
        return labels, channels, description
    with collecting(problems):
        description = read_description(path)
        with collecting(problems):
            labels = parse_labels(path, description)
        with collecting(problems):
            channels = channel_names(path, description)
    return labels, channels, description


def labels_or(root: Path, known: Mapping[str, int], problems: list[InputError]) -> dict[str, int]:
    """Return the labels of ``dataset.json`` where there is one, else those that the layout is known to have."""
    labels = dict(known)
    if (root / DESCRIPTION).exists():
        with collecting(problems):
            labels = parse_labels(root / DESCRIPTION, read_description(root / DESCRIPTION))
    return labels


def cases_of(root: Path, names: Collection[str], problems: list[InputError]) -> dict[str, str]:
    """Return the case of each image: as ``cases.csv`` has it where there is one, else the image itself."""
    cases = {name: name for name in names}
    if (root / CASES).exists():
        with collecting(problems):
            given, wrong = read_cases(root / CASES, names)
            cases.update(given)
            problems += wrong
    return cases


def patients_in_names(root: Path, names: Iterable[str]) -> Iterator[str]:
    """Yield a warning where each image is a case, but many names look like images of a few patients.

    They do where they agree up to their last number, in several groups: ``p0_slice0``, ``p0_slice1``, ``p1_slice0``.
    Images that are numbered through have one beginning for all.
    """
    if (root / CASES).exists():
        return
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        numbered = _NUMBERED.fullmatch(name)
        groups.setdefault(numbered[1] if numbered else name, []).append(name)
    repeated = [group for group in groups.values() if len(group) > 1]
    if len(repeated) > 1 and len(groups) < sum(map(len, groups.values())) / 2:
        one, other, *_ = repeated[0]
        yield (
            f"each image counts as a case, because there is no {CASES}; if {one} and {other} are of one patient, the "
            "test is too easy"
        )


def labels_of_masks(
    folder: Path, masks: Collection[Path], problems: list[InputError], *, required: bool
) -> dict[str, int]:
    """Return the labels that the values in label maps tell, all of which are decoded for it.

    Raises:
        InputError: there are none but background though ``required``.
    """
    values: set[int] = set()
    reported = {problem.where for problem in problems}
    for path in masks:
        if str(path) not in reported:
            with collecting(problems):
                values |= values_in(format_of(path).read_labels(path))
    labels = inferred_labels(values)
    # Without a value no mask could be read, which has been reported.
    if len(labels) == 1 and values and required:
        raise InputError(
            folder,
            expected="masks with labels other than 0",
            found="only background",
            do="Check the export of the masks.",
        )
    return labels


def labels_of_named_masks(root: Path, masks: Collection[Path], problems: list[InputError]) -> dict[str, int] | None:
    """Return the labels that masks name, numbered in alphabetical order; None where the masks hold values instead.

    Raises:
        InputError: some hold names and some values.
    """
    named: dict[Path, tuple[str, ...]] = {}
    for path in masks:
        with collecting(problems):
            if is_named(path):
                named[path] = names_in(path)
    reported = {problem.where for problem in problems}
    other = next((path for path in masks if path not in named and str(path) not in reported), None)
    if not named:
        # Whatever cannot be read has been reported.
        return dict(BACKGROUND) if masks and other is None else None
    if other is not None:
        raise InputError(
            root / DESCRIPTION,
            expected=f"the value of each label, because {other.name} holds values and {next(iter(named)).name} names",
            found="no labels",
            do='Write "labels" there, such as {"background": 0, "liver": 1}.',
        )
    names: dict[str, str] = {}
    for name in (normal(name) for each in named.values() for name in each):
        names.setdefault(name.casefold(), name)
    names.pop("background", None)
    numbered = {name: value for value, (_, name) in enumerate(sorted(names.items()), start=1)}
    return parse_labels(root / "masks", {"labels": BACKGROUND | numbered}) if numbered else dict(BACKGROUND)


def names_for(mask: Collection[Path], labels: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Return name and value of every label for an `Item` whose mask names its structures; nothing for any other."""
    # A damaged mask is a problem that `with_mismatches` finds.
    with contextlib.suppress(InputError):
        return tuple(labels.items()) if any(map(is_named, mask)) else ()
    return ()
