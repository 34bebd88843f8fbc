"""nnU-Net's layout: ``dataset.json``, ``imagesTr/CASE_0000.SUFFIX`` and ``labelsTr/CASE.SUFFIX``."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from medsaga.data.descriptions import file_ending
from medsaga.data.formats import stem, suffix_of
from medsaga.data.labels import listed
from medsaga.data.layouts.checks import joint_header
from medsaga.data.layouts.finding import image_files, mask_files
from medsaga.data.layouts.labelling import DESCRIPTION, described, names_for
from medsaga.data.layouts.pairing import pairing_problems
from medsaga.data.types import Dataset, Item
from medsaga.errors import InputError, collecting

EXPECTED = "nnU-Net's imagesTr/, labelsTr/ and dataset.json"

CHANNEL_FILE = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})", re.DOTALL)
"""What the names of images are without their suffix."""


def recognises(root: Path) -> bool:
    """Whether there is a folder ``imagesTr``."""
    return (root / "imagesTr").is_dir()


def read(root: Path, *, masks_required: bool) -> Dataset:
    """Find the cases, each of one item; see `medsaga.data.layouts.Layout`."""
    problems: list[InputError] = []
    warnings: list[str] = []
    labels, channels, description = described(root, problems)
    ending = None
    with collecting(problems):
        ending = None if description is None else file_ending(root / DESCRIPTION, description)
    groups: dict[str, dict[int, Path]] = {}
    with collecting(problems):
        groups = _channel_files(image_files(root / "imagesTr", ending), problems)
    masks = mask_files(root / "labelsTr", ending, problems, warnings, required=masks_required)
    items = []
    for name, files in sorted(groups.items()):
        with collecting(problems):
            paths = complete(name, files, groups, channels)
            mask = (masks[name],) if name in masks else ()
            items.append(Item(name, name, paths, mask, joint_header(paths), names=names_for(mask, labels)))
    problems += pairing_problems(groups, masks, root / "labelsTr", masks_required=masks_required)
    return Dataset(root, "nnunet", labels, channels or (), tuple(items), tuple(problems), warnings=tuple(warnings))


def channel_groups(paths: Sequence[Path]) -> tuple[dict[str, dict[int, Path]], tuple[InputError, ...]]:
    """Return ``CASE_0000`` files by case and channel, and what is wrong with the names of the others."""
    problems: list[InputError] = []
    return _channel_files(paths, problems), tuple(problems)


def complete(
    case: str, files: Mapping[int, Path], groups: Mapping[str, Mapping[int, Path]], names: Sequence[str] | None
) -> tuple[Path, ...]:
    """Return the files of a case in channel order.

    Args:
        case: its name.
        files: of the case, by channel.
        groups: of all cases. Where ``names`` is None, most of them tell how many channels there are.
        names: of the channels.

    Raises:
        InputError: a channel is missing.
    """
    usual = Counter(tuple(sorted(each)) for each in groups.values()).most_common(1)[0][0]
    count = len(names) if names else max(max(usual) + 1, len(files))
    # One file may hold all channels.
    lacks_some = len(files) < count and joint_header((files[min(files)],)).channels == 1
    missing = sorted(set(range(count if lacks_some else max(files) + 1)) - files.keys())
    if missing:
        path, first = files[min(files)], missing[0]
        called = f" ({names[first]})" if names and first < len(names) else ""
        raise InputError(
            path.with_name(f"{case}_{first:04d}{suffix_of(path) or ''}"),
            expected=f"channel {first:04d}{called} of the case {case}",
            found=f"only {listed(f'{channel:04d}' for channel in sorted(files))}",
            do="Add the missing file, or remove the others of the case.",
        )
    return tuple(files[channel] for channel in sorted(files))


def _channel_files(paths: Sequence[Path], problems: list[InputError]) -> dict[str, dict[int, Path]]:
    groups: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in paths:
        match = CHANNEL_FILE.fullmatch(stem(path))
        if match is None:
            expected, found = "a name such as CASE_0000, with the channel at its end", repr(stem(path))
        elif int(match["channel"]) in groups[match["case"]]:
            expected, found = "one file per case and channel", f"also {groups[match['case']][int(match['channel'])]}"
        else:
            groups[match["case"]][int(match["channel"])] = path
            continue
        problems.append(InputError(path, expected=expected, found=found, do="Rename or remove the file."))
    return groups
