"""The folder that is open: its images, their masks and labels, and the runs that were made of it.

A dataset stays what it is, in its layout: a case that is finished on the page has its mask where the command line looks
for it. What the page itself needs lies in a hidden folder beside the images.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medsaga import files, run_folder
from medsaga.app.masks import PaintedMask, Place, State
from medsaga.app.slices import Images, OpenImage
from medsaga.colours import label_colours
from medsaga.data.dataset import read_dataset
from medsaga.data.descriptions import file_ending, read_description
from medsaga.data.formats import format_of, itk, labels_suffix, stem, suffix_of
from medsaga.data.labels import parse_labels
from medsaga.data.layouts.finding import masks_folder, subfolders
from medsaga.data.layouts.labelling import DESCRIPTION
from medsaga.data.names import normal
from medsaga.data.sources import files_of
from medsaga.data.types import Dataset, Item
from medsaga.errors import InputError

OWN = ".medsaga"
"""The page's folder in the dataset: versions of masks, journals, the data of runs, colours."""
RUNS = "runs"
_EDITABLE = ("folder", "nnunet", "decathlon", "dicom")
_OPEN_MASKS = 4
_SAVE_AFTER = 1.0
"""Seconds after the last stroke in which a finished mask is written again."""
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_LONGEST_LABEL = 60


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
        self._lock = threading.RLock()
        self._masks: dict[str, PaintedMask] = {}
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
            self._require_within(item)
        return self.images.of(key, item)

    def mask(self, key: str) -> PaintedMask:
        """Return the label map of an image, open to be painted.

        Raises:
            InputError: it cannot be read, or a link leads out of the folder.
        """
        with self._lock:
            item = self.item(key)
            if key not in self._masks:
                self._require_within(item)
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
        """Take over masks that another program has written since; return whether there are any."""
        with self._lock:
            seen = self._look()
            if seen == self._seen:
                return False
            self.save_changes(at_once=True)
            self._masks = {key: mask for key, mask in self._masks.items() if mask.changed is not None}
            self._read()
            self.revision += 1
            return True

    def place(self, item: Item) -> Place:
        """Return where the mask of an image is written."""
        layout, source = self.dataset.layout, item.images[0]
        old = item.masks[0] if item.masks else None
        if layout not in _EDITABLE:
            return Place(self.root, f"data in the layout {layout}, whose masks lie in shared files")
        if item.structures or len(item.masks) > 1:
            return Place(self.root, "a file for each structure")
        if layout == "nnunet":
            folder = self.root / "labelsTr"
            suffix = file_ending(self.root / DESCRIPTION, read_description(self.root / DESCRIPTION))
        elif layout == "decathlon":
            folder, suffix = self.root / "labelsTr", ".nii.gz"
        else:
            folder = masks_folder(self.root, [])
            suffix = labels_suffix(source) if isinstance(source, Path) else _suffix_for(item)
        if old is not None and not item.names and _can_rewrite(old, item):
            return Place(old)
        return Place(folder / f"{self._mask_name(item)}{suffix}")

    def touch(self) -> None:
        """Say that the page should look again."""
        with self._lock:
            self.revision += 1

    def labels(self) -> list[dict[str, Any]]:
        """Return name, value and colour of each class, background first."""
        chosen = self._settings().get("colours", {})
        usual = ["#" + bytes(rgb).hex() for rgb in label_colours(len(self.dataset.labels) - 1)]
        return [
            {"name": name, "value": value, "colour": chosen.get(name, colour)}
            for (name, value), colour in zip(self.dataset.labels.items(), ["#000000", *usual], strict=True)
        ]

    def set_labels(self, wanted: Sequence[dict[str, Any]]) -> None:
        """Name labels: those that there are, in their order, and new ones behind them.

        Args:
            wanted: ``name`` and ``colour`` (``#rrggbb``) of each, without the background.

        Raises:
            InputError: a name is empty, too long or given twice, or a label is missing.
        """
        with self._lock:
            before = [pair for pair in self.dataset.labels.items() if pair[1] != 0]
            names = [normal(str(entry.get("name", ""))) for entry in wanted]
            colours = [str(entry.get("colour", "")).lower() for entry in wanted]
            if len(names) < len(before) or len(names) > 254:
                raise InputError("the labels", expected="all that there are", found=f"{len(names)}", do="Load again.")
            for name in names:
                if not name or len(name) > _LONGEST_LABEL or names.count(name) > 1 or name.lower() == "background":
                    raise InputError(
                        "the labels",
                        expected=f"a name of its own of at most {_LONGEST_LABEL} characters for each",
                        found=repr(name),
                        do="Choose another name.",
                    )
            highest = max((value for _, value in before), default=0)
            values = [value for _, value in before] + [highest + 1 + index for index in range(len(names) - len(before))]
            labels = {"background": 0} | dict(zip(names, values, strict=True))
            renamed = names[: len(before)] != [name for name, _ in before]
            if renamed and any(item.structures or item.names for item in self._items.values()):
                raise InputError(
                    "the labels", expected="the names in the masks", found="others", do="Rename them in the masks."
                )
            if labels != self.dataset.labels:
                self._describe(labels)
                named = tuple(labels.items())
                items = {k: dataclasses.replace(i, names=named) if i.names else i for k, i in self._items.items()}
                self._items = items
                self.dataset = dataclasses.replace(
                    self.dataset, labels=labels, items=tuple(items.values()), inferred=False
                )
                for mask in self._masks.values():
                    mask.set_values(self.dataset.label_values)
            kept = {name: c for name, c in zip(names, colours, strict=True) if _COLOUR.fullmatch(c)}
            files.write_json(self.own / "page.json", self._settings() | {"colours": kept})
            self.revision += 1

    def runs(self) -> dict[str, Path]:
        """Return the run folders by their ids, the oldest first."""
        found = [folder for folder in subfolders(self.root / RUNS) if (folder / run_folder.CONFIG).is_file()]
        if self._run is not None and self._run not in found:
            found.insert(0, self._run)
        return {id_of(str(folder)): folder for folder in sorted(found, key=_made)}

    def new_run(self) -> Path:
        """Return a run folder to be, which does not exist."""
        number = 1
        while (self.root / RUNS / f"run{number}").exists() or (self.own / "sets" / f"run{number}").exists():
            number += 1
        return self.root / RUNS / f"run{number}"

    def _home(self, key: str) -> Path:
        return self.own / "masks" / key

    def _read(self) -> None:
        self.dataset = read_dataset(self.root, masks_required=False)
        if not self.dataset.items:
            raise self.dataset.problems[0] if self.dataset.problems else _no_images(self.root)
        self._items = {id_of(item.name): item for item in self.dataset.items}
        self._seen = self._look()

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

    def _require_within(self, item: Item) -> None:
        for path in (*(file for source in item.images for file in files_of(source)), *item.masks):
            if not path.resolve().is_relative_to(self.root):
                raise InputError(
                    item.name,
                    expected="files of the folder that was opened",
                    found="a link that leads out of it",
                    do="Copy the file into the folder, or open the folder that it lies in.",
                )

    def _mask_name(self, item: Item) -> str:
        """Return the name of a new mask: that of the image, with the addition that the other masks have."""
        for other in self._items.values():
            if other.masks and not other.structures:
                name = stem(other.masks[0]) if suffix_of(other.masks[0]) else other.masks[0].stem
                if name != other.name and other.name in name:
                    return name.replace(other.name, item.name, 1)
        return item.name

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

    def _settings(self) -> dict[str, Any]:
        path = self.own / "page.json"
        return dict(files.read_json(path)) if path.exists() else {}


def id_of(name: str) -> str:
    """Return what stands for a name in addresses: names of files may be names of people."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _suffix_for(item: Item) -> str:
    return ".png" if item.header.grid.affine is None else ".nii.gz"


def _can_rewrite(mask: Path, item: Item) -> bool:
    """Whether a mask can be written again in its format, on the grid of its image."""
    suffix = suffix_of(mask)
    if suffix is None:
        return False
    form, source = format_of(mask), item.images[0]
    if isinstance(source, Path) and form is format_of(source):
        return suffix not in (".jpg", ".jpeg")
    return form is not itk and suffix in (".nii.gz", ".nii") and item.header.grid.affine is not None


def _made(run: Path) -> tuple[float, str]:
    path = run / run_folder.CONFIG
    return path.stat().st_mtime if path.exists() else 0.0, run.name


def _no_images(root: Path) -> InputError:
    return InputError(root, expected="images", found="none", do="Choose another folder.")
