"""Which image series lie in a folder, and which one is meant."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from medsaga.data.dicom import reading
from medsaga.data.dicom.walking import files_below, is_broken_link, is_named_dicom
from medsaga.data.names import normal
from medsaga.data.types import Series
from medsaga.errors import InputError

_MOST_LISTED = 20
CHOOSE = "Choose one with --series: its number in this list, a part of its description, or 'largest'."
_KEYWORDS = (
    *("SOPClassUID", "Modality", "SeriesDescription", "SeriesInstanceUID", "StudyInstanceUID", "PatientID"),
    *("Rows", "Columns", "NumberOfFrames"),
)
_BEHIND_COLUMNS = 0x00280012
_LEAST_BYTES = 132
"""Preamble and mark of a DICOM file."""
_NO_IMAGES = frozenset(
    ("SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SR", "PR", "KO", "REG", "FID", "DOC", "PLAN", "AU", "ECG")
)
"""Modalities whose files describe images or treatments. RTDOSE has pixels, which are doses."""


@dataclass(frozen=True)
class _Found:
    file: Path
    uid: str
    study: str
    patient: str
    modality: str
    description: str
    images: int
    size: tuple[int, int]


def find_series(root: Path, problems: list[InputError] | None = None) -> list[Series]:
    """Find the image series in a file, a folder, or an export of any depth; headers are read, no pixels.

    Hidden files and those that are no DICOM are passed over, and so are directories of media (DICOMDIR),
    segmentations, structure sets, reports and presentation states. Symbolic links are followed wherever they lead, each
    folder once, but to a folder that ``root`` or the link itself lies in.

    Args:
        root: the file or folder.
        problems: where given, damaged files go on this list, and the series with files in their folders are left out,
            because nobody can tell which of these they belong to.

    Returns:
        Largest first; empty where there is none.

    Raises:
        InputError: there is no such file or folder, it holds more than 100,000 files, or (without ``problems``) a file
            is damaged DICOM, a broken link to one, or cannot be opened; or has no mark of DICOM and is empty, truncated
            or zeros, and its name ends in ``.dcm`` or is that of an image beside it but for the numbers.
    """
    found: dict[tuple[str, Path | None], list[_Found]] = {}
    damaged, without_suffix = set(), list[tuple[Path, InputError]]()

    def note(path: Path, problem: InputError) -> None:
        if problems is None:
            raise problem
        problems.append(problem.with_traceback(None))
        damaged.add(path.parent)

    for path in files_below(root):
        try:
            image = _image(path)
        except _MaybeSliceError as problem:
            if is_named_dicom(path):
                note(path, problem)
            else:
                without_suffix.append((path, problem))
            continue
        except InputError as problem:
            note(path, problem)
            continue
        if image is not None:
            # Images without a UID can only be kept together by their folder.
            found.setdefault((image.uid, None if image.uid else path.parent), []).append(image)
    beside = {_but_for_numbers(image.file) for images in found.values() for image in images} if without_suffix else ()
    for path, lost in without_suffix:
        if _but_for_numbers(path) in beside:
            note(path, lost)
    whole = [images for images in found.values() if not damaged & {image.file.parent for image in images}]
    series = [_series(root, images) for images in whole]
    return sorted(series, key=lambda each: (-each.images, -each.rows * each.columns, each.modality, each.uid))


def choose_series(
    found: list[Series], wanted: str | None = None, *, by_number: bool = True, do: str = CHOOSE
) -> Series:
    """Choose one of the series of `find_series`.

    Args:
        found: the series, largest first.
        wanted: None takes the only one; ``largest``; its number in the list of the message, from 1; its
            SeriesInstanceUID; else a part of its description, in upper or lower case.
        by_number: whether a number is one in the list. Of several examinations each has a list of its own.
        do: what the user can do when several fit.

    Raises:
        InputError: there is none, or more than one fits; the message lists them.
    """
    if not found:
        raise InputError(
            "DICOM", expected="an image series", found="none", do="Name a file or a folder with DICOM images."
        )
    if wanted is None:
        fitting = found
    elif wanted == "largest":
        most = max(each.images * each.rows * each.columns for each in found)
        fitting = [each for each in found if each.images * each.rows * each.columns == most]
    elif by_number and wanted.isdecimal() and 1 <= int(wanted[:9]) <= len(found):
        fitting = [found[int(wanted[:9]) - 1]]
    else:
        fitting = [each for each in found if each.uid == wanted] or [
            each for each in found if normal(wanted).casefold() in normal(each.description).casefold()
        ]
    if len(fitting) == 1:
        return fitting[0]
    asked = "that UID" if wanted and set(wanted) <= set("0123456789.") and "." in wanted else repr(wanted)
    raise InputError(
        found[0].root,
        expected="one DICOM series" if wanted is None else f"one DICOM series that fits {asked}",
        found=f"{_listed(found, fitting)}" if fitting else f"none among {_listed(found, found)}",
        do=do,
    )


def _listed(found: list[Series], some: list[Series]) -> str:
    lines = [f"{number}: {each.label()}" for number, each in enumerate(found, 1) if each in some]
    more = [f"and {len(lines) - _MOST_LISTED} more"] if len(lines) > _MOST_LISTED else []
    return f"{len(lines)} series ({'; '.join(lines[:_MOST_LISTED] + more)})"


def _but_for_numbers(path: Path) -> tuple[Path, str]:
    """What the names of the slices in a folder have in common: theirs are ``IM0001``, ``IM0002``, ``1.2.840.3.17``."""
    return path.parent, re.sub(r"\d+", "0", path.name)


class _MaybeSliceError(InputError):
    """A file without DICOM's mark, which may have been a slice, is none now."""


