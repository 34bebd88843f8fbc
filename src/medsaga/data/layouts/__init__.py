"""The layouts of a dataset: which module reads which kind of folder.

A layout is one module that offers what `Layout` lists. Adding one means writing the module, with the help of
`medsaga.data.layouts.finding`, `labelling` and `checks`, and naming it in `LAYOUTS`. Only names and headers are read
here, except that a plain folder without ``dataset.json`` tells its labels by its masks alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from medsaga.data.layouts import brats, decathlon, dicom, folder, nnunet, transunet
from medsaga.data.layouts.finding import IMAGE_FOLDERS, MASK_FOLDERS, subfolders
from medsaga.data.names import normal
from medsaga.data.types import Dataset


class Layout(Protocol):
    """What a layout's module offers."""

    EXPECTED: str
    """What such a folder holds, in a few words, for the message to somebody whose folder is none."""

    def recognises(self, root: Path) -> bool:
        """Whether a folder is meant to be of this layout, by the names in it, however much of it is wrong."""

    def read(self, root: Path, *, masks_required: bool) -> Dataset:
        """Find the items, those without masks too; what is wrong goes into the dataset's ``problems``.

        Items are compared with each other, and masks with images, by whoever calls this.
        """


LAYOUTS: tuple[Layout, ...] = (decathlon, nnunet, dicom, folder, transunet, brats)
"""In the order in which they are tried."""

_PARTS = (*IMAGE_FOLDERS, *MASK_FOLDERS, "imagestr", "labelstr", "imagests", "train_npz", "test_vol_h5")
_MOST_FOLDERS = 100


def layout_of(root: Path) -> Layout | None:
    """Return the first layout that recognises a folder."""
    return next((layout for layout in LAYOUTS if layout.recognises(root)), None)


def datasets_near(root: Path) -> list[Path]:
    """Return the datasets in a folder that is none itself and in the folders in it, or the one that it is a part of."""
    if normal(root.name).casefold() in _PARTS and layout_of(root.parent):
        return [root.parent]
    inside = subfolders(root)[:_MOST_FOLDERS]
    return [folder for folder in inside if layout_of(folder)] or [
        folder for each in inside for folder in subfolders(each)[:_MOST_FOLDERS] if layout_of(folder)
    ]
