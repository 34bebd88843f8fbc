"""TIFF beyond 8 bits and one page, written by tifffile, Pillow and ITK: every bit and every page is read, or said."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import tifffile
from PIL import Image

from medsaga.data.dataset import read_dataset
from medsaga.data.formats import labels_suffix, raster
from medsaga.data.inputs import find_inputs
from medsaga.data.items import read_mask
from medsaga.data.outputs import LabelMapInfo, kind_of, write_labels, write_probabilities
from medsaga.data.reorientation import reorientation
from medsaga.data.slices import slice_view
from medsaga.errors import InputError

RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 4096, (5, 8, 6)).astype(np.uint16)
PLAIN: dict[str, Any] = {"photometric": "minisblack", "metadata": None}


def write(path: Path, values: np.ndarray, **options: Any) -> Path:
    tifffile.imwrite(path, values, **options)
    return path


def assert_read(path: Path, expected: np.ndarray, dtype: Any = None) -> None:
    """Assert that header and image say the same, ``(channels, *shape)``."""
    image, header = raster.read_image(path), raster.read_header(path)
    assert image.dtype == header.dtype == (dtype or expected.dtype)
    assert (header.channels, *header.grid.shape) == image.shape
    np.testing.assert_array_equal(image, expected)


def samples(dtype: str, channels: int) -> np.ndarray:
    """Return ``(8, 6, channels)`` that use the bits of a type, and its sign where it has one."""
    spread = RNG.random((8, 6, channels)) - (0 if "u" in dtype else 0.5)
    return (spread * {1: 250, 2: 60_000, 4: 4e9, 8: 1e15}[np.dtype(dtype).itemsize]).astype(dtype)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", ">u2", "u4", "i4", "f2", "f4", "f8"])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_samples_keep_all_their_bits(tmp_path: Path, dtype: str, channels: int, compression: str | None) -> None:
    values = samples(dtype, channels)
    options: dict[str, Any] = {"photometric": "rgb" if channels == 3 else "minisblack"}
    if channels > 1:
        options["planarconfig"] = "contig"
    predictor = compression is not None and "f" not in dtype
    path = tmp_path / "a.tif"
    write(path, values[..., 0] if channels == 1 else values, compression=compression, predictor=predictor, **options)
    read_as = np.dtype(np.float32) if "f" in dtype else np.dtype(dtype).newbyteorder("=")
    assert_read(path, values.transpose(2, 0, 1).astype(read_as), read_as)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "i4", "f4"])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_lzw(tmp_path: Path, dtype: str, channels: int) -> None:
    values = samples(dtype, channels)
    image = SimpleITK.GetImageFromArray(values[..., 0] if channels == 1 else values, isVector=channels > 1)
    SimpleITK.WriteImage(image, tmp_path / "a.tif", useCompression=True, compressor="LZW")
    assert_read(tmp_path / "a.tif", values.transpose(2, 0, 1))


@pytest.mark.parametrize("predictor", [1, 2, 3])
@pytest.mark.parametrize("compression", ["packbits", "tiff_lzw", "tiff_adobe_deflate"])
def test_what_libtiff_compresses(tmp_path: Path, compression: str, predictor: int) -> None:
    values = samples("f4" if predictor == 3 else "u2", 1)[..., 0]
    tags = {317: predictor} if compression != "packbits" else {}
    Image.fromarray(values).save(tmp_path / "a.tif", compression=compression, tiffinfo=tags)
    assert_read(tmp_path / "a.tif", values[None])


def test_another_compression_is_named(tmp_path: Path) -> None:
    content = write(tmp_path / "a.tif", STACK, compression="zlib", **PLAIN).read_bytes()
    (tmp_path / "a.tif").write_bytes(
        content.replace(struct.pack("<HHIHxx", 259, 3, 1, 8), struct.pack("<HHIHxx", 259, 3, 1, 34887))
    )
    with pytest.raises(InputError, match="found the compression LERC of samples of 16 bits"):
        raster.read_header(tmp_path / "a.tif")


def test_packed_bits_of_cameras(tmp_path: Path) -> None:
    """12 bits per sample, two of them in three bytes: written by hand."""
    values = RNG.integers(0, 4096, (4, 6)).astype(np.uint16)
    packed = b"".join(
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in values.reshape(-1, 2).astype(int).tolist()
    )
    tags = {256: 6, 257: 4, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 4, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = struct.pack("<2sHI", b"II", 42, 8 + len(packed))
    path = tmp_path / "a.tif"
    path.write_bytes(start + packed + struct.pack("<H", len(tags)) + entries + bytes(4))
    assert_read(path, values[None])


@pytest.mark.parametrize("how", ["pages", "imagej", "ome", "bigtiff", "shaped", "lzw pages", "eight bits", "one bit"])
def test_stacks_are_volumes(tmp_path: Path, how: str) -> None:
    path, values = tmp_path / "a.tif", STACK
    if how == "pages":
        write(path, values, **PLAIN)
    elif how == "imagej":
        write(path, values, imagej=True, metadata={"axes": "ZYX"})
    elif how == "ome":
        path = write(tmp_path / "a.ome.tif", values, metadata={"axes": "ZYX"})
    elif how == "bigtiff":
        write(path, values, bigtiff=True, compression="zlib", **PLAIN)
    elif how == "shaped":
        write(path, values)
    elif how == "lzw pages":
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), path, useCompression=True, compressor="LZW")
    elif how == "eight bits":
        values = (STACK // 16).astype(np.uint8)
        first, *others = map(Image.fromarray, values)
        first.save(path, save_all=True, append_images=others, compression="tiff_lzw")
    else:
        values = (STACK > 2000).astype(np.uint8)
        write(path, values.astype(bool), **PLAIN)
    assert_read(path, values[None])
    np.testing.assert_array_equal(raster.read_labels(path), values)
    grid = raster.read_header(path).grid
    view = slice_view(grid)
    np.testing.assert_array_equal(view.view(raster.read_image(path))[:, 0][:: -1 if view.flips[0] else 1], values)


@pytest.mark.parametrize("how", ["ome", "ome in mm", "imagej"])
def test_the_size_of_a_voxel(tmp_path: Path, how: str) -> None:
    if how == "imagej":
        meta: dict[str, Any] = {"axes": "ZYX", "spacing": 2.0, "unit": "um"}
        path = write(tmp_path / "a.tif", STACK, imagej=True, resolution=(4, 2), metadata=meta)
        expected = (2e-3, 0.5e-3, 0.25e-3)
    else:
        unit = "mm" if how.endswith("mm") else "µm"
        meta = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", (3, 0.5, 0.25), strict=True)}
        meta |= {f"PhysicalSize{axis}Unit": unit for axis in "ZYX"}
        path = write(tmp_path / "a.ome.tif", STACK, metadata={"axes": "ZYX", **meta})
        expected = (3.0, 0.5, 0.25) if unit == "mm" else (3e-3, 0.5e-3, 0.25e-3)
    grid = raster.read_header(path).grid
    assert grid.spacing == pytest.approx(expected)
    assert grid.affine is not None
    assert np.linalg.norm(grid.affine[:3, :3], axis=0) == pytest.approx(expected)
    # Whose mask says nothing of sizes, as most programs write it.
    mask = raster.read_header(write(tmp_path / "mask.tif", (STACK % 3).astype(np.uint8), **PLAIN)).grid
    assert mask.spacing is None
    assert reorientation(mask, grid) is not None
    raster.write_labels(tmp_path / "out.tif", STACK % 3, path)
    np.testing.assert_allclose(raster.read_header(tmp_path / "out.tif").grid.affine, grid.affine, rtol=0, atol=1e-6)  # type: ignore[arg-type]
    assert raster.read_header(tmp_path / "out.tif").grid.spacing == pytest.approx(expected)
    np.testing.assert_array_equal(raster.read_labels(tmp_path / "out.tif"), STACK % 3)


def test_channels_of_stacks(tmp_path: Path) -> None:
    values = RNG.integers(0, 999, (5, 2, 8, 6)).astype(np.uint16)
    path = write(tmp_path / "a.tif", values, imagej=True, metadata={"axes": "ZCYX"})
    assert_read(path, values.swapaxes(0, 1))
    assert_read(write(tmp_path / "b.tif", values[0], metadata={"axes": "CYX"}, photometric="minisblack"), values[0])
    colour = RNG.integers(0, 256, (5, 8, 6, 3)).astype(np.uint8)
    assert_read(write(tmp_path / "c.tif", colour, photometric="rgb", metadata=None), colour.transpose(3, 0, 1, 2))
    planar = RNG.integers(0, 9999, (3, 8, 6)).astype(np.uint16)
    assert_read(write(tmp_path / "d.tif", planar, photometric="rgb", planarconfig="separate"), planar)
    film = RNG.integers(0, 99, (2, 3, 8, 6)).astype(np.uint8)
    with pytest.raises(InputError, match="each time point as its own file"):
        raster.read_header(write(tmp_path / "e.tif", film, imagej=True, metadata={"axes": "TZYX"}))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_opacity_is_no_channel_and_other_samples_are(tmp_path: Path, dtype: Any) -> None:
    most = np.iinfo(dtype).max
    values = RNG.integers(0, most, (8, 6, 4)).astype(dtype)
    options: dict[str, Any] = {"photometric": "rgb", "planarconfig": "contig"}
    assert_read(
        write(tmp_path / "data.tif", values, extrasamples=["unspecified"], **options), values.transpose(2, 0, 1)
    )
    with pytest.raises(InputError, match="transparent pixels"):
        raster.read_image(write(tmp_path / "pierced.tif", values, extrasamples=["unassalpha"], **options))
    values[..., 3] = most
    opaque = write(tmp_path / "opaque.tif", values, extrasamples=["unassalpha"], **options)
    assert_read(opaque, values[..., :3].transpose(2, 0, 1))
    two = values[..., 2:]
    options["photometric"] = "minisblack"
    assert_read(write(tmp_path / "two.tif", two, extrasamples=["unspecified"], **options), two.transpose(2, 0, 1))
    assert_read(
        write(tmp_path / "la.tif", two, extrasamples=["unassalpha"], **options), two[..., :1].transpose(2, 0, 1)
    )


@pytest.mark.parametrize("flagged", [True, False])
@pytest.mark.parametrize("pages", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_thumbnails_are_no_slices(tmp_path: Path, pages: int, dtype: Any, flagged: bool) -> None:
    path, values = tmp_path / "a.tif", RNG.integers(0, 256, (pages, 24, 20)).astype(dtype)
    with tifffile.TiffWriter(path) as file:
        for page in values:
            file.write(page, **PLAIN)
        thumbnail = np.zeros((6, 5, 3), np.uint8)
        file.write(thumbnail, photometric="rgb", metadata=None, subfiletype=1 if flagged else 0)
    assert_read(path, values if pages == 1 else values[None])
    np.testing.assert_array_equal(raster.read_labels(path), values[0] if pages == 1 else values)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_thumbnail_of_the_same_size_and_one_in_front(tmp_path: Path, dtype: Any) -> None:
    values = RNG.integers(0, 256, (24, 20)).astype(dtype)
    with tifffile.TiffWriter(tmp_path / "same.tif") as file:
        file.write(values, **PLAIN)
        file.write(values[::-1], subfiletype=1, **PLAIN)
    assert_read(tmp_path / "same.tif", values[None])
    with tifffile.TiffWriter(tmp_path / "front.tif") as file:
        file.write(values[::2, ::2], subfiletype=1, **PLAIN)
        file.write(values, **PLAIN)
    assert_read(tmp_path / "front.tif", values[None])
    with tifffile.TiffWriter(tmp_path / "label.tif") as file:
        file.write(values, **PLAIN)
        file.write(values[:5], **PLAIN)
    with pytest.raises(InputError, match="images of 20 x 24, 20 x 5"):
        raster.read_header(tmp_path / "label.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_images_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    """As Pillow turns the same picture of 8 bits."""
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    tag = [(274, 3, 1, orientation, True)]
    shallow = raster.read_image(write(tmp_path / "a.tif", pixels, extratags=tag, **PLAIN))
    path = write(tmp_path / "b.tif", np.dstack([pixels.astype(np.uint16) * 999] * 3), photometric="rgb", extratags=tag)
    assert_read(path, np.concatenate([shallow.astype(np.uint16) * 999] * 3))


def test_white_may_be_0_in_images_and_not_in_masks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", STACK, photometric="miniswhite", metadata=None)
    assert_read(path, 65535 - STACK[None])
    with pytest.raises(InputError, match="white is 0"):
        raster.read_labels(path)


def test_labels_in_floating_point(tmp_path: Path) -> None:
    labels = STACK % 3
    for dtype in (np.float16, np.float32, np.float64):
        off = np.nextafter(labels.astype(dtype), dtype(-1))
        np.testing.assert_array_equal(raster.read_labels(write(tmp_path / "a.tif", off, **PLAIN)), labels)
    with pytest.raises(InputError, match=r"the value 0\.5"):
        raster.read_labels(write(tmp_path / "a.tif", labels.astype(np.float32) / 2, **PLAIN))


def damaged(name: str, content: bytes) -> bytes:
    """Cut a file, or spoil a tag of its first page."""
    if name == "cut":
        return content[: len(content) * 2 // 3]
    if name == "last page lost":
        return content[:-40]
    tag, value = {"no bytes": (279, 0), "huge": (256, 2**30), "ten bits": (258, 10), "cmyk": (262, 5)}[name]
    (first,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, first)
    entries = {struct.unpack_from("<H", content, at)[0]: at for at in range(first + 2, first + 2 + 12 * count, 12)}
    (kind,) = struct.unpack_from("<H", content, entries[tag] + 2)
    at = entries[tag] + 8
    return content[:at] + struct.pack("<I" if kind == 4 else "<Hxx", value) + content[at + 4 :]


@pytest.mark.parametrize("name", ["cut", "last page lost", "no bytes", "huge", "ten bits", "cmyk"])
@pytest.mark.parametrize("how", ["pages", "imagej", "zlib"])
def test_what_cannot_be_read_whole_is_refused(tmp_path: Path, name: str, how: str) -> None:
    path = tmp_path / "a.tif"
    if how == "imagej":
        write(path, STACK, imagej=True, metadata={"axes": "ZYX"})
    else:
        with tifffile.TiffWriter(path) as file:
            for page in STACK:
                file.write(page, compression="zlib" if how == "zlib" else None, **PLAIN)
    path.write_bytes(damaged(name, path.read_bytes()))
    for read in (raster.read_image, raster.read_labels):
        with pytest.raises(InputError) as caught:
            read(path)
        assert caught.value.where == str(path)


def test_pages_in_other_files_are_refused_and_not_opened(tmp_path: Path) -> None:
    """An OME file may name other files; here one that exists, beside it."""
    secret = write(tmp_path / "secret.ome.tif", STACK, metadata={"axes": "ZYX"})
    uuid = re.search(rb"urn:uuid:[0-9a-f-]+", secret.read_bytes())
    assert uuid is not None
    other = f'<UUID FileName="secret.ome.tif">{uuid[0].decode()}</UUID>'
    data = f'<TiffData IFD="0" FirstZ="1" PlaneCount="4">{other}</TiffData>'
    text = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="6" SizeY="8" SizeZ="5"'
        ' SizeC="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
        f'<TiffData IFD="0" FirstZ="0" PlaneCount="1"/>{data}</Pixels></Image></OME>'
    )
    path = write(tmp_path / "a.ome.tif", STACK[0] * 0, description=text, metadata=None, photometric="minisblack")
    with pytest.raises(InputError):
        raster.read_image(path)


def test_predictions_of_stacks_are_stacks(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.tif", STACK, **PLAIN)
    (item,) = find_inputs(path)
    assert labels_suffix(path) == ".tif"
    assert kind_of(item, "auto", None) == "auto"
    write_labels(tmp_path / "out.tif", STACK % 3, item, "auto", LabelMapInfo({}, ""))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), STACK % 3)
    soft = RNG.random((2, *STACK.shape)).astype(np.float32)
    write_probabilities(tmp_path / "soft.tif", soft, item)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "soft.tif"), soft)
    with pytest.raises(InputError, match=r"formats auto, nifti; found png"):
        kind_of(item, "auto", tmp_path / "out.png")
    first = (tmp_path / "out.tif").read_bytes()
    write_labels(tmp_path / "out.tif", STACK % 3, item, "auto", LabelMapInfo({}, ""))
    assert (tmp_path / "out.tif").read_bytes() == first


def test_ome_is_part_of_the_suffix(tmp_path: Path) -> None:
    for folder, name in (("images", "a.ome.tif"), ("masks", "a.tif")):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / name, STACK % 3, metadata={"axes": "ZYX"})
    dataset = read_dataset(tmp_path)
    assert dataset.problems == ()
    assert [item.name for item in dataset.items] == ["a"]
    np.testing.assert_array_equal(read_mask(dataset.items[0]), STACK % 3)


def test_a_tiff_under_another_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", STACK, **PLAIN)
    path.rename(tmp_path / "a.png")
    assert_read(tmp_path / "a.png", STACK[None])
