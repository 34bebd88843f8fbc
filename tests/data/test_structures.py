"""Separate binary masks per structure: masks/STRUCTURE/NAME, put together into one label map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medsaga.data.dataset import check_items, fingerprint, read_dataset
from medsaga.data.items import overlap, read_mask
from medsaga.data.survey import survey
from medsaga.data.types import Dataset
from medsaga.errors import InputError

SIZE = (20, 24)
LEFT, TOP, RIGHT = (np.zeros(SIZE, bool) for _ in range(3))
LEFT[:, :8], TOP[:6], RIGHT[:, 16:] = True, True, True


def save_mask(root: Path, structure: str, name: str, inside: np.ndarray, high: int = 255) -> Path:
    path = root / "masks" / structure / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((inside * high).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def chest(tmp_path: Path) -> Path:
    """Two images with three structures, of which one overlaps the two others."""
    root = tmp_path / "chest"
    (root / "images").mkdir(parents=True)
    for number, name in enumerate("ab"):
        pixels = np.random.default_rng(number).integers(0, 256, SIZE, dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
        save_mask(root, "right lung", f"{name}.png", LEFT)
        save_mask(root, "heart", f"{name}.gif", TOP)
        save_mask(root, "left lung", f"{name}.bmp", RIGHT, high=1)
    return root


def describe(root: Path, **labels: int) -> None:
    named = {name.replace("_", " "): value for name, value in labels.items()}
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **named}}))


def problems_of(root: Path, **options: Any) -> list[str]:
    dataset = read_dataset(root, **options)
    return [*map(str, dataset.problems), *map(str, check_items(dataset))]


def the_problem_of(root: Path) -> str:
    found = problems_of(root)
    assert len(found) == 1, found
    return found[0]


def mask_of(dataset: Dataset, name: str) -> np.ndarray:
    return read_mask(next(item for item in dataset.items if item.name == name))


def test_structures_are_numbered_in_alphabetical_order_and_the_highest_wins(chest: Path) -> None:
    dataset = read_dataset(chest)
    assert problems_of(chest) == []
    assert dataset.labels == {"background": 0, "heart": 1, "left lung": 2, "right lung": 3}
    expected = np.where(LEFT, 3, np.where(RIGHT, 2, np.where(TOP, 1, 0)))
    np.testing.assert_array_equal(mask_of(dataset, "a"), expected)
    assert survey(dataset).labels_of_cases["b"] == {0, 1, 2, 3}
    assert [overlap(item) for item in dataset.items] == [int((TOP & (LEFT | RIGHT)).sum())] * 2


def test_a_description_numbers_and_chooses_them(chest: Path) -> None:
    describe(chest, right_lung=7, heart=300)
    dataset = read_dataset(chest)
    assert problems_of(chest) == []
    np.testing.assert_array_equal(mask_of(dataset, "a"), np.where(TOP, 300, np.where(LEFT, 7, 0)))
    before = fingerprint(dataset)
    save_mask(chest, "heart", "a.gif", RIGHT)
    assert fingerprint(read_dataset(chest)) != before


def test_a_label_without_a_folder_is_a_problem(chest: Path) -> None:
    describe(chest, heart=1, lung=2)
    problem = the_problem_of(chest)
    assert problem.startswith(str(chest / "masks" / "lung"))
    assert "found the folders heart, left lung, right lung" in problem


def test_a_structure_that_an_image_lacks_is_absent_in_it(chest: Path) -> None:
    (chest / "masks" / "left lung" / "a.bmp").unlink()
    assert problems_of(chest) == []
    assert set(np.unique(mask_of(read_dataset(chest), "a"))) == {0, 1, 3}


def test_an_image_without_any_structure_has_no_mask(chest: Path) -> None:
    for path in (chest / "masks").glob("*/a.*"):
        path.unlink()
    assert "expected a mask of this name and a lossless suffix; found none" in the_problem_of(chest)
    assert problems_of(chest, masks_required=False) == []
    (chest / "images" / "b.png").rename(chest / "images" / "c.png")
    assert "no mask of the name of an image, but such as b" in the_problem_of(chest)


def test_label_maps_beside_folders_are_refused(chest: Path) -> None:
    Image.fromarray(TOP.astype(np.uint8)).save(chest / "masks" / "a.png")
    assert "found both: a.png, and the folders heart, left lung, right lung" in the_problem_of(chest)


def test_folders_without_images_and_hidden_ones_do_not_count(chest: Path) -> None:
    (chest / "masks" / "notes").mkdir()
    (chest / "masks" / ".cache").mkdir()
    Image.fromarray(TOP).save(chest / "masks" / ".cache" / "a.png")
    save_mask(chest, "Background", "a.png", TOP)
    assert problems_of(chest) == []
    assert len(read_dataset(chest).labels) == 4


@pytest.mark.parametrize(
    ("name", "inside", "found"),
    [
        ("a.png", TOP * 2 + LEFT, "the values 0, 85, 170, 255"),
        ("a.png", np.zeros((20, 20)), "20 x 20"),
        ("a.jpg", TOP, "JPEG compression"),
        ("b.gif", TOP, "also b.bmp"),
        ("c.png", TOP, "none"),
    ],
)
def test_a_mask_that_cannot_be_used_is_one_problem_that_names_it(
    chest: Path, name: str, inside: np.ndarray, found: str
) -> None:
    if name.startswith("a"):
        (chest / "masks" / "left lung" / "a.bmp").unlink()
    path = save_mask(chest, "left lung", name, inside, high=85 if inside.dtype == int else 255)
    problem = the_problem_of(chest)
    assert problem.startswith(f"{path}: ")
    assert f"found {found}" in problem


def test_a_mask_that_shrinks_after_it_was_found_is_named(chest: Path) -> None:
    dataset = read_dataset(chest)
    save_mask(chest, "left lung", "a.bmp", np.zeros((3, 3)))
    with pytest.raises(InputError, match=r"a\.bmp: expected the shape \(20, 24\) of a; found \(3, 3\)"):
        mask_of(dataset, "a")
