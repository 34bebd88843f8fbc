"""The versions of one label map: what each began from, and what was written into the dataset last.

They lie in ``.medsaga/masks/ID/``: ``versions.json``, copies of the masks that versions began from, ``saved.json``.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from medsaga import files
from medsaga.data.types import Item
from medsaga.errors import MedsagaError

Origin = Literal["empty", "file", "prediction", "version", "other"]
"""What a version began from; ``other`` is a mask of another program, kept when ours took its place."""
LIST = "versions.json"
_SAVED = "saved.json"
_KEPT_OF_A_NAME = 40


class ChangedElsewhere(MedsagaError):  # noqa: N818 - it is no error of anybody's
    """A label map is another by now than the one that was to be changed; nothing has been."""

    def __init__(self) -> None:
        super().__init__("The labels were changed in another tab or by another program.")


class Versions:
    """The versions of a label map, numbered from 1.

    Args:
        home: the folder of the label map; made with the first version.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._entries: list[dict[str, Any]] = _read(home / LIST, [])
        self._saved: dict[str, Any] = _read(home / _SAVED, {})

    @property
    def newest(self) -> int | None:
        """The newest one that was painted here; None where there is none."""
        ours = [int(each["number"]) for each in self._entries if each["origin"] != "other"]
        return ours[-1] if ours else None

    def __contains__(self, number: int) -> bool:
        """Whether there is a version of a number."""
        return 0 < number <= len(self._entries)

    def listed(self) -> list[dict[str, Any]]:
        """Return number, origin and time of each, the oldest first."""
        return [{name: each[name] for name in ("number", "origin", "time")} for each in self._entries]

    def journal(self, number: int) -> Path:
        """Return the file of the edits of a version."""
        return self._home / f"{number}.jsonl"

    def begun_from(self, number: int, item: Item) -> Item:
        """Return an image with the masks that a version began from; with none where it began empty."""
        entry = self._entries[number - 1]
        kept = tuple(self._home / name for name in entry["files"])
        structures = tuple(entry["structures"]) if kept else ()
        names = tuple((str(name), int(value)) for name, value in entry["names"])
        return replace(item, masks=kept, structures=structures, names=names)

    def add(self, origin: Origin, masks: Sequence[Path], item: Item, known: Sequence[str] = ()) -> int:
        """Write down a new version, with a copy of what it begins from; return its number.

        Args:
            origin: what it is.
            masks: that it begins from.
            item: the image; where the masks are its own, they are read as it says.
            known: the SHA-256 of each mask, where the version goes on from what was read from them before.

        Raises:
            ChangedElsewhere: a mask is not the one that is known.
        """
        number = len(self._entries) + 1
        self._home.mkdir(parents=True, exist_ok=True)
        kept = []
        for index, mask in enumerate(masks):
            name = f"{'other.' if origin == 'other' else ''}{number}.{index}.{mask.name[-_KEPT_OF_A_NAME:]}"
            with files.replacing(self._home / name) as temporary:
                shutil.copyfile(mask, temporary)
                if known and files.sha256(temporary) != known[index]:
                    raise ChangedElsewhere
            kept.append(name)
        own = bool(masks) and set(masks) <= set(item.masks)
        entry = {
            "number": number,
            "origin": origin,
            "time": time.time(),
            "files": kept,
            "structures": list(item.structures) if own else [],
            "names": [list(pair) for pair in item.names] if own else [],
        }
        files.write_json(self._home / LIST, [*self._entries, entry])
        self._entries.append(entry)
        return number

    def is_saved(self, mask: Path) -> bool:
        """Whether a file of the dataset is what was written there last, or what the newest version began from."""
        return bool(self._saved) and mask.is_file() and files.sha256(mask) == self._saved["sha256"]

    def is_kept(self, mask: Path) -> bool:
        """Whether a file of the dataset is a mask of another program that is among the versions."""
        names = [name for each in self._entries if each["origin"] == "other" for name in each["files"]]
        return any(files.sha256(self._home / name) == files.sha256(mask) for name in names)

    def is_written(self, number: int, changes: int) -> bool:
        """Whether what was written last is a version after so many changes."""
        return (self._saved.get("version"), self._saved.get("changes")) == (number, changes)

    def is_behind(self) -> bool:
        """Whether something was painted after what was written last; nothing is decoded for it."""
        newest = self.newest
        if newest is None or not self._saved:
            return False
        journal = self.journal(newest)
        return not self.is_written(newest, journal.read_bytes().count(b"\n") if journal.exists() else 0)

    def note_saved(self, sha256: str, number: int, changes: int) -> None:
        """Write down that the file of this SHA-256 in the dataset is a version after so many changes."""
        saved = {"version": number, "changes": changes, "sha256": sha256}
        files.write_json(self._home / _SAVED, saved)
        self._saved = saved

    def forget_saved(self) -> None:
        """Write down that nothing is in the dataset any more: what comes there next is another's."""
        self._saved = {}
        (self._home / _SAVED).unlink(missing_ok=True)


def _read(path: Path, otherwise: Any) -> Any:
    return files.read_json(path) if path.exists() else otherwise
