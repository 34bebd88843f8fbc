"""What the header of a NIfTI file says of its voxels, checked against the file: nothing is allocated on its word."""

from __future__ import annotations

import gzip
import html
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from medsaga.data.bounds import MOST_EXTENSION_BYTES, MOST_INFLATION, SPACING_LIMITS_MM
from medsaga.data.types import Grid
from medsaga.errors import InputError

_HEADER_BYTES = {348: 1, 540: 2}
"""Size of a header, which is also its first field, and the version of NIfTI that it means."""
_MAGIC = {1: b"n+1", 2: b"n+2"}
_MM_PER_UNIT = {1: 1e3, 2: 1.0, 3: 1e-3}
"""mm per metre, millimetre and micrometre, by the code in ``xyzt_units``; unknown counts as mm."""
_SPACES = frozenset(range(6))
"""The codes of what an affine leads to: unknown, scanner, aligned, Talairach, MNI, template."""
_GZIP_MAGIC = b"\x1f\x8b"
_LABEL_IN_TABLE = re.compile(rb'<Label\s[^<>]{0,400}?\bKey="(\d{1,9})"[^<>]{0,400}>\s*(?:<!\[CDATA\[)?([^<>\]]{1,200})')
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


@dataclass(frozen=True)
class Stored:
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
        return 3 if self.dtype == RGB else math.prod(self.shape[3:])

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_stored(path: Path) -> Stored:
    """Read the header of a file.

    Raises:
        InputError: no NIfTI file, or one that cannot be used; see `medsaga.data.formats.nifti.read_header`.
    """
    try:
        with opened(path) as handle:
            header = _parse(path, handle.read(max(_HEADER_BYTES)))
        most = path.stat().st_size * (MOST_INFLATION if is_gzip(path) else 1)
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, error) from error
    shape = _shape(path, header)
    stored = Stored(header, shape, _dtype(path, header), *_offset_and_scaling(path, header))
    if stored.offset + stored.size > most:
        raise InputError(
            path,
            expected=f"{stored.size:,} bytes of voxels, as its header says ({' x '.join(map(str, shape))})",
            found=f"a file of {path.stat().st_size:,} bytes, which cannot hold them",
            do="Copy or export the file again: it is truncated or its header is damaged.",
        )
    return stored


def value_names(path: Path) -> dict[int, str]:
    """Return the names that a label table in the header gives to values, as Workbench and TotalSegmentator write it.

    They are a note: whoever renumbers the voxels and keeps the header keeps the table of the old numbers.

    Raises:
        InputError: as `read_stored`.
    """
    start, end = int(read_stored(path).header["sizeof_hdr"]), read_stored(path).offset
    try:
        with opened(path) as handle:
            content = handle.read(min(end, MOST_EXTENSION_BYTES))[start:]
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, error) from error
    found = _LABEL_IN_TABLE.findall(content) if content[:1] != b"\0" else []
    return {int(value): html.unescape(name.decode("utf-8", errors="replace")).strip() for value, name in found}


def stored_like(like: Path | Grid) -> Stored:
    """Return the header of a volume, or one that places its voxels as a grid does."""
    if isinstance(like, Path):
        return read_stored(like)
    from nibabel.nifti1 import Nifti1Header

    assert like.affine is not None, "a grid in space"
    header = Nifti1Header()
    header.set_data_shape(like.shape)
    header.set_xyzt_units("mm")
    header.set_sform(like.affine, code=1)
    # Also where the axes are sheared, which a qform cannot say: readers that look at it alone would be misled.
    header["pixdim"][1:4] = np.linalg.norm(like.affine[:3, :3], axis=0)
    if np.allclose(np.abs(np.linalg.det(like.affine[:3, :3] / header["pixdim"][1:4])), 1, atol=1e-4):
        header.set_qform(like.affine, code=1)
    return Stored(header, like.shape, np.dtype(np.uint8), int(header["sizeof_hdr"]) + 4, 1.0, 0.0)


def is_gzip(path: Path) -> bool:
    """Whether a file is compressed, by its content: names are changed without compressing anything."""
    with path.open("rb") as handle:
        return handle.read(2) == _GZIP_MAGIC


def opened(path: Path) -> IO[bytes]:
    """Open a file to read what it holds when inflated."""
    return cast(IO[bytes], gzip.open(path)) if is_gzip(path) else path.open("rb")


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
    if block[:2] == _GZIP_MAGIC:
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
        or (dtype == RGB and len(_shape(path, header)) == 3)
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
    if not math.isfinite(intercept):
        raise InputError(
            path,
            expected=f"a finite scl_inter beside the scl_slope {slope:g}",
            found=f"{intercept:g}",
            do="Export the image again: its header is damaged.",
        )
    return int(offset), slope, intercept


def grid_of(path: Path, stored: Stored) -> Grid:
    """Return the grid in mm: the sform's affine, else the qform's, else the spacing alone."""
    from nibabel.spatialimages import HeaderDataError

    header = stored.header
    codes = [int(header[name]) for name in ("sform_code", "qform_code")]
    if not set(codes) <= _SPACES:
        # Whether the matrix beside it means anything is then a guess, and readers guess differently.
        raise _unusable_affine(path, f"the sform_code {codes[0]} and the qform_code {codes[1]}, of which one is none")
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
        least, most = SPACING_LIMITS_MM
        if not ((spacing >= least) & (spacing <= most)).all():
            raise _unusable_affine(path, f"a spacing of {' x '.join(f'{size:g}' for size in spacing)} mm")
        if abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
            raise _unusable_affine(path, "axes that lie in one plane")
    other = _affine_of_itk(header, spacing, scale)
    return Grid(
        stored.shape[:3], tuple(float(size) for size in spacing), affine, other, flat=int(header["dim"][0]) == 2
    )


def _affine_of_itk(header: Any, spacing: npt.NDArray[np.float64], scale: float) -> npt.NDArray[np.float64] | None:
    """Return where ITK, and what is built on it, may place the voxels instead, in mm.

    That is the qform where there is an sform, too; without either, the first voxel lies at 0 and the axes are LPS.
    """
    from nibabel.spatialimages import HeaderDataError

    if not (int(header["sform_code"]) or int(header["qform_code"])):
        return np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    if not (int(header["sform_code"]) and int(header["qform_code"])):
        return None
    try:
        with np.errstate(all="ignore"):
            affine = np.array(header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return None
    affine[:3] *= scale
    return affine if np.isfinite(affine).all() and np.linalg.det(affine) != 0 else None


def _unusable_affine(path: Path, found: str) -> InputError:
    return InputError(
        path,
        expected="an affine that places every voxel, with spacings between 1e-6 and 1e4 mm",
        found=found,
        do="Export the image again, or repair sform, qform and pixdim of its header.",
    )


def damaged(path: Path, error: Exception) -> InputError:
    """Return the error of a file that could not be read."""
    if not path.is_file():
        found = "a broken link" if path.is_symlink() else "no such file"
    elif path.stat().st_size == 0:
        found = "an empty file"
    else:
        found = f"damaged data ({error})"
    return InputError(path, expected="a NIfTI file that can be read", found=found, do="Copy or export the file again.")


def image_dtype(stored: Stored) -> np.dtype:
    """Return the dtype of the image that is read from it."""
    if stored.dtype == RGB:
        return np.dtype(np.uint8)
    if stored.dtype.kind == "f" or stored.is_scaled:
        return np.dtype(np.float32)
    return stored.dtype.newbyteorder("=")
