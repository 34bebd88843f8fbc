"""What was painted, edit by edit, in a file that a crash cannot damage: a line is whole, or the last one and gone.

An edit is a box of slices in one plane, with the label values before and after, so that it can be undone. Undoing and
doing again are lines of their own: nothing that was written is changed.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.uint16]
"""Label values of a box, ``(slices, height, width)`` uint16."""


@dataclass(frozen=True)
class Box:
    """A part of a volume as it is shown in one plane.

    Attributes:
        plane: ``axial``, ``coronal`` or ``sagittal``; ``image`` of a 2-D image.
        start: first slice.
        top: first row.
        left: first column.
        shape: slices, rows and columns.
    """

    plane: str
    start: int
    top: int
    left: int
    shape: tuple[int, int, int]

    @property
    def place(self) -> tuple[slice, slice, slice]:
        """The indices of the box in a stack, ``(slices, height, width)``."""
        first = (self.start, self.top, self.left)
        rows, columns, depth = (slice(begin, begin + size) for begin, size in zip(first, self.shape, strict=True))
        return rows, columns, depth


@dataclass(frozen=True)
class Edit:
    """One stroke, or another change.

    Attributes:
        kind: of what made it, such as ``brush``.
        box: where it is.
        before: the label values there, compressed; see `packed`.
        after: likewise.
    """

    kind: str
    box: Box
    before: bytes
    after: bytes


class Journal:
    """The edits of one label map since its beginning.

    Args:
        path: the file; it need not exist.

    Attributes:
        done: edits that count, the last one last.
        undone: edits that were undone and can be done again, the next one last.
        changes: number of lines: of edits, of undoing and of doing again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._whole = 0  # bytes of the file that are whole lines
        self.done: list[Edit] = []
        self.undone: list[Edit] = []
        self.changes = 0
        self._read()

    def add(self, edit: Edit) -> None:
        """Write an edit; it is on the disk when this returns.

        Raises:
            OSError: it cannot be written, and the journal is as it was. The other changes raise it, too.
        """
        box = edit.box
        self._write(
            {
                "kind": edit.kind,
                "plane": box.plane,
                "at": [box.start, box.top, box.left],
                "shape": list(box.shape),
                "before": base64.b64encode(edit.before).decode(),
                "after": base64.b64encode(edit.after).decode(),
            }
        )
        self._note(edit)

    def undo(self) -> Edit | None:
        """Take the last edit back and return it; None where there is none."""
        if not self.done:
            return None
        self._write({"undo": True})
        return self._undo()

    def redo(self) -> Edit | None:
        """Do the edit again that was undone last and return it; None where there is none."""
        if not self.undone:
            return None
        self._write({"redo": True})
        return self._redo()

    def _note(self, edit: Edit) -> None:
        self.done.append(edit)
        self.undone.clear()
        self.changes += 1

    def _undo(self) -> Edit:
        edit = self.done.pop()
        self.undone.append(edit)
        self.changes += 1
        return edit

    def _redo(self) -> Edit:
        edit = self.undone.pop()
        self.done.append(edit)
        self.changes += 1
        return edit

    def _write(self, line: dict[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = (json.dumps(line) + "\n").encode("ascii")
        with self._path.open("ab", buffering=0) as file:
            # Half a line, of a full disk, with another one behind it would be taken for damage. The file is shorter
            # where somebody has removed it: then it begins anew.
            self._whole = min(self._whole, os.fstat(file.fileno()).st_size)
            file.truncate(self._whole)
            try:
                written = file.write(content)
                if written != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):  # else before the next line
                    file.truncate(self._whole)
                raise
        self._whole += len(content)

    def _read(self) -> None:
        if not self._path.exists():
            return
        content = self._path.read_bytes()
        whole = 0
        for line in content.splitlines(keepends=True):
            # A process that was killed while it wrote leaves half a line, and nothing behind it.
            if not line.endswith(b"\n") or not self._take(line):
                break
            whole += len(line)
        self._whole = whole
        if whole < len(content):
            if content.find(b"\n", whole) != -1:  # no crash of ours does that: somebody may want to look at it
                self._path.with_suffix(".damaged").write_bytes(content)
            with self._path.open("rb+") as file:
                file.truncate(whole)

    def _take(self, line: bytes) -> bool:
        """Count one line in; return whether it is one."""
        try:
            entry = json.loads(line)
            if "undo" in entry:
                self._undo()
            elif "redo" in entry:
                self._redo()
            else:
                start, top, left = map(int, entry["at"])
                slices, height, width = map(int, entry["shape"])
                box = Box(str(entry["plane"]), start, top, left, (slices, height, width))
                before, after = (base64.b64decode(entry[name]) for name in ("before", "after"))
                edit = Edit(str(entry["kind"]), box, before, after)
                unpacked(before, box)
                unpacked(after, box)
                self._note(edit)
        except (ValueError, KeyError, TypeError, IndexError, zlib.error):
            return False
        return True


def packed(values: npt.NDArray[np.integer]) -> bytes:
    """Return label values, ``(slices, height, width)``, compressed."""
    return zlib.compress(values.astype("<u2").tobytes(), 1)


def unpacked(content: bytes, box: Box) -> Values:
    """Return the label values that `packed` compressed, ``box.shape`` uint16.

    Raises:
        ValueError: they are of another box.
    """
    values = np.frombuffer(zlib.decompress(content), "<u2")
    return values.astype(np.uint16).reshape(box.shape)
