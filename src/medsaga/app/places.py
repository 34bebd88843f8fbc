"""Where the mask of an image is written: in the layout of its dataset, under the name that goes with the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medsaga.data.descriptions import file_ending, read_description
from medsaga.data.formats import format_of, itk, labels_suffix, stem, suffix_of
from medsaga.data.layouts.finding import masks_folder
from medsaga.data.layouts.labelling import DESCRIPTION
from medsaga.data.types import Dataset, Item
from medsaga.errors import InputError

_EDITABLE = ("folder", "nnunet", "decathlon", "dicom")


@dataclass(frozen=True)
class Place:
    """Where the mask of an image belongs.

    Attributes:
        path: the file that is written.
        why_not: why it cannot be, in words; empty where it can.
    """

    path: Path
    why_not: str = ""


def place_in(dataset: Dataset, item: Item) -> Place:
    """Return where the mask of an image of a dataset is written."""
    root, layout, source = dataset.root, dataset.layout, item.images[0]
    old = item.masks[0] if item.masks else None
    if layout not in _EDITABLE:
        return Place(root, f"data in the layout {layout}, whose masks lie in shared files")
    if item.structures or len(item.masks) > 1:
        return Place(root, "a file for each structure")
    if layout == "nnunet":
        folder = root / "labelsTr"
        suffix = file_ending(root / DESCRIPTION, read_description(root / DESCRIPTION))
    elif layout == "decathlon":
        folder, suffix = root / "labelsTr", ".nii.gz"
    else:
        folder = masks_folder(root, [])
        suffix = labels_suffix(source) if isinstance(source, Path) else _suffix_for(item)
    if old is not None and not item.names and _can_rewrite(old, item):
        return Place(old)
    return Place(folder / f"{_name_in(dataset, item)}{suffix}")


def require_within(root: Path, path: Path, name: str) -> None:
    """Require that a file or folder of an image of this name lies in the folder that is open, links followed.

    Raises:
        InputError: it does not.
    """
    if not path.resolve().is_relative_to(root):
        raise InputError(
            name,
            expected="files of the folder that was opened",
            found="a link that leads out of it",
            do="Copy the files into the folder, or open the folder that they lie in.",
        )


def _name_in(dataset: Dataset, item: Item) -> str:
    """Return the name of a new mask: that of the image, with the addition that all the other masks have.

    See `medsaga.data.layouts.pairing.paired`: an addition that only some have would part all masks from their images.
    """
    pairs = [(_bare(other.masks[0]), other.name) for other in dataset.items if other.masks and not other.structures]
    if not pairs:
        return item.name
    first, image = pairs[0]
    additions = []
    if first.startswith(image):
        additions.append(("", first.removeprefix(image)))
    if first.endswith(image):
        additions.append((first.removesuffix(image), ""))
    for before, after in additions:
        if all(name == f"{before}{other}{after}" for name, other in pairs):
            return f"{before}{item.name}{after}"
    return item.name


def _bare(mask: Path) -> str:
    return stem(mask) if suffix_of(mask) else mask.stem


def _suffix_for(item: Item) -> str:
    return ".png" if item.header.grid.affine is None else ".nii.gz"


def _can_rewrite(mask: Path, item: Item) -> bool:
    """Whether a mask can be written again in its format, on the grid of its image."""
    suffix = suffix_of(mask)
    if suffix is None:
        return False
    form, source = format_of(mask), item.images[0]
    if isinstance(source, Path) and form is format_of(source):
        return suffix.endswith(form.LABELS_SUFFIXES)
    return form is not itk and suffix in (".nii.gz", ".nii") and item.header.grid.affine is not None
