"""Which files a prediction writes, and whether they may be written: decided before the first image is segmented."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medsaga import files
from medsaga.data.formats import is_image, stem
from medsaga.data.labels import listed
from medsaga.data.outputs import SUFFIXES, kind_of, probabilities_suffix, suffix_for
from medsaga.data.sources import files_of
from medsaga.data.types import Item, Series
from medsaga.errors import InputError
from medsaga.prediction.record import Written

OVERLAY = "_overlay.png"
PROBABILITIES = "_probabilities"
_SHOWN = 3
_BYTES_OF_A_PROBABILITY = 4
_LIKELY_COMPRESSION = 8
"""Room is asked for only where it surely lacks: smooth probabilities shrink to about an eighth."""


@dataclass(frozen=True)
class Target:
    """What is written of one image.

    Attributes:
        item: the image, under the name of its label map: what tables say of a case stands beside the file of that name.
        labels: the label map.
        kind: what it is written as; see `medsaga.data.outputs.kind_of`.
        overlay: the picture, if it is wanted.
        probabilities: the file of them, if they are wanted.
        not_wanted: the names that the other files would have; an earlier call may have written them.
    """

    item: Item
    labels: Path
    kind: str
    overlay: Path | None
    probabilities: Path | None
    not_wanted: tuple[Path, ...] = ()

    @property
    def paths(self) -> list[Path]:
        """All of the files."""
        return [path for path in (self.labels, self.overlay, self.probabilities) if path is not None]


def is_one_image(items: Sequence[Item], sources: Sequence[Path], total: int) -> bool:
    """Return whether the user named a single image or series, rather than several or a folder.

    Args:
        items: the images that can be read.
        sources: what the user named.
        total: number of images, with those that cannot be read.
    """
    # The folder of a DICOM series is one image, a folder with one file is still a folder.
    one = total == len(items) == len(sources) == 1
    return one and (not sources[0].is_dir() or isinstance(items[0].images[0], Series))


def is_one_file(out: Path, total: int, *, one_image: bool) -> bool:
    """Return whether ``out`` names the label map of a single image, rather than a folder for label maps.

    Args:
        out: what the user named.
        total: number of images, with those that cannot be read.
        one_image: see `is_one_image`.

    Raises:
        InputError: it names a file, and a folder is needed.
    """
    if not one_image and not out.is_dir() and (is_image(out) or out.name.lower().endswith(SUFFIXES["seg"])):
        raise InputError(
            "--out",
            expected=f"a folder for the label maps of {total} images" if total > 1 else "a folder",
            found=f"{out}, which names a file",
            do="Name a folder; or name one image, not the folder that it lies in.",
        )
    return one_image and out.suffix != "" and not out.is_dir()


def targets_of(
    items: Sequence[Item], out: Path, asked: str, *, one_file: bool, overlay: bool, probabilities: bool
) -> list[Target]:
    """Name what is written of every item.

    Args:
        items: the images.
        out: the folder, or the label map if ``one_file``.
        asked: one of `medsaga.data.outputs.KINDS`.
        one_file: see `is_one_file`.
        overlay: whether pictures are wanted.
        probabilities: whether they are.

    Raises:
        InputError: a label map cannot be written in the format that is asked for.
    """
    targets = []
    for item in items:
        kind = kind_of(item, asked, out if one_file else None)
        suffix = suffix_for(kind, item.images[0])
        soft = f"{PROBABILITIES}{probabilities_suffix(item)}"
        if one_file:
            labels = out
            name = out.stem if out.suffix.lower() == ".dcm" else stem(out)
        else:
            longest = max(len(each) for each in (suffix, OVERLAY, soft))
            name = files.shortened(item.name, files.longest_name(out) - longest)
            labels = out / f"{name}{suffix}"
        picture, chances = labels.with_name(f"{name}{OVERLAY}"), labels.with_name(f"{name}{soft}")
        targets.append(
            Target(
                replace(item, name=name),
                labels,
                kind,
                picture if overlay else None,
                chances if probabilities else None,
                tuple(path for path, wanted in ((picture, overlay), (chances, probabilities)) if not wanted),
            )
        )
    return targets


def require_free(
    targets: Sequence[Target], tables: Sequence[Path], record: Written, *, overwrite: bool, classes: int
) -> None:
    """Check that everything that is to be written can be, and that nothing is lost by it.

    Args:
        targets: of all images.
        tables: the other files that are written.
        record: what medsaga wrote into the folder earlier.
        overwrite: whether files that medsaga did not write may be overwritten; inputs never are.
        classes: number of classes, background included.

    Raises:
        InputError: the folder cannot be written to, the disk is full, two outputs are one file, or one is an input or
            a file that medsaga did not write.
    """
    folder = targets[0].labels.parent
    files.require_writable(folder)
    paths = [path for target in targets for path in target.paths] + list(tables)
    for path in paths:
        files.require_name(path)
    require_distinct(paths, ignores_case=folder.is_dir() and files.ignores_case(folder))
    inputs = [file for target in targets for image in target.item.images for file in files_of(image)]
    names, identities = {file.resolve() for file in inputs}, {_identity(file) for file in inputs}
    for path in paths:
        if path.resolve() in names or (path.exists() and _identity(path) in identities):
            raise InputError(path, expected="an output that is no input", found="an input", do="Choose another --out.")
    there = [path for path in paths if os.path.lexists(path)]
    folders = [path for path in there if path.is_dir()]
    others = [path for path in there if not (overwrite or record.has(path))]
    for lost, what, do in (
        (folders, "folders of these names", "Choose another --out."),
        (
            others,
            "files that medsaga did not write, or that were changed since",
            "Choose another --out, or --overwrite.",
        ),
    ):
        if lost:
            which = listed((path.name for path in lost), _SHOWN)
            raise InputError(folder, expected="a place where no file is lost", found=f"{what}: {which}", do=do)
    voxels = sum(_size(target.item) for target in targets if target.probabilities is not None)
    needed = voxels * classes * _BYTES_OF_A_PROBABILITY // _LIKELY_COMPRESSION
    files.require_room(folder, needed, "the probabilities")


def require_distinct(paths: Iterable[Path], *, ignores_case: bool) -> None:
    """Check that no two of the files are one.

    A file system that ignores case (macOS, Windows, their shares) mostly ignores how umlauts are composed, too.

    Args:
        paths: files of one folder.
        ignores_case: whether its file system does; see `medsaga.files.ignores_case`.

    Raises:
        InputError: two are.
    """
    seen: dict[str, Path] = {}
    for path in paths:
        name = unicodedata.normalize("NFC", path.name).casefold() if ignores_case else path.name
        other = seen.setdefault(name, path)
        if other is not path:
            raise InputError(
                path,
                expected="a name of its own for every output",
                found=f"{other.name} a second time"
                if other.name == path.name
                else f"{other.name}, the same file there",
                do="Rename one of the images, or predict them into different folders.",
            )


def _identity(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_dev, state.st_ino


def _size(item: Item) -> int:
    size = 1
    for length in item.header.grid.shape:
        size *= length
    return size
