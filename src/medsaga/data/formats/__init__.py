"""File formats of images and label maps: which module reads and writes which suffix.

A format is one module that offers what `Format` lists, and what `PiecewiseFormat` adds where volumes may be larger than
the memory. Adding one means writing the module and naming it in `FORMATS`. Everything that a user's file can do wrong
comes out of a format as an `InputError` that names the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from medsaga.data.formats import arrays, itk, nifti, raster
from medsaga.data.names import is_hidden, normal
from medsaga.data.types import Array, Block, Header, Labels
from medsaga.errors import InputError


class Format(Protocol):
    """What a format's module offers. ``shape`` is ``(height, width)`` or ``(i, j, k)`` throughout."""

    SUFFIXES: tuple[str, ...]
    """The suffixes it is responsible for, in lower case, with the leading dot."""
    LABELS_SUFFIXES: tuple[str, ...]
    """Those that label maps can be written with; the first is what they get when the user names none."""
    PROBABILITIES_SUFFIX: str
    """The suffix that probabilities of its images get."""

    def read_header(self, path: Path) -> Header:
        """Return shape, channels, dtype and spacing without decoding the image."""

    def read_image(self, path: Path) -> Array:
        """Return the image, ``(channels, *shape)``, in the units of the file."""

    def read_labels(self, path: Path) -> Labels:
        """Return the label map, ``(*shape)``; the file must hold integers without loss."""

    def write_labels(self, path: Path, labels: Labels, like: Path) -> None:
        """Write ``(*shape)`` labels >= 0 on the grid of the image ``like``."""

    def write_probabilities(self, path: Path, probabilities: npt.NDArray[np.float32], like: Path) -> None:
        """Write ``(classes, *shape)`` float32 probabilities on the grid of the image ``like``."""


@runtime_checkable
class PiecewiseFormat(Format, Protocol):
    """A format whose volumes can be decoded in pieces; the others decode them whole."""

    def read_blocks(self, path: Path, most_bytes: int) -> Iterator[Block]:
        """Yield the volume of `read_image` in pieces of about ``most_bytes``, at least a slice."""


@runtime_checkable
class NamedFormat(Format, Protocol):
    """A format whose masks may name what they outline. Then the names count: the values differ from file to file."""

    def segment_names(self, path: Path) -> tuple[str, ...]:
        """Return the names in a mask, in its order; none where it holds nothing but values."""

    def read_segments(self, path: Path, wanted: Mapping[str, int]) -> tuple[Labels, tuple[str, ...]]:
        """Return the label map, ``(*shape)``, in the values that ``wanted`` gives to the names, and warnings."""


FORMATS: tuple[Format, ...] = (raster, nifti, itk, arrays)
SUFFIXES: tuple[str, ...] = tuple(suffix for each in FORMATS for suffix in each.SUFFIXES)


def suffix_of(path: Path) -> str | None:
    """Return the known suffix of a file in lower case, ``.nii.gz`` whole; None when no format knows it."""
    name = path.name.rstrip().lower()
    return next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(suffix)), None)


def format_of(path: Path) -> Format:
    """Return the format that is responsible for a file, by its suffix.

    Raises:
        InputError: no format knows the suffix.
    """
    suffix = suffix_of(path)
    for each in FORMATS:
        if suffix in each.SUFFIXES:
            return each
    raise InputError(
        path,
        expected=f"a file that ends in one of {', '.join(SUFFIXES)}",
        found=f"the suffix {path.suffix!r}" if path.suffix else "no suffix",
        do="Convert the file to one of these formats.",
    )


def labels_suffix(image: Path) -> str:
    """Return the suffix that the label map of an image gets when the user names none."""
    form = format_of(image)
    # Of a stack of slices PNG would hold one.
    is_stack = form is raster and len(raster.read_header(image).grid.shape) == 3
    return raster.PROBABILITIES_SUFFIX if is_stack else form.LABELS_SUFFIXES[0]


def stem(path: Path) -> str:
    """Return the name of a file without its known suffix, ``case.01`` of ``case.01.nii.gz``; see `normal`."""
    suffix = suffix_of(path)
    return normal(path.stem if suffix is None else path.name.rstrip()[: -len(suffix)])


def is_image(path: Path) -> bool:
    """Whether a format knows the suffix and the file is not hidden."""
    return not is_hidden(path.name) and suffix_of(path) is not None
