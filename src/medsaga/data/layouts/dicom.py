"""DICOM: ``images/CASE/`` with a series, or ``images/CASE.dcm``; ``masks/CASE.dcm`` or a label map of another format.

A mask is a segmentation (SEG), a structure set (RTSTRUCT), a folder with one of them, or a file such as
``CASE.nii.gz``. ``dataset.json`` may name labels and channels, and says which series is meant where a case has
several: ``"series"`` for one channel, the names of the channels for several, each a part of a series' description.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsaga.data.descriptions import channel_names, read_description
from medsaga.data.dicom.masks import is_mask, names_in
from medsaga.data.dicom.reading import is_dicom
from medsaga.data.dicom.series import choose_series, find_series
from medsaga.data.formats import is_image, stem
from medsaga.data.labels import listed, parse_labels
from medsaga.data.layouts.shared import (
    BACKGROUND,
    DESCRIPTION,
    cases_of,
    checked,
    collecting,
    joint_header,
    labels_of_masks,
    pairing_problems,
)
from medsaga.data.types import Dataset, Item, Source
from medsaga.errors import InputError

EXPECTED = "images/CASE/ with DICOM series and masks/CASE.dcm"
SERIES = "series"
"""The key of ``dataset.json`` that chooses among the series of a case."""
_LOOKED_AT = 64
"""Files of a folder that are looked at before it counts as one without DICOM."""


def recognises(root: Path) -> bool:
    """Whether ``images`` holds DICOM files, or folders with some, and no image of another format."""
    entries = _entries(root / "images")
    if any(entry.is_file() and is_image(entry) for entry in entries):
        return False
    return any(is_dicom(entry) if entry.is_file() else _has_dicom(entry) for entry in entries)


def read(root: Path, *, masks_required: bool) -> Dataset:
    """Find the cases, each of one item; see `medsaga.data.layouts.Layout`."""
    problems: list[InputError] = []
    description: dict[str, Any] = {}
    channels = None
    if (root / DESCRIPTION).exists():
        with collecting(problems):
            description = read_description(root / DESCRIPTION)
            channels = channel_names(root / DESCRIPTION, description)
    wanted = _wanted(root / DESCRIPTION, description, channels, problems)
    images: dict[str, tuple[Source, ...]] = {}
    for entry in _entries(root / "images"):
        with collecting(problems):
            images[_name(entry)] = series_of(entry, wanted, do=f'Choose one by "{SERIES}" in {DESCRIPTION}.')
    masks = _masks(root / "masks", problems, required=masks_required)
    labels = dict(BACKGROUND)
    with collecting(problems):
        labels = _labels(root, description, masks, problems, required=masks_required)
    cases = cases_of(root, images, problems)
    items = []
    for name, sources in sorted(images.items()):
        mask = (masks[name],) if name in masks else ()
        named = tuple(labels.items()) if mask and is_mask(mask[0]) else ()
        with collecting(problems):
            items.append(Item(name, cases[name], sources, mask, joint_header(sources), names=named))
    problems += pairing_problems(images, masks, root / "masks", masks_required=masks_required)
    inferred = "labels" not in description and not any(is_mask(path) for path in masks.values())
    return checked(Dataset(root, "dicom", labels, channels or (), tuple(items), tuple(problems), inferred=inferred))


def series_of(entry: Path, wanted: Sequence[str | None], *, do: str) -> tuple[Source, ...]:
    """Return the series in a file or a folder, one for each of ``wanted``.

    Args:
        entry: of one case.
        wanted: for each channel, what `choose_series` takes.
        do: what the user can do where several fit.

    Raises:
        InputError: there is none, or not exactly one that fits.
    """
    found = find_series(entry)
    if not found:
        raise InputError(
            entry, expected="DICOM images", found="none", do="Export the images again, or move the folder away."
        )
    return tuple(choose_series(found, each, do=do) for each in wanted)


def _wanted(
    path: Path, description: Mapping[str, Any], channels: Sequence[str] | None, problems: list[InputError]
) -> tuple[str | None, ...]:
    if channels is not None and len(channels) > 1:
        return tuple(channels)
    series = description.get(SERIES)
    if series is None or (isinstance(series, str) and series):
        return (series,)
    problems.append(
        InputError(
            path,
            expected=f'"{SERIES}": a part of the description of the series that is meant',
            found=repr(series)[:80],
            do="Write it as a text.",
        )
    )
    return (None,)


def _labels(
    root: Path,
    description: Mapping[str, Any],
    masks: Mapping[str, Path],
    problems: list[InputError],
    *,
    required: bool,
) -> dict[str, int]:
    """Return the labels: as ``dataset.json`` has them, else the names in DICOM masks or the values in others."""
    if "labels" in description:
        return parse_labels(root / DESCRIPTION, description)
    named = [path for path in masks.values() if is_mask(path)]
    if not named:
        return labels_of_masks(root / "masks", masks.values(), problems, required=required)
    other = next((path for path in masks.values() if path not in named), None)
    if other is not None:
        raise InputError(
            root / DESCRIPTION,
            expected=f"the value of each label, because {other.name} holds values and {named[0].name} names",
            found="no labels",
            do='Write "labels" there, such as {"background": 0, "liver": 1}.',
        )
    names: dict[str, str] = {}
    for path in named:
        with collecting(problems):
            for name in names_in(path):
                names.setdefault(name.casefold(), name)
    numbered = {name: value for value, (_, name) in enumerate(sorted(names.items()), start=1)}
    return parse_labels(root / "masks", {"labels": BACKGROUND | numbered}) if numbered else dict(BACKGROUND)


def _masks(folder: Path, problems: list[InputError], *, required: bool) -> dict[str, Path]:
    masks: dict[str, Path] = {}
    for entry in _entries(folder):
        path: Path | None = entry
        if entry.is_dir():
            with collecting(problems):
                path = _only_mask(entry)
        elif not (is_image(entry) or is_mask(entry)):
            path = None
        if path is not None and masks.setdefault(_name(entry), path) != path:
            found = f"also {masks[_name(entry)].name}"
            do = "Remove or rename one of them."
            problems.append(InputError(entry, expected="one mask per case", found=found, do=do))
    if required and not masks:
        problems.append(
            InputError(
                folder,
                expected="a mask for each case: CASE.dcm (SEG or RTSTRUCT), CASE.nii.gz or a folder with one of them",
                found="none",
                do="Put the masks into this folder, named like their images.",
            )
        )
    return masks


def _only_mask(folder: Path) -> Path | None:
    """Return the DICOM mask in the folder of a case, as archives export it."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and is_mask(path)]
    if len(found) > 1:
        raise InputError(
            folder,
            expected="one segmentation or structure set",
            found=listed((path.name for path in found), 3),
            do="Leave the one that is meant.",
        )
    return found[0] if found else None


def _name(entry: Path) -> str:
    """Return the name of a case: of its folder, or of its file without the suffix."""
    if entry.is_dir():
        return entry.name
    return entry.name[:-4] if entry.suffix.lower() == ".dcm" else stem(entry)


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder and is not hidden, sorted; nothing where it cannot be listed."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def _has_dicom(folder: Path) -> bool:
    """Whether one of the first files below a folder is DICOM."""
    looked_at = 0
    for path in folder.rglob("*"):
        if path.is_file():
            looked_at += 1
            if is_dicom(path):
                return True
            if looked_at == _LOOKED_AT:
                break
    return False
