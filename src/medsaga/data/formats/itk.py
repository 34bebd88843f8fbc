"""NRRD (``.nrrd``) and MetaImage (``.mha``) volumes, the formats of ITK and 3D Slicer, with their voxels in the file.

Arrays are indexed as ITK indexes images: (i, j, k), i the fastest. Headers are in LPS, `Grid.affine` is in RAS+.

Headers and voxels are read here and not by ITK, which reads a truncated ``.mha`` without an error (seen with SimpleITK
2.5), and takes another of two ``DimSize`` lines than a check in front of it might.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from medsaga.data.bounds import CHUNK_BYTES, MOST_INFLATION, MOST_TRAILING_BYTES
from medsaga.data.formats import itk_metaimage, itk_nrrd
from medsaga.data.formats.integral import as_integers
from medsaga.data.formats.itk_fields import LPS_TO_RAS, MM_PER_UNIT, Content, Stored, by, detached
from medsaga.data.formats.itk_segments import labels_of_segments, segments_of
from medsaga.data.types import Array, Block, Header, Labels
from medsaga.errors import InputError
from medsaga.files import replacing

SUFFIXES: tuple[str, ...] = (".nrrd", ".seg.nrrd", ".mha", ".nhdr", ".mhd")
"""The last two are refused with a word on what to do; a folder of them is no empty folder."""
LABELS_SUFFIXES: tuple[str, ...] = (".nrrd", ".seg.nrrd", ".mha")
PROBABILITIES_SUFFIX = ".nrrd"

_GZIP_OR_ZLIB, _GZIP, _ZLIB = 47, 31, 15
"""zlib's ``wbits``; the first finds out which of the two it is."""
_META_START = re.compile(rb"\s*(ObjectType|NDims|Comment)\s*=")
"""What a MetaImage begins with, whatever its name; an NRRD file begins with its magic number."""
_FLOAT32 = np.dtype(np.float32)


def read_header(path: Path) -> Header:
    """Return the grid, channels and dtype of a volume; a 2-D image is a volume with one slice.

    Raises:
        InputError: no such file, voxels in another file, more dimensions than channels explain, unusable directions,
            an unsupported type or encoding, or more voxels than the file can hold.
    """
    stored = _read_stored(path)
    return Header(stored.grid, stored.channels, _dtype_of_image(stored))


def read_image(path: Path) -> Array:
    """Return the volume, ``(channels, i, j, k)``: integers as stored, anything else as float32. NaN stays NaN.

    Raises:
        InputError: as `read_header`, or the data are truncated or fail their checksum.
    """
    stored = _read_stored(path)
    # Values beyond float32 become infinite, which the checks of a dataset report.
    with np.errstate(over="ignore"):
        return _read_voxels(path, stored).astype(_dtype_of_image(stored), copy=False)


