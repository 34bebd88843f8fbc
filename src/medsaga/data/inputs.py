"""Finding the images to predict on: one file, a folder of files, a DICOM series, an export of many."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from medsaga.data.dicom.reading import is_dicom
from medsaga.data.dicom.series import Series, choose_series, find_series
from medsaga.data.formats import is_image, stem
from medsaga.data.layouts import LAYOUTS
from medsaga.data.layouts.nnunet import grouped_inputs
from medsaga.data.layouts.shared import collecting, image_files, joint_header
from medsaga.data.sources import place_of
from medsaga.data.types import Item, Source
from medsaga.errors import InputError


def find_inputs(
    path: Path,
    *,
    channels: Sequence[str] | None = None,
    series: str | None = None,
    problems: list[InputError] | None = None,
) -> list[Item]:
    """Return the images to predict on, without masks and sorted by name.

    Files that are all named ``CASE_0000``, ``CASE_0001`` and so on, as many for each case, are the channels of
    their cases, as in nnU-Net. In a folder without files of the other formats DICOM is looked for, in subfolders too:
    the series of one examination are one image, of which a model with several channels takes those whose descriptions
    name its channels; each examination is an image of its own.

    Args:
        path: a file or a folder; subfolders are entered for DICOM alone.
        channels: names of the channels that the model takes; files are grouped only into images of so many.
        series: which DICOM series of each examination is meant; see `medsaga.data.dicom.series.choose_series`.
        problems: where given, what is wrong with a single image of a folder goes on this list and the others are
            returned: there may be none.

    Raises:
        InputError: there is no image, a header cannot be read (without ``problems``), two images would share a name, or
            an examination has several series and none is chosen.
    """
    if path.is_file() and (path.suffix.lower() == ".dcm" or (not is_image(path) and is_dicom(path))):
        return [_input(_without_suffix(path), _chosen(find_series(path), None, None))]
    if not path.is_dir():
        return [_input(stem(path), (path,))]
    if not any(each.is_file() and is_image(each) for each in path.iterdir()):
        before = len(problems or ())
        examinations = _examinations(path, problems)
        if examinations or len(problems or ()) > before:
            chosen = [(name, _chosen(found, channels, series)) for name, found in examinations]
            return _distinct(_inputs(chosen, problems))
    return _of_files(image_files(path), channels, problems)


def find_all_inputs(
    paths: Sequence[Path],
    *,
    channels: Sequence[str] | None = None,
    series: str | None = None,
    problems: list[InputError] | None = None,
) -> list[Item]:
    """Return the images to predict on in several files and folders, as a shell makes them of ``*.png``.

    Files are what they would be in a folder of just these: the channels of a case, or the slices of a DICOM series,
    are one image.

    Args:
        paths: one or more files or folders, in any order.
        channels: see `find_inputs`.
        series: see `find_inputs`.
        problems: see `find_inputs`.

    Raises:
        InputError: as `find_inputs`, and where a file or folder does not exist.
    """
    if len(paths) == 1:
        return find_inputs(paths[0], channels=channels, series=series, problems=problems)
    for path in paths:
        if not path.exists():
            raise InputError(
                path, expected="an image or a folder", found="no such file or folder", do="Check its name."
            )
    files = sorted({path for path in paths if path.is_file()})
    dicom = {path for path in files if path.suffix.lower() == ".dcm" or (not is_image(path) and is_dicom(path))}
    images = [path for path in files if path not in dicom]
    items = _of_files(images, channels, problems) if images else []
    items += _inputs([(name, _chosen(found, channels, series)) for name, found in _studies(dicom)], problems)
    for folder in sorted({path for path in paths if path.is_dir()}):
        items += find_inputs(folder, channels=channels, series=series, problems=problems)
    return _distinct(items)


def images_folder(path: Path) -> Path:
    """Return the folder of the images of a dataset, where ``path`` is one; else ``path`` itself.

    Raises:
        InputError: the dataset has several such folders.
    """
    if not path.is_dir() or any(each.is_file() and is_image(each) for each in path.iterdir()):
        return path
    if not any(layout.recognises(path) for layout in LAYOUTS):
        return path
    folders = [path / name for name in ("images", "imagesTr", "imagesTs") if (path / name).is_dir()]
    if len(folders) > 1:
        raise InputError(
            path,
            expected="a folder of images",
            found=f"a dataset with {' and '.join(folder.name for folder in folders)}",
            do=f"Name one of them, such as {folders[-1]}.",
        )
    return folders[0] if folders else path


def _of_files(paths: Sequence[Path], channels: Sequence[str] | None, problems: list[InputError] | None) -> list[Item]:
    groups = grouped_inputs(paths)
    if groups is not None:
        wrong: list[InputError] | None = None if problems is None else []
        items = _inputs(sorted(groups.items()), wrong)
        if channels is None or all(item.header.channels == len(channels) for item in items):
            if problems is not None:
                problems += wrong or []
            return items
    return _distinct(_inputs([(stem(file), (file,)) for file in paths], problems))


def _inputs(named: Sequence[tuple[str, tuple[Source, ...]]], problems: list[InputError] | None) -> list[Item]:
    """Return the images of names; where one cannot be read, that goes on the list, if there is one."""
    if problems is None:
        return [_input(name, sources) for name, sources in named]
    items = []
    for name, sources in named:
        with collecting(problems):
            items.append(_input(name, sources))
    return items


def _studies(files: set[Path]) -> list[tuple[str, list[Series]]]:
    """Return the DICOM series that are made of some files, by examination, each with a name.

    Raises:
        InputError: they are only a part of a series.
    """
    by_study: dict[str, list[Series]] = {}
    for folder in sorted({path.parent for path in files}):
        for each in find_series(folder):
            given = files & set(each.files)
            if given and len(given) < len(each.files):
                raise InputError(
                    folder,
                    expected="all files of a DICOM series",
                    found=f"{len(given)} of {len(each.files)}",
                    do="Name the folder instead of its files.",
                )
            if given:
                by_study.setdefault(each.study, []).append(each)
    if len(by_study) == 1:
        return [(found[0].root.resolve().name, found) for found in by_study.values()]
    return [(_name(found[0].root, found), found) for found in by_study.values()]


def _examinations(root: Path, problems: list[InputError] | None) -> list[tuple[str, list[Series]]]:
    """Return the DICOM series below a folder by examination, each with a name made of folders or files."""
    by_study: dict[str, list[Series]] = {}
    for each in find_series(root, problems):
        by_study.setdefault(each.study, []).append(each)
    if len(by_study) == 1:
        return [(root.resolve().name, found) for found in by_study.values()]
    return [(_name(root, found), found) for found in by_study.values()]


def _name(root: Path, found: Sequence[Series]) -> str:
    """Return the folders from ``root`` to all files of an examination, joined; the file's name for a single file."""
    files = [file.relative_to(root) for each in found for file in each.files]
    if len(files) == 1:
        return "_".join((*files[0].parent.parts, _without_suffix(files[0])))
    shared: list[str] = []
    for parts in zip(*(file.parent.parts for file in files), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "_".join(shared) or root.resolve().name


def _without_suffix(path: Path) -> str:
    # Names in DICOM often are UIDs: only what is a suffix goes.
    return path.stem if path.suffix.lower() == ".dcm" else stem(path) if is_image(path) else path.name


def _chosen(found: list[Series], channels: Sequence[str] | None, wanted: str | None) -> tuple[Source, ...]:
    if wanted is None and channels is not None and len(channels) > 1 and len(found) > 1:
        return tuple(choose_series(found, name) for name in channels)
    return (choose_series(found, wanted),)


def _distinct(items: list[Item]) -> list[Item]:
    items = sorted(items, key=lambda item: item.name)
    for one, next_one in itertools.pairwise(items):
        if one.name == next_one.name:
            raise InputError(
                place_of(next_one.images[0]),
                expected="one image per name, because predictions are named after their images",
                found=f"also {place_of(one.images[0]).name}",
                do="Rename one of them, or predict them one at a time.",
            )
    return items


def _input(name: str, sources: tuple[Source, ...]) -> Item:
    return Item(name, name, sources, (), joint_header(sources))
