"""The label map of one image while it is painted: in memory, with every stroke on the disk and every version kept.

Beside the dataset, in ``.medsaga/masks/ID/``, lies what the map began from (nothing, a mask, a prediction), and a
journal of the edits since. The dataset's own mask is written when a case is finished, and again soon after each later
edit; what lay there before is kept. A mask that another program has changed becomes the newest version.
"""

from __future__ import annotations

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
from medsaga.app.versions import ChangedElsewhere, Origin, Versions
from medsaga.data.formats import format_of, nifti, raster
from medsaga.data.items import read_mask
from medsaga.data.labels import listed
from medsaga.data.layouts.checks import joint_header
from medsaga.data.types import Item, to_class_indices, to_label_values
from medsaga.errors import InputError

State = Literal["none", "draft", "done"]


class PaintedMask:
    """The label map of one image.

    Args:
        item: the image, with the mask that the dataset has of it.
        home: folder for versions and journals; made with the first edit.
        place: where the finished mask is written.
        values: (classes,) the label value of each class index.

    What would change it raises `ChangedElsewhere` where it was read from a mask that another program has saved since;
    it is read anew then, and nothing is changed.

    Attributes:
        lock: held by whoever changes or reads it.
        item: see above; its mask follows what is finished here.
        place: where the finished mask is written.
        classes: (*shape) uint8 class indices.
        changed: when it was edited last, in seconds of `time.monotonic`, and not written since; None else.
        problem: why it could not be written into the dataset the last time, in words; empty where it could.
        dropped: whether it is not kept in memory any more. Who has waited for the lock opens it again.

    Raises:
        InputError: the mask, or what was kept of it, cannot be read.
    """

    def __init__(self, item: Item, home: Path, place: Place, values: npt.NDArray[np.int64]) -> None:
        self.lock = threading.RLock()
        self.item, self._home, self.place, self._values = item, home, place, values
        self._views = views_of(item.header.grid)
        self._versions = Versions(home)
        self.classes: npt.NDArray[np.uint8]
        self.changed: float | None = None
        self.problem = ""
        self.dropped = False
        self._journal = Journal(home / "none")
        # Where there is no version: when the file was written, in nanoseconds, whose content this is, and its SHA-256.
        self._written, self._read = 0, tuple[str, ...]()
        self._open()

    @property
    def state(self) -> State:
        """``done`` with a mask in the dataset, ``draft`` with edits alone, else ``none``."""
        if self.item.masks:
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
        """Number, origin and time of each version, the oldest first, and whether it is what is shown."""
        return [{**each, "now": each["number"] == self._version} for each in self._versions.listed()]

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
        with self.lock:
            self._edit(kind, plane, corner, classes)

    def _edit(self, kind: str, plane: str, corner: tuple[int, int, int], classes: npt.NDArray[np.uint8]) -> None:
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
        if self._version is None:
            self._begin("file" if self.item.masks else "empty", self.item.masks)
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
            if self._version is None and self.item.masks:
                self._begin("file", self.item.masks)
            self._begin(origin, masks)
            self._load()
            self.changed = time.monotonic()

    def revert(self, number: int) -> None:
        """Start a new version from what another one ended with.

        Raises:
            InputError: there is no such version.
        """
        if number not in self._versions:
            raise InputError("the history", expected="a version of it", found=str(number), do="Load the page again.")
        self.require_editable()
        with self.lock:
            classes = self._read_version(number)
            self.begin("version", ())
            self.edit("version", next(iter(self._views)), (0, 0, 0), self._of(classes, next(iter(self._views))))

    def save(self) -> bool:
        """Write the mask into the dataset, which makes a draft a finished mask.

        Returns:
            Whether a mask of another program lay there, of which nobody knew; it is in the history now.

        Raises:
            InputError: it cannot be written there.
        """
        self.require_editable()
        with self.lock:
            try:
                return self._save()
            except InputError as error:
                self.problem = error.found
                raise
            except OSError as error:
                self.problem = (error.strerror or type(error).__name__).lower()
                raise InputError(
                    self.place.path,
                    expected="a mask that can be written",
                    found=self.problem,
                    do="Close it in other programs, or make room for it. Every stroke is kept meanwhile.",
                ) from None

    def _save(self) -> bool:
        if self._version is None:
            if self.item.masks:
                return False
            self._begin("empty", ())
        assert self._version is not None, "it has just begun"
        path = self.place.path
        before = self.item.masks[0] if self.item.masks else None
        with files.replacing(path) as temporary:
            write_mask(temporary, to_label_values(self.classes, self._values), self.item)
            written = files.sha256(temporary)
            # At the last moment: writing takes long enough for another program to save, too.
            others = [self._keep_other(mask) for mask in {path, before or path}]
        if before is not None and before != path:
            before.unlink()  # it is kept as the version that this one began from
        self.item = replace(self.item, masks=(path,), names=(), structures=())
        self._versions.note_saved(written, self._version, self._journal.changes)
        self.changed, self.problem = None, ""
        return any(others)

    def reopen(self) -> None:
        """Make a finished mask a draft again: its file goes from the dataset, and stays in the history.

        Raises:
            InputError: the image's mask cannot be changed here.
        """
        self.require_editable()
        with self.lock:
            masks = self.item.masks
            if masks and self._version is None:
                self._begin("file", masks)
            for mask in masks:
                self._keep_other(mask)
                mask.unlink(missing_ok=True)
            self._versions.forget_saved()
            self.item = replace(self.item, masks=(), names=(), structures=())
            self.changed, self.problem = None, ""

    def require_editable(self) -> None:
        """Raise InputError where the image's mask cannot be changed here."""
        if self.place.why_not:
            raise InputError(
                self.item.name, expected="a mask that can be painted", found=self.place.why_not, do="Look only."
            )

    def set_values(self, values: npt.NDArray[np.int64]) -> None:
        """Take note of the labels that there are now; each class keeps its value, whatever its index becomes."""
        with self.lock:
            before, self._values = self._values, values
            if not np.array_equal(values[: len(before)], before):
                self.classes = self._to_classes(to_label_values(self.classes, before))

    def _open(self) -> None:
        """Choose between the newest version and the dataset's mask, and load it."""
        self._version: int | None = None
        masks = self.item.masks
        if not masks or (len(masks) == 1 and self._versions.is_saved(masks[0])):
            self._version = self._versions.newest
        self._load()
        if self._version is not None and masks and not self._versions.is_written(self._version, self._journal.changes):
            self.changed = time.monotonic()  # the process was killed before it could write the mask

    def _load(self) -> None:
        if self._version is None:
            self._journal = Journal(self._home / "none")
            masks = self.item.masks
            # Before it is decoded: what another program writes meanwhile is not known then.
            written = max((mask.stat().st_mtime_ns for mask in masks), default=0)
            read = () if self.place.why_not else tuple(map(files.sha256, masks))
            self.classes = self._decoded(self.item)
            self._written, self._read = written, read
        else:
            self._journal = Journal(self._versions.journal(self._version))
            self.classes = self._read_version(self._version)

    def _read_version(self, number: int) -> npt.NDArray[np.uint8]:
        classes = self._decoded(self._versions.begun_from(number, self.item))
        for edit in Journal(self._versions.journal(number)).done:
            stack = self._of(classes, edit.box.plane)[edit.box.place]
            if stack.shape != edit.box.shape:
                raise InputError(
                    self.item.name,
                    expected="the image that was painted on",
                    found="one of another size",
                    do="Bring the image back, or rename it.",
                )
            stack[:] = self._to_classes(unpacked(edit.after, edit.box))
        return classes

    def _begin(self, origin: Origin, masks: Sequence[Path]) -> None:
        """Write down a new version, with a copy of what it begins from."""
        known = self._read if origin == "file" else ()
        try:
            self._version = self._versions.add(origin, masks, self.item, known)
        except ChangedElsewhere:
            self._load()
            raise
        self._journal = Journal(self._versions.journal(self._version))
        if origin == "file" and len(masks) == 1:
            self._versions.note_saved(known[0], self._version, 0)

    def _keep_other(self, mask: Path) -> bool:
        """Keep a mask that another program has saved while the same one was painted here, where ours counts."""
        is_other = mask.is_file() and not self._versions.is_saved(mask) and not self._versions.is_kept(mask)
        if is_other:
            self._versions.add("other", (mask,), self.item)
        return is_other

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

    def _to_classes(self, values: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
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
    """Write ``(*shape)`` label values on the grid of an image, whole or not at all.

    Raises:
        InputError: the file of the image has another shape by now.
    """
    source, form = item.images[0], format_of(path)
    if isinstance(source, Path) and (now := joint_header(item.images).grid.shape) != item.header.grid.shape:
        raise InputError(
            source,
            expected=f"the image that was opened, of {listed(item.header.grid.shape)} voxels",
            found=f"one of {listed(now)}",
            do="Bring the image back, or open the folder again.",
        )
    if isinstance(source, Path) and form is format_of(source):
        form.write_labels(path, labels, source)
    else:
        assert form in (nifti, raster), "other formats need an image of their own to write like"
        (nifti if form is nifti else raster).write_labels(path, labels, item.header.grid)