def read_blocks(path: Path, most_bytes: int) -> Iterator[Block]:
    """Yield the volume of `read_image` in the order of its file, in pieces of about ``most_bytes`` (at least a slice).

    Raises:
        InputError: as `read_image`; damage at the end of a file is found at the end.
    """
    stored = _read_stored(path)
    slices = stored.grid.shape[2]
    # Axes that are slower than k, if any, are channels: each of them is a volume of its own in the file.
    together, apart = stored.channels, 1
    if len(stored.spatial) == 3:
        apart = math.prod(stored.shape[stored.spatial[2] + 1 :])
        together //= apart
    slice_bytes = stored.size // (slices * apart)
    step = max(1, most_bytes // slice_bytes)
    places = [(c * together, k) for c in range(apart) for k in range(0, slices, step)]
    counts = [min(step, slices - k) for _, k in places]
    contents = _contents(path, stored, [count * slice_bytes for count in counts])
    for (channel, k), count, content in zip(places, counts, contents, strict=True):
        shape = list(stored.shape)
        if len(stored.spatial) == 3:
            shape[stored.spatial[2] :] = [count, *[1] * (len(shape) - stored.spatial[2] - 1)]
        voxels = _channels_first(content.view(stored.dtype).reshape(shape, order="F"), stored)
        with np.errstate(over="ignore"):
            yield channel, k, voxels.astype(_dtype_of_image(stored), copy=False)


def read_labels(path: Path) -> Labels:
    """Return the label map, ``(i, j, k)``; integers that are stored as floating point are read as int32.

    Raises:
        InputError: as `read_image`, or there are several channels, or values that are not integers.
    """
    stored = _read_stored(path)
    if stored.channels != 1:
        raise InputError(
            path,
            expected="a label map with one value per voxel",
            found=f"{stored.channels} channels, or layers of a segmentation whose segments overlap",
            do="Export it as one label map: one integer per class.",
        )
    labels = _read_voxels(path, stored)[0]
    if labels.dtype.kind == "f":
        return as_integers(path, cast(npt.NDArray[np.floating[Any]], labels))
    return cast(Labels, labels)


def segment_names(path: Path) -> tuple[str, ...]:
    """Return the names of the segments in a segmentation, in its order; none where the file names no segments.

    Raises:
        InputError: as `read_header`, or the segments are described wrongly.
    """
    return tuple(segment.name for segment in segments_of(path, _read_stored(path)))


def read_segments(path: Path, wanted: Mapping[str, int]) -> tuple[Labels, tuple[str, ...]]:
    """Return the label map, ``(i, j, k)``, of a segmentation that names its segments, and warnings.

    Args:
        path: a file of which `segment_names` knows names.
        wanted: label value of each name; what has another name is background.

    Raises:
        InputError: as `segment_names` and `read_labels`, or a voxel belongs to no segment.
    """
    stored = _read_stored(path)
    layers = _read_voxels(path, stored)
    if layers.dtype.kind == "f":
        layers = as_integers(path, cast(npt.NDArray[np.floating[Any]], layers))
    return labels_of_segments(path, layers, segments_of(path, stored), wanted)


def write_labels(path: Path, labels: Labels, like: Path) -> None:
    """Write ``(i, j, k)`` labels >= 0 on the grid of ``like``, in the smallest unsigned type that holds them."""
    stored = _read_stored(like)
    assert labels.shape == stored.grid.shape, "predictions are written on the grid of their image"
    assert labels.min() >= 0
    _write(path, labels.astype(np.min_scalar_type(int(labels.max())), copy=False)[np.newaxis], stored)


def write_probabilities(path: Path, probabilities: npt.NDArray[np.float32], like: Path) -> None:
    """Write ``(classes, i, j, k)`` float32 as vectors of one value per class on the grid of ``like``."""
    stored = _read_stored(like)
    assert probabilities.shape[1:] == stored.grid.shape, "predictions have the grid of their image"
    _write(path, probabilities.astype(np.float32, copy=False), stored)


def _read_stored(path: Path) -> Stored:
    """Read and check the header of a file.

    Raises:
        InputError: it cannot be read, the voxels are in another file, stored in a way that is not supported, more
            than the file can hold, or placed nowhere.
    """
    _require_attached(path)
    try:
        with path.open("rb") as handle:
            head = handle.read(64)
            handle.seek(0)
            is_meta = _is_meta(path) if not head.startswith(b"NRRD") else False
            stored = (itk_metaimage if is_meta or _META_START.match(head) else itk_nrrd).parse(path, handle)
    except OSError as error:
        raise _damaged(path, error) from error
    held = path.stat().st_size - stored.offset
    if stored.size > held * (MOST_INFLATION if stored.is_compressed else 1):
        raise InputError(
            path,
            expected=f"{stored.size:,} bytes of voxels, as its header says ({by(stored.shape)})",
            found=f"{held:,} bytes, which cannot hold them",
            do="Copy or export the file again: it is truncated or its header is damaged.",
        )
    return stored


def _is_meta(path: Path) -> bool:
    return path.name.lower().endswith(".mha")


def _require_attached(path: Path) -> None:
    """Refuse the two kinds of file that point to another file with the voxels.

    Raises:
        InputError: the suffix is ``.nhdr`` or ``.mhd``.
    """
    whole = {".nhdr": ".nrrd", ".mhd": ".mha"}.get(path.suffix.lower())
    if whole is not None:
        raise detached(path, whole)


def _damaged(path: Path, error: Exception) -> InputError:
    if not path.is_file():
        found = "a broken link" if path.is_symlink() else "no such file"
    elif path.stat().st_size == 0:
        found = "an empty file"
    else:
        found = f"damaged data ({error})"
    return InputError(
        path, expected="an NRRD or MetaImage file that can be read", found=found, do="Copy or export the file again."
    )


def _dtype_of_image(stored: Stored) -> np.dtype:
    return _FLOAT32 if stored.dtype.kind == "f" else stored.dtype.newbyteorder("=")


def _read_voxels(path: Path, stored: Stored) -> Array:
    """Return the stored voxels, ``(channels, i, j, k)``, in native byte order."""
    (content,) = _contents(path, stored, [stored.size])
    voxels = content.view(stored.dtype).reshape(stored.shape, order="F")
    return _channels_first(voxels, stored).astype(stored.dtype.newbyteorder("="), copy=False)


def _channels_first(voxels: Array, stored: Stored) -> Array:
    """Bring voxels in the order of the file, of all slices or of some, to ``(channels, i, j, slices)``."""
    rest = [axis for axis in range(voxels.ndim) if axis not in stored.spatial]
    voxels = voxels.transpose(*rest, *stored.spatial)
    columns, rows, _ = stored.grid.shape
    return voxels.reshape(math.prod(voxels.shape[: len(rest)]), columns, rows, -1)


def _contents(path: Path, stored: Stored, sizes: Iterable[int]) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield so many bytes of the voxels, piece by piece; compressed data pass their checksum at the end."""
    try:
        with path.open("rb") as handle:
            handle.seek(stored.offset)
            blocks = _inflated(handle) if stored.is_compressed else _blocks(handle, stored.size)
            rest = b""
            for size in sizes:
                content = np.empty(size, dtype=np.uint8)
                rest = _fill(content.data, chain([rest], blocks))
                yield content
            beyond = len(rest)
            # On to the end of the stream, where the checksum is.
            for block in blocks:
                beyond += len(block)
                if beyond > MOST_TRAILING_BYTES:
                    break
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error


def _fill(target: memoryview, blocks: Iterator[bytes]) -> bytes:
    """Copy blocks until ``target`` is full; return what is left of the last of them."""
    done = 0
    for block in blocks:
        wanted = block[: len(target) - done]
        target[done : done + len(wanted)] = wanted
        done += len(wanted)
        if done == len(target):
            return block[len(wanted) :]
    raise EOFError("the file ends before its voxels do")


def _blocks(handle: IO[bytes], size: int) -> Iterator[bytes]:
    while size > 0 and (block := handle.read(min(size, CHUNK_BYTES))):
        yield block
        size -= len(block)


def _inflated(handle: IO[bytes]) -> Iterator[bytes]:
    """Yield what a gzip or zlib stream holds; gzip may be several of them, one after another."""
    inflater, waiting = zlib.decompressobj(_GZIP_OR_ZLIB), b""
    while True:
        waiting = waiting or handle.read(CHUNK_BYTES)
        block = inflater.decompress(waiting, CHUNK_BYTES)
        if block:
            yield block
        elif not waiting:
            raise EOFError("the compressed data end too early")
        waiting = inflater.unconsumed_tail
        if inflater.eof:
            waiting = inflater.unused_data
            if not waiting.startswith(b"\x1f\x8b"):
                return
            inflater = zlib.decompressobj(_GZIP_OR_ZLIB)


def _write(path: Path, voxels: Array, like: Stored) -> None:
    """Write ``(channels, i, j, k)`` with a fresh header that takes nothing but the grid from ``like``."""
    _require_attached(path)
    is_meta = _is_meta(path)
    content = _content(voxels, like)
    with replacing(path) as temporary, temporary.open("wb") as handle:
        header = itk_metaimage.header(content) if is_meta else itk_nrrd.header(content)
        handle.write(header)
        deflater = zlib.compressobj(6, zlib.DEFLATED, _ZLIB if is_meta else _GZIP)
        for k in range(voxels.shape[-1]):
            plane = voxels[..., k].astype(voxels.dtype.newbyteorder("<"), copy=False)
            handle.write(deflater.compress(plane.tobytes(order="F")))
        handle.write(deflater.flush())
        if is_meta:
            compressed_bytes = handle.tell() - len(header)
            handle.seek(0)
            handle.write(itk_metaimage.header(content, compressed_bytes))


def _content(voxels: Array, like: Stored) -> Content:
    """Place voxels where ``like`` lies: in LPS and in the unit of its file.

    A 2-D image that lies in its own plane stays one. In any other plane it is written as the one slice that it is,
    because ITK knows no 2-D image in space.
    """
    assert like.grid.affine is not None
    affine = LPS_TO_RAS @ like.grid.affine[:3] / MM_PER_UNIT[like.unit]
    axes = 2 if len(like.spatial) == 2 and not affine[2, [0, 1, 3]].any() else 3
    steps = None if like.grid.spacing is None else affine[:axes, :axes]
    dtype = voxels.dtype.newbyteorder("=")
    return Content(dtype, len(voxels), like.grid.shape[:axes], steps, affine[:axes, 3], like.unit)
