"""Finding and checking the images and masks of a dataset."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medsaga.data.items import read_mask
from medsaga.data.labels import listed, unknown_labels, values_in
from medsaga.data.layouts import LAYOUTS, datasets_near, layout_of
from medsaga.data.layouts.shared import collecting, joint_header, shown, visible_entries
from medsaga.data.names import normal
from medsaga.data.sources import files_of, place_of, read_image
from medsaga.data.types import Array, Dataset, Item, Source
from medsaga.errors import InputError
from medsaga.files import sha256

_RANGE_SLACK = 1e-3
"""By how much of a fixed range a value may lie outside of it, for rounding."""


def read_dataset(root: Path, *, masks_required: bool = True) -> Dataset:
    """Find the images and masks of a folder in any of the layouts by their names and headers.

    What is wrong is collected in the dataset's ``problems``; `raise_problems` turns them into an error. A plain
    folder without ``dataset.json`` has its masks decoded, because nothing else tells its labels.

    Args:
        root: the folder.
        masks_required: whether an image without a mask is a problem.
    """
    layout = layout_of(root)
    if layout is not None:
        return layout.read(root, masks_required=masks_required)
    return Dataset(root, "folder", {"background": 0}, (), (), (_no_dataset(root),))


def _no_dataset(root: Path) -> InputError:
    do = "Put the images and masks into two folders images and masks, or name the folder that holds them."
    if root.is_dir():
        inside = [path.name for path in visible_entries(root)]
        found = f"a folder with none of these, but {listed(inside)}" if inside else "an empty folder"
        near = datasets_near(root)
        if near:
            do = f"Name {listed(near, 4)}, which is one." if len(near) == 1 else f"Name one of {listed(near, 4)}."
    else:
        found = "a file" if root.exists() else "nothing of this name"
    expected = f"a dataset: {'; '.join(layout.EXPECTED for layout in LAYOUTS)}"
    return InputError(root, expected=expected, found=found, do=do)


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


def check_items(dataset: Dataset, progress: Callable[[int, int], None] | None = None) -> tuple[InputError, ...]:
    """Decode every image and mask, one at a time, and return what is wrong with them.

    Files that ``dataset.problems`` already name are passed over.

    Args:
        dataset: from `read_dataset`.
        progress: called with the number of items done and the number of items.
    """
    problems: list[InputError] = []
    reported = {problem.where for problem in dataset.problems}
    for done, item in enumerate(dataset.items, start=1):
        before = len(problems)
        for source in item.images:
            if str(place_of(source)) not in reported:
                with collecting(problems):
                    _check_image(source, item, dataset)
        # A file that holds image and label map is damaged only once.
        reported.update(problem.where for problem in problems[before:])
        if item.masks and reported.isdisjoint(map(str, item.masks)):
            with collecting(problems):
                _check_mask(item, dataset)
        if progress is not None:
            progress(done, len(dataset.items))
    return tuple(problems)


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


def labels_of_cases(dataset: Dataset) -> dict[str, frozenset[int]]:
    """Decode every mask and return the label values that each case holds."""
    values: dict[str, frozenset[int]] = defaultdict(frozenset)
    for item in dataset.items:
        if item.masks:
            values[item.case] |= values_in(read_mask(item))
    return dict(values)


def fingerprint(dataset: Dataset) -> str:
    """Return a SHA-256 of the names and contents of all images and masks, whatever folder they lie in."""
    paths = {path for item in dataset.items for path in files_of_item(item)}
    entries = [(normal(path.relative_to(dataset.root).as_posix()), path.stat().st_size, sha256(path)) for path in paths]
    return hashlib.sha256(json.dumps(sorted(entries)).encode()).hexdigest()


def files_of_item(item: Item) -> tuple[Path, ...]:
    """Return the files of an item: those of its images, and those of its masks."""
    return (*(path for source in item.images for path in files_of(source)), *item.masks)


def _check_image(source: Source, item: Item, dataset: Dataset) -> None:
    path, image = place_of(source), read_image(source)
    if image.shape[1:] != item.header.grid.shape:
        raise InputError(
            path,
            expected=f"the size {shown(item.header.grid.shape)}",
            found=shown(image.shape[1:]),
            do="Export the file again.",
        )
    if image.dtype.kind == "f" and not (finite := np.isfinite(image)).all():
        raise InputError(
            path,
            expected="finite values",
            found=f"NaN or infinity in {image.size - int(finite.sum()):,} of {image.size:,} places",
            do="Replace them, for example by the value of the background.",
        )
    if image.min() == image.max():
        raise InputError(
            path,
            expected="an image",
            found=f"the value {image.min()} everywhere",
            do="Export the image again, or remove it and its mask.",
        )
    if dataset.value_range is not None:
        _check_range(path, image, *dataset.value_range)


def _check_range(path: Path, image: Array, low: float, high: float) -> None:
    lowest, highest = float(image.min()), float(image.max())
    slack = _RANGE_SLACK * (high - low)
    if lowest < low - slack or highest > high + slack:
        raise InputError(
            path,
            expected=f"values from {low:g} to {high:g}, as all images of this layout have",
            found=f"values from {lowest:g} to {highest:g}",
            do="Preprocess the images as the others were, or save them in another layout, such as images/ and masks/.",
        )


def _check_mask(item: Item, dataset: Dataset) -> None:
    labels = read_mask(item)
    # Labels that could not be read have been reported; every value would be unknown now.
    if len(dataset.labels) > 1 and not item.structures and not item.names:
        problem = unknown_labels(item.masks[0], values_in(labels), dataset.labels)
        if problem is not None:
            raise problem
