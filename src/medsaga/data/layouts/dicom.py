"""DICOM: ``images/CASE/`` with a series, or ``images/CASE.dcm``; ``masks/CASE.dcm`` or a label map of another format.

A mask is a segmentation (SEG), a structure set (RTSTRUCT), a folder with one of them, or a file such as
``CASE.nii.gz``. ``dataset.json`` may name labels and channels, and says which series is meant where a case has
several: ``"series"`` for one channel, the names of the channels for several, each a part of a series' description.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsaga.data.descriptions import channel_names, read_description
from medsaga.data.dicom.masks import is_mask, outlines
from medsaga.data.dicom.reading import is_dicom
from medsaga.data.dicom.series import choose_series, find_series
from medsaga.data.dicom.walking import files_below
from medsaga.data.formats import is_image, stem
from medsaga.data.labels import listed, parse_labels
from medsaga.data.layouts.checks import joint_header
from medsaga.data.layouts.finding import images_folder, masks_folder, missing_masks, visible_entries
from medsaga.data.layouts.labelling import (
    BACKGROUND,
    DESCRIPTION,
    cases_of,
    labels_of_masks,
    labels_of_named_masks,
    names_for,
)
from medsaga.data.layouts.pairing import paired, pairing_problems
from medsaga.data.names import normal
from medsaga.data.strays import are_stray, is_picture
from medsaga.data.types import Dataset, Item, Source
from medsaga.errors import InputError, collecting

EXPECTED = "images/CASE/ with DICOM series and masks/CASE.dcm"
SERIES = "series"
"""The key of ``dataset.json`` that chooses among the series of a case."""
_LOOKED_AT = 1000
"""Files of a case that are looked at before it counts as one without DICOM."""


def recognises(root: Path) -> bool:
    """Whether the folder of the images holds DICOM that is not stray among images of other formats."""
    folder = images_folder(root)
    count = len(entries_with_dicom(folder))
    return count > 0 and not are_stray(count, len(_other_images(folder)))


def read(root: Path, *, masks_required: bool) -> Dataset:
    """Find the cases, each of one item; see `medsaga.data.layouts.Layout`."""
    problems: list[InputError] = []
    warnings: list[str] = []
    description: dict[str, Any] = {}
    channels = None
    if (root / DESCRIPTION).exists():
        with collecting(problems):
            description = read_description(root / DESCRIPTION)
            channels = channel_names(root / DESCRIPTION, description)
    wanted = _wanted(root / DESCRIPTION, description, channels, problems)
    home = masks_folder(root, problems)
    found = _masks(home, problems, required=masks_required)
    images: dict[str, tuple[Source, ...]] = {}
    for entry in _image_entries(images_folder(root), found, problems, warnings):
        with collecting(problems):
            images[_name(entry)] = series_of(entry, wanted, do=f'Choose one by "{SERIES}" in {DESCRIPTION}.')
    masks = paired(images, found, home, warnings)
    labels = dict(BACKGROUND)
    with collecting(problems):
        labels = _labels(root, home, description, masks, problems, required=masks_required)
    cases = cases_of(root, images, problems)
    items = []
    for name, sources in sorted(images.items()):
        mask = (masks[name],) if name in masks else ()
        with collecting(problems):
            items.append(Item(name, cases[name], sources, mask, joint_header(sources), names=names_for(mask, labels)))
    problems += pairing_problems(images, masks, home, masks_required=masks_required)
    return Dataset(
        root,
        "dicom",
        labels,
        channels or (),
        tuple(items),
        tuple(problems),
        warnings=tuple(warnings),
        inferred="labels" not in description and not any(item.names for item in items),
    )


def _image_entries(
    folder: Path, masks: Mapping[str, Path], problems: list[InputError], warnings: list[str]
) -> list[Path]:
    """Return the files and folders that should hold the images of a case each, without stray ones."""
    others, dicom = _other_images(folder), entries_with_dicom(folder)
    are_logos = all(is_picture(path) and stem(path) not in masks for path in others)
    if others and are_logos and are_stray(len(others), sum(dicom.values())):
        warnings += [f"{path}: left out, a picture among DICOM images" for path in others]
    elif others:
        problems.append(
            InputError(
                folder,
                expected="images of one kind",
                found=f"DICOM, and {listed((path.name for path in others), 3)}",
                do="Move one of the two into a dataset of its own.",
            )
        )
    entries = []
    for entry in visible_entries(folder):
        with collecting(problems):
            if entry.is_file() and entry in dicom and not find_series(entry):
                warnings.append(f"{entry}: left out, DICOM without an image")
            elif entry.is_dir() or entry in dicom or entry.suffix.lower() == ".dcm":
                entries.append(entry)
    return entries


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
    return tuple(choose_series(found, each, by_number=False, do=do) for each in wanted)


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
    home: Path,
    description: Mapping[str, Any],
    masks: Mapping[str, Path],
    problems: list[InputError],
    *,
    required: bool,
) -> dict[str, int]:
    """Return the labels: as ``dataset.json`` has them, else the names in DICOM masks or the values in others."""
    if "labels" in description:
        return parse_labels(root / DESCRIPTION, description)
    labels = labels_of_named_masks(root, masks.values(), problems)
    return labels_of_masks(home, masks.values(), problems, required=required) if labels is None else labels


def _masks(folder: Path, problems: list[InputError], *, required: bool) -> dict[str, Path]:
    masks: dict[str, Path] = {}
    for entry in visible_entries(folder):
        path: Path | None = entry
        if entry.is_dir():
            with collecting(problems):
                path = _only_mask(entry)
        elif not (is_image(entry) or is_mask(entry)) or _is_directory(entry):
            path = None
        if path is not None and masks.setdefault(_name(entry), path) != path:
            found = f"also {masks[_name(entry)].name}"
            do = "Remove or rename one of them."
            problems.append(InputError(entry, expected="one mask per case", found=found, do=do))
    if required and not folder.exists():
        problems.append(missing_masks(folder))
    elif required and not masks:
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
    found = [path for path in files_below(folder) if is_mask(path) and not _is_directory(path)]
    # Archives put reports, and the images themselves, beside it.
    found = [path for path in found if outlines(path)] if len(found) > 1 else found
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
        return normal(entry.name)
    return normal(entry.name[:-4]) if entry.suffix.lower() == ".dcm" else stem(entry)


def _is_directory(path: Path) -> bool:
    """Whether a file is the table of contents of a medium."""
    return path.name.upper() == "DICOMDIR"


def _other_images(folder: Path) -> list[Path]:
    """Return the images of other formats directly in a folder."""
    return [entry for entry in visible_entries(folder) if entry.is_file() and is_image(entry)]


def entries_with_dicom(folder: Path) -> dict[Path, int]:
    """Return the files of DICOM in a folder, and the folders in it that hold some, each with the number of files.

    Of a folder with very many files not all are looked at.
    """
    found = {}
    for entry in visible_entries(folder):
        count = 0
        with contextlib.suppress(InputError):  # whoever reads the images says so
            others = (path for path in files_below(entry) if not is_image(path))
            for path in itertools.islice(others, _LOOKED_AT):
                count += is_dicom(path)
        if count:
            found[entry] = count
    return found
