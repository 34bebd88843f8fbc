"""The folder that is open: its images, their masks and labels, and the runs that were made of it.

A dataset stays what it is, in its layout: a case that is finished on the page has its mask where the command line looks
for it. What the page itself needs lies in a hidden folder beside the images.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from medsaga import files, run_folder
from medsaga.app.labels import Colours, added, name_of, renamed
from medsaga.app.masks import PaintedMask, State
from medsaga.app.places import Place, place_in
from medsaga.app.slices import Images, OpenImage
from medsaga.data.dataset import read_dataset
from medsaga.data.descriptions import read_description
from medsaga.data.labels import parse_labels
from medsaga.data.layouts.finding import masks_folder, subfolders
from medsaga.data.layouts.labelling import DESCRIPTION
from medsaga.data.sources import files_of
from medsaga.data.types import Dataset, Item
from medsaga.errors import InputError

OWN = ".medsaga"
"""The page's folder in the dataset: versions of masks, journals, the data of runs, colours."""
RUNS = "runs"
_OPEN_MASKS = 4
_SAVE_AFTER = 1.0
"""Seconds after the last stroke in which a finished mask is written again."""


class Project:
    """A dataset that is open.

    Args:
        root: its folder.
        run: a run folder that lies elsewhere and is shown among the runs.

    Attributes:
        root: its folder, resolved.
        dataset: as it is now; of images without masks, too.
        images: decoded ones.
        revision: grows with every change that the page should show.

    Raises:
        InputError: the folder is no dataset, or holds no image that can be read.
    """

    def __init__(self, root: Path, run: Path | None = None) -> None:
        self.root = root.resolve()
        self.images = Images()
        self.revision = 1
        self._run = run
        self._colours = Colours(self.own / "page.json")
        self._lock = threading.RLock()
        self._masks: dict[str, PaintedMask] = {}
        self._promised: set[str] = set()
        self._seen: dict[str, tuple[int, int]]
        self._glimpsed: dict[str, tuple[int, int]]
        self._items: dict[str, Item] = {}
        self.dataset: Dataset
        self._read()

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
        if not self.images.has(key):
            self._require_files_within(item)
        return self.images.of(key, item)

    def mask(self, key: str) -> PaintedMask:
        """Return the label map of an image, open to be painted.

        Raises:
            InputError: it cannot be read, or a link leads out of the folder.
        """
        with self._lock:
            item = self.item(key)
            if key not in self._masks:
                self._require_files_within(item)
                painted = PaintedMask(item, self._home(key), self.place(item), self.dataset.label_values)
                idle = [each for each, mask in self._masks.items() if mask.changed is None]
                for each in idle[: max(0, len(self._masks) + 1 - _OPEN_MASKS)]:
                    del self._masks[each]
                self._masks[key] = painted
            # The one that was asked for last goes last.
            self._masks[key] = self._masks.pop(key)
            return self._masks[key]

    def state(self, key: str) -> State:
        """Return how far the labelling of an image is, without decoding anything."""
        if self.item(key).masks:
            return "done"
        return "draft" if (self._home(key) / "versions.json").exists() else "none"

    def finish(self, key: str) -> None:
        """Write the mask of an image into the dataset.

        Raises:
            InputError: it cannot be written.
        """
        with self._lock:
            mask = self.mask(key)
            if len(self.dataset.labels) < 2:
                raise InputError(
                    "the labels", expected="at least one label", found="none", do="Name what you outline first."
                )
            if self.dataset.inferred or not (self.root / DESCRIPTION).exists():
                self._describe(self.dataset.labels)
            self._require_within(mask.place.path.parent, self.item(key).name)
            path = mask.save()
            changed = dataclasses.replace(self.item(key), masks=(path,), structures=(), names=())
            self._items[key] = changed
            self.dataset = dataclasses.replace(self.dataset, items=tuple(self._items.values()), inferred=False)
            self._seen = self._look()
            self.revision += 1

    def save_changes(self, *, at_once: bool = False) -> list[str]:
        """Write finished masks that were painted since; return what went wrong, in words.

        Args:
            at_once: whether to write also those that were painted a moment ago.
        """
        said = []
        with self._lock:
            waiting = [(key, mask) for key, mask in self._masks.items() if mask.changed is not None]
        for key, mask in waiting:
            since = time.monotonic() - (mask.changed or 0)
            if mask.state == "done" and (at_once or since >= _SAVE_AFTER):
                try:
                    self.finish(key)
                except (InputError, OSError) as error:
                    said.append(str(error))
        return said

    def watch(self) -> bool:
        """Take over masks that another program has written since; return whether there are any.

        A file counts when two looks, one after the other, find it the same: it may still be being written.
        """
        with self._lock:
            seen, glimpsed = self._look(), self._glimpsed
            self._glimpsed = seen
            if seen == self._seen or seen != glimpsed:
                return False
            self.save_changes(at_once=True)
            # Finished ones that cannot be written now stay; strokes of the others are in their journals.
            self._masks = {k: mask for k, mask in self._masks.items() if mask.changed and mask.state == "done"}
            self._read()
            self.revision += 1
            return True

    def picture_stamp(self, key: str, prediction: Path | None = None) -> str:
        """Return what the small picture of an image is known by: another as soon as it shows anything else."""
        item = self.item(key)
        home = self._home(key)
        shown = [prediction] if prediction else [*item.masks, *(home.iterdir() if home.is_dir() else ())]
        files_shown = [*(file for source in item.images for file in files_of(source)), *shown]
        states = [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files_shown if path.exists()]
        return id_of(repr((str(self.root), key, sorted(states))))

    def place(self, item: Item) -> Place:
        """Return where the mask of an image is written."""
        return place_in(self.dataset, item)

    def touch(self) -> None:
        """Say that the page should look again."""
        with self._lock:
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
        with self._lock:
            labels = added(self.dataset.labels, name)
            self._set_labels(labels)
            self._colours.choose(list(labels)[-1], colour)
            self.revision += 1

    def change_label(self, value: int, name: str | None = None, colour: str | None = None) -> None:
        """Give a label another name or colour (``#rrggbb``), whichever is given.

        Raises:
            InputError: there is no such label, the name cannot be given, or the names stand in the masks.
        """
        with self._lock:
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

    def runs(self) -> dict[str, Path]:
        """Return the run folders by their ids, the oldest first."""
        found = [folder for folder in subfolders(self.root / RUNS) if (folder / run_folder.CONFIG).is_file()]
        if self._run is not None and self._run not in found:
            found.insert(0, self._run)
        return {id_of(str(folder)): folder for folder in sorted(found, key=_made)}

    def new_run(self) -> Path:
        """Return a run folder to be, which does not exist, nor has been returned before: its training may wait."""
        with self._lock:
            number = 1
            while f"run{number}" in self._promised or any(
                (folder / f"run{number}").exists() for folder in (self.root / RUNS, self.own / "sets")
            ):
                number += 1
            self._promised.add(f"run{number}")
            return self.root / RUNS / f"run{number}"

    def _home(self, key: str) -> Path:
        return self.own / "masks" / key

    def _read(self) -> None:
        self.dataset = read_dataset(self.root, masks_required=False)
        if not self.dataset.items:
            raise self.dataset.problems[0] if self.dataset.problems else _no_images(self.root)
        self._items = {id_of(item.name): item for item in self.dataset.items}
        self._seen = self._glimpsed = self._look()

    def _look(self) -> dict[str, tuple[int, int]]:
        """Return when the masks were written, and how large they are."""
        folders = {self.root / "labelsTr", masks_folder(self.root, [])}
        found = {}
        for folder in folders:
            for path in folder.glob("*") if folder.is_dir() else ():
                if not path.name.startswith(".") and path.is_file():
                    state = path.stat()
                    found[str(path)] = (state.st_mtime_ns, state.st_size)
        return found

    def _require_files_within(self, item: Item) -> None:
        for path in (*(file for source in item.images for file in files_of(source)), *item.masks):
            self._require_within(path, item.name)

    def _require_within(self, path: Path, name: str) -> None:
        if not path.resolve().is_relative_to(self.root):
            raise InputError(
                name,
                expected="files of the folder that was opened",
                found="a link that leads out of it",
                do="Copy the files into the folder, or open the folder that they lie in.",
            )

    def _set_labels(self, labels: dict[str, int]) -> None:
        self._describe(labels)
        named = tuple(labels.items())
        self._items = {k: dataclasses.replace(i, names=named) if i.names else i for k, i in self._items.items()}
        items = tuple(self._items.values())
        self.dataset = dataclasses.replace(self.dataset, labels=labels, items=items, inferred=False)
        for mask in self._masks.values():
            mask.set_values(self.dataset.label_values)

    def _describe(self, labels: dict[str, int]) -> None:
        """Write the labels into ``dataset.json``, the first time with a copy of what was there."""
        path = self.root / DESCRIPTION
        document = dict(read_description(path)) if path.exists() else {}
        kept = self.own / f"before.{DESCRIPTION}"
        if path.exists() and not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            with files.replacing(kept) as temporary:
                shutil.copyfile(path, temporary)
        document["labels"] = labels
        parse_labels(path, document)
        files.write_json(path, document)


def id_of(name: str) -> str:
    """Return what stands for a name in addresses: names of files may be names of people."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _made(run: Path) -> tuple[float, str]:
    path = run / run_folder.CONFIG
    return path.stat().st_mtime if path.exists() else 0.0, run.name


def _no_images(root: Path) -> InputError:
    return InputError(root, expected="images", found="none", do="Choose another folder.")
