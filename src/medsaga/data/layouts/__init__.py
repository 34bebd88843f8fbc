"""The layouts of a dataset: which module reads which kind of folder.

A layout is one module that offers what `Layout` lists. Adding one means writing the module, with the help of
`medsaga.data.layouts.shared`, and naming it in `LAYOUTS`. Only names and headers are read here, except that a plain
folder without ``dataset.json`` tells its labels by its masks alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from medsaga.data.layouts import brats, dicom, folder, nnunet, transunet
from medsaga.data.types import Dataset


class Layout(Protocol):
    """What a layout's module offers."""

    EXPECTED: str
    """What such a folder holds, in a few words, for the message to somebody whose folder is none."""

    def recognises(self, root: Path) -> bool:
        """Whether a folder is meant to be of this layout, by the names in it, however much of it is wrong."""

    def read(self, root: Path, *, masks_required: bool) -> Dataset:
        """Find the items; what is wrong goes into the dataset's ``problems``."""


LAYOUTS: tuple[Layout, ...] = (nnunet, dicom, folder, transunet, brats)
"""In the order in which they are tried."""
