"""NIfTI-1 and NIfTI-2 volumes in one file, ``.nii`` and ``.nii.gz``.

nibabel interprets the header. The voxels are read here, because a header that claims more than its file can hold
must be refused before anything is allocated, and because only reading to the end of a gzip file checks its CRC.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from medsaga.data.formats.integral import as_integers
from medsaga.data.types import Array, Grid, Header, Labels
from medsaga.errors import InputError
from medsaga.files import replacing

SUFFIXES: tuple[str, ...] = (".nii", ".nii.gz")
LABELS_SUFFIX = ".nii.gz"
PROBABILITIES_SUFFIX = ".nii.gz"

_HEADER_BYTES = {348: 1, 540: 2}
"""Size of a header, which is also its first field, and the version of NIfTI that it means."""
_MAGIC = {1: b"n+1", 2: b"n+2"}
_MOST_INFLATION = 1100
"""Deflate makes data at most 1032 times smaller; a gzip file that claims more than this is damaged."""
_MOST_TRAILING_BYTES = 2**24
_CHUNK_BYTES = 2**22
_MM_PER_UNIT = {1: 1e3, 2: 1.0, 3: 1e-3}
"""mm per metre, millimetre and micrometre, by the code in ``xyzt_units``; unknown counts as mm."""
_SPACING_LIMITS_MM = (1e-6, 1e4)
_SCALED_LABEL_TOLERANCE = 1e-3
"""Saving floating-point labels under an integer header stores them with a slope, a hair off their integers."""
_GRID_FIELDS = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)
_RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


@dataclass(frozen=True)
class _Stored:
    """What a header says of the voxels in the file, checked against the size of the file."""

    header: Any
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float

    @property
    def is_scaled(self) -> bool:
        return (self.slope, self.intercept) != (1.0, 0.0)

    @property
    def channels(self) -> int:
        return 3 if self.dtype == _RGB else math.prod(self.shape[3:])

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path) -> Header:
    """Return the grid, channels and dtype of a volume; a 2-D image is a volume with one slice.

    Raises:
        InputError: no NIfTI file, more dimensions than channels explain, an unusable affine, an unsupported data
            type, or more voxels than the file can hold.
    """
    stored = _read_stored(path)
    return Header(_grid(path, stored), stored.channels, _dtype_of_image(stored))


def read_image(path: Path) -> Array:
    """Return the volume, ``(channels, i, j, k)``, scaled by the header's slope and intercept.

    The stored integer type is kept when there is nothing to scale; anything else is float32. NaN stays NaN.

    Raises:
        InputError: as `read_header`, or the data are truncated or fail their checksum.
    """
    stored = _read_stored(path)
    _grid(path, stored)
    voxels = _read_voxels(path, stored)
    if stored.dtype == _RGB:
        return voxels.view(np.uint8).reshape((3, *stored.shape), order="F")
    voxels = voxels.reshape((*stored.shape[:3], stored.channels), order="F")
    return np.moveaxis(_scaled(voxels, stored), -1, 0)


def read_labels(path: Path) -> Labels:
    """Return the label map, ``(i, j, k)``; integers that are stored as floating point are read as int32.

    Raises:
        InputError: as `read_image`, or there are several channels, or values that are not integers.
    """
    stored = _read_stored(path)
    _grid(path, stored)
    if stored.channels != 1:
        raise InputError(
            path,
            expected="a label map with one value per voxel",
            found=f"{stored.channels} channels",
            do="Merge the channels into one label map: one integer per class.",
        )
    labels = _scaled(_read_voxels(path, stored).reshape(stored.shape[:3], order="F"), stored)
    if labels.dtype.kind == "f":
        tolerance = _SCALED_LABEL_TOLERANCE if stored.is_scaled else 0.0
        return as_integers(path, cast(npt.NDArray[np.floating[Any]], labels), tolerance)
    return cast(Labels, labels)


def write_labels(path: Path, labels: Labels, like: Path) -> None:
    """Write ``(i, j, k)`` labels >= 0 on the grid of ``like``, in the smallest unsigned type that holds them."""
    stored = _read_stored(like)
    assert labels.shape == stored.shape[:3], "predictions are written on the grid of their image"
    assert labels.min() >= 0
    shape = labels.shape[: max(2, int(stored.header["dim"][0]))]
    _write(path, labels.astype(np.min_scalar_type(int(labels.max())), copy=False), shape, stored)


def write_probabilities(path: Path, probabilities: npt.NDArray[np.float32], like: Path) -> None:
    """Write ``(classes, i, j, k)`` float32 as ``(i, j, k, classes)`` on the grid of ``like``."""
    stored = _read_stored(like)
    assert probabilities.shape[1:] == stored.shape[:3], "predictions have the grid of their image"
    voxels = np.moveaxis(probabilities.astype(np.float32, copy=False), 0, -1)
    _write(path, voxels, voxels.shape, stored)


def _read_stored(path: Path) -> _Stored:
    try:
        with _open(path) as handle:
            header = _parse(path, handle.read(max(_HEADER_BYTES)))
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error
    shape = _shape(path, header)
    stored = _Stored(header, shape, _dtype(path, header), *_offset_and_scaling(path, header))
    file_bytes = path.stat().st_size
    most = file_bytes * _MOST_INFLATION if _is_gzip(path) else file_bytes
    if stored.offset + stored.size > most:
        raise InputError(
            path,
            expected=f"{stored.size:,} bytes of voxels, as its header says ({' x '.join(map(str, shape))})",
            found=f"a file of {file_bytes:,} bytes, which cannot hold them",
            do="Copy or export the file again: it is truncated or its header is damaged.",
        )
    return stored


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if _is_gzip(path) else path.open("rb")


def _parse(path: Path, block: bytes) -> Any:
    """Return nibabel's header of the first bytes of a file, as they are: unchecked, without repairs or extensions."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    for size, version in _HEADER_BYTES.items():
        for endianness, order in (("<", "little"), (">", "big")):
            if len(block) < size or block[:4] != size.to_bytes(4, order):  # type: ignore[arg-type]
                continue
            header_class = Nifti1Header if version == 1 else Nifti2Header
            header = header_class(block[:size], endianness=endianness, check=False)
            if bytes(header["magic"]).startswith(_MAGIC[version]):
                return header
    found = "an empty file" if not block else f"{len(block)} bytes" if len(block) < 348 else "another kind of file"
    if block[:2] == b"\x1f\x8b":
        found = "gzip-compressed data"
    raise InputError(
        path,
        expected="a NIfTI-1 or NIfTI-2 header in the same file as its voxels (.nii or .nii.gz)",
        found=found,
        do="Convert the image to NIfTI, or give the file the suffix of what it is.",
    )


