"""Finding the images to predict on: one file, a folder of files, a DICOM series, an export of many."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from medsaga.data.descriptions import channel_names, read_description
from medsaga.data.dicom.reading import is_dicom
from medsaga.data.dicom.series import find_series
from medsaga.data.examinations import (
    chosen_series,
    examinations_of,
    name_without_suffix,
    require_no_number,
    shared_folder,
    studies_of,
)
from medsaga.data.formats import is_image, stem
from medsaga.data.labels import listed
from medsaga.data.layouts import layout_of
from medsaga.data.layouts.checks import joint_header
from medsaga.data.layouts.finding import image_files, subfolders, visible_entries
from medsaga.data.layouts.labelling import DESCRIPTION
from medsaga.data.layouts.nnunet import channel_groups, complete
from medsaga.data.sources import place_of, read_header
from medsaga.data.strays import MOST_STRAYS, are_stray, is_picture, pictures_among_volumes
from medsaga.data.types import Item, Series, Source
from medsaga.errors import InputError, collecting

_MOST_CHANNELS = 8
"""More files of a name and a number than this are frames sooner than channels."""


def _nothing(path: Path) -> bool:
    del path
    return False


def find_inputs(
    path: Path,
    *,
    channels: Sequence[str] | None = None,
    series: str | None = None,
    problems: list[InputError] | None = None,
    warn: Callable[[str], None] | None = None,
    leave_out: Callable[[Path], bool] = _nothing,
) -> list[Item]:
    """Return the images to predict on, without masks and sorted by name.

    Files that are all named ``CASE_0000``, ``CASE_0001`` and so on, as many for each case, are the channels of
    their cases, as in nnU-Net. DICOM is looked for in a folder and its subfolders: the series of one examination are
    one image, of which a model with several channels takes those whose descriptions name its channels; each
    examination is an image of its own.

    Where a folder holds DICOM and images of other formats, a few stray files of one kind are left out, such as the
    logo on a hospital's CD. Where neither kind is stray, the user has to choose; naming a series chooses DICOM.

    Args:
        path: a file or a folder; subfolders are entered for DICOM alone.
        channels: names of the channels that the model takes; files are grouped only into images of so many.
        series: which DICOM series of each examination is meant; see `medsaga.data.dicom.series.choose_series`.
        problems: where given, what is wrong with a single image of a folder goes on this list and the others are
            returned: there may be none.
        warn: called with a sentence about what is left out.
        leave_out: whether a file of a folder is no image but an output, such as a label map beside its image.

    Raises:
        InputError: there is no image, a header cannot be read (without ``problems``), two images would share a name, a
            channel of a case is missing, an examination has several series and none is chosen, or it is open which
            images are meant.
    """
    if path.is_file() and (path.suffix.lower() == ".dcm" or (not is_image(path) and is_dicom(path))):
        (chosen,) = chosen_series([(name_without_suffix(path), find_series(path))], None, None, None)
        return [_input(*chosen)]
    if not path.is_dir():
        return [_input(stem(path), (path,))]
    before = len(problems or ())
    others = [each for each in visible_entries(path) if is_image(each)]
    outputs = _left_out(others, leave_out, warn)
    others = [each for each in others if each not in outputs]
    found, strays = _dicom_or_others(path, others, problems, wants_dicom=series is not None)
    is_damaged = len(problems or ()) > before
    if found or (is_damaged and not others):
        items = _inputs(chosen_series(examinations_of(found, path), channels, series, problems), problems)
    else:
        paths = [each for each in image_files(path) if each not in outputs]
        if not paths:
            raise _only_outputs(path, outputs)
        if problems is not None:  # of pictures their own readers tell
            problems[before:] = [each for each in problems[before:] if Path(each.where) not in paths]
        strays += pictures_among_volumes(paths)
        items = _of_files([each for each in paths if each not in strays], channels, problems)
    if strays and warn is not None:
        warn(f"left out, because the images in {path} are of another kind: {listed(strays)}")
    return _distinct(items)


def find_all_inputs(
    paths: Sequence[Path],
    *,
    channels: Sequence[str] | None = None,
    series: str | None = None,
    problems: list[InputError] | None = None,
    warn: Callable[[str], None] | None = None,
    leave_out: Callable[[Path], bool] = _nothing,
) -> list[Item]:
    """Return the images to predict on in several files and folders, as a shell makes them of ``*.png``.

    Files are what they would be in a folder of just these: the channels of a case, or the slices of a DICOM series,
    are one image.

    Args:
        paths: one or more files or folders, in any order.
        channels: see `find_inputs`.
        series: see `find_inputs`.
        problems: see `find_inputs`.
        warn: see `find_inputs`.
        leave_out: see `find_inputs`; a single file is what the user wants.

    Raises:
        InputError: as `find_inputs`, and where a file or folder does not exist.
    """
    if len(paths) == 1:
        return find_inputs(
            paths[0], channels=channels, series=series, problems=problems, warn=warn, leave_out=leave_out
        )
    for path in paths:
        if not path.exists():
            raise InputError(
                path, expected="an image or a folder", found="no such file or folder", do="Check its name."
            )
    files = sorted({path for path in paths if path.is_file()})
    outputs = _left_out(files, leave_out, warn)
    if len(outputs) == len(paths):
        raise _only_outputs(paths[0].parent, outputs)
    files = [path for path in files if path not in outputs]
    dicom = {path for path in files if path.suffix.lower() == ".dcm" or (not is_image(path) and is_dicom(path))}
    images = [path for path in files if path not in dicom]
    items = _of_files(images, channels, problems) if images else []
    examinations, folders = studies_of(dicom), sorted({path for path in paths if path.is_dir()})
    if len(examinations) + len(folders) > 1:
        require_no_number(series, len(examinations) + len(folders))
    items += _inputs(chosen_series(examinations, channels, series, problems), problems)
    for folder in folders:
        items += find_inputs(
            folder, channels=channels, series=series, problems=problems, warn=warn, leave_out=leave_out
        )
    return _distinct(items)


def images_folder(path: Path) -> Path:
    """Return the folder of the images of a dataset, where ``path`` is one; else ``path`` itself.

    Raises:
        InputError: the dataset has several such folders.
    """
    if not path.is_dir() or any(each.is_file() and is_image(each) for each in path.iterdir()):
        return path
    if not layout_of(path):
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


def names_of_channels(root: Path) -> tuple[str, ...] | None:
    """Return the names of the channels that a dataset's description gives, if there is one that can be read."""
    try:
        return channel_names(root / DESCRIPTION, read_description(root / DESCRIPTION))
    except (InputError, OSError):
        return None


