"""What ``dataset.json`` and ``cases.csv`` say of a dataset."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from medsaga.data.formats import SUFFIXES
from medsaga.data.names import normal
from medsaga.errors import InputError

_MOST_BYTES = 2**26


def read_description(path: Path) -> dict[str, Any]:
    """Return the content of a ``dataset.json``, all of its texts in the form of `medsaga.data.names.normal`.

    Raises:
        InputError: there is no such file, or it is no JSON object, or a key appears twice in one object.
    """
    try:
        document = json.loads(_text(path), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise InputError(path, expected="JSON", found=str(error), do="Correct the file in a text editor.") from error
    if not isinstance(document, dict):
        raise InputError(
            path,
            expected='a JSON object such as {"labels": {"background": 0, "liver": 1}}',
            found=f"a {type(document).__name__}",
            do="Write it as an object.",
        )
    return document


def channel_names(path: Path, document: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the channels' names in channel order, from ``channel_names`` or ``modality``; None without either.

    Raises:
        InputError: the entry is no object that numbers its channels from "0".
    """
    key = "channel_names" if "channel_names" in document else "modality"
    # A plain folder may tell its modality in words.
    if key not in document or (key == "modality" and isinstance(document[key], str)):
        return None
    entry = document[key]
    if isinstance(entry, dict) and entry and set(entry) == {str(index) for index in range(len(entry))}:
        return tuple(str(entry[str(index)]) for index in range(len(entry)))
    raise InputError(
        path,
        expected=f'"{key}": an object that numbers the channels from 0, such as {{"0": "T1", "1": "FLAIR"}}',
        found=repr(entry)[:80],
        do="Correct it.",
    )


def file_ending(path: Path, document: Mapping[str, Any]) -> str:
    """Return the suffix of all images and masks of an nnU-Net dataset; its first version knew ``.nii.gz`` alone.

    Raises:
        InputError: no format reads this suffix.
    """
    ending = document.get("file_ending", ".nii.gz")
    if isinstance(ending, str) and ending.lower() in SUFFIXES:
        return ending
    raise InputError(
        path,
        expected=f'"file_ending": one of {", ".join(SUFFIXES)}',
        found=repr(ending)[:80],
        do="Convert the images to one of these formats.",
    )


def read_cases(path: Path, names: Collection[str]) -> tuple[dict[str, str], list[InputError]]:
    """Return the case of each image as a ``cases.csv`` gives it, and what is wrong with its lines.

    Args:
        path: the file; its header names the columns ``name`` and ``case``.
        names: the images that there are, without suffix.

    Raises:
        InputError: the file is no such table.
    """
    try:
        rows = csv.DictReader(_text(path).splitlines(), strict=True)
        columns = rows.fieldnames or ()
        if not {"name", "case"} <= set(columns):
            raise InputError(
                path,
                expected="the header line name,case",
                found=repr(",".join(columns))[:80] if columns else "no header",
                do="Write one line per image: its file name without suffix, a comma, its case.",
            )
        lines = [(rows.line_num, normal(row["name"] or ""), normal(row["case"] or "")) for row in rows]
    except csv.Error as error:
        do = "Save it as CSV again."
        raise InputError(path, expected="comma-separated values", found=str(error), do=do) from error
    return _cases_of(path, lines, names)


def _cases_of(
    path: Path, lines: list[tuple[int, str, str]], names: Collection[str]
) -> tuple[dict[str, str], list[InputError]]:
    cases: dict[str, str] = {}
    problems = []
    for number, name, case in lines:
        found = None
        if not name or not case:
            found = f"an empty field in line {number}"
        elif name not in names:
            found = f"{name!r} in line {number}"
        elif cases.setdefault(name, case) != case:
            found = f"{name!r} in two cases, {cases[name]!r} and {case!r}"
        if found:
            do = "Correct the line: names have no folder and no suffix."
            problems.append(InputError(path, expected="the name of an image and its case", found=found, do=do))
    missing = sorted(set(names) - set(cases))
    problems += [
        InputError(path, expected=f"a line for the image {name!r}", found="none", do="Add its case.")
        for name in missing
    ]
    return cases, problems


def _text(path: Path) -> str:
    """Return the content of a small text file, which Excel may have begun with a byte order mark."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            found = f"{path.stat().st_size:,} bytes"
            raise InputError(path, expected="a text file", found=found, do="Check that it is the right file.")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(path, expected="text in UTF-8", found=str(error), do="Save the file as UTF-8.") from error
    except OSError as error:
        found = error.strerror or type(error).__name__
        raise InputError(path, expected="a file that can be read", found=found, do="Check its name.") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [normal(key) for key, _ in pairs]
    document = dict(zip(keys, (_normal(value) for _, value in pairs), strict=True))
    if len(document) < len(pairs):
        raise ValueError(f"a key twice: {next(key for key in keys if keys.count(key) > 1)!r}")
    return document


def _normal(value: Any) -> Any:
    """Return a value of a JSON document with its texts in normal form; objects in it have been through this already."""
    if isinstance(value, str):
        return normal(value)
    return [_normal(each) for each in value] if isinstance(value, list) else value
