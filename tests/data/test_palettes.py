"""Masks that are stored with a palette: the numbers count where a tool chose them, what is seen where a program did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from medsaga.data.dataset import read_dataset
from medsaga.data.formats import raster
from medsaga.data.survey import survey
from medsaga.errors import InputError

Bytes = npt.NDArray[np.uint8]
BLACK, WHITE, RED, GREEN = (0, 0, 0), (255, 255, 255), (200, 0, 0), (0, 200, 0)
INSIDE = np.zeros((16, 16), np.uint8)
INSIDE[3:9, 4:13] = 1
TWO = INSIDE.copy()
TWO[10:14, 2:9] = 2


def coloured(indices: Bytes, *palette: tuple[int, int, int]) -> Image.Image:
    """Return a palette image of ``(height, width)`` indices."""
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette([value for colour in palette for value in colour])
    return image


def quantised(indices: Bytes, *palette: tuple[int, int, int]) -> Image.Image:
    """Return what a program makes of colours that numbers them by itself."""
    return Image.fromarray(np.array(palette, np.uint8)[indices]).quantize(len(palette))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_white_is_inside_however_black_and_white_are_numbered(tmp_path: Path, suffix: str) -> None:
    rgb = Image.fromarray(np.stack([INSIDE * 255] * 3, axis=-1))
    images = (
        rgb.quantize(2),
        rgb.convert("P", palette=Image.Palette.ADAPTIVE),
        rgb.quantize(2, method=Image.Quantize.FASTOCTREE),
        coloured(INSIDE, BLACK, WHITE),
        coloured(1 - INSIDE, WHITE, BLACK),
    )
    assert images[0].getpalette() == [*WHITE, *BLACK]  # or this test shows nothing
    for image in images:
        image.save(tmp_path / f"a{suffix}")
        assert np.array_equal(raster.read_labels(tmp_path / f"a{suffix}"), INSIDE)
    for shown in (0, 1):
        rgb = Image.new("RGB", (16, 16), (255 * shown,) * 3)
        rgb.quantize(2).save(tmp_path / f"a{suffix}")
        assert (raster.read_labels(tmp_path / f"a{suffix}") == shown).all()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_greys_that_do_not_begin_with_the_darkest_are_read_as_seen(tmp_path: Path, suffix: str) -> None:
    greys = [BLACK, (128, 128, 128), WHITE]
    image = quantised(TWO, *greys)
    assert (image.getpalette() or [])[0] == 255
    image.save(tmp_path / f"a{suffix}")
    assert np.array_equal(raster.read_labels(tmp_path / f"a{suffix}"), np.array([0, 128, 255])[TWO])


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
@pytest.mark.parametrize(
    "palette",
    [
        (BLACK, RED, GREEN),
        (BLACK, (1, 1, 1), (2, 2, 2)),
        (BLACK, WHITE, (128, 128, 128)),
        ((20, 20, 20), WHITE, (128, 128, 128)),
        (WHITE, RED, GREEN),
    ],
)
def test_indices_of_a_tool_are_labels(tmp_path: Path, suffix: str, palette: tuple[tuple[int, int, int], ...]) -> None:
    path = tmp_path / f"a{suffix}"
    coloured(TWO, *palette).save(path)
    assert np.array_equal(raster.read_labels(path), TWO)
    if palette[0] != (20, 20, 20) or suffix == ".png":
        coloured(TWO * 0, *palette).save(path)
        assert (raster.read_labels(path) == 0).all()


@pytest.mark.parametrize("size", [(16, 16), (3, 5)])
def test_a_bmp_of_8_bits_with_two_colours_keeps_its_white(tmp_path: Path, size: tuple[int, int]) -> None:
    path, inside = tmp_path / "a.bmp", np.random.default_rng(0).integers(0, 2, size).astype(np.uint8)
    coloured(inside, BLACK, WHITE).save(path)
    with Image.open(path) as image:
        assert image.mode == "1"  # what Pillow makes of it
    assert int.from_bytes(path.read_bytes()[28:30], "little") == 8
    assert np.array_equal(raster.read_labels(path), inside)
    image_read = raster.read_image(path)
    assert np.array_equal(image_read, inside[None] * 255)
    header = raster.read_header(path)
    assert (header.channels, *header.grid.shape, header.dtype) == (*image_read.shape, image_read.dtype)
    Image.fromarray(inside == 1).save(path)
    assert np.array_equal(raster.read_labels(path), inside)
    coloured(inside * 2, BLACK, WHITE).save(path)
    with pytest.raises(InputError, match="damaged data"):
        raster.read_labels(path)


def test_a_bmp_of_4_bits_whose_palette_is_grey(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 16, (6, 10)).astype(np.uint8)
    packed = b"".join(bytes([*(row[::2] << 4 | row[1::2]).tolist(), 0, 0, 0]) for row in values[::-1])
    header = b"BM" + (118 + len(packed)).to_bytes(4, "little") + bytes(4) + (118).to_bytes(4, "little")
    numbers = [(40, 4), (10, 4), (6, 4), (1, 2), (4, 2), (0, 4), (len(packed), 4), (0, 4), (0, 4), (16, 4), (0, 4)]
    header += b"".join(number.to_bytes(size, "little") for number, size in numbers)
    palette = b"".join(bytes([grey, grey, grey, 0]) for grey in range(16))
    (tmp_path / "a.bmp").write_bytes(header + palette + packed)
    assert np.array_equal(raster.read_labels(tmp_path / "a.bmp"), values)
    assert np.array_equal(raster.read_image(tmp_path / "a.bmp"), values[None])


def dataset(root: Path, *masks: Image.Image, suffix: str = ".png") -> Path:
    for n, mask in enumerate(masks):
        (root / "images").mkdir(parents=True, exist_ok=True)
        (root / "masks").mkdir(exist_ok=True)
        noise = np.random.default_rng(n).integers(0, 200, (16, 16)).astype(np.uint8)
        Image.fromarray(noise).save(root / "images" / f"p{n}.png")
        mask.save(root / "masks" / f"p{n}{suffix}")
    return root


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_masks_whose_palettes_are_numbered_by_themselves_are_named(tmp_path: Path, suffix: str) -> None:
    green_alone = np.where(TWO == 1, 0, TWO).astype(np.uint8)
    masks = [quantised(each, BLACK, RED, GREEN) for each in (TWO, green_alone)]
    (problem, *_) = survey(read_dataset(dataset(tmp_path, *masks, suffix=suffix))).problems
    assert Path(problem.where).name == f"p1{suffix}"
    assert problem.expected == f"(200, 0, 0) as the colour of the value 1, as in {tmp_path / 'masks' / f'p0{suffix}'}"
    assert problem.found == "(0, 0, 0)"
    assert "Save all masks as grey PNG without a palette" in problem.do


def test_grey_that_is_read_by_its_number_and_as_seen_is_named(tmp_path: Path) -> None:
    middle = (128, 128, 128)
    masks = [quantised(TWO, BLACK, middle, WHITE), coloured(INSIDE, BLACK, WHITE)]
    (problem, *_) = survey(read_dataset(dataset(tmp_path, *masks))).problems
    assert problem.expected.startswith("255 as the value of the colour (255, 255, 255), as in ")
    assert problem.found == "1"


def test_palettes_that_agree_are_no_problem(tmp_path: Path) -> None:
    palette = (BLACK, RED, GREEN, WHITE)
    some = [coloured(each, *palette) for each in (TWO, INSIDE, TWO * 0)]
    # What a mask does not use may be of any colour, and masks without a palette have none.
    some += [coloured(INSIDE, BLACK, RED, WHITE), Image.fromarray(TWO)]
    assert survey(read_dataset(dataset(tmp_path / "tool", *some))).problems == ()
    mixed = [coloured(INSIDE, BLACK, WHITE), coloured(1 - INSIDE, WHITE, BLACK), quantised(INSIDE * 0, BLACK)]
    assert survey(read_dataset(dataset(tmp_path / "mixed", *mixed))).problems == ()
    binary = dataset(tmp_path / "binary", coloured(INSIDE, BLACK, RED), coloured(INSIDE, BLACK, GREEN))
    assert survey(read_dataset(binary, binary=True)).problems == ()
    assert len(survey(read_dataset(binary)).problems) == 1
