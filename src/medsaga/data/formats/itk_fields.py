"""What the headers of NRRD and MetaImage have in common: lines of named fields, and a grid that they place.

They are parsed here once, and the voxels are read by what was found. Handing a checked file to another reader would
have it parsed twice: readers differ in which of two ``DimSize`` lines counts, and a check of the other one is none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from medsaga.data.bounds import MOST_ITK_HEADER_BYTES, MOST_ITK_HEADER_LINES, SPACING_LIMITS_MM
from medsaga.data.types import Grid
from medsaga.errors import InputError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
MM_PER_UNIT = {"m": 1e3, "cm": 10.0, "mm": 1.0, "um": 1e-3, "µm": 1e-3, "μm": 1e-3, "nm": 1e-6}
"""mm per unit of length, by the names in NRRD's ``space units`` and MetaImage's ``DistanceUnits``; others are mm."""


Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Stored:
    """What a header says of the voxels in its file, checked against the size of the file.

    Attributes:
        shape: sizes of all axes, the fastest first.
        spatial: which of them are i, j and k; i and j in a file of a 2-D image.
        dtype: with the byte order of the file.
        offset: where the voxels start, in bytes.
        is_compressed: by deflate, as a gzip or a zlib stream.
        grid: (i, j, k); a 2-D image is one slice, and ``flat``.
        unit: the name of the file's unit of length; ``grid`` is in mm.
        notes: what the program that wrote the file noted in its header, by the name of the note (NRRD alone).
    """

    shape: tuple[int, ...]
    spatial: tuple[int, ...]
    dtype: np.dtype
    offset: int
    is_compressed: bool
    grid: Grid
    unit: str
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """The number of values per voxel."""
        return math.prod(self.shape) // math.prod(self.grid.shape)

    @property
    def size(self) -> int:
        """Bytes of all voxels, not compressed."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Content:
    """What the header of a new file has to say.

    Attributes:
        dtype: of the voxels, little-endian.
        channels: values per voxel.
        sizes: (i, j, k), or (i, j) of a 2-D image.
        steps: (axes, axes) a step along each axis, as columns, in LPS and ``unit``; None where the image does not say.
        origin: (axes,) the first voxel, likewise.
        unit: a key of `MM_PER_UNIT`.
    """

    dtype: np.dtype
    channels: int
    sizes: tuple[int, ...]
    steps: Matrix | None
    origin: Matrix
    unit: str


class Fields:
    """The fields of a header by name, as text, and what goes wrong with them.

    What a method cannot read it refuses with an `InputError`, as it does a field that is not there.

    Args:
        path: the file, for the messages.
        texts: name to text.
        offset: where the voxels start, in bytes.
    """

    def __init__(self, path: Path, texts: dict[str, str], offset: int) -> None:
        self.path = path
        self.texts = texts
        self.offset = offset

    def refuse(self, name: str, expected: str, do: str = "Export the file again: its header is damaged.") -> InputError:
        """Say what a field should have been."""
        found = repr(self.texts[name][:40]) if name in self.texts else "none"
        return InputError(self.path, expected=f"{expected} as {name} in the header", found=found, do=do)

    def sizes(self, name: str, most: int, count: int | None = None) -> tuple[int, ...]:
        """Return integers from 1 to below 10^15, at most ``most`` of them."""
        tokens = self.texts.get(name, "").split()
        if not 1 <= len(tokens) <= most or len(tokens) != (count or len(tokens)):
            raise self.refuse(name, f"{count or f'1 to {most}'} number(s)")
        if not all(re.fullmatch(r"\+?0*[1-9][0-9]{0,14}", token) for token in tokens):
            raise self.refuse(name, "whole numbers of at least 1")
        return tuple(map(int, tokens))

    def numbers(self, name: str, count: int) -> Matrix:
        """Return ``count`` numbers, finite or not."""
        return np.array(self._floats(name, self.texts.get(name, "").split(), count))

    def vectors(self, name: str, axes: int, space: int) -> list[list[float] | None]:
        """Return one vector, or None for ``none``, per axis."""
        # Anything else becomes tokens of one character, which are no vectors.
        tokens = re.findall(r"\([^()]*\)|none|\S", self.texts.get(name, ""), re.IGNORECASE)
        if len(tokens) != axes:
            raise self.refuse(name, f"{axes} vector(s)")
        return [
            None if token.lower() == "none" else self._floats(name, token.strip("()").split(","), space)
            for token in tokens
        ]

    def is_true(self, name: str) -> bool:
        """Whether it says True, T or 1; not where it is missing."""
        return self.texts.get(name, "")[:1].upper() in ("T", "1")

    def unit(self, name: str) -> str:
        """Return the unit of length, which must be one for all axes; mm where there is none that is known."""
        units = {each for each in re.findall(r'[^\s"]+', self.texts.get(name, "").lower()) if each in MM_PER_UNIT}
        if len(units) > 1:
            raise self.refuse(name, "one unit of length", "Save the file with spacings in mm.")
        return units.pop() if units else "mm"

    def _floats(self, name: str, tokens: list[str], count: int) -> list[float]:
        try:
            values = [float(token) for token in tokens]
        except ValueError:
            values = []
        if len(values) != count:
            raise self.refuse(name, f"{count} number(s)")
        return values


