"""The files of an export of DICOM, through its folders and through links."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from medsaga.data.bounds import MOST_FILES
from medsaga.data.names import is_hidden
from medsaga.errors import InputError


def files_below(root: Path) -> Iterator[Path]:
    """Yield the files below a folder that are not hidden, in the order of their names, or the file itself.

    Symbolic links are followed, each folder once, but to a folder that ``root`` or the link itself lies in; of broken
    links those with a name of DICOM are yielded.

    Raises:
        InputError: there is no such file or folder, it has more than 100,000 files, or a folder cannot be read.
    """
    if root.is_file():
        yield root
        return
    if not root.is_dir():
        raise InputError(
            root, expected="a DICOM file or a folder", found="no such file or folder", do="Check its name."
        )
    count, folders, linked = 0, [root], list[Path]()
    inside, seen = root.resolve(), set[Path]()
    # Folders that lie below come before those that links lead to, so that files keep the names they have there.
    while folders or linked:
        folder = folders.pop() if folders else linked.pop(0)
        real = folder.resolve()
        if real in seen:
            continue
        seen.add(real)
        try:
            every = sorted(os.scandir(folder), key=lambda entry: entry.name)
            entries = [entry for entry in every if not is_hidden(entry.name)]
        except OSError:
            raise InputError(
                folder, expected="a folder that can be read", found="no access to it", do="Check its permissions."
            ) from None
        folders.extend(Path(entry.path) for entry in reversed(entries) if entry.is_dir(follow_symlinks=False))
        for entry in entries:
            path = Path(entry.path)
            # Also what is no file counts towards the bound: a folder of pipes is as long to walk.
            count += 1
            if count > MOST_FILES:
                raise InputError(
                    root,
                    expected=f"at most {MOST_FILES:,} files",
                    found="more",
                    do="Name the folder of one patient or of one series.",
                )
            if not entry.is_symlink():
                if entry.is_file():
                    yield path
            elif path.is_dir():
                # A link to a folder that it lies in itself is a loop, which would also lead to other patients.
                if not any(each.is_relative_to(path.resolve()) for each in (inside, real)):
                    linked.append(path)
            elif path.is_file() or is_broken_link(path):
                yield path


def is_broken_link(path: Path) -> bool:
    """Whether the name is that of DICOM, and its file is gone: passed over, a series would end early."""
    return is_named_dicom(path) and path.is_symlink() and not path.exists()


def is_named_dicom(path: Path) -> bool:
    """Whether the name says that a file is DICOM; those of archives often do not."""
    return path.suffix.lower() == ".dcm"
