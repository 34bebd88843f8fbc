"""What can be opened: a dataset, a run, the phantom, or a folder of images that becomes a dataset."""

from __future__ import annotations

import itertools
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medsaga import files, run_folder
from medsaga.app.own import dataset_of_set
from medsaga.app.project import Project
from medsaga.data.dicom.reading import is_dicom
from medsaga.data.dicom.series import find_series
from medsaga.data.formats import is_image, stem
from medsaga.data.layouts import datasets_near, layout_of
from medsaga.data.layouts.finding import subfolders, visible_entries
from medsaga.data.layouts.labelling import CASES
from medsaga.data.phantom import write_phantom_ct
from medsaga.errors import InputError
from medsaga.settings.run_config import read_config

PHANTOM = "medsaga-phantom"
_CASES, _LABELLED = 10, 4
_MOST_SHOWN = 500
_LOOKED_AT, _MOST_FOLDERS = 30, 20_000
"""Folders that are looked into to name what is in a folder, and to copy it."""
_DEEPEST = 4
_FILES = 3
"""Of a folder that tell whether it holds DICOM."""


def open_folder(path: Path) -> Project:
    """Open a dataset, or the dataset of a run.

    Raises:
        InputError: it is neither.
    """
    path = path.expanduser()
    if path.is_file() and (path.parent / run_folder.CONFIG).is_file():
        path = path.parent  # a file of a run stands for the run
    if not path.is_dir():
        raise InputError(path, expected="a folder", found="none of this name", do="Check its name.")
    if (path / run_folder.CONFIG).is_file():
        return Project(data_of(path), path.resolve())
    if layout_of(path) is None and (near := datasets_near(path)) and len(near) == 1:
        path = near[0]
    return Project(path)


def data_of(run: Path) -> Path:
    """Return the dataset that a run was made of: that of the page, where the page chose some of its cases.

    Raises:
        InputError: the run cannot be read, or its data are gone.
    """
    data = Path(read_config(run / run_folder.CONFIG).data)
    data = dataset_of_set(data) or data
    if not data.is_dir():
        raise InputError(data, expected="the data of the run", found="no such folder", do="Put the folder back.")
    return data


def make_phantom(parent: Path) -> Path:
    """Write the phantom's dataset, of which four cases are labelled; return its folder, which may be there already."""
    root = parent / PHANTOM
    if layout_of(root) is None:
        building = parent / f".{PHANTOM}.building"
        shutil.rmtree(building, ignore_errors=True)
        write_phantom_ct(building, cases=_CASES, shape=(128, 128, 16), seed=0)
        for mask in sorted((building / "labelsTr").iterdir())[_LABELLED:]:
            mask.unlink()
        building.rename(root)
    return root


def make_dataset(folder: Path) -> Path:
    """Copy the images in a folder, and the DICOM series in it and below, into a new dataset beside it; return that.

    A folder with DICOM becomes an image. Where a patient has several, ``cases.csv`` says that they are one case. Images
    of other formats count in the folder itself alone; whether they are stray among the series, the layout decides.

    Raises:
        InputError: there are no images, or the name is taken.
    """
    files_of_images = _images_in(folder)
    series = _named(folder, [each for each in _dicom_folders(folder, _MOST_FOLDERS) if _has_series(each)])
    if not files_of_images and not series:
        do = "Choose another folder, or a part of this one."
        raise InputError(folder, expected="images or DICOM series", found="none", do=do)
    root = folder.with_name(f"{folder.name}-dataset")
    if root.exists():
        raise InputError(root, expected="a folder that does not exist yet", found="one that does", do="Open that one.")
    building = folder.with_name(f".{folder.name}-dataset.building")
    shutil.rmtree(building, ignore_errors=True)
    images = building / "images"
    images.mkdir(parents=True)
    for entry in files_of_images:
        shutil.copyfile(entry, images / entry.name)
    for name, (_, entry) in series.items():
        shutil.copytree(entry, images / name)
    if len({case for case, _ in series.values()}) < len(series):
        lone = [(stem(entry), stem(entry)) for entry in files_of_images]
        rows = [*lone, *((name, case) for name, (case, _) in series.items())]
        files.write_csv(building / CASES, [("name", "case"), *rows])
    building.rename(root)
    return root