def _left_out(
    files: Sequence[Path], leave_out: Callable[[Path], bool], warn: Callable[[str], None] | None
) -> set[Path]:
    """Return which of some files are outputs, and say so."""
    outputs = {each for each in files if leave_out(each)}
    if outputs and warn is not None:
        warn(f"left out, because medsaga wrote them and nobody has changed them: {listed(sorted(outputs))}")
    return outputs


def _only_outputs(folder: Path, outputs: Collection[Path]) -> InputError:
    return InputError(
        folder,
        expected="images to segment",
        found=f"nothing but what medsaga wrote there: {listed(sorted(each.name for each in outputs), 4)}",
        do="Name the folder of the images. A single file that is named alone is segmented, whoever wrote it.",
    )


def _dicom_or_others(
    root: Path, images: Sequence[Path], problems: list[InputError] | None, *, wants_dicom: bool
) -> tuple[list[Series], list[Path]]:
    """Return the DICOM series of a folder, none where images of other formats are meant, and the files left out.

    Args:
        root: the folder.
        images: what has the suffix of another format there.
        problems: see `find_inputs`.
        wants_dicom: whether nothing else can be meant.
    """
    others = [each for each in images if each.is_file()]
    # Nothing else is opened: a folder of ten thousand pictures is listed once.
    found = find_series(root, problems) if len(others) < len(visible_entries(root)) else []
    if not found or not others or wants_dicom:
        if not found and others:
            _require_no_volumes_below(root, others)
        return found, others if found else []
    dicom = sum(each.images for each in found)
    if all(map(is_picture, others)):
        if are_stray(len(others), dicom):
            return found, others
        are_meant = are_stray(dicom, len(others))
    else:
        # A volume in a file is no logo, and a series counts as much as a volume.
        are_meant = are_stray(len(found), len(others))
    if are_meant:
        return [], [file for each in found for file in each.files]
    where = shared_folder(found)
    inside = f"in {where.relative_to(root)}" if where != root else "of the same folder"
    raise InputError(
        root,
        expected="images of one kind",
        found=f"{listed((each.name for each in others), 4)}, and {dicom} DICOM images {inside}",
        do="Name the file or the folder that is meant, move one kind away, or choose a DICOM series with --series.",
    )


