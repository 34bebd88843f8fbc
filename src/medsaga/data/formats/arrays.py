"""Image and label map as arrays in one file: NumPy's ``.npz``, and HDF5 as ``.npy.h5``.

The preprocessed data of TransUNet (arXiv 2102.04306) and of the papers after it: an array ``image`` and an array
``label``, of axes (height, width) or (slices, height, width). No spacing and no orientation is stored, so a volume's
affine only says that its first axis counts slices and that these are to be shown as they are stored.
"""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from medsaga.data.bounds import MOST_INFLATION
from medsaga.data.formats.integral import as_integers
from medsaga.data.labels import listed
from medsaga.data.types import Array, Grid, Header, Labels
from medsaga.errors import InputError
from medsaga.files import replacing

SUFFIXES: tuple[str, ...] = (".npz", ".npy.h5")
LABELS_SUFFIXES: tuple[str, ...] = (".npz", ".npy.h5")
PROBABILITIES_SUFFIX = ".npz"

IMAGE, LABEL, PROBABILITIES = "image", "label", "probabilities"
"""The names of the arrays."""

AS_STORED = np.array([[0, 0, -1, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
"""Slices upwards, rows backwards, columns to the left: what an axial view then shows is what is stored."""


@dataclass(frozen=True)
class _Stored:
    """An array in an open file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    size: int
    """Bytes that the file says to hold of it, compressed or not."""
    load: Callable[[], Array]


def read_header(path: Path) -> Header:
    """Return shape and dtype of the array ``image``; there is one channel.

    Raises:
        InputError: the file cannot be read, has no such array, or it is no image or volume of numbers.
    """
    with _opened(path, IMAGE) as stored:
        shape, dtype = stored.shape, stored.dtype
    affine = AS_STORED.copy() if len(shape) == 3 else None
    return Header(Grid(shape, None, affine), 1, np.dtype(np.float32) if dtype.kind == "f" else dtype.newbyteorder("="))


def read_image(path: Path) -> Array:
    """Return the image, ``(1, height, width)`` or ``(1, slices, height, width)``: float32, or integers as stored.

    Raises:
        InputError: as `read_header`, or the data are damaged.
    """
    image = _array(path, IMAGE)
    # Values beyond float32 become infinite, which the checks of a dataset report.
    with np.errstate(over="ignore"):
        return (image.astype(np.float32, copy=False) if image.dtype.kind == "f" else image)[np.newaxis]


def read_labels(path: Path) -> Labels:
    """Return the array ``label``, ``(height, width)`` or ``(slices, height, width)``; float becomes int32.

    Raises:
        InputError: as `read_image`, or a value is not an integer.
    """
    labels = _array(path, LABEL)
    if labels.dtype.kind == "f":
        return as_integers(path, cast(npt.NDArray[np.floating[Any]], labels))
    return cast(Labels, labels)


def write_labels(path: Path, labels: Labels, like: Path) -> None:
    """Write ``(*shape)`` labels >= 0 as the array ``label``, in the smallest unsigned type that holds them."""
    assert labels.shape == read_header(like).grid.shape, "predictions are written on the grid of their image"
    assert labels.min() >= 0
    _write(path, LABEL, labels.astype(np.min_scalar_type(int(labels.max())), copy=False))


def write_probabilities(path: Path, probabilities: npt.NDArray[np.float32], like: Path) -> None:
    """Write ``(classes, *shape)`` float32 as the array ``probabilities``."""
    assert probabilities.shape[1:] == read_header(like).grid.shape, "predictions have the grid of their image"
    _write(path, PROBABILITIES, probabilities.astype(np.float32, copy=False))


def require_h5py(where: Path) -> Any:
    """Return the package h5py, which only HDF5 files need.

    Raises:
        InputError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            where,
            expected="the package h5py, which reads HDF5 files",
            found="that it is not installed",
            do='Install it: pip install "medsaga[papers]".',
        ) from error
    return h5py


def _array(path: Path, name: str) -> Array:
    with _opened(path, name) as stored:
        return stored.load().astype(stored.dtype.newbyteorder("="), copy=False)


@contextlib.contextmanager
def _opened(path: Path, name: str) -> Iterator[_Stored]:
    """Yield an array of a file that has been found usable; what its decoding raises becomes an InputError.

    Damaged files make both libraries raise nearly anything, hence the broad ``except``.
    """
    is_hdf5 = path.name.lower().endswith(".h5")
    if is_hdf5:
        require_h5py(path)
    try:
        with (_in_hdf5 if is_hdf5 else _in_npz)(path, name) as stored:
            _require_usable(path, name, stored)
            yield stored
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            path,
            expected=f"{'an HDF5' if is_hdf5 else 'an .npz'} file that can be read",
            found=_what_happened(path, error),
            do="Copy or export the file again.",
        ) from error


@contextlib.contextmanager
def _in_npz(path: Path, name: str) -> Iterator[_Stored]:
    """Find an array without `numpy.load`, which allocates what a damaged header claims before it reads."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if f"{name}.npy" not in members:
            raise _no_such_array(path, name, [member.removesuffix(".npy") for member in members])
        member = members[f"{name}.npy"]
        with archive.open(member) as handle:
            version = np.lib.format.read_magic(handle)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, by_columns, dtype = read(handle)
            # A few bytes of header more or less do not matter to the size; to the end, so that the CRC is checked.
            yield _Stored(
                tuple(int(size) for size in shape),
                dtype,
                member.file_size,
                lambda: np.frombuffer(handle.read(), dtype).reshape(shape, order="F" if by_columns else "C"),
            )


@contextlib.contextmanager
def _in_hdf5(path: Path, name: str) -> Iterator[_Stored]:
    h5py = require_h5py(path)
    with h5py.File(path, "r") as file:
        # Links to other files are not followed.
        found = file.get(name) if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
        if not isinstance(found, h5py.Dataset):
            raise _no_such_array(path, name, list(file))
        yield _Stored(found.shape or (), found.dtype, int(found.id.get_storage_size()), lambda: found[()])


def _require_usable(path: Path, name: str, stored: _Stored) -> None:
    where, shape = f"the array {name!r}", " x ".join(map(str, stored.shape))
    if stored.dtype.kind not in "iuf" or stored.dtype.itemsize > 8:
        found = "pickled Python objects" if stored.dtype.hasobject else f"the type {stored.dtype}"
        expected, do = f"integers or floating point in {where}", "Save it as numbers."
        raise InputError(path, expected=expected, found=found, do=do)
    if len(stored.shape) not in (2, 3) or min(stored.shape) < 1:
        expected = f"{where} with the axes (height, width) or (slices, height, width)"
        raise InputError(path, expected=expected, found=shape or "a single number", do="Save it with these axes.")
    size = math.prod(stored.shape) * stored.dtype.itemsize
    most = min(stored.size, path.stat().st_size) * MOST_INFLATION
    if size > most:
        raise InputError(
            path,
            expected=f"{size:,} bytes of {where}, as its header says ({shape})",
            found=f"a file of {path.stat().st_size:,} bytes, which cannot hold them",
            do="Copy or export the file again: it is truncated or its header is damaged.",
        )


def _no_such_array(path: Path, name: str, names: list[str]) -> InputError:
    found = f"the arrays {listed(names)}" if names else "none at all"
    return InputError(path, expected=f"an array named {name!r}", found=found, do="Save the file with this name in it.")


def _what_happened(path: Path, error: Exception) -> str:
    if not path.is_file():
        return "a broken link" if path.is_symlink() else "no such file"
    if path.stat().st_size == 0:
        return "an empty file"
    return f"damaged data ({type(error).__name__}: {error})"


def _write(path: Path, name: str, values: Array) -> None:
    with replacing(path) as temporary:
        if path.name.lower().endswith(".h5"):
            with require_h5py(path).File(temporary, "w") as file:
                file.create_dataset(name, data=values, compression="gzip")
            return
        # Not by `numpy.savez`, which stores the time: equal predictions are equal files.
        member = zipfile.ZipInfo(f"{name}.npy")
        member.compress_type = zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(temporary, "w") as archive, archive.open(member, "w", force_zip64=True) as handle:
            np.lib.format.write_array(handle, np.ascontiguousarray(values), allow_pickle=False)