def _shape(path: Path, header: Any) -> tuple[int, ...]:
    """Return ``(i, j, k)`` or ``(i, j, k, channels)``."""
    count = int(header["dim"][0])
    shape = tuple(int(size) for size in header["dim"][1 : count + 1])
    if not 2 <= count <= 7 or min(shape) < 1:
        raise InputError(
            path,
            expected="2 to 5 dimensions of at least 1 voxel each",
            found=f"{count} dimensions: {' x '.join(map(str, shape))}",
            do="Export the image again: its header is damaged.",
        )
    spatial, rest = (*shape, 1)[:3], shape[3:]
    extra = [size for size in rest if size > 1]
    # NIfTI puts vectors in the fifth dimension and time in the fourth; both are channels here, but not at once.
    if len(extra) > 1 or any(size > 1 for size in rest[2:]):
        raise InputError(
            path,
            expected="a volume, or a volume with channels",
            found=f"{count} dimensions: {' x '.join(map(str, shape))}",
            do="Save each time point as its own file.",
        )
    return (*spatial, *extra)


def _dtype(path: Path, header: Any) -> np.dtype:
    from nibabel.spatialimages import HeaderDataError

    try:
        dtype = np.dtype(header.get_data_dtype())
    except (HeaderDataError, KeyError, TypeError):
        dtype = np.dtype(np.void)
    if (
        dtype.kind in "iu"
        or (dtype.kind == "f" and dtype.itemsize <= 8)
        or (dtype == _RGB and len(_shape(path, header)) == 3)
    ):
        return dtype
    raise InputError(
        path,
        expected="integers, 32-bit or 64-bit floating point, or RGB voxels",
        found=f"the NIfTI data type {int(header['datatype'])} ({dtype.name})",
        do="Convert the image, for example to float32; of complex data save the magnitude.",
    )


