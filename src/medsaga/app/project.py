"""The folder that is open: its images, their masks and labels, and the runs that were made of it.

A dataset stays what it is, in its layout: a case that is finished on the page has its mask where the command line looks
for it. What the page itself needs lies in a hidden folder beside the images.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

from medsaga.app.labels import Colours, added, are_written, name_of, renamed, require_readable, write
from medsaga.app.masks import PaintedMask, State
from medsaga.app.own import OWN, RunFolders, id_of
from medsaga.app.places import Place, place_in, require_within
from medsaga.app.slices import Images, OpenImage
from medsaga.app.versions import Versions
from medsaga.app.watched import Watched
from medsaga.data.dataset import read_dataset
from medsaga.data.layouts.labelling import DESCRIPTION
from medsaga.data.sources import files_of
from medsaga.data.types import Dataset, Item
from medsaga.errors import InputError

_OPEN_MASKS = 4
_SAVE_AFTER = 1.0
"""Seconds after the last stroke in which a finished mask is written again."""


class Project:
    """A dataset that is open.

    Args:
        root: its folder.
        run: a run folder that lies elsewhere and is shown among the runs.

    Attributes:
        lock: held by whoever changes what is in the folder; taken before that of a label map, never below it.
        root: its folder, resolved.
        dataset: as it is now; of images without masks, too.
        images: decoded ones.
        runs: that were made of it, and the other one.
        revision: grows with every change that the page should show.
        meaning: what class indices are known by: another as soon as one that there was means another label.

    Raises:
        InputError: the folder is no dataset, or holds no image that can be read.
    """

    def __init__(self, root: Path, run: Path | None = None) -> None:
        self.root = root.resolve()
        self.images = Images()
        self.revision = 1
        self.runs = RunFolders(self.root, run)
        self._description = self.root / DESCRIPTION
        self._colours = Colours(self.own / "page.json")
        self.lock = threading.RLock()
        self._masks: dict[str, PaintedMask] = {}
        self._said: list[str] = []
        self._watched = Watched(self.root)
        self._items: dict[str, Item] = {}
        self.dataset = self._found()
        self.meaning = _meaning(self.dataset)

    @property
    def own(self) -> Path:
        """The page's own folder."""
        return self.root / OWN

    @property
    def items(self) -> dict[str, Item]:
        """The images by their ids, in the order of their names."""
        return self._items

    @property
    def names(self) -> dict[str, str]:
        """The ids by the names of the images."""
        return {item.name: key for key, item in self._items.items()}

    def item(self, key: str) -> Item:
        """Return an image.

        Raises:
            KeyError: there is none of this id.
        """
        return self._items[key]

    def image(self, key: str) -> OpenImage:
        """Return a decoded image.

        Raises:
            InputError: it cannot be read, or a link leads out of the folder.
        """
        item = self.item(key)
        if not self.images.has(key, item):
            self._require_files_within(item)
        return self.images.of(key, item)

    def mask(self, key: str) -> PaintedMask:
        """Return the label map of an image, open to be painted.

        Raises:
            InputError: it cannot be read, or a link leads out of the folder.
        """
        with self.lock:
            item = self.item(key)
            if key not in self._masks:
                self._require_files_within(item)
                painted = PaintedMask(item, self.home(key), self.place(item), self.dataset.label_values)
                # A draft is safe in its journal; a finished mask is when it has been written.
                idle = [each for each, mask in self._masks.items() if mask.changed is None or mask.state == "draft"]
                for each in idle[: max(0, len(self._masks) + 1 - _OPEN_MASKS)]:
                    self._drop(each)
                self._masks[key] = painted
            # The one that was asked for last goes last.
            self._masks[key] = self._masks.pop(key)
            return self._masks[key]

    def state(self, key: str) -> State:
        """Return how far the labelling of an image is, without decoding anything."""
        if self.item(key).masks:
            return "done"
        return "draft" if (self.home(key) / "versions.json").exists() else "none"

    def finish(self, key: str) -> None:
        """Write the mask of an image into the dataset.

        Raises:
            InputError: it cannot be written.
        """
        with self.lock:
            mask = self.mask(key)
            if len(self.dataset.labels) < 2:
                raise InputError(
                    "the labels", expected="at least one label", found="none", do="Name what you outline first."
                )
            mask.require_editable()
            self._write_down_labels()
            require_within(self.root, mask.place.path.parent, self.item(key).name)
            if mask.save():
                self._said.append(f"another program has saved the mask of {mask.item.name}, too: it is under History")
            self._note(key, mask)

    def reopen(self, key: str) -> None:
        """Make a finished mask a draft again: its file goes from the dataset, and stays in the history.

        Raises:
            InputError: the image's mask cannot be changed here.
        """
        with self.lock:
            self.keep_labels(key)  # without this mask nothing might tell them
            mask = self.mask(key)
            mask.require_editable()
            require_within(self.root, mask.place.path.parent, self.item(key).name)
            mask.reopen()
            self._note(key, mask)

    def keep_labels(self, key: str) -> None:
        """Write the labels down before an image is painted on, where only the masks tell them.

        Else the next mask that another program adds could number them anew, and what was painted would mean another.

        Raises:
            InputError: the file that is there cannot be read.
        """
        with self.lock:
            if not self._are_written and len(self.dataset.labels) > 1 and not self.place(self.item(key)).why_not:
                self._write_down_labels()

    def save_changes(self, *, at_once: bool = False) -> dict[str, str]:
        """Write finished masks that were painted since; return what went wrong, in words, by the ids of the images.

        Args:
            at_once: whether to write also those that were painted a moment ago.
        """
        wrong = {}
        with self.lock:
            waiting = [(key, mask) for key, mask in self._masks.items() if mask.changed is not None]
        for key, mask in waiting:
            since, known = time.monotonic() - (mask.changed or 0), mask.problem
            if mask.state == "done" and (at_once or since >= _SAVE_AFTER):
                try:
                    self.finish(key)
                except InputError as error:
                    mask.problem, wrong[key] = error.found, str(error)
                except Exception as error:  # one mask never keeps the others from being written
                    said = getattr(error, "strerror", None) or f"an error of the page, {type(error).__name__}"
                    mask.problem, wrong[key] = said, f"{mask.item.name}: its mask could not be written: {said}"
                self.revision += mask.problem != known
        return wrong

    def require_saved(self) -> None:
        """Write all finished masks as they are now.

        Raises:
            InputError: one cannot be written: what is made of the files would be made of what was there before.
        """
        for key, item in list(self._items.items()):
            if item.masks and key not in self._masks and Versions(self.home(key)).is_behind():
                self.mask(key)  # the server was killed before it could write it
        for key, text in self.save_changes(at_once=True).items():
            raise InputError(
                self.item(key).name,
                expected="a finished mask in the folder as it was painted",
                found="one that cannot be written",
                do=f"Mend that first. {text}",
            )

    def said(self) -> list[str]:
        """Return what the user should know and has not been told, once."""
        with self.lock:
            said, self._said = self._said, []
            return said

    def watch(self) -> bool:
        """Take over masks and labels that another program has written since; return whether there are any.

        Raises:
            InputError: the labels cannot be read; nothing is taken over then.
        """
        with self.lock:
            news = self._watched.news()
            if not news:
                return False
            if self._description in news:
                require_readable(self._description)
            self._take_over()
            return True

    def picture_stamp(self, key: str, prediction: Path | None = None) -> str:
        """Return what the small picture of an image is known by: another as soon as it shows anything else."""
        item = self.item(key)
        home = self.home(key)
        shown = [prediction] if prediction else [*item.masks, *(home.iterdir() if home.is_dir() else ())]
        files_shown = [*(file for source in item.images for file in files_of(source)), *shown]
        states = [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files_shown if path.exists()]
        return id_of(repr((str(self.root), key, sorted(states))))

    def place(self, item: Item) -> Place:
        """Return where the mask of an image is written."""
        return place_in(self.dataset, item)

    def touch(self) -> None:
        """Say that the page should look again."""
        with self.lock:
            self.revision += 1

    def labels(self) -> list[dict[str, Any]]:
        """Return name, value and colour of each class, background first."""
        labels = self.dataset.labels
        colours = self._colours.of(labels)
        return [
            {"name": name, "value": value, "colour": colour}
            for (name, value), colour in zip(labels.items(), colours, strict=True)
        ]

    def add_label(self, name: str, colour: str | None = None) -> None:
        """Add a label behind the others, in a colour (``#rrggbb``) if one is given; see `medsaga.app.labels.added`."""
        with self.lock:
            self._read_labels()
            labels = added(self.dataset.labels, name)
            self._set_labels(labels)
            self._colours.choose(list(labels)[-1], colour)
            self.revision += 1

    def change_label(self, value: int, name: str | None = None, colour: str | None = None) -> None:
        """Give a label another name or colour (``#rrggbb``), whichever is given.

        Raises:
            InputError: there is no such label, the name cannot be given, or the names stand in the masks.
        """
        with self.lock:
            self._read_labels()
            before = name_of(self.dataset.labels, value)
            labels = self.dataset.labels if name is None else renamed(self.dataset.labels, value, name)
            if labels != self.dataset.labels:
                if any(item.structures or item.names for item in self._items.values()):
                    raise InputError(
                        "the labels", expected="the names in the masks", found="others", do="Rename them in the masks."
                    )
                self._set_labels(labels)
                self._colours.rename(before, name_of(labels, value))
            self._colours.choose(name_of(labels, value), colour)
            self.revision += 1

    def home(self, key: str) -> Path:
        """Return where what is painted on an image is kept."""
        return self.own / "masks" / key

    def _found(self) -> Dataset:
        """Return the dataset as it is in the folder, and note its images."""
        self._watched.take()
        dataset = read_dataset(self.root, masks_required=False)
        if not dataset.items:
            none = InputError(self.root, expected="images", found="none", do="Choose another folder.")
            raise dataset.problems[0] if dataset.problems else none
        self._items = {id_of(item.name): item for item in dataset.items}
        self._are_written = False
        return dataset

    def _take_over(self) -> None:
        """Take the folder as it is now, after all that was painted has been written."""
        self.save_changes(at_once=True)
        # Finished ones that cannot be written now stay; strokes of the others are in their journals.
        for key in [each for each, mask in self._masks.items() if not (mask.changed and mask.state == "done")]:
            self._drop(key, wait=True)
        before, self.dataset = list(self.dataset.labels.items()), self._found()
        if list(self.dataset.labels.items())[: len(before)] != before:
            self.meaning = _meaning(self.dataset)
        self._masks = {key: mask for key, mask in self._masks.items() if key in self._items}
        for mask in self._masks.values():
            mask.set_values(self.dataset.label_values)
        self.revision += 1

    def _drop(self, key: str, *, wait: bool = False) -> None:
        """Keep a label map no longer in memory; one that is being changed only after that, or not at all."""
        mask = self._masks[key]
        if mask.lock.acquire(blocking=wait):
            mask.dropped = True
            del self._masks[key]
            mask.lock.release()

    def _note(self, key: str, mask: PaintedMask) -> None:
        """Take note of a mask that has been written or removed here."""
        before, item = self._items[key], mask.item
        self._items[key] = dataclasses.replace(before, masks=item.masks, structures=item.structures, names=item.names)
        self.dataset = dataclasses.replace(self.dataset, items=tuple(self._items.values()))
        for path in {*before.masks, *item.masks}:
            self._watched.note(path)
        self.revision += 1

    def _require_files_within(self, item: Item) -> None:
        for path in (*(file for source in item.images for file in files_of(source)), *item.masks):
            require_within(self.root, path, item.name)

    def _read_labels(self) -> None:
        """Take over labels that another program has written since: they must not go with the next change here."""
        if not self._watched.is_known(self._description):
            require_readable(self._description)
            self._take_over()

    def _write_down_labels(self) -> None:
        if not self._are_written and not are_written(self._description):
            self._describe(self.dataset.labels)
            self.dataset = dataclasses.replace(self.dataset, inferred=False)
        self._are_written = True

    def _set_labels(self, labels: dict[str, int]) -> None:
        self._describe(labels)
        named = tuple(labels.items())
        self._items = {k: dataclasses.replace(i, names=named) if i.names else i for k, i in self._items.items()}
        items = tuple(self._items.values())
        self.dataset = dataclasses.replace(self.dataset, labels=labels, items=items, inferred=False)
        for mask in self._masks.values():
            mask.set_values(self.dataset.label_values)

    def _describe(self, labels: dict[str, int]) -> None:
        write(self._description, labels, self.own / f"before.{DESCRIPTION}")
        self._watched.note(self._description)


def _meaning(dataset: Dataset) -> str:
    return id_of(repr(list(dataset.labels.items())))
