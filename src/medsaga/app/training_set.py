"""The data of one training: links to the images of some cases, copies of their masks, and what is kept for the test.

Each training has a set of its own in ``.medsaga/sets/RUN``. So a run can be gone on with, and tells what it was trained
on, whatever is painted or labelled meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from medsaga import files
from medsaga.app.own import SETS, dataset_of_set
from medsaga.app.project import Project
from medsaga.app.versions import Versions
from medsaga.data.items import read_mask
from medsaga.data.layouts.finding import images_folder, masks_folder
from medsaga.data.layouts.labelling import CASES, DESCRIPTION
from medsaga.data.sources import place_of
from medsaga.data.splits import SPLITS_NAME, pool_and_test, split_cases
from medsaga.data.types import Item
from medsaga.errors import InputError

_PLAIN, _NNUNET = ("images", "masks"), ("imagesTr", "labelsTr")
_FOLDERS = {"folder": _PLAIN, "dicom": _PLAIN, "nnunet": _NNUNET, "decathlon": _NNUNET}
"""Of images and masks, in the layouts of which some cases can be a dataset: those whose masks are painted here."""
_MOST_COMPARED = 4096

Fold = dict[str, list[str]]
"""The cases to train on, ``train``, and those that are kept for the test, ``val``, as in ``splits_final.json``."""


def fixes_test(project: Project) -> bool:
    """Return whether the data themselves say which cases are kept for the test."""
    return bool(project.dataset.test) or (project.root / SPLITS_NAME).exists()


def kept_by_folds(project: Project) -> tuple[str, ...]:
    """Return the cases that the folder's ``splits_final.json`` keeps for the test; none without such a file.

    Raises:
        InputError: the file does not fit the dataset.
    """
    return (pool_and_test(project.dataset, 0)[1] or ()) if (project.root / SPLITS_NAME).exists() else ()


def fold_of(project: Project, cases: Sequence[str], *, hold_back: bool) -> Fold | None:
    """Return which of the labelled cases are kept for the test; None where that is left to the command line.

    What ``splits_final.json`` keeps is kept, labelled or not. A prediction that was accepted as it was is never truth
    for a test: the Dice would be of the model with itself.

    Args:
        project: that is open.
        cases: that are labelled.
        hold_back: whether a part of them is to be kept where no file says which.

    Raises:
        InputError: ``splits_final.json`` does not fit the dataset, or leaves no labelled case to train on.
    """
    if (project.root / SPLITS_NAME).exists():
        pool, test = pool_and_test(project.dataset, 0)
        fold = {"train": _among(pool, cases), "val": _among(test or (), cases)}
        fold["val"] = _without(fold["val"], accepted_cases(project, fold["val"]))
        if not fold["train"]:
            raise InputError(
                project.root / SPLITS_NAME,
                expected="a labelled case to train on in its first fold",
                found="none",
                do="Finish one of its train cases, or remove the file.",
            )
        return fold
    if not hold_back or project.dataset.test:
        return None
    accepted = accepted_cases(project, cases)
    if not accepted:
        return None
    checked = _without(cases, accepted)
    test = _drawn(project, checked) if len(checked) > 1 else ()
    return {"train": _without(cases, test), "val": list(test)}


def accepted_cases(project: Project, cases: Sequence[str]) -> list[str]:
    """Return those of some cases that hold a mask which is a prediction as a run made it."""
    wanted = set(cases)
    keys = [key for key, item in project.items.items() if item.case in wanted and _is_prediction(project, key)]
    return sorted({project.item(key).case for key in keys})


def make_set(project: Project, cases: Sequence[str], name: str, fold: Fold | None = None) -> Path:
    """Make the dataset of a training and return its folder.

    Images are links to the files where the system has such, masks are copies. The folder also keeps the name of the
    run for it, whose own folder comes with its first step.

    Args:
        project: that is open.
        cases: that are labelled; all that the set has.
        name: of the run.
        fold: which of them are kept for the test; None where the command line decides.

    Returns:
        the folder, or that of the data themselves where they do not divide: nobody paints those on the page.

    Raises:
        InputError: the layout does not divide, and not all is labelled.
    """
    target, layout = project.own / SETS / name, project.dataset.layout
    is_divisible = layout in _FOLDERS
    if not is_divisible and (len(cases) < len(project.dataset.cases) or project.dataset.problems):
        raise InputError(
            project.root,
            expected="data of which every case is labelled",
            found=f"the layout {layout} with unlabelled cases",
            do="Label all cases, or bring the data into the plain layout images/ and masks/.",
        )
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    if not is_divisible:
        return project.root
    items = project.dataset.items_of(tuple(cases))
    home = images_folder(project.root) if _FOLDERS[layout] is _PLAIN else project.root / _NNUNET[0]
    images = target / _FOLDERS[layout][0]
    for item in items:
        for place in dict.fromkeys(place_of(source) for source in item.images):
            _place(place, images / place.relative_to(home))
        for mask, copy in zip(item.masks, _copies(project, item, target), strict=True):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(mask, copy)
    document = files.read_json(project.root / DESCRIPTION) if (project.root / DESCRIPTION).exists() else {}
    files.write_json(target / DESCRIPTION, document | {"labels": project.dataset.labels})
    if (project.root / CASES).exists():
        files.write_csv(target / CASES, [("name", "case"), *((item.name, item.case) for item in items)])
    if fold is not None:
        files.write_json(target / SPLITS_NAME, [fold])
    return target


def changed_since(project: Project, trained_on: Iterable[Path], items: Iterable[Item], begun: float) -> set[str]:
    """Return the cases whose masks are others than those that a run was trained on.

    Masks are compared with the copies in the run's sets. What was not trained on from a set, such as by the command
    line, has only its time.

    Args:
        project: that is open.
        trained_on: the folders that the run was trained on, in the order in which they were added.
        items: the images in question.
        begun: when the run began, in seconds since 1970.
    """
    folders = [_set_of(project, folder) for folder in trained_on]
    sets = [folder for folder in reversed(folders) if folder is not None]
    changed = set()
    for item in items:
        copies = next((each for each in (_copies(project, item, one) for one in sets) if _are_there(each)), None)
        if copies is not None:
            state = tuple((mask.stat().st_mtime_ns, mask.stat().st_size) for mask in item.masks)
            is_other = not _same(item, copies, state)
        else:
            is_other = folders[0] is not None or any(mask.stat().st_mtime > begun for mask in item.masks)
        if is_other:
            changed.add(item.case)
    return changed


def _among(cases: Iterable[str], others: Iterable[str]) -> list[str]:
    wanted = set(others)
    return [case for case in cases if case in wanted]


def _without(cases: Iterable[str], others: Iterable[str]) -> list[str]:
    unwanted = set(others)
    return [case for case in cases if case not in unwanted]


def _drawn(project: Project, cases: Sequence[str]) -> tuple[str, ...]:
    """Return the test cases that the command line would draw, were there no others."""
    items = project.dataset.items_of(tuple(cases))
    labels: dict[str, frozenset[int]] = {}
    for item in items:
        found = frozenset(int(value) for value in np.unique(read_mask(item)))
        labels[item.case] = labels.get(item.case, frozenset()) | found
    dataset = replace(project.dataset, items=items)
    return split_cases(dataset, shots=None, seed=0, validation=0, fold=0, labels_of=labels).test


def _is_prediction(project: Project, key: str) -> bool:
    """Whether the mask of an image is, in its values, a prediction that it was begun from."""
    item = project.item(key)
    versions = Versions(project.home(key))
    for version in versions.listed():
        if version["origin"] == "prediction" and item.masks:
            with contextlib.suppress(InputError):  # what cannot be read any more tells nothing
                if np.array_equal(read_mask(item), read_mask(versions.begun_from(version["number"], item))):
                    return True
    return False


def _set_of(project: Project, folder: Path) -> Path | None:
    """Return where a set of this project lies now; None where a folder is none, or is gone."""
    if project.dataset.layout not in _FOLDERS:
        return None
    if dataset_of_set(folder) is None:
        return None
    here = project.own / SETS / folder.name
    return here if here.is_dir() else None


def _copies(project: Project, item: Item, target: Path) -> tuple[Path, ...]:
    """Return where the masks of an image are in a set."""
    names = _FOLDERS[project.dataset.layout]
    home = masks_folder(project.root, []) if names is _PLAIN else project.root / _NNUNET[1]
    return tuple(target / names[1] / mask.relative_to(home) for mask in item.masks)


def _are_there(paths: Iterable[Path]) -> bool:
    return all(path.is_file() for path in paths)


@lru_cache(maxsize=_MOST_COMPARED)
def _same(item: Item, copies: tuple[Path, ...], state: tuple[tuple[int, int], ...]) -> bool:
    """Whether masks hold what their copies do; compared once as long as the files stay as they are."""
    if all(files.sha256(mask) == files.sha256(copy) for mask, copy in zip(item.masks, copies, strict=True)):
        return True
    # The same labels in other bytes are no change: a compressed file holds its time.
    return np.array_equal(read_mask(item), read_mask(replace(item, masks=copies)))


def _place(source: Path, target: Path) -> None:
    for path in [source] if source.is_file() else _files_below(source):
        link = target if path == source else target / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            # A link to a link would be read from where that one lies.
            os.link(path.resolve(), link)
        except OSError:
            shutil.copyfile(path, link)


def _files_below(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
