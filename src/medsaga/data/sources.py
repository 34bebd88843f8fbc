"""Reading an image wherever it lies: a file of one of the formats, or a DICOM series."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from medsaga.data.dicom.geometry import Geometry
from medsaga.data.dicom.geometry import geometry_of as _geometry_of
from medsaga.data.dicom.pixels import header_of, read_volume
from medsaga.data.formats import format_of
from medsaga.data.types import Array, Header, Series, Source

_KEPT_GEOMETRIES = 4
"""A series is asked for its geometry for its header, its voxels and its mask, and each time all its files are read."""


def files_of(source: Source) -> tuple[Path, ...]:
    """Return the files that an image is read from."""
    return source.files if isinstance(source, Series) else (source,)


def place_of(source: Source) -> Path:
    """Return the file, or the folder of a series, by which people know an image."""
    return source.root if isinstance(source, Series) else source


@lru_cache(maxsize=_KEPT_GEOMETRIES)
def geometry_of(series: Series) -> Geometry:
    """Return where the slices of a series lie; see `medsaga.data.dicom.geometry.geometry_of`, which also raises."""
    return _geometry_of(series)


def read_header(source: Source) -> Header:
    """Return grid, channels and dtype of an image without decoding it.

    Raises:
        InputError: it cannot be read.
    """
    if isinstance(source, Series):
        return header_of(geometry_of(source))
    return format_of(source).read_header(source)


def read_image(source: Source) -> Array:
    """Return an image, ``(channels, *shape)``, in the units of its files.

    Raises:
        InputError: it cannot be read.
    """
    if isinstance(source, Series):
        return read_volume(source, geometry_of(source))
    return format_of(source).read_image(source)