def _require_no_volumes_below(root: Path, others: Sequence[Path]) -> None:
    """Raise InputError where a picture or two lie beside folders with more volumes, which would not be entered."""
    if len(others) > MOST_STRAYS or not all(map(is_picture, others)):
        return
    folders = [folder for folder in subfolders(root) if any(map(_is_volume, visible_entries(folder)))]
    volumes = sum(_is_volume(file) for folder in folders for file in visible_entries(folder))
    if volumes > len(others):
        raise InputError(
            root,
            expected="images of one kind",
            found=f"{listed((each.name for each in others), 4)}, and {volumes} volumes in the folders "
            f"{listed((each.name for each in folders), 4)}",
            do="Name the file or the folder that is meant.",
        )


def _is_volume(file: Path) -> bool:
    return is_image(file) and not is_picture(file)


def _of_files(paths: Sequence[Path], channels: Sequence[str] | None, problems: list[InputError] | None) -> list[Item]:
    """Return the images in some files, each of them an image or, named like that, a channel of one."""
    grouped = _grouped(paths, channels, problems)
    return _inputs([(stem(file), (file,)) for file in paths], problems) if grouped is None else grouped


def _grouped(
    paths: Sequence[Path], channels: Sequence[str] | None, problems: list[InputError] | None
) -> list[Item] | None:
    """Return ``CASE_0000`` files as images of several channels; None where they are images of their own.

    Raises:
        InputError: they can only be channels, and one is missing, or a file is named in another way.
    """
    groups, misnamed = channel_groups(paths)
    # Three channels without names are the colours of one picture: three numbered ones are frames.
    is_colour = channels is not None and tuple(channels) == ("channel_0", "channel_1", "channel_2")
    if not groups or (is_colour and all(map(is_picture, paths))):
        return None
    count = len(channels) if channels is not None else _usual_count(groups)
    if not misnamed and len({len(files) for files in groups.values()}) == 1:
        ordered = {name: [files[channel] for channel in sorted(files)] for name, files in groups.items()}
        if all(sorted(files) == list(range(len(files))) for files in groups.values()):
            wrong: list[InputError] | None = None if problems is None else []
            items = _inputs([(name, tuple(files)) for name, files in sorted(ordered.items())], wrong)
            if items and (channels is None or all(item.header.channels == count for item in items)):
                if problems is not None:
                    problems += wrong or []
                return items
    highest = max(max(files) for files in groups.values())
    # Images of one channel in each file are of no use to a model that takes several.
    if count > 1 and highest < count:
        for problem in misnamed:
            if read_header(Path(problem.where)).channels != count:
                raise problem
        for name, files in sorted(groups.items()):
            complete(name, files, groups, channels)
    return None


def _usual_count(groups: Mapping[str, Mapping[int, Path]]) -> int:
    """Return how many channels most cases have; 1 where it cannot be told from frames of a video."""
    usual, times = Counter(tuple(sorted(files)) for files in groups.values()).most_common(1)[0]
    is_telling = 2 * times > len(groups) > 1 and usual == tuple(range(len(usual))) and len(usual) <= _MOST_CHANNELS
    return len(usual) if is_telling else 1


def _inputs(named: Sequence[tuple[str, tuple[Source, ...]]], problems: list[InputError] | None) -> list[Item]:
    """Return the images of names; where one cannot be read, that goes on the list, if there is one."""
    if problems is None:
        return [_input(name, sources) for name, sources in named]
    items = []
    for name, sources in named:
        with collecting(problems):
            items.append(_input(name, sources))
    return items


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
