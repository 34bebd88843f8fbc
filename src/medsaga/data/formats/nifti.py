"""NIfTI-1 and NIfTI-2 volumes in one file, ``.nii`` and ``.nii.gz``.

nibabel interprets the header. The voxels are read here, because a header that claims more than its file can hold
must be refused before anything is allocated, and because only reading to the end of a gzip file checks its CRC.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from medsaga.data.bounds import CHUNK_BYTES, MOST_TRAILING_BYTES
from medsaga.data.formats.integral import as_integers
from medsaga.data.formats.nifti_header import (
    RGB,
    Stored,
    damaged,
    grid_of,
    image_dtype,
    is_gzip,
    opened,
    read_stored,
    stored_like,
)
from medsaga.data.types import Array, Block, Grid, Header, Labels
from medsaga.errors import InputError
from medsaga.files import replacing

SUFFIXES: tuple[str, ...] = (".nii", ".nii.gz")
LABELS_SUFFIXES: tuple[str, ...] = (".nii.gz", ".nii")
PROBABILITIES_SUFFIX = ".nii.gz"

_GRID_FIELDS = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)


def read_header(path: Path) -> Header:
    """Return the grid, channels and dtype of a volume; a 2-D image is a volume with one slice.

    Raises:
        InputError: no NIfTI file, more dimensions than channels explain, an unusable affine, an unsupported data
            type, or more voxels than the file can hold.
    """
    stored = read_stored(path)
    return Header(grid_of(path, stored), stored.channels, image_dtype(stored))


def read_image(path: Path) -> Array:
    """Return the volume, ``(channels, i, j, k)``, scaled by the header's slope and intercept.

    The stored integer type is kept when there is nothing to scale; anything else is float32. NaN stays NaN.

    Raises:
        InputError: as `read_header`, or the data are truncated or fail their checksum.
    """
    stored = read_stored(path)
    grid_of(path, stored)
    voxels = _read_voxels(path, stored)
    if stored.dtype == RGB:
        return voxels.view(np.uint8).reshape((3, *stored.shape), order="F")
    voxels = voxels.reshape((*stored.shape[:3], stored.channels), order="F")
    return np.moveaxis(_scaled(voxels, stored), -1, 0)


def read_blocks(path: Path, most_bytes: int) -> Iterator[Block]:
    """Yield the volume of `read_image` in the order of its file, in pieces of about ``most_bytes`` (at least a slice).

    Raises:
        InputError: as `read_image`; damage at the end of a file is found at the end.
    """
    stored = read_stored(path)
    grid_of(path, stored)
    columns, rows, slices = stored.shape[:3]
    together = 3 if stored.dtype == RGB else 1
    slice_bytes = columns * rows * stored.dtype.itemsize
    step = max(1, most_bytes // slice_bytes)
    places = [(c, k) for c in range(0, stored.channels, together) for k in range(0, slices, step)]
    counts = [min(step, slices - k) for _, k in places]
    contents = _contents(path, stored, [count * slice_bytes for count in counts])
    for (channel, k), content in zip(places, contents, strict=True):
        if stored.dtype == RGB:
            yield 0, k, content.reshape((3, columns, rows, -1), order="F")
            continue
        voxels = content.view(stored.dtype).astype(stored.dtype.newbyteorder("="), copy=False)
        yield channel, k, _scaled(voxels, stored).reshape((1, columns, rows, -1), order="F")


def read_labels(path: Path) -> Labels:
    """Return the label map, ``(i, j, k)``; integers that are stored as floating point are read as int32.

    Raises:
        InputError: as `read_image`, or there are several channels, or values that are not integers.
    """
    stored = read_stored(path)
    grid_of(path, stored)
    if stored.channels != 1:
        raise InputError(
            path,
            expected="a label map with one value per voxel",
            found=f"{stored.channels} channels",
            do="Merge the channels into one label map: one integer per class.",
        )
    labels = _scaled(_read_voxels(path, stored).reshape(stored.shape[:3], order="F"), stored)
    if labels.dtype.kind == "f":
        return as_integers(path, cast(npt.NDArray[np.floating[Any]], labels))
    return cast(Labels, labels)


def write_labels(path: Path, labels: Labels, like: Path | Grid) -> None:
    """Write ``(i, j, k)`` labels >= 0 on the grid of ``like``, in the smallest unsigned type that holds them."""
    stored = stored_like(like)
    assert labels.shape == stored.shape[:3], "predictions are written on the grid of their image"
    assert labels.min() >= 0
    shape = labels.shape[: max(2, int(stored.header["dim"][0]))]
    _write(path, labels.astype(np.min_scalar_type(int(labels.max())), copy=False), shape, stored)


def write_probabilities(path: Path, probabilities: npt.NDArray[np.float32], like: Path | Grid) -> None:
    """Write ``(classes, i, j, k)`` float32 as ``(i, j, k, classes)`` on the grid of ``like``."""
    stored = stored_like(like)
    assert probabilities.shape[1:] == stored.shape[:3], "predictions have the grid of their image"
    voxels = np.moveaxis(probabilities.astype(np.float32, copy=False), 0, -1)
    _write(path, voxels, voxels.shape, stored)


def _read_voxels(path: Path, stored: Stored) -> Array:
    """Return the stored voxels, flat, in native byte order."""
    (content,) = _contents(path, stored, [stored.size])
    voxels = content.view(stored.dtype)
    return voxels if stored.dtype == RGB else voxels.astype(stored.dtype.newbyteorder("="), copy=False)


def _contents(path: Path, stored: Stored, sizes: Iterable[int]) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield so many bytes of the voxels, piece by piece; reads gzip to its end, so that its CRC is checked."""
    try:
        with opened(path) as handle:
            handle.seek(stored.offset)
            for size in sizes:
                content = np.empty(size, dtype=np.uint8)
                unread = content.data
                while unread:
                    count = handle.readinto(unread[:CHUNK_BYTES])  # type: ignore[attr-defined]  # IO[bytes] is narrower
                    if not count:
                        raise EOFError("the file ends before its voxels do")
                    unread = unread[count:]
                yield content
            if is_gzip(path):
                for _ in range(MOST_TRAILING_BYTES // CHUNK_BYTES):
                    if not handle.read(CHUNK_BYTES):
                        break
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, error) from error


