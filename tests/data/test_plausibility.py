"""Masks that cannot be what their values say are named, those that can are not, and --binary reads both right."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFilter
from scipy import ndimage

from medsaga.data.dataset import FOREGROUND, read_dataset
from medsaga.data.items import read_mask
from medsaga.data.plausibility import doubts, facts_of, foreground_of, remarks
from medsaga.data.survey import survey

Mask = npt.NDArray[np.integer]


def disc(seed: int, side: int = 64, share: float = 0.3) -> npt.NDArray[np.bool_]:
    random = np.random.default_rng(seed)
    (y, x), rows = random.uniform(0.35, 0.65, 2) * side, np.mgrid[:side, :side]
    return (rows[0] - y) ** 2 + (rows[1] - x) ** 2 < (share * side) ** 2


def white(mask: npt.NDArray[np.bool_]) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)


def blurred(seed: int) -> Mask:
    return np.asarray(white(disc(seed)).filter(ImageFilter.GaussianBlur(1)))


def shrunk(seed: int) -> Mask:
    return np.asarray(white(disc(seed, 128)).resize((64, 64), Image.Resampling.BOX))


def compressed(seed: int, quality: int = 75) -> Mask:
    buffer = io.BytesIO()
    white(disc(seed)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def soft(seed: int) -> Mask:
    """A probability map: no white area at all."""
    return (230 * ndimage.gaussian_filter(disc(seed).astype(float), 8)).astype(np.uint8)


def grey_image(seed: int) -> Mask:
    random = np.random.default_rng(seed)
    return ndimage.gaussian_filter(random.normal(128, 90, (64, 64)), 1).clip(0, 255).astype(np.uint8)


def cells(seed: int, count: int = 9, *, by_rows: bool = False, overlap: bool = False) -> Mask:
    """Squares of different sizes, numbered as they were drawn or from the top to the bottom."""
    random = np.random.default_rng(seed)
    labels = np.zeros((120, 120), np.uint16)
    while labels.max() < count:
        (y, x), side = random.integers(0, 108, 2), random.integers(4, 10)
        if overlap or not labels[y : y + side + 1, x : x + side + 1].any():
            labels[y : y + side, x : x + side] = labels.max() + 1
    return ndimage.label(labels > 0)[0].astype(np.uint16) if by_rows else labels


def organs(seed: int, count: int = 8) -> Mask:
    """Discs of one place and size each, a little different in every patient; some patients lack some."""
    random, layout = np.random.default_rng(seed), np.random.default_rng(99)
    labels, rows = np.zeros((120, 120), np.uint8), np.mgrid[:120, :120]
    for value in range(1, count + 1):
        (y, x), radius = (
            layout.uniform(15, 105, 2) + random.normal(0, 4, 2),
            layout.uniform(4, 14) * random.uniform(0.9, 1.1),
        )
        labels[(rows[0] - y) ** 2 + (rows[1] - x) ** 2 < radius**2] = value
    return labels


def doubt_of(masks: Sequence[Mask]) -> str | None:
    found = doubts(Path("masks"), [facts_of(Path(f"m{n}.png"), mask) for n, mask in enumerate(masks)])
    return None if found is None else str(found)


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ([blurred(n) for n in range(3)], "smoothing"),
        ([shrunk(n) for n in range(3)], "smoothing"),
        ([compressed(n) for n in range(3)], "lossy compression"),
        ([compressed(n, 95) for n in range(3)], "in 3 of 3 masks, such as m0"),
        ([disc(0) * np.uint8(255), blurred(1), disc(2) * np.uint8(255)], "in 1 of 3 masks, such as m1.png"),
        ([soft(n) for n in range(3)], "probability maps"),
        ([grey_image(n) for n in range(3)], "grey values"),
        ([disc(n) * np.uint8(255 if n % 2 else 1) for n in range(4)], "0 and 1 in 2 masks, such as m2.png"),
        ([disc(0) * np.uint16(65535), disc(1) * np.uint16(1)], "0 and 65535 in 1"),
        ([cells(n) for n in range(3)], "instances"),
        ([cells(n, 60, overlap=True) for n in range(3)], "instances"),
        ([cells(n, 12, by_rows=True) for n in range(3)], "instances"),
        ([cells(n, 300, overlap=True) for n in range(1)], "at most 64 different values"),
        ([disc(0).astype(np.int32) * 70000], "integers from 0 to 65535"),
        ([disc(0).astype(np.int16) * -1], "integers from 0 to 65535"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_labels(masks: list[Mask], words: str) -> None:
    found = doubt_of(masks)
    assert found is not None
    assert words in found
    assert "--binary" in found


def bordered(seed: int) -> Mask:
    """A disc whose border is 255, as the PASCAL challenge marks what does not count."""
    inside = disc(seed)
    return np.where(inside & ~ndimage.binary_erosion(inside, iterations=2), 255, inside).astype(np.uint8)


def contours(seed: int) -> Mask:
    """The inside of a disc and its edge of one pixel, 0/1/2 as 0/127/254 would be."""
    inside = disc(seed)
    return inside.astype(np.uint8) + (inside & ndimage.binary_erosion(inside))


@pytest.mark.parametrize(
    "masks",
    [
        [disc(n).astype(np.uint8) for n in range(3)],
        [disc(n) * np.uint8(255) for n in range(3)],
        [organs(n) for n in range(5)],
        [organs(n, 3) * np.uint8(85) for n in range(3)],
        [np.where(organs(n) % 2 == 0, 0, organs(n)) for n in range(3)],
        [np.eye(40, dtype=np.uint8) * 255, disc(1, 40) * np.uint8(255)],
        [contours(n) for n in range(3)],
        [bordered(n) for n in range(3)],
        [np.zeros((20, 20), np.uint8), disc(1, 20).astype(np.uint8)],
        [np.random.default_rng(n).integers(0, 5, (30, 30)).astype(np.uint8) for n in range(3)],
        [np.stack([organs(n)] * 5, axis=-1) for n in range(3)],
    ],
    ids=["0 1", "0 255", "organs", "spaced", "gaps", "thin line", "contours", "border 255", "empty", "noise", "3-D"],
)  # fmt: skip
def test_values_that_can_be_labels(masks: list[Mask]) -> None:
    assert doubt_of(masks) is None


def test_masks_of_one_label_each_are_remarked_upon() -> None:
    facts = [facts_of(Path(f"m{n}.png"), disc(n) * np.uint8(1 + n % 2)) for n in range(4)]
    (said,) = remarks(facts)
    assert "m2.png holds the labels 1, m3.png 2, and no mask holds some of both" in said
    assert remarks([*facts, facts_of(Path("both.png"), organs(0, 2))]) == []


@pytest.mark.parametrize("made", [blurred, compressed])
def test_the_foreground_of_a_smoothed_mask_is_that_of_the_sharp_one(made: object) -> None:
    assert callable(made)
    for seed in range(3):
        found, true = foreground_of(made(seed)), disc(seed)
        assert found.dtype == np.uint8
        # Of a disc with a radius of 19 pixels, only some pixels of the edge can change.
        assert np.count_nonzero(found != true) <= 0.02 * np.count_nonzero(true)


@pytest.mark.parametrize("values", [1, 255, 65535])
def test_the_foreground_of_other_masks_is_all_but_0(values: int) -> None:
    np.testing.assert_array_equal(foreground_of(disc(0) * np.uint16(values)), disc(0))
    for count in (9, 255):
        labels = cells(1, count, overlap=True)
        np.testing.assert_array_equal(foreground_of(labels), labels > 0)


def write(root: Path, masks: Sequence[Mask]) -> Path:
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for n, mask in enumerate(masks):
        noise = np.random.default_rng(n).integers(0, 99, mask.shape, np.uint8)
        Image.fromarray(noise).save(root / "images" / f"m{n}.png")
        Image.fromarray(mask).save(root / "masks" / f"m{n}.png")
    return root


def test_a_dataset_is_read_as_binary(tmp_path: Path) -> None:
    masks = [cells(0), cells(1).astype(np.uint8), cells(2, 1) * np.uint16(255)]
    root = write(tmp_path, masks)
    dataset = read_dataset(root, binary=True)
    assert dataset.labels == {"background": 0, FOREGROUND: 1}
    assert survey(dataset).problems == ()
    for item, mask in zip(dataset.items, masks, strict=True):
        np.testing.assert_array_equal(read_mask(item), mask > 0)


def test_structures_are_read_as_one(tmp_path: Path) -> None:
    root = write(tmp_path, [disc(0) * np.uint8(255)])
    (root / "masks" / "m0.png").unlink()
    for n, name in enumerate(("heart", "lung")):
        (root / "masks" / name).mkdir()
        Image.fromarray(blurred(n)).save(root / "masks" / name / "m0.png")
    (item,) = read_dataset(root, binary=True).items
    np.testing.assert_array_equal(read_mask(item), foreground_of(blurred(0)) | foreground_of(blurred(1)))


def test_what_is_wrong_and_what_is_remarkable_reach_the_survey(tmp_path: Path) -> None:
    (problem,) = survey(read_dataset(write(tmp_path / "a", [blurred(0), blurred(1)]))).problems
    assert problem.where == str(tmp_path / "a" / "masks")
    shifted = survey(read_dataset(write(tmp_path / "b", [organs(n, 3) + np.uint8(1) for n in range(2)])))
    assert shifted.problems == ()
    assert "no mask holds background (0), and 1 covers most" in " ".join(shifted.warnings)
    described = write(tmp_path / "c", [organs(n, 3) for n in range(2)])
    (described / "dataset.json").write_text('{"labels": {"background": 0, "a": 1, "b": 2, "c": 3, "d": 4}}')
    assert survey(read_dataset(described)).warnings == ("no mask holds d",)


def test_a_copy_of_the_image_is_no_mask(tmp_path: Path) -> None:
    root = write(tmp_path, [disc(0).astype(np.uint8), disc(1).astype(np.uint8)])
    (root / "masks" / "m1.png").write_bytes((root / "images" / "m1.png").read_bytes())
    (root / "dataset.json").write_text('{"labels": {"background": 0, "a": 1}}')
    (problem,) = survey(read_dataset(root)).problems
    assert "a copy of the image m1.png" in str(problem)
