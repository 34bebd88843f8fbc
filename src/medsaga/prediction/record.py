"""The files in a folder that medsaga wrote, so that it overwrites these and no others.

A user corrects predictions where they lie, or names the folder of the true masks by mistake: neither may be lost. So a
file counts as ours only as long as its content is what was written.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from medsaga import files
from medsaga.distributed.group import Group
from medsaga.errors import InputError

RECORD = "predictions.jsonl"
"""A line for each file that was written into the folder: its name and its SHA-256."""


class Written:
    """The record of a folder, which is read at once, and written with the first file.

    Args:
        folder: where the files lie; it need not exist.

    Raises:
        InputError: there is a file of the record's name that is no record.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / RECORD
        self._known = _read(self._path)
        self._begun = False

    def share(self, group: Group) -> None:
        """Let several processes write into the folder: from here on each adds lines to the record."""
        if group.size > 1:
            group.once(self._begin)
            self._begun = True

    def has(self, path: Path) -> bool:
        """Return whether a file of the folder is one that was written, and has not been changed since."""
        # Files of other names are not read: volumes are large.
        digests = self._known.get(path.name, ())
        return bool(digests) and path.is_file() and files.sha256(path) in digests

    def has_by_now(self, path: Path) -> bool:
        """Return the same, where another command may have written the file since the record was read."""
        return self.has(path) or Written(path.parent).has(path)

    def require_ours(self, path: Path, *, overwrite: bool) -> None:
        """Raise InputError if there is a file that medsaga did not write, or that somebody has changed since.

        Args:
            path: a file that is about to be replaced; it is looked at now, and may have been ours a moment ago.
            overwrite: whether it may be replaced all the same.
        """
        if os.path.lexists(path) and not (overwrite or self.has_by_now(path)):
            raise InputError(
                path,
                expected="no file, or one as medsaga wrote it",
                found="one that somebody else wrote, or has changed since",
                do="Choose another --out, or --overwrite.",
            )

    @contextlib.contextmanager
    def replacing(self, path: Path, *, overwrite: bool = False) -> Iterator[Path]:
        """Yield a name for a file that takes ``path``'s place at the end, as `medsaga.files.replacing` does.

        It is on the record before it has its name: whenever the process is killed, nothing lies there that is not.

        Raises:
            InputError: as `require_ours`, which is asked at the end: predictions take hours, in which people correct.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".medsaga-") as folder:
            made = Path(folder) / path.name
            yield made
            self.require_ours(path, overwrite=overwrite)
            self._note(path.name, files.sha256(made))
            made.replace(path)

    def _note(self, name: str, digest: str) -> None:
        digests = self._known.setdefault(name, set())
        if digest in digests:
            return
        digests.add(digest)
        if not self._begun:
            self._begin()
            return
        with self._path.open("a", encoding="utf-8") as record:
            record.write(_line(name, digest))
            record.flush()
            os.fsync(record.fileno())

    def _begin(self) -> None:
        # What a killed process left half-written goes, what another command has added meanwhile stays.
        for name, digests in _read(self._path).items():
            self._known.setdefault(name, set()).update(digests)
        lines = (_line(name, digest) for name, digests in self._known.items() for digest in sorted(digests))
        files.write_text(self._path, "".join(lines))
        self._begun = True


def _line(name: str, digest: str) -> str:
    return json.dumps({"file": name, "sha256": digest}) + "\n"


def _read(path: Path) -> dict[str, set[str]]:
    known: dict[str, set[str]] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return known
    except (OSError, UnicodeDecodeError) as error:
        raise _no_record(path, str(error)) from None
    # A process that was killed while it wrote leaves half of a line, without its end.
    for line in lines[:-1]:
        try:
            entry = json.loads(line)
            known.setdefault(str(entry["file"]), set()).add(str(entry["sha256"]))
        except (ValueError, KeyError, TypeError):
            raise _no_record(path, repr(line[:60])) from None
    return known


def _no_record(path: Path, found: str) -> InputError:
    return InputError(
        path,
        expected="the record of what medsaga wrote there",
        found=found,
        do="Move that file, or choose another --out.",
    )