def _offset_and_scaling(path: Path, header: Any) -> tuple[int, float, float]:
    """Return where the voxels start, and slope and intercept (1 and 0 when there is nothing to scale)."""
    offset, slope, intercept = (float(header[name]) for name in ("vox_offset", "scl_slope", "scl_inter"))
    least = int(header["sizeof_hdr"]) + 4
    if not (least <= offset < 2**53 and offset.is_integer()):
        raise InputError(
            path,
            expected=f"voxels that start at byte {least} or later",
            found=f"vox_offset {offset:g}",
            do="Export the image again: its header is damaged.",
        )
    # The standard's way of saying "not scaled".
    if slope == 0 or not math.isfinite(slope):
        return int(offset), 1.0, 0.0
    return int(offset), slope, intercept if math.isfinite(intercept) else 0.0


def _grid(path: Path, stored: _Stored) -> Grid:
    """Return the grid in mm: the sform's affine, else the qform's, else the spacing alone."""
    from nibabel.spatialimages import HeaderDataError

    header = stored.header
    scale = _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    with np.errstate(all="ignore"):
        try:
            affine = np.array(header.get_best_affine(), dtype=np.float64)
        except (HeaderDataError, ValueError) as error:
            raise _unusable_affine(path, f"an unreadable one ({error})") from error
        affine[:3] *= scale
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if not np.isfinite(affine).all():
            raise _unusable_affine(path, "values that are not finite")
        least, most = _SPACING_LIMITS_MM
        if not ((spacing >= least) & (spacing <= most)).all():
            raise _unusable_affine(path, f"a spacing of {' x '.join(f'{size:g}' for size in spacing)} mm")
        if abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
            raise _unusable_affine(path, "axes that lie in one plane")
    return Grid(stored.shape[:3], tuple(float(size) for size in spacing), affine)


def _unusable_affine(path: Path, found: str) -> InputError:
    return InputError(
        path,
        expected="an affine that places every voxel, with spacings between 1e-6 and 1e4 mm",
        found=found,
        do="Export the image again, or repair sform, qform and pixdim of its header.",
    )


def _damaged(path: Path, error: Exception) -> InputError:
    if not path.is_file():
        found = "a broken link" if path.is_symlink() else "no such file"
    elif path.stat().st_size == 0:
        found = "an empty file"
    else:
        found = f"damaged data ({error})"
    return InputError(path, expected="a NIfTI file that can be read", found=found, do="Copy or export the file again.")


def _read_voxels(path: Path, stored: _Stored) -> Array:
    """Return the stored voxels, flat, in native byte order; reads gzip to its end, so that its CRC is checked."""
    voxels = np.empty(math.prod(stored.shape), dtype=stored.dtype)
    unread = voxels.view(np.uint8).data
    try:
        with _open(path) as handle:
            handle.seek(stored.offset)
            while unread:
                count = handle.readinto(unread[:_CHUNK_BYTES])  # type: ignore[attr-defined]  # IO[bytes] is narrower
                if not count:
                    raise EOFError("the file ends before its voxels do")
                unread = unread[count:]
            if _is_gzip(path):
                for _ in range(_MOST_TRAILING_BYTES // _CHUNK_BYTES):
                    if not handle.read(_CHUNK_BYTES):
                        break
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error
    return voxels if stored.dtype == _RGB else voxels.astype(stored.dtype.newbyteorder("="), copy=False)


def _dtype_of_image(stored: _Stored) -> np.dtype:
    if stored.dtype == _RGB:
        return np.dtype(np.uint8)
    if stored.dtype.kind == "f" or stored.is_scaled:
        return np.dtype(np.float32)
    return stored.dtype.newbyteorder("=")


def _scaled(voxels: Array, stored: _Stored) -> Array:
    # Values beyond float32 become infinite, which the checks of a dataset report.
    with np.errstate(over="ignore", invalid="ignore"):
        voxels = voxels.astype(_dtype_of_image(stored), copy=False)
        if stored.is_scaled:
            values = cast(npt.NDArray[np.float32], voxels)
            values *= np.float32(stored.slope)
            values += np.float32(stored.intercept)
    return voxels


def _write(path: Path, voxels: Array, shape: tuple[int, ...], like: _Stored) -> None:
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
        if not _is_gzip(path):
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
