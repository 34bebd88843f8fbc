"""nnU-Net's layout: ``dataset.json``, ``imagesTr/CASE_0000.SUFFIX`` and ``labelsTr/CASE.SUFFIX``."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from medsaga.data.descriptions import channel_names, file_ending, read_description
from medsaga.data.formats import stem
from medsaga.data.labels import listed, parse_labels
from medsaga.data.layouts.shared import (
    BACKGROUND,
    DESCRIPTION,
    checked,
    collecting,
    image_files,
    joint_header,
    mask_files,
    names_for,
    pairing_problems,
)
from medsaga.data.types import Dataset, Item
from medsaga.errors import InputError

EXPECTED = "nnU-Net's imagesTr/, labelsTr/ and dataset.json"

_CHANNEL_FILE = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})", re.DOTALL)


def recognises(root: Path) -> bool:
    """Whether there is a folder ``imagesTr``."""
    return (root / "imagesTr").is_dir()


def read(root: Path, *, masks_required: bool) -> Dataset:
    """Find the cases, each of one item; see `medsaga.data.layouts.Layout`."""
    problems: list[InputError] = []
    labels, channels, ending = dict(BACKGROUND), None, None
    description_path = root / DESCRIPTION
    with collecting(problems):
        description = read_description(description_path)
        with collecting(problems):
            labels = parse_labels(description_path, description)
        with collecting(problems):
            channels = channel_names(description_path, description)
        ending = file_ending(description_path, description)
    groups: dict[str, dict[int, Path]] = {}
    with collecting(problems):
        groups = _channel_files(image_files(root / "imagesTr", ending), problems)
    masks = mask_files(root / "labelsTr", ending, problems, required=masks_required)
    items = []
    for name, files in sorted(groups.items()):
        with collecting(problems):
            paths = _in_channel_order(files)
            mask = (masks[name],) if name in masks else ()
            items.append(Item(name, name, paths, mask, joint_header(paths), names=names_for(mask, labels)))
    problems += pairing_problems(groups, masks, root / "labelsTr", masks_required=masks_required)
    return checked(Dataset(root, "nnunet", labels, channels or (), tuple(items), tuple(problems)))


def grouped_inputs(paths: Sequence[Path]) -> dict[str, tuple[Path, ...]] | None:
    """Return ``CASE_0000`` files by case in channel order; None when they are not whole sets named like that."""
    problems: list[InputError] = []
    groups = _channel_files(paths, problems)
    if problems or len({len(files) for files in groups.values()}) != 1:
        return None
    with contextlib.suppress(InputError):
        return {name: _in_channel_order(files) for name, files in groups.items()}
    return None


def _channel_files(paths: Sequence[Path], problems: list[InputError]) -> dict[str, dict[int, Path]]:
    groups: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in paths:
        match = _CHANNEL_FILE.fullmatch(stem(path))
        if match is None:
            expected, found = "a name such as CASE_0000, with the channel at its end", repr(stem(path))
        elif int(match["channel"]) in groups[match["case"]]:
            expected, found = "one file per case and channel", f"also {groups[match['case']][int(match['channel'])]}"
        else:
            groups[match["case"]][int(match["channel"])] = path
            continue
        problems.append(InputError(path, expected=expected, found=found, do="Rename or remove the file."))
    return groups


def _in_channel_order(files: dict[int, Path]) -> tuple[Path, ...]:
    if sorted(files) != list(range(len(files))):
        first = files[min(files)]
        raise InputError(
            first,
            expected="the channels of a case to be numbered 0000, 0001 and so on",
            found=listed(f"{channel:04d}" for channel in sorted(files)),
            do="Add the missing file.",
        )
    return tuple(files[channel] for channel in sorted(files))
