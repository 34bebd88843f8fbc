"""The label map of one image while it is painted: in memory, with every stroke on the disk and every version kept.

Beside the dataset, in ``.medsaga/masks/ID/``, lies what the map began from (nothing, a mask, a prediction), and a
journal of the edits since. The dataset's own mask is written when a case is finished, and again soon after each later
edit; what lay there before is kept. A mask that another program has changed becomes the newest version.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medsaga import files
from medsaga.app.journal import Box, Edit, Journal, packed, unpacked
from medsaga.app.places import Place
from medsaga.app.slices import views_of
from medsaga.data.formats import format_of, nifti, raster
from medsaga.data.items import read_mask
from medsaga.data.labels import listed
from medsaga.data.types import Item, to_class_indices, to_label_values
from medsaga.errors import InputError

Origin = Literal["empty", "file", "prediction", "version"]
State = Literal["none", "draft", "done"]
_VERSIONS = "versions.json"
_SAVED = "saved.json"


class PaintedMask:
    """The label map of one image.

    Args:
        item: the image, with the mask that the dataset has of it.
        home: folder for versions and journals; made with the first edit.
        place: where the finished mask is written.
        values: (classes,) the label value of each class index.

    Attributes:
        lock: held by whoever changes or reads it.
        place: where the finished mask is written.
        classes: (*shape) uint8 class indices.
        changed: when it was edited last, in seconds of `time.monotonic`, and not written since; None else.

    Raises:
        InputError: the mask, or what was kept of it, cannot be read.
    """

    def __init__(self, item: Item, home: Path, place: Place, values: npt.NDArray[np.int64]) -> None:
        self.lock = threading.RLock()
        self._item, self._home, self.place, self._values = item, home, place, values
        self._views = views_of(item.header.grid)
        self._versions: list[dict[str, Any]] = _read(home / _VERSIONS, [])
        self._saved: dict[str, Any] = _read(home / _SAVED, {})
        self.changed: float | None = None
        self._journal = Journal(home / "none")
        self._written = 0  # when the file was, in nanoseconds, whose content this is, where there is no version
        self._open()

    @property
    def state(self) -> State:
        """``done`` with a mask in the dataset, ``draft`` with edits alone, else ``none``."""
        if self._item.masks:
            return "done"
        return "draft" if self._version is not None else "none"

    @property
    def can_undo(self) -> bool:
        """Whether there is an edit to take back."""
        return bool(self._journal.done)

    @property
    def can_redo(self) -> bool:
        """Whether there is an edit to do again."""
        return bool(self._journal.undone)

    @property
    def stamp(self) -> str:
        """What its content is known by: another after every change, here or by another program."""
        if self._version is not None:
            return f"{self._version}.{self._journal.changes}"
        return f"file.{self._written}"

    @property
    def history(self) -> list[dict[str, Any]]:
        """Number, origin and time of each version, the oldest first."""
        return [{name: each[name] for name in ("number", "origin", "time")} for each in self._versions]

    def slice(self, plane: str, index: int) -> npt.NDArray[np.uint8]:
        """Return a slice, ``(height, width)`` class indices; IndexError where there is none."""
        stack = self._stack(plane)
        if not 0 <= index < len(stack):
            raise IndexError(index)
        return stack[index]

    def stack(self, plane: str) -> npt.NDArray[np.uint8]:
        """Return all slices of a plane, ``(slices, height, width)``, without copying."""
        return self._stack(plane)

    def edit(self, kind: str, plane: str, corner: tuple[int, int, int], classes: npt.NDArray[np.uint8]) -> None:
        """Replace a box of the label map; it is on the disk when this returns.

        Args:
            kind: of what made it.
            plane: that it was painted in.
            corner: first slice, row and column.
            classes: ``(slices, height, width)`` class indices.

        Raises:
            InputError: it does not lie within the image, holds labels that do not exist, or the image's mask cannot be
                changed here.
        """
        self.require_editable()
        stack = self._stack(plane)
        ends = [begin + size for begin, size in zip(corner, classes.shape, strict=True)]
        within = min(corner) >= 0 and all(end <= size for end, size in zip(ends, stack.shape, strict=True))
        if not within or not classes.size or int(classes.max()) >= len(self._values):
            raise InputError(
                "the stroke",
                expected=f"a box within {listed(stack.shape)} of labels below {len(self._values)}",
                found=f"one at {listed(corner)} of {listed(classes.shape)}",
                do="Load the page again.",
            )
        with self.lock:
            if self._version is None:
                self._begin("file" if self._item.masks else "empty", self._item.masks)
            box = Box(plane, *corner, (classes.shape[0], classes.shape[1], classes.shape[2]))
            target = stack[box.place]
            if np.array_equal(target, classes):
                return
            before, after = (packed(self._values[each]) for each in (target, classes))
            self._journal.add(Edit(kind, box, before, after))
            target[:] = classes
            self.changed = time.monotonic()

    def undo(self) -> Box | None:
        """Take the last edit back; return where it was."""
        with self.lock:
            edit = self._journal.undo()
            return None if edit is None else self._put(edit.box, edit.before)

    def redo(self) -> Box | None:
        """Do the edit again that was taken back last; return where it is."""
        with self.lock:
            edit = self._journal.redo()
            return None if edit is None else self._put(edit.box, edit.after)

    def begin(self, origin: Origin, masks: Sequence[Path] = ()) -> None:
        """Start a new version from something else; what there was stays in the history.

        Args:
            origin: what it is.
            masks: the label map to start from; none is an empty one.

        Raises:
            InputError: it cannot be read, or the image's mask cannot be changed here.
        """
        self.require_editable()
        with self.lock:
            if self._version is None and self._item.masks:
                self._begin("file", self._item.masks)
            self._begin(origin, masks)
            self._load()
            self.changed = time.monotonic()

    def revert(self, number: int) -> None:
        """Start a new version from what another one ended with.

        Raises:
            InputError: there is no such version.
        """
        if not 0 < number <= len(self._versions):
            raise InputError("the history", expected="a version of it", found=str(number), do="Load the page again.")
        self.require_editable()
        with self.lock:
            classes = self._read_version(number)
            self.begin("version", ())
            self.edit("version", next(iter(self._views)), (0, 0, 0), self._of(classes, next(iter(self._views))))

    def save(self) -> Path:
        """Write the mask into the dataset, which makes a draft a finished mask.

        Raises:
            InputError: it cannot be written there.
        """
        self.require_editable()
        with self.lock:
            if self._version is None:
                if self._item.masks:
                    return self._item.masks[0]
                self._begin("empty", ())
            path = self.place.path
            before = self._item.masks[0] if self._item.masks else None
            labels = to_label_values(self.classes, self._values)
            for mask in {path, before or path}:
                self._keep_foreign(mask)
            write_mask(path, labels, self._item)
            if before is not None and before != path:
                before.unlink()  # it is kept as the version that this one began from
            self._item = replace(self._item, masks=(path,), names=(), structures=())
            self._note_saved(files.sha256(path))
            self.changed = None
            return path

    def require_editable(self) -> None:
        """Raise InputError where the image's mask cannot be changed here."""
        if self.place.why_not:
            raise InputError(
                self._item.name, expected="a mask that can be painted", found=self.place.why_not, do="Look only."
            )

    def set_values(self, values: npt.NDArray[np.int64]) -> None:
        """Take note of labels that were added behind the others."""
        self._values = values

    def _open(self) -> None:
        """Choose between the newest version and the dataset's mask, and load it."""
        self._version: int | None = None
        if not self._item.masks:
            self._version = len(self._versions) or None
        elif self._saved and len(self._item.masks) == 1 and self._versions:
            mask = self._item.masks[0]
            if mask.is_file() and files.sha256(mask) == self._saved["sha256"]:
                self._version = int(self._versions[-1]["number"])
        self._load()
        written = (self._saved.get("version"), self._saved.get("changes"))
        if self._version is not None and self._item.masks and written != (self._version, self._journal.changes):
            self.changed = time.monotonic()  # the process was killed before it could write the mask

    def _load(self) -> None:
        if self._version is None:
            self._journal = Journal(self._home / "none")
            self._written = max((mask.stat().st_mtime_ns for mask in self._item.masks), default=0)
            self.classes = self._decoded(self._item)
        else:
            self._journal = Journal(self._home / f"{self._version}.jsonl")
            self.classes = self._read_version(self._version)

    def _read_version(self, number: int) -> npt.NDArray[np.uint8]:
        entry = self._versions[number - 1]
        kept = tuple(self._home / name for name in entry["files"])
        structures = tuple(entry["structures"]) if kept else ()
        names = tuple((str(name), int(value)) for name, value in entry["names"])
        classes = self._decoded(replace(self._item, masks=kept, structures=structures, names=names))
        for edit in Journal(self._home / f"{number}.jsonl").done:
            stack = self._of(classes, edit.box.plane)[edit.box.place]
            if stack.shape != edit.box.shape:
                raise InputError(
                    self._item.name,
                    expected="the image that was painted on",
                    found="one of another size",
                    do="Bring the image back, or rename it.",
                )
            stack[:] = self._to_classes(unpacked(edit.after, edit.box))
        return classes

    def _begin(self, origin: Origin, masks: Sequence[Path]) -> None:
        """Write down a new version, with a copy of what it begins from."""
        number = len(self._versions) + 1
        self._home.mkdir(parents=True, exist_ok=True)
        kept = []
        for index, mask in enumerate(masks):
            name = f"{number}.{index}.{mask.name[-40:]}"
            with files.replacing(self._home / name) as temporary:
                shutil.copyfile(mask, temporary)
            kept.append(name)
        own = origin == "file"
        self._versions.append(
            {
                "number": number,
                "origin": origin,
                "time": time.time(),
                "files": kept,
                "structures": list(self._item.structures) if own else [],
                "names": [list(pair) for pair in self._item.names] if own else [],
            }
        )
        files.write_json(self._home / _VERSIONS, self._versions)
        self._version = number
        self._journal = Journal(self._home / f"{number}.jsonl")
        if own and len(masks) == 1:
            self._note_saved(files.sha256(masks[0]))

    def _keep_foreign(self, mask: Path) -> None:
        """Keep a mask that another program has saved while the same one was painted here, where ours counts."""
        if not mask.is_file() or files.sha256(mask) == self._saved.get("sha256"):
            return
        with files.replacing(self._home / f"other.{time.time_ns()}.{mask.name[-40:]}") as temporary:
            shutil.copyfile(mask, temporary)

    def _note_saved(self, digest: str) -> None:
        self._saved = {"version": self._version, "changes": self._journal.changes, "sha256": digest}
        files.write_json(self._home / _SAVED, self._saved)

    def _put(self, box: Box, content: bytes) -> Box:
        self._stack(box.plane)[box.place] = self._to_classes(unpacked(content, box))
        self.changed = time.monotonic()
        return box

    def _decoded(self, item: Item) -> npt.NDArray[np.uint8]:
        """Return the label map of an item as class indices; an empty one where it has no mask."""
        if not item.masks:
            return np.zeros(item.header.grid.shape, np.uint8)
        labels = read_mask(item)
        unknown = sorted(set(np.unique(labels).tolist()) - set(self._values.tolist()))
        if unknown:
            raise InputError(
                item.masks[0],
                expected=f"the label values {listed(self._values.tolist())}",
                found=f"also {listed(unknown)}",
                do="Correct the mask, or name the values in dataset.json.",
            )
        # Painted into, so it must be our own and not read-only.
        return np.array(to_class_indices(labels, self._values))

    def _to_classes(self, values: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
        known = np.isin(values, self._values)
        # A label that was taken out of dataset.json since is background.
        return to_class_indices(np.where(known, values, 0).astype(np.int64), self._values)

    def _stack(self, plane: str) -> npt.NDArray[np.uint8]:
        return self._of(self.classes, plane)

    def _of(self, classes: npt.NDArray[np.uint8], plane: str) -> npt.NDArray[np.uint8]:
        if plane not in self._views:
            raise IndexError(plane)
        return self._views[plane].of_labels(classes)


def write_mask(path: Path, labels: npt.NDArray[np.integer], item: Item) -> None:
    """Write ``(*shape)`` label values on the grid of an image, whole or not at all."""
    source, form = item.images[0], format_of(path)
    if isinstance(source, Path) and form is format_of(source):
        form.write_labels(path, labels, source)
    else:
        assert form in (nifti, raster), "other formats need an image of their own to write like"
        (nifti if form is nifti else raster).write_labels(path, labels, item.header.grid)


def _read(path: Path, otherwise: Any) -> Any:
    return files.read_json(path) if path.exists() else otherwise
