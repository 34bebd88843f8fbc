"""What can be opened: a dataset, a run, the phantom, or a folder of images that becomes a dataset."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from medsaga import run_folder
from medsaga.app.project import OWN, Project
from medsaga.data.dicom.reading import is_dicom
from medsaga.data.formats import is_image
from medsaga.data.layouts import datasets_near, layout_of
from medsaga.data.layouts.finding import subfolders, visible_entries
from medsaga.data.phantom import write_phantom_ct
from medsaga.errors import InputError
from medsaga.settings.run_config import read_config

PHANTOM = "medsaga-phantom"
_CASES, _LABELLED = 10, 4
_MOST_SHOWN = 500
_LOOKED_AT = 20


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
    if data.parent.name == "sets" and data.parent.parent.name == OWN:
        data = data.parents[2]
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
    """Copy a folder of images, or of DICOM series, into a new dataset beside it; return the dataset.

    Raises:
        InputError: there are no images, or the name is taken.
    """
    entries = _images_in(folder)
    if not entries:
        raise InputError(folder, expected="images or DICOM series", found="none", do="Choose another folder.")
    root = folder.with_name(f"{folder.name}-dataset")
    if root.exists():
        raise InputError(root, expected="a folder that does not exist yet", found="one that does", do="Open that one.")
    building = folder.with_name(f".{folder.name}-dataset.building")
    shutil.rmtree(building, ignore_errors=True)
    images = building / "images"
    images.mkdir(parents=True)
    for entry in entries:
        target = images / (folder.name if entry == folder else entry.name)
        if entry.is_dir():
            shutil.copytree(entry, target)
        else:
            shutil.copyfile(entry, target)
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
        return "images" if _images_in(folder) else ""
    except OSError:
        return ""


def _images_in(folder: Path) -> list[Path]:
    """Return what would be the images of a dataset: files, folders with a DICOM series each, or the folder itself."""
    entries = visible_entries(folder)
    found = [entry for entry in entries if entry.is_file() and is_image(entry)]
    if found:
        return found
    if any(is_dicom(entry) for entry in entries[:_LOOKED_AT] if entry.is_file()):
        return [folder]
    return [
        each
        for each in subfolders(folder)[:_MOST_SHOWN]
        if any(is_dicom(entry) for entry in visible_entries(each)[:3] if entry.is_file())
    ]
