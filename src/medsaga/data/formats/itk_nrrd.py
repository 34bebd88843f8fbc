"""The headers of NRRD files (``.nrrd``), read and written.

By the definition of the format at teem.sourceforge.net/nrrd/format.html. A file that does not say its space is taken to
be LPS (left, posterior, superior), as ITK and 3D Slicer do.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from medsaga.data.formats.itk_fields import (
    Content,
    Fields,
    Matrix,
    Stored,
    another_kind,
    collect,
    detached,
    dtype_of,
    make_grid,
    row,
    spatial_axes,
)

_TYPES = {
    **dict.fromkeys(("int8", "int8_t", "signed char"), "i1"),
    **dict.fromkeys(("uint8", "uint8_t", "uchar", "unsigned char"), "u1"),
    **dict.fromkeys(("int16", "int16_t", "short", "short int", "signed short", "signed short int"), "i2"),
    **dict.fromkeys(("uint16", "uint16_t", "ushort", "unsigned short", "unsigned short int"), "u2"),
    **dict.fromkeys(("int32", "int32_t", "int", "signed int"), "i4"),
    **dict.fromkeys(("uint32", "uint32_t", "uint", "unsigned int"), "u4"),
    **dict.fromkeys(("int64", "int64_t", "longlong", "long long", "long long int", "signed long long"), "i8"),
    **dict.fromkeys(("uint64", "uint64_t", "ulonglong", "unsigned long long", "unsigned long long int"), "u8"),
    **{"signed long long int": "i8", "float": "f4", "double": "f8"},
}
_SPACES = {
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1.0, -1.0, 1.0)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (1.0, 1.0, 1.0)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1.0, 1.0, 1.0)),
    **dict.fromkeys(("scanner-xyz", "3d-right-handed", "3d-left-handed"), (-1.0, -1.0, 1.0)),
}
"""What makes RAS of each of NRRD's spaces. With ``-time`` (``t``) a fourth axis follows."""
_SPATIAL_KINDS = {"domain", "space", "???", "none"}
_FIELDS = {
    *("type", "dimension", "sizes", "kinds", "encoding", "endian", "datafile", "lineskip", "byteskip"),
    *("space", "spacedimension", "spacedirections", "spaceorigin", "spaceunits"),
    *("spacings", "axismins", "centers", "centerings", "units"),
}


def parse(path: Path, handle: IO[bytes]) -> Stored:
    """Read the header at the start of an open file.

    Raises:
        InputError: it is damaged, or means something that is not supported.
    """
    notes: dict[str, str] = {}
    return replace(_stored(_fields(path, handle, notes)), notes=notes)


def _fields(path: Path, handle: IO[bytes], notes: dict[str, str]) -> Fields:
    if not re.fullmatch(rb"NRRD000[1-9]\r?\n", handle.readline(16)):
        raise another_kind(path, "an NRRD header")

    def interpret(line: str) -> tuple[str, str] | None:
        name, _, text = line.partition(":")
        if line.startswith("#"):
            return None
        # A note of the writer's own, such as the name of a segment.
        if text.startswith("="):
            if notes.setdefault(name, text[1:]) != text[1:]:
                raise another_kind(path, f"{name[:40]} once in the header")
            return None
        return name.replace(" ", "").lower(), text

    return collect(path, handle, interpret, _FIELDS, lambda line, _: not line)


@np.errstate(all="ignore")
def _stored(fields: Fields) -> Stored:
    if "datafile" in fields.texts:
        raise detached(fields.path, ".nrrd")
    for name in ("lineskip", "byteskip"):
        if fields.texts.get(name, "0") != "0":
            raise fields.refuse(name, "0 bytes or lines", "Save the file again, for example with 3D Slicer.")
    encoding = fields.texts.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise fields.refuse("encoding", "raw or gzip", "Save the file again with one of them.")
    (count,) = fields.sizes("dimension", 1)
    shape = fields.sizes("sizes", 5, count)
    dtype = dtype_of(fields, "type", _TYPES, fields.texts.get("type", "").lower())
    if dtype.itemsize > 1:
        order = {"little": "<", "big": ">"}.get(fields.texts.get("endian", "").lower())
        if order is None:
            raise fields.refuse("endian", "little or big")
        dtype = dtype.newbyteorder(order)  # type: ignore[arg-type]
    axes, steps, origin = _geometry(fields, count)
    spatial = spatial_axes(fields, shape, axes)
    unit = fields.unit("spaceunits" if "spacedirections" in fields.texts else "units")
    grid = make_grid(fields, tuple(shape[axis] for axis in spatial), steps, origin, unit)
    return Stored(shape, spatial, dtype, fields.offset, encoding != "raw", grid, unit)


