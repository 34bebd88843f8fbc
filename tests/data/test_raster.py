"""PNG, JPEG, TIFF, BMP and GIF: what is read is what was stored, and what cannot be read says so."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medsaga.data.dataset import read_dataset
from medsaga.data.formats import format_of, is_image, raster, stem
from medsaga.data.items import read_item
from medsaga.errors import InputError

GREY = np.arange(24, dtype=np.uint8).reshape(4, 6)
COLOUR = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray | Image.Image, **options: Any) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def low_bit_png(path: Path, values: np.ndarray, bits: int) -> Path:
    """Write a grey PNG of 2 or 4 bits per pixel, which Pillow reads but does not write."""
    rows = b""
    for row in values:
        packed = "".join(f"{value:0{bits}b}" for value in row)
        packed += "0" * (-len(packed) % 8)
        rows += b"\0" + int(packed, 2).to_bytes(len(packed) // 8, "big")
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )
    return path


def assert_header_agrees(path: Path, image: np.ndarray) -> None:
    header = raster.read_header(path)
    assert (header.channels, *header.grid.shape) == image.shape
    assert header.dtype == image.dtype
    assert header.grid.spacing is None
    assert header.grid.affine is None


def test_of_a_gif_the_grey_that_is_seen_counts_however_its_palette_is_numbered(tmp_path: Path) -> None:
    shown = np.array([[0, 255, 0], [255, 0, 0]], np.uint8)
    grey = save(tmp_path / "grey.gif", shown)
    white_first = Image.fromarray((shown == 0).astype(np.uint8)).convert("P")
    white_first.putpalette([255, 255, 255, 0, 0, 0])
    for path in (grey, save(tmp_path / "white_first.gif", white_first, optimize=False)):
        assert np.array_equal(raster.read_labels(path), shown)
        assert_header_agrees(path, raster.read_image(path))
    assert np.array_equal(raster.read_image(grey)[0], shown)
    white_first.putpalette([255, 255, 255, 200, 0, 0])
    with pytest.raises(InputError, match=r"found colours such as \(200, 0, 0\), \(255, 255, 255\)\."):
        raster.read_labels(save(tmp_path / "red.gif", white_first))
    frames = [Image.fromarray(GREY), Image.fromarray(GREY[::-1])]
    with pytest.raises(InputError, match="several pages or frames"):
        raster.read_labels(save(tmp_path / "film.gif", frames[0], save_all=True, append_images=frames[1:]))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".TIFF"])
@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "rgb"])
def test_lossless_images_come_back_as_stored(tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
    path = save(tmp_path / f"a{suffix}", pixels)
    image = raster.read_image(path)
    assert np.array_equal(image, pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
    assert image.dtype == np.uint8
    assert_header_agrees(path, image)


@pytest.mark.parametrize(
    ("suffix", "stored", "dtype"),
    [
        (".png", np.uint16, np.uint16),
        (".tif", np.uint16, np.uint16),
        (".tif", np.int32, np.int32),
        (".tif", np.float32, np.float32),
    ],
)
def test_deep_images_keep_their_values(tmp_path: Path, suffix: str, stored: Any, dtype: Any) -> None:
    pixels = (GREY.astype(np.float64) * 1000).astype(stored)
    path = save(tmp_path / f"a{suffix}", pixels)
    image = raster.read_image(path)
    assert image.dtype == dtype
    assert np.array_equal(image[0], pixels)
    assert_header_agrees(path, image)


def test_one_bit_images_are_0_and_255_and_masks_0_and_1(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(GREY % 2 == 1))
    assert np.array_equal(raster.read_image(path)[0], (GREY % 2) * 255)
    assert np.array_equal(raster.read_labels(path), GREY % 2)


def test_opaque_alpha_is_dropped_and_transparency_refused(tmp_path: Path) -> None:
    alpha = np.full((4, 6, 1), 255, dtype=np.uint8)
    opaque = save(tmp_path / "opaque.png", np.concatenate([COLOUR, alpha], axis=2))
    assert np.array_equal(raster.read_image(opaque), COLOUR.transpose(2, 0, 1))
    grey = save(tmp_path / "grey.png", np.stack([GREY, alpha[..., 0]], axis=2))
    assert np.array_equal(raster.read_image(grey), GREY[None])
    assert_header_agrees(grey, GREY[None])
    alpha[2, 3] = 254
    pierced = save(tmp_path / "pierced.png", np.concatenate([COLOUR, alpha], axis=2))
    with pytest.raises(InputError, match=r"pierced\.png: expected an opaque image; found transparent pixels"):
        raster.read_image(pierced)


def palette_image() -> Image.Image:
    image = Image.fromarray(GREY % 3).convert("P")
    image.putdata((GREY % 3).ravel().tolist())
    image.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    return image


def test_a_palette_gives_colours_to_images_and_indices_to_masks(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", palette_image())
    colours = np.array([[0, 0, 0], [200, 10, 10], [10, 200, 10]], dtype=np.uint8)
    image = raster.read_image(path)
    assert np.array_equal(image, colours[GREY % 3].transpose(2, 0, 1))
    assert_header_agrees(path, image)
    assert np.array_equal(raster.read_labels(path), GREY % 3)


@pytest.mark.parametrize("bits", [2, 4])
def test_low_bit_grey_masks_are_not_stretched(tmp_path: Path, bits: int) -> None:
    values = GREY % 2**bits
    assert np.array_equal(raster.read_labels(low_bit_png(tmp_path / "a.png", values, bits)), values)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_exif_orientation_is_applied_to_image_header_and_mask(tmp_path: Path, suffix: str, orientation: int) -> None:
    # Rows and columns of the stored image in the upright one, from the EXIF standard (tag 274).
    expected = {
        1: GREY,
        2: GREY[:, ::-1],
        3: GREY[::-1, ::-1],
        4: GREY[::-1],
        5: GREY.T,
        6: GREY[::-1].T,
        7: GREY[::-1, ::-1].T,
        8: GREY[:, ::-1].T,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"quality": 100} if suffix == ".jpg" else {}
    path = save(tmp_path / f"a{suffix}", GREY, exif=exif, **options)
    image = raster.read_image(path)
    assert_header_agrees(path, image)
    assert np.abs(image[0].astype(int) - expected).max() <= (2 if suffix == ".jpg" else 0)
    if suffix != ".jpg":
        assert np.array_equal(raster.read_labels(path), expected)


def test_masks_of_16_bits_and_of_integral_floats(tmp_path: Path) -> None:
    high = GREY.astype(np.uint16) * 2000
    assert np.array_equal(raster.read_labels(save(tmp_path / "a.png", high)), high)
    labels = raster.read_labels(save(tmp_path / "a.tif", GREY.astype(np.float32)))
    assert labels.dtype.kind == "i"
    assert np.array_equal(labels, GREY)


def test_rgb_masks_are_read_only_when_they_are_grey(tmp_path: Path) -> None:
    grey = save(tmp_path / "grey.png", np.stack([GREY] * 3, axis=2))
    assert np.array_equal(raster.read_labels(grey), GREY)
    with pytest.raises(InputError, match=r"one integer label per pixel.*colours such as \(1, 43, 139\)"):
        raster.read_labels(save(tmp_path / "colour.png", COLOUR))


@pytest.mark.parametrize(
    ("name", "pixels", "options", "message"),
    [
        ("a.jpg", GREY, {}, "JPEG"),
        ("renamed.png", GREY, {"format": "JPEG"}, "JPEG"),
        ("inside.tif", GREY, {"compression": "jpeg"}, "JPEG"),
        ("fraction.tif", GREY.astype(np.float32) + np.float32(0.25), {}, "the value 0.25"),
        ("nan.tif", np.full((4, 6), np.nan, dtype=np.float32), {}, "the value nan"),
        ("alpha.png", np.zeros((4, 6, 4), dtype=np.uint8), {}, "transparent pixels"),
        ("white.tif", GREY, {"tiffinfo": {262: 0}}, "white is 0"),
    ],
)
def test_masks_that_do_not_hold_labels_are_refused(
    tmp_path: Path, name: str, pixels: np.ndarray, options: dict[str, Any], message: str
) -> None:
    path = save(tmp_path / name, pixels, **options)
    with pytest.raises(InputError, match=message) as caught:
        raster.read_labels(path)
    assert caught.value.where == str(path)


def test_images_of_other_kinds_are_refused(tmp_path: Path) -> None:
    cmyk = save(tmp_path / "a.jpg", Image.fromarray(COLOUR).convert("CMYK"))
    with pytest.raises(InputError, match="CMYK"):
        raster.read_header(cmyk)
    frames = save(tmp_path / "a.png", Image.fromarray(GREY), save_all=True, append_images=[Image.fromarray(COLOUR)])
    with pytest.raises(InputError, match="several pages"):
        raster.read_image(frames)
    webp = save(tmp_path / "webp.png", GREY, format="WEBP")
    with pytest.raises(InputError, match="found something else"):
        raster.read_image(webp)


def deep_png(path: Path, values: np.ndarray, filters: str = "01234", *chunks: tuple[bytes, bytes]) -> Path:
    """Write ``(height, width, channels)`` of 16 bits by the PNG standard, each row under another of its filters."""
    height, width, channels = values.shape
    step, above, rows = 2 * channels, bytes(2 * channels * width), b""
    for number, row in enumerate(values.astype(">u2")):
        raw, kind = row.tobytes(), int(filters[number % len(filters)])
        filtered = bytearray()
        for at, value in enumerate(raw):
            left = raw[at - step] if at >= step else 0
            corner = above[at - step] if at >= step else 0
            nearest = min((left, above[at], corner), key=lambda each: abs(left + above[at] - corner - each))
            predicted = (0, left, above[at], (left + above[at]) // 2, nearest)[kind]
            filtered.append((value - predicted) % 256)
        rows, above = rows + bytes([kind]) + bytes(filtered), raw
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in parts
        )
    )
    return path


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_all_16_bits_of_colours_in_png_are_kept(tmp_path: Path, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (11, 7, channels), dtype=np.uint16)
    if channels != 3:
        values[..., -1] = 65535
    path = deep_png(tmp_path / "a.png", values)
    image = raster.read_image(path)
    assert image.dtype == np.uint16
    assert np.array_equal(image, values[..., : 1 if channels == 2 else 3].transpose(2, 0, 1))
    assert_header_agrees(path, image)
    equal = values.copy()
    equal[..., :3] = values[..., :1] if channels != 2 else values[..., :3]
    labels = raster.read_labels(deep_png(tmp_path / "labels.png", equal))
    assert np.array_equal(labels, values[..., 0])
    if channels != 3:
        values[3, 2, -1] = 65534
        with pytest.raises(InputError, match="transparent pixels"):
            raster.read_image(deep_png(tmp_path / "pierced.png", values))
    path.write_bytes(path.read_bytes()[:-80])
    with pytest.raises(InputError, match="damaged data"):
        raster.read_image(path)


@pytest.mark.parametrize(("channels", "key"), [(1, (77,)), (3, (5, 6, 7))])
def test_a_colour_that_stands_for_transparent_is_refused_where_it_occurs(
    tmp_path: Path, channels: int, key: tuple[int, ...]
) -> None:
    values = np.random.default_rng(0).integers(1000, 65536, (4, 6, channels), dtype=np.uint16)
    chunk = (b"tRNS", struct.pack(f">{channels}H", *key))
    path = deep_png(tmp_path / "a.png", values, "0", chunk)
    assert np.array_equal(raster.read_image(path), values.transpose(2, 0, 1))
    values[1, 1] = key
    with pytest.raises(InputError, match="transparent pixels"):
        raster.read_image(deep_png(tmp_path / "a.png", values, "0", chunk))
    shallow = Image.fromarray(GREY)
    shallow.info["transparency"] = 99
    assert np.array_equal(raster.read_image(save(tmp_path / "b.png", shallow, transparency=99))[0], GREY)
    with pytest.raises(InputError, match="transparent pixels"):
        raster.read_image(save(tmp_path / "b.png", shallow, transparency=5))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_opaque_masks_of_equal_colours_are_grey(tmp_path: Path, mode: str, suffix: str) -> None:
    stored = Image.fromarray(GREY).convert(mode)
    path = save(tmp_path / f"a{suffix}", stored)
    labels = raster.read_labels(path)
    assert np.array_equal(labels, GREY)
    if mode != "RGB":
        stored.putalpha(254)
        with pytest.raises(InputError, match="transparent pixels"):
            raster.read_labels(save(tmp_path / f"b{suffix}", stored))


def test_grey_pictures_stored_in_colour_are_grey_beside_grey(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    pictures = {name: Image.fromarray(GREY).convert(name) for name in ("L", "RGB", "RGBA", "LA", "P")}
    deep = deep_png(tmp_path / "images/deep.png", np.dstack([GREY.astype(np.uint16)] * 3))
    for name in (*pictures, "deep"):
        if name != deep.stem:
            save(tmp_path / f"images/{name}.png", pictures[name])
        save(tmp_path / f"masks/{name}.png", GREY % 2)
    dataset = read_dataset(tmp_path)
    assert dataset.problems == ()
    assert dataset.channels == ("channel_0",)
    for item in dataset.items:
        assert np.array_equal(read_item(item), GREY[None])
    save(tmp_path / "images/RGB.png", COLOUR)
    # With a coloured one, all are in colour.
    dataset = read_dataset(tmp_path)
    assert dataset.problems == ()
    assert len(dataset.channels) == 3
    for item in dataset.items:
        expected = np.moveaxis(COLOUR, -1, 0) if item.name == "RGB" else np.stack([GREY] * 3)
        assert np.array_equal(read_item(item), expected), item.name
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "odd": 1}, "channel_names": {"0": "xray"}}')
    (problem,) = read_dataset(tmp_path).problems
    assert problem.where == str(tmp_path / "images/RGB.png")


def test_a_jpeg_of_12_bits_is_said_to_be_one(tmp_path: Path) -> None:
    content = bytearray(save(tmp_path / "a.jpg", GREY).read_bytes())
    content[content.index(b"\xff\xc0") + 4] = 12
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(InputError, match="found a JPEG of 12 bits per sample"):
        raster.read_header(tmp_path / "a.jpg")


def test_damaged_and_missing_files_say_what_is_wrong(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    whole.write_bytes(whole.read_bytes()[:900])
    assert raster.read_header(whole).grid.shape == (64, 64)
    with pytest.raises(InputError, match="damaged data"):
        raster.read_image(whole)
    content = bytearray(save(tmp_path / "flip.png", GREY, compress_level=0).read_bytes())
    content[content.index(b"IDAT") + 20] ^= 1
    (tmp_path / "flip.png").write_bytes(content)
    with pytest.raises(InputError, match="damaged data"):
        raster.read_labels(tmp_path / "flip.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(InputError, match="an empty file"):
        raster.read_header(tmp_path / "empty.png")
    with pytest.raises(InputError, match="no such file"):
        raster.read_header(tmp_path / "none.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match="a broken link"):
        raster.read_header(tmp_path / "link.png")


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    path = low_bit_png(tmp_path / "a.png", GREY % 4, 2)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(InputError, match="a header that claims more"):
        raster.read_header(path)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff"])
@pytest.mark.parametrize("highest", [1, 255, 256, 65535])
def test_labels_come_back_from_what_was_written(tmp_path: Path, suffix: str, highest: int) -> None:
    like = save(tmp_path / "like.jpg", GREY)
    labels = GREY.astype(np.int64) % 2 * highest
    raster.write_labels(tmp_path / f"out{suffix}", labels, like)
    back = raster.read_labels(tmp_path / f"out{suffix}")
    assert np.array_equal(back, labels)
    assert back.dtype == (np.uint8 if highest <= 255 else np.uint16)


def test_labels_are_never_written_as_jpeg(tmp_path: Path) -> None:
    like = save(tmp_path / "like.jpg", GREY)
    with pytest.raises(InputError, match="JPEG would change the labels"):
        raster.write_labels(tmp_path / "out.jpg", GREY, like)
    assert not (tmp_path / "out.jpg").exists()


def test_probabilities_are_pages_of_a_float_tiff(tmp_path: Path) -> None:
    like = save(tmp_path / "like.png", GREY)
    probabilities = np.random.default_rng(0).random((3, 4, 6), dtype=np.float32)
    raster.write_probabilities(tmp_path / "out.tif", probabilities, like)
    with Image.open(tmp_path / "out.tif") as image:
        assert image.n_frames == 3  # type: ignore[attr-defined]  # Pillow's TIFF class has it
        for index, page in enumerate(probabilities):
            image.seek(index)
            assert np.array_equal(np.asarray(image), page)
    with pytest.raises(InputError, match=r"written as \.tif"):
        raster.write_probabilities(tmp_path / "out.png", probabilities, like)


def test_suffixes_find_their_format(tmp_path: Path) -> None:
    assert stem(Path("x/scan.01.NII.GZ")) == "scan.01"
    assert stem(Path("a.b.png")) == "a.b"
    assert format_of(Path("A.JPEG")) is raster
    assert is_image(Path("a.nii"))
    assert not is_image(Path("._a.png"))
    assert not is_image(Path("Thumbs.db"))
    with pytest.raises(InputError, match=r"\.nii\.gz.*found the suffix '\.dcm'"):
        format_of(tmp_path / "a.dcm")
