"""The examinations of a DICOM export: which series belong together, and what each is called."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from medsaga.data.dicom.series import choose_series, find_series
from medsaga.data.formats import is_image, stem
from medsaga.data.names import normal
from medsaga.data.types import Series, Source
from medsaga.errors import InputError


def studies_of(files: set[Path]) -> list[tuple[str, list[Series]]]:
    """Return the DICOM series that are made of some files, by examination, each with a name.

    Raises:
        InputError: they are only a part of a series.
    """
    whole: list[Series] = []
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
            whole += [each] if given else []
    return examinations_of(whole)


def examinations_of(found: Sequence[Series], root: Path | None = None) -> list[tuple[str, list[Series]]]:
    """Return DICOM series by examination, each with a name made of folders or files.

    An examination is a study. Where a header names none, it is what there is of a patient; where it names none either,
    or two series that are described alike in different folders, what there is in a folder.

    Args:
        found: the series, in any order.
        root: the folder that they were looked for in; names begin below it. None: in several.
    """
    examinations = _by(found, lambda each: each.study or each.patient or str(shared_folder([each])))
    examinations = [part for each in examinations for part in _of_one_patient(each)]
    if len(examinations) == 1:
        (only,) = examinations
        name = normal((root or only[0].root).resolve().name)
        return [(name or _first_file(only), only)]  # the root of a disc has no name
    return _told_apart(examinations, root)


def _by(found: Iterable[Series], key: Callable[[Series], str]) -> list[list[Series]]:
    groups: dict[str, list[Series]] = {}
    for each in found:
        groups.setdefault(key(each), []).append(each)
    return list(groups.values())


def _of_one_patient(found: list[Series]) -> list[list[Series]]:
    """Return series without a study by folder, unless they differ as those of one examination do."""
    kinds = {(each.modality, each.description) for each in found}
    if found[0].study or len(kinds) == len(found):
        return [found]
    return _by(found, lambda each: str(shared_folder([each])))


def _told_apart(examinations: Collection[list[Series]], root: Path | None) -> list[tuple[str, list[Series]]]:
    """Return examinations with names; those that share a folder have the name of their first file in theirs, too."""
    names = [_name(root or Path(os.path.commonpath([each.root for each in found])), found) for found in examinations]
    times = Counter(names)
    return [
        (name if times[name] == 1 else f"{name}_{_first_file(found)}", found)
        for name, found in zip(names, examinations, strict=True)
    ]


def _name(root: Path, found: Sequence[Series]) -> str:
    """Return the folders from ``root`` to all files of an examination, joined; the file's name for a single file."""
    files = [file.relative_to(root) for each in found for file in each.files]
    if len(files) == 1:
        return normal("_".join((*files[0].parent.parts, name_without_suffix(files[0]))))
    return normal("_".join(shared_folder(found).relative_to(root).parts) or root.resolve().name) or _first_file(found)


def _first_file(found: Sequence[Series]) -> str:
    """Return the first file of an examination in its folder, as a name without suffix."""
    folder = shared_folder(found)
    first = min(file.relative_to(folder) for each in found for file in each.files)
    return normal("_".join((*first.parent.parts, name_without_suffix(first))))


def shared_folder(found: Sequence[Series]) -> Path:
    """Return the deepest folder that all files of some series lie below."""
    folders = {file.parent for each in found for file in each.files}
    return Path(os.path.commonpath(folders))


def name_without_suffix(path: Path) -> str:
    """Return the name of a file without its suffix. Names in DICOM often are UIDs: only what is a suffix goes."""
    return normal(path.stem if path.suffix.lower() == ".dcm" else stem(path) if is_image(path) else path.name)


def chosen_series(
    examinations: Sequence[tuple[str, list[Series]]],
    channels: Sequence[str] | None,
    wanted: str | None,
    problems: list[InputError] | None,
) -> list[tuple[str, tuple[Source, ...]]]:
    """Return the series of each examination that a model looks at: one for each channel that it takes, or one.

    Args:
        examinations: names and series.
        channels: names of the channels that the model takes.
        wanted: which series is meant; see `medsaga.data.dicom.series.choose_series`.
        problems: where given, what is wrong with an examination goes on this list, and the others are returned.

    Raises:
        InputError: there are several series of an examination, and none is chosen; or a number is to choose one of
            several examinations.
    """
    if len(examinations) > 1:
        require_no_number(wanted, len(examinations))
    chosen = []
    for name, found in examinations:
        try:
            chosen.append((name, _chosen(found, channels, wanted)))
        except InputError as error:
            if len(examinations) > 1:  # which one is it?
                where = shared_folder(found)
                error = InputError(where, expected=error.expected, found=error.found, do=error.do)
            if problems is None:
                raise error from None
            problems.append(error)
    return chosen


def require_no_number(wanted: str | None, examinations: int) -> None:
    """Raise InputError where a number is to choose a series of several examinations, each of which counts its own."""
    if wanted is not None and wanted.isdecimal():
        raise InputError(
            "--series",
            expected=f"a part of the description, or 'largest', for {examinations} examinations",
            found=f"the number {wanted}, which is another series in each",
            do="Give a part of the description, or segment one examination at a time.",
        )


def _chosen(found: list[Series], channels: Sequence[str] | None, wanted: str | None) -> tuple[Source, ...]:
    if wanted is None and channels is not None and len(channels) > 1 and len(found) > 1:
        return tuple(choose_series(found, name, by_number=False) for name in channels)
    return (choose_series(found, wanted),)
