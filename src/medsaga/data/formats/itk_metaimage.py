"""The headers of MetaImage files (``.mha``), read and written, as ITK's MetaIO does; they are in LPS."""

from __future__ import annotations

import re
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
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4"},
    # Four bytes on every machine, whatever the compiler's long.
    **{"MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8"},
    **{"MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}

_FIELDS = {
    *("NDims", "DimSize", "ElementType", "ElementNumberOfChannels", "ElementDataFile", "HeaderSize", "BinaryData"),
    *("CompressedData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "DistanceUnits"),
    *("ElementSpacing", "ElementSize", "Offset", "Position", "Origin", "TransformMatrix", "Rotation", "Orientation"),
}


def parse(path: Path, handle: IO[bytes]) -> Stored:
    """Read the header at the start of an open file.

    Raises:
        InputError: it is damaged, or means something that is not supported.
    """
    return _stored(_fields(path, handle))


def _fields(path: Path, handle: IO[bytes]) -> Fields:
    def interpret(line: str) -> tuple[str, str] | None:
        found = re.match(r"\s*([^=:]+?)\s*[=:](.*)", line)
        if found is None:
            raise another_kind(path, "a MetaImage header")
        return found[1], found[2]

    return collect(path, handle, interpret, _FIELDS, lambda _, name: name == "ElementDataFile")


@np.errstate(all="ignore")
def _stored(fields: Fields) -> Stored:
    if fields.texts["ElementDataFile"].upper() != "LOCAL":
        raise detached(fields.path, ".mha")
    if fields.texts.get("HeaderSize", "0") not in ("0", "-1"):
        raise fields.refuse("HeaderSize", "0", "Save the file again, for example with 3D Slicer.")
    if "BinaryData" in fields.texts and not fields.is_true("BinaryData"):
        raise fields.refuse("BinaryData", "True", "Save the file again as binary data.")
    (count,) = fields.sizes("NDims", 1)
    spatial_shape = fields.sizes("DimSize", 4, count)
    (channels,) = fields.sizes("ElementNumberOfChannels", 1) if "ElementNumberOfChannels" in fields.texts else (1,)
    dtype = dtype_of(fields, "ElementType", _TYPES, fields.texts.get("ElementType", ""))
    is_big = fields.is_true("BinaryDataByteOrderMSB") or fields.is_true("ElementByteOrderMSB")
    shape = (channels, *spatial_shape)
    spatial = spatial_axes(fields, shape, list(range(1, len(shape))))
    unit = fields.unit("DistanceUnits")
    steps, origin = _geometry(fields, count)
    grid = make_grid(fields, tuple(shape[axis] for axis in spatial), steps, origin, unit)
    dtype = dtype.newbyteorder(">" if is_big else "<")
    return Stored(shape, spatial, dtype, fields.offset, fields.is_true("CompressedData"), grid, unit)


def _geometry(fields: Fields, count: int) -> tuple[Matrix | None, Matrix]:
    """Return a step along each axis as columns, and the first voxel: in RAS, in the file's unit."""
    spacing = _first(fields, ("ElementSpacing", "ElementSize"), count)
    offset = _first(fields, ("Offset", "Position", "Origin"), count)
    matrix = _first(fields, ("TransformMatrix", "Rotation", "Orientation"), count * count)
    if spacing is None and offset is None and matrix is None:
        return None, np.zeros(0)
    to_ras = np.array([-1.0, -1.0, 1.0, 1.0])[:count]
    # The matrix has a row for each axis of the image; where it stands alone, the spacing is 1.
    directions = np.eye(count) if matrix is None else matrix.reshape(count, count).T
    steps = directions * (np.ones(count) if spacing is None else spacing)
    return to_ras[:, np.newaxis] * steps, to_ras * (np.zeros(count) if offset is None else offset)


def _first(fields: Fields, names: tuple[str, ...], count: int) -> Matrix | None:
    return next((fields.numbers(name, count) for name in names if name in fields.texts), None)


def header(content: Content, compressed_bytes: int = 0) -> bytes:
    """Return a header for zlib-compressed voxels that follow it; it is equally long whatever ``compressed_bytes``."""
    names = {np.dtype(code): name for name, code in reversed(_TYPES.items())}
    lines = [
        "ObjectType = Image",
        f"NDims = {len(content.sizes)}",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"CompressedDataSize = {compressed_bytes:<20d}",
    ]
    if content.steps is not None:
        spacing = np.linalg.norm(content.steps, axis=0)
        lines += [
            f"TransformMatrix = {row((content.steps / spacing).T.ravel())}",
            f"Offset = {row(content.origin)}",
            f"ElementSpacing = {row(spacing)}",
        ]
        if content.unit != "mm":
            lines.append(f"DistanceUnits = {content.unit}")
    lines += [
        f"DimSize = {row(content.sizes)}",
        f"ElementNumberOfChannels = {content.channels}",
        f"ElementType = {names[content.dtype]}",
        "ElementDataFile = LOCAL",
    ]
    return ("\n".join(lines) + "\n").encode()