def collect(
    path: Path,
    handle: IO[bytes],
    interpret: Callable[[str], tuple[str, str] | None],
    known: set[str],
    is_last: Callable[[str, str], bool],
) -> Fields:
    """Read the lines of a header, as many as one can have, and keep the fields that count.

    Args:
        path: for the messages.
        handle: at the first line.
        interpret: makes name and text of a line, or None of one that is no field.
        known: the names to keep.
        is_last: of a line and its name, whether voxels follow.

    Raises:
        InputError: a field comes twice, or the last line never.
    """
    texts: dict[str, str] = {}
    for _ in range(MOST_ITK_HEADER_LINES):
        raw = handle.readline(MOST_ITK_HEADER_BYTES)
        if not raw.endswith(b"\n") or handle.tell() > MOST_ITK_HEADER_BYTES:
            break
        line = raw.decode("utf-8", errors="replace").rstrip("\r\n")
        name, text = interpret(line) or ("", "")
        if name in known:
            if name in texts:
                raise InputError(
                    path,
                    expected=f"{name} once in the header",
                    found="it more than once",
                    do="Export the file again: its header is damaged.",
                )
            texts[name] = text.strip()
        if is_last(line, name):
            return Fields(path, texts, handle.tell())
    raise another_kind(path, "a header that ends before its voxels start")


def dtype_of(fields: Fields, name: str, types: dict[str, str], found: str) -> np.dtype:
    """Look up the type of the voxels; its byte order is up to the caller."""
    if found not in types:
        raise fields.refuse(
            name, "integers, 32-bit or 64-bit floating point", "Convert the image, for example to float."
        )
    return np.dtype(types[found])


def spatial_axes(fields: Fields, shape: tuple[int, ...], spatial: list[int]) -> tuple[int, ...]:
    """Return the axes that are i, j and k. A fourth spatial axis is time, which counts as channels, as in NIfTI."""
    rest = [size for axis, size in enumerate(shape) if axis not in spatial[:3] and size > 1]
    if not 2 <= len(spatial) <= 4 or len(rest) > 1:
        is_segmentation = fields.path.name.lower().endswith(".seg.nrrd")
        raise InputError(
            fields.path,
            expected="an image or a volume, or one with channels",
            found=f"{by(shape)}, of which {len(spatial)} axes are spatial",
            do="Export the segments to a labelmap." if is_segmentation else "Save each time point as its own file.",
        )
    return tuple(spatial[:3])


def make_grid(fields: Fields, shape: tuple[int, ...], steps: Matrix | None, origin: Matrix, unit: str) -> Grid:
    """Place the voxels.

    Args:
        fields: for the message.
        shape: (i, j) or (i, j, k).
        steps: (2 to 4 world axes, spatial axes) in RAS, in the file's unit; None where the file does not say.
        origin: (world axes,) likewise.
        unit: a key of `MM_PER_UNIT`.
    """
    shape, flat = (*shape, 1)[:3], len(shape) == 2
    affine = np.eye(4)
    if steps is None:
        affine[:3, :3] = LPS_TO_RAS
        return Grid(shape, None, affine, flat=flat)
    if steps[3:, :3].any() or steps[:3, 3:].any():
        raise _misplaced(fields, "a time that depends on the place")
    steps, origin = steps[:3, :3], origin[:3]
    affine[: len(steps), : steps.shape[1]] = steps
    affine[: len(origin), 3] = origin
    with np.errstate(all="ignore"):
        if steps.shape[1] == 2:
            # The image has no thickness: one unit of length.
            normal = np.cross(affine[:3, 0], affine[:3, 1])
            affine[:3, 2] = normal / np.linalg.norm(normal)
        affine[:3] *= MM_PER_UNIT[unit]
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        least, most = SPACING_LIMITS_MM
        if not np.isfinite(affine).all():
            raise _misplaced(fields, "values that are not finite, or axes without length")
        if not ((spacing >= least) & (spacing <= most)).all():
            raise _misplaced(fields, f"a spacing of {' x '.join(f'{size:g}' for size in spacing)} mm")
        if abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
            raise _misplaced(fields, "axes that lie in one plane")
    return Grid(shape, tuple(float(size) for size in spacing), affine, flat=flat)


def _misplaced(fields: Fields, found: str) -> InputError:
    return InputError(
        fields.path,
        expected="a header that places every voxel, with spacings between 1e-6 and 1e4 mm",
        found=found,
        do="Export the image again, or repair the directions and spacings of its header.",
    )


def another_kind(path: Path, expected: str) -> InputError:
    """Say that a file is not of the kind that its suffix promises."""
    return InputError(
        path,
        expected=expected,
        found="an empty file" if path.stat().st_size == 0 else "another kind of file, or a damaged one",
        do="Export the file again, or give it the suffix of what it is.",
    )


def detached(path: Path, whole: str) -> InputError:
    """Say that the voxels of a file are not in it but should be, as in a file that ends in ``whole``."""
    return InputError(
        path,
        expected="header and voxels in one file",
        found="a header that points to another file",
        do=f"Save the image as {whole}, for example with 3D Slicer.",
    )


def by(shape: tuple[int, ...]) -> str:
    """Return sizes as text."""
    return " x ".join(map(str, shape))


def row(values: Any) -> str:
    """Return numbers as text, apart by spaces, so that reading them gives the same numbers."""
    # Adding 0 makes 0 of -0.
    return " ".join(repr(value + 0) for value in np.asarray(values).tolist())