def browse(folder: Path) -> dict[str, Any]:
    """Return the folders in a folder, and what each of them is.

    Raises:
        InputError: it cannot be listed.
    """
    folder = folder.expanduser().resolve()
    try:
        inside = [each for each in sorted(folder.iterdir()) if not each.name.startswith(".") and each.is_dir()]
    except OSError as error:
        found = error.strerror or "an error"
        raise InputError(folder, expected="a folder that can be listed", found=found, do="Choose another.") from None
    return {
        "path": str(folder),
        "parent": str(folder.parent) if folder.parent != folder else None,
        "kind": _kind(folder),
        "folders": [{"name": each.name, "path": str(each), "kind": _kind(each)} for each in inside[:_MOST_SHOWN]],
        "more": max(0, len(inside) - _MOST_SHOWN),
    }


def _kind(folder: Path) -> str:
    """Return what a folder is: ``run``, ``dataset``, ``images`` that could become one, or nothing of it."""
    try:
        if (folder / run_folder.CONFIG).is_file():
            return "run"
        if layout_of(folder) is not None:
            return "dataset"
        has_images = bool(_images_in(folder)) or any(True for _ in _dicom_folders(folder, _LOOKED_AT))
        return "images" if has_images else ""
    except OSError:
        return ""


def _images_in(folder: Path) -> list[Path]:
    """Return the images directly in a folder that are files of other formats than DICOM."""
    return [entry for entry in visible_entries(folder) if entry.is_file() and is_image(entry)]


def _dicom_folders(folder: Path, most: int) -> Iterator[Path]:
    """Yield the folders with DICOM in a folder, itself or below, such as PATIENT/STUDY/SERIES; none below another.

    Args:
        folder: where to look. Datasets and runs in it are none of its images.
        most: so many folders are looked into.
    """
    waiting, looked_at = [(folder, 0)], 0
    while waiting and looked_at < most:
        here, depth = waiting.pop()
        looked_at += 1
        if _holds_dicom(here):
            yield here
        elif depth < _DEEPEST:
            inside = [each for each in subfolders(here)[:_MOST_FOLDERS] if not _is_opened_as_it_is(each)]
            waiting += [(each, depth + 1) for each in reversed(inside)]


def _holds_dicom(folder: Path) -> bool:
    candidates = (each for each in visible_entries(folder) if each.name.upper() != "DICOMDIR" and not is_image(each))
    return any(is_dicom(each) for each in itertools.islice((each for each in candidates if each.is_file()), _FILES))


def _has_series(folder: Path) -> bool:
    """Whether there are images in the DICOM of a folder; what is damaged is told of when the dataset is opened."""
    problems: list[InputError] = []
    return bool(find_series(folder, problems) or problems)


def _is_opened_as_it_is(folder: Path) -> bool:
    return (folder / run_folder.CONFIG).is_file() or layout_of(folder) is not None


def _named(folder: Path, found: Sequence[Path]) -> dict[str, tuple[str, Path]]:
    """Return case and place of each folder with DICOM by its name in the dataset.

    The case is what the folders differ in first, and the name the rest of the way too, where the case has several.
    """
    if list(found) == [folder]:
        return {folder.name: (folder.name, folder)}
    shared = Path(os.path.commonpath(found)) if len(found) > 1 else folder
    ways = [each.relative_to(shared).parts for each in found]
    times = Counter(way[0] for way in ways)
    named: dict[str, tuple[str, Path]] = {}
    for place, way in zip(found, ways, strict=True):
        name = wanted = way[0] if times[way[0]] == 1 else "_".join(way)
        number = 1
        while name in named:
            number += 1
            name = f"{wanted}_{number}"
        named[name] = (way[0], place)
    return named