def _require_content(path: Path) -> None:
    """Raise InputError where a file without DICOM's mark may have been a slice: its series would end early.

    A disk that filled up leaves empty files, short ones and such of zeros.
    """
    expected, do = "a DICOM file", "Copy or export the file again; move it away if it is not needed."
    try:
        with path.open("rb") as file:
            beginning = file.read(_LEAST_BYTES)
    except OSError as error:
        found = f"a file that {'may not' if isinstance(error, PermissionError) else 'cannot'} be read"
        raise InputError(path, expected=expected, found=found, do=do) from None
    is_short = len(beginning) < _LEAST_BYTES
    if is_short or not any(beginning):
        found = "an empty file" if not beginning else "a truncated file" if is_short else "zeros"
        raise _MaybeSliceError(path, expected=expected, found=found, do=do)


def _image(path: Path) -> _Found | None:
    """Return what a file says of its series; None where it is no DICOM image."""
    if is_broken_link(path):
        raise InputError(
            path,
            expected="a DICOM file",
            found="a broken link",
            do="Bring the file that it stands for (git annex get, datalad get), or remove the link.",
        )
    if path.name.upper() == "DICOMDIR":
        return None
    has_magic = reading.is_dicom(path)
    if not has_magic:
        _require_content(path)
        if not reading.may_be_bare(path):
            return None
    try:
        header = reading.read_header(path, _KEYWORDS, _BEHIND_COLUMNS)
        modality, storage = reading.text(path, header, "Modality"), reading.uid(path, header, "SOPClassUID")
        if modality in _NO_IMAGES or ("Rows" not in header and not _is_image_storage(storage)):
            return None
        size = reading.whole(path, header, "Rows"), reading.whole(path, header, "Columns")
        images = max(1, reading.whole(path, header, "NumberOfFrames", 1))
    except InputError as error:
        if has_magic:
            raise
        # It was only a guess that it is DICOM at all.
        raise _MaybeSliceError(path, expected=error.expected, found=error.found, do=error.do) from None
    uid, study = (reading.uid(path, header, name) for name in ("SeriesInstanceUID", "StudyInstanceUID"))
    patient = "" if study else _stand_in(reading.text(path, header, "PatientID"))
    return _Found(path, uid, study, patient, modality, reading.text(path, header, "SeriesDescription"), images, size)


def _stand_in(identifier: str) -> str:
    """Return what says whether two identifiers are one, and does not show them."""
    return hashlib.sha256(identifier.encode()).hexdigest() if identifier else ""


def _is_image_storage(storage: str) -> bool:
    """Whether the class of an object is one of images, so that one without Rows is damaged."""
    name = reading.as_uid(storage).name
    return "Image Storage" in name and "Presentation State" not in name


def _series(root: Path, images: list[_Found]) -> Series:
    images = sorted(images, key=lambda each: str(each.file))
    sizes = Counter(each.size for each in images)
    rows, columns = next(iter(sizes)) if len(sizes) == 1 else (0, 0)
    return Series(
        root=root,
        uid=images[0].uid,
        files=tuple(each.file for each in images),
        modality=images[0].modality,
        description=images[0].description,
        images=sum(each.images for each in images),
        rows=rows,
        columns=columns,
        study=images[0].study,
        patient=images[0].patient,
    )
