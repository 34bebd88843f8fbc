"""What other programs write into the folder: masks and labels, told from what the page itself has written."""

from __future__ import annotations

import stat
from pathlib import Path

from medsaga.data.layouts.finding import masks_folder
from medsaga.data.layouts.labelling import DESCRIPTION

State = tuple[int, int]
"""When a file was written, in nanoseconds, and how large it is."""


class Watched:
    """The masks and the ``dataset.json`` of a dataset, as the page knows them.

    Nothing is known before `take`.

    Args:
        root: the folder of the dataset.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, State] = {}
        self._glimpsed: dict[str, State | None] = {}

    def take(self) -> None:
        """Take all for known as it is now. Called before the files are read: what is written meanwhile is news."""
        self._known, self._glimpsed = self._look(), {}

    def note(self, path: Path) -> None:
        """Take one file for known, which the page has written or removed."""
        state = state_of(path)
        if state is None:
            self._known.pop(str(path), None)
        else:
            self._known[str(path)] = state

    def is_known(self, path: Path) -> bool:
        """Whether a file is as the page knows it."""
        return state_of(path) == self._known.get(str(path))

    def news(self) -> set[Path]:
        """Return the files that others have written or removed.

        A file counts when two looks, one after the other, find it the same: it may still be being written.
        """
        found = self._look()
        news = {path: found.get(path) for path in {*found, *self._known} if found.get(path) != self._known.get(path)}
        is_settled, self._glimpsed = news == self._glimpsed, news
        return set(map(Path, news)) if is_settled else set()

    def _look(self) -> dict[str, State]:
        folders = {self._root / "labelsTr", masks_folder(self._root, [])}
        paths = [self._root / DESCRIPTION]
        paths += [path for folder in folders if folder.is_dir() for path in folder.glob("*")]
        states = {str(path): state_of(path) for path in paths if not path.name.startswith(".")}
        return {path: state for path, state in states.items() if state is not None}


def state_of(path: Path) -> State | None:
    """Return what a file is known by without being read; None where there is none."""
    try:
        found = path.stat()
    except OSError:  # there is none, or it has just been replaced
        return None
    return (found.st_mtime_ns, found.st_size) if stat.S_ISREG(found.st_mode) else None
