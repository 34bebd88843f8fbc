"""Finding and checking the images and masks of a dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from medsaga.data.labels import listed
from medsaga.data.layouts import LAYOUTS, datasets_near, layout_of
from medsaga.data.layouts.checks import joint_header, with_mismatches
from medsaga.data.layouts.finding import visible_entries
from medsaga.data.layouts.pairing import are_unlabelled
from medsaga.data.names import normal
from medsaga.data.sources import files_of, place_of
from medsaga.data.survey import survey
from medsaga.data.types import Dataset, Item
from medsaga.errors import InputError
from medsaga.files import sha256

FOREGROUND = "foreground"
"""The name of the only label of masks that are read as binary, unless the dataset names just one."""


def read_dataset(root: Path, *, masks_required: bool = True, binary: bool = False) -> Dataset:
    """Find the images and masks of a folder in any of the layouts by their names and headers.

    What is wrong is collected in the dataset's ``problems``; `raise_problems` turns them into an error. A plain
    folder without ``dataset.json`` has its masks decoded, because nothing else tells its labels.

    Args:
        root: the folder.
        masks_required: whether the dataset is to be trained on or scored: images that are not labelled yet are left
            out then, with a warning, and a mask that seems forgotten is a problem; see
            `medsaga.data.layouts.pairing.are_unlabelled`.
        binary: whether every mask is read as background and `FOREGROUND`, whatever its values are; see
            `medsaga.data.plausibility.foreground_of`.
    """
    layout = layout_of(root)
    if layout is not None:
        dataset = layout.read(root, masks_required=masks_required)
        dataset = with_mismatches(_labelled_only(dataset) if masks_required else dataset)
        return _as_binary(dataset) if binary else dataset
    return Dataset(root, "folder", {"background": 0}, (), (), (_no_dataset(root),))


def _no_dataset(root: Path) -> InputError:
    if not root.exists():
        return InputError(root, expected="a dataset folder", found="nothing of this name", do="Check the path.")
    do = "Put the images and masks into two folders images and masks, or name the folder that holds them."
    if root.is_dir():
        inside = [path.name for path in visible_entries(root)]
        found = f"a folder with none of these, but {listed(inside)}" if inside else "an empty folder"
        near = datasets_near(root)
        if near:
            do = f"Name {listed(near, 4)}, which is one." if len(near) == 1 else f"Name one of {listed(near, 4)}."
    else:
        found = "a file"
    expected = f"a dataset: {'; '.join(layout.EXPECTED for layout in LAYOUTS)}"
    return InputError(root, expected=expected, found=found, do=do)


def _labelled_only(dataset: Dataset) -> Dataset:
    """Leave out the images without a mask, unless they are a problem that has been found, and say so."""
    labelled = tuple(item for item in dataset.items if item.masks)
    without = [item.name for item in dataset.items if not item.masks]
    if not are_unlabelled(len(without), len(labelled)):
        return dataset
    text = (
        f"{len(without)} of {len(dataset.items)} images have no mask and are left out, such as {without[0]}; where "
        "there is nothing to label, a mask of zeros says so"
    )
    return replace(dataset, items=labelled, warnings=(*dataset.warnings, text))


def _as_binary(dataset: Dataset) -> Dataset:
    items = tuple(replace(item, binary=True) for item in dataset.items)
    given = [] if dataset.inferred else [name for name, value in dataset.labels.items() if value != 0]
    name = given[0] if len(given) == 1 else FOREGROUND
    return replace(dataset, labels={"background": 0, name: 1}, items=items, inferred=False)


def select_channels(dataset: Dataset, names: Sequence[str] | None) -> Dataset:
    """Return a dataset with some of its channels, in the order in which they are named.

    Args:
        dataset: usable, from `read_dataset`.
        names: of its channels; None keeps all as they are.

    Raises:
        InputError: a name is unknown or given twice, or the channels lie in one file.
    """
    if names is None:
        return dataset
    names = tuple(map(normal, names))
    if names == dataset.channels:
        return dataset
    known = listed(dataset.channels, 12)
    wrong = [name for name in names if name not in dataset.channels]
    if wrong or not names or len(set(names)) < len(names):
        raise InputError(
            "--channels",
            expected=f"some of the dataset's channels, each once: {known}",
            found=listed(wrong or names) or "none",
            do="Correct the names.",
        )
    together = next((item for item in dataset.items if len(item.images) != len(dataset.channels)), None)
    if together is not None:
        raise InputError(
            "--channels",
            expected="a dataset in which each channel is a file of its own",
            found=f"all of {known} in {listed(place_of(source).name for source in together.images)}",
            do="Leave it out, or save the channels as separate files, as in nnU-Net's layout.",
        )
    places = [dataset.channels.index(name) for name in names]
    items = []
    for item in dataset.items:
        sources = tuple(item.images[place] for place in places)
        items.append(replace(item, images=sources, header=joint_header(sources)))
    return replace(dataset, channels=names, items=tuple(items))


def require_order(root: Path, found: Sequence[str] | None, wanted: Sequence[str]) -> None:
    """Raise an InputError where a dataset has the channels of a run in another order: one would pass for another.

    Args:
        root: of the dataset.
        found: the names of its channels; None where it has none.
        wanted: those of the run.
    """
    if found is not None and tuple(found) != tuple(wanted) and sorted(found) == sorted(wanted):
        raise InputError(
            root,
            expected=f"the channels of the run in its order, {listed(wanted, 12)}",
            found=listed(found, 12),
            do="Number the files of the channels as in the data of the run.",
        )


def check_items(dataset: Dataset, progress: Callable[[int, int], None] | None = None) -> tuple[InputError, ...]:
    """Decode every image and mask, and return what is wrong with them; see `medsaga.data.survey.survey`."""
    return survey(dataset, progress).problems


def raise_problems(problems: Sequence[InputError]) -> None:
    """Raise the first of the problems, and say how many more there are; do nothing when there is none.

    Raises:
        InputError: there is a problem.
    """
    if not problems:
        return
    first, more = problems[0], len(problems) - 1
    if not more:
        raise first
    also = f"{first.do} (And {more} more problem{'s' if more > 1 else ''}: see `medsaga info`.)"
    raise InputError(first.where, expected=first.expected, found=first.found, do=also)


def fingerprint(dataset: Dataset) -> str:
    """Return a SHA-256 of the names and contents of all images and masks, whatever folder they lie in."""
    paths = {path for item in dataset.items for path in files_of_item(item)}
    entries = [(normal(path.relative_to(dataset.root).as_posix()), path.stat().st_size, sha256(path)) for path in paths]
    return hashlib.sha256(json.dumps(sorted(entries)).encode()).hexdigest()


def files_of_item(item: Item) -> tuple[Path, ...]:
    """Return the files of an item: those of its images, and those of its masks."""
    return (*(path for source in item.images for path in files_of(source)), *item.masks)