def _geometry(fields: Fields, count: int) -> tuple[list[int], Matrix | None, Matrix]:
    """Return the spatial axes, a step along each as columns, and the first voxel: in RAS, in the file's unit."""
    if "spacedirections" in fields.texts:
        return _directed(fields, count)
    if "space" in fields.texts and "spacings" in fields.texts:
        raise fields.refuse("spacedirections", "a vector per axis", "Save the file again, for example with 3D Slicer.")
    return _spaced(fields, count)


def _directed(fields: Fields, count: int) -> tuple[list[int], Matrix, Matrix]:
    space = fields.texts.get("space", "lps").lower()
    name = re.sub(r"-time$|(?<=^[lr][ap]s)t$", "", space)
    if name not in _SPACES:
        raise fields.refuse("space", "left-posterior-superior, right-anterior-superior or left-anterior-superior")
    if "space" in fields.texts:
        world = 3 if name == space else 4
    else:
        (world,) = fields.sizes("spacedimension", 1)
        if not 2 <= world <= 4:
            raise fields.refuse("spacedimension", "2, 3 or 4")
    to_ras = np.array([*_SPACES[name], 1.0])[:world]
    vectors = fields.vectors("spacedirections", count, world)
    spatial = [axis for axis, vector in enumerate(vectors) if vector is not None]
    steps = np.array([vector for vector in vectors if vector is not None]).reshape(-1, world).T
    (origin,) = fields.vectors("spaceorigin", 1, world) if "spaceorigin" in fields.texts else (None,)
    return spatial, to_ras[:, np.newaxis] * steps, to_ras * (origin or [0.0])


def _spaced(fields: Fields, count: int) -> tuple[list[int], Matrix | None, Matrix]:
    kinds = fields.texts.get("kinds", "domain " * count).lower().split()
    if len(kinds) != count:
        raise fields.refuse("kinds", f"{count} words")
    spatial = [axis for axis, kind in enumerate(kinds) if kind in _SPATIAL_KINDS]
    if "spacings" not in fields.texts:
        return spatial, None, np.zeros(0)
    to_ras = np.array([-1.0, -1.0, 1.0, 1.0, 1.0])[: len(spatial)]
    spacings, first = fields.numbers("spacings", count), np.zeros(count)
    if "axismins" in fields.texts:
        # What it gives is the outer face of the first voxel, unless samples are said to be nodes.
        is_node = "node" in (fields.texts.get("centers") or fields.texts.get("centerings", "")).lower()
        first = fields.numbers("axismins", count) + (0.0 if is_node else 0.5) * spacings
    return spatial, np.diag(to_ras * spacings[spatial]), to_ras * first[spatial]


def header(content: Content) -> bytes:
    """Return a header for gzip-compressed voxels that follow it."""
    axes = len(content.sizes)
    first = [] if content.channels == 1 else ["none"]
    names = {np.dtype(code): name for name, code in reversed(_TYPES.items())}
    lines = [
        "NRRD0004",
        f"type: {names[content.dtype]}",
        f"dimension: {axes + len(first)}",
        f"sizes: {row([content.channels] * len(first) + list(content.sizes))}",
        f"kinds: {' '.join(['vector'] * len(first) + ['domain'] * axes)}",
        "endian: little",
        "encoding: gzip",
    ]
    if content.steps is not None:
        lines += [
            "space: left-posterior-superior" if axes == 3 else "space dimension: 2",
            f"space directions: {' '.join([*first, *map(_vector, content.steps.T)])}",
            f"space origin: {_vector(content.origin)}",
        ]
        if content.unit != "mm":
            lines.append("space units:" + f' "{content.unit}"' * axes)
    return ("\n".join(lines) + "\n\n").encode()


def _vector(values: Matrix) -> str:
    return f"({row(values).replace(' ', ',')})"