def _scaled(voxels: Array, stored: Stored) -> Array:
    # Values beyond float32 become infinite, which the checks of a dataset report.
    with np.errstate(over="ignore", invalid="ignore"):
        voxels = voxels.astype(image_dtype(stored), copy=False)
        if stored.is_scaled:
            values = cast(npt.NDArray[np.float32], voxels)
            values *= np.float32(stored.slope)
            values += np.float32(stored.intercept)
    return voxels


def _write(path: Path, voxels: Array, shape: tuple[int, ...], like: Stored) -> None:
    """Write ``voxels`` with a fresh header that takes nothing but the grid from ``like``.

    Intent, description and extensions of the input stay behind: they speak of the image, and extensions may hold
    the patient's DICOM header.
    """
    header = type(like.header)()
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(shape)
    for name in _GRID_FIELDS:
        header[name] = like.header[name]
    header["pixdim"][:4] = like.header["pixdim"][:4]
    header["vox_offset"] = int(header["sizeof_hdr"]) + 4
    header["scl_slope"], header["scl_inter"] = 1, 0
    with replacing(path) as temporary, temporary.open("wb") as raw:
        if not path.name.lower().endswith(".gz"):
            raw.writelines(_blocks(header, voxels))
            return
        # No name and no time in the gzip header: equal predictions are equal files.
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as handle:
            handle.writelines(_blocks(header, voxels))


def _blocks(header: Any, voxels: Array) -> Iterator[bytes]:
    """Yield the header, the sign that no extensions follow, and the voxels slab by slab."""
    yield header.binaryblock
    yield bytes(4)
    for reversed_index in np.ndindex(voxels.shape[:1:-1]):
        plane = voxels[(..., *reversed_index[::-1])]
        yield plane.astype(voxels.dtype.newbyteorder("="), copy=False).tobytes(order="F")
