"""Measurements of label maps, against brute force and against shapes whose measures are known."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from medsaga.data.dataset import check_items, read_dataset
from medsaga.data.formats import format_of
from medsaga.data.types import Grid
from medsaga.prediction.measure import COLUMNS, Measurement, largest_diameter, measure, voxel_size, write_csv
from medsaga.prediction.postprocess import PostProcessing, apply

SHEARED = np.array([[-0.9, 0.1, 0.2, 30.0], [0.1, 1.2, -0.3, -20.5], [0.05, 0.2, 4.0, 7.25], [0, 0, 0, 1]])


def by_brute_force(mask: np.ndarray, to_mm: np.ndarray) -> float:
    points = np.argwhere(mask) @ to_mm.T
    return float(pdist(points).max()) if len(points) > 1 else 0.0


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(5, 6, 7), (9, 3, 2), (1, 8, 9), (7, 1, 1), (8, 9), (1, 5), (1, 1, 1)]),
    share=st.sampled_from([0.01, 0.1, 0.6, 1.0]),
)
def test_diameters_are_those_of_brute_force(seed: int, shape: tuple[int, ...], share: float) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < share
    to_mm = rng.normal(size=(len(shape), len(shape)))
    assert largest_diameter(mask, to_mm) == pytest.approx(by_brute_force(mask, to_mm), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_diameters_of_flat_and_straight_masks_are_those_of_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    normal = rng.integers(-2, 3, 3)
    offsets = np.indices((9, 9, 9)).reshape(3, -1).T - 4
    plane = (offsets @ normal == 0).reshape(9, 9, 9)
    line = plane & (offsets @ rng.integers(-2, 3, 3) == 0).reshape(9, 9, 9)
    for mask in (plane & (rng.random(plane.shape) < 0.5), line):
        assert largest_diameter(mask, SHEARED[:3, :3]) == pytest.approx(by_brute_force(mask, SHEARED[:3, :3]))


def test_a_large_ball_takes_no_time_and_measures_its_diameter() -> None:
    radius = 60
    ball = (np.indices((2 * radius + 1,) * 3) - radius).astype(np.int32)
    mask = (ball**2).sum(axis=0) <= radius**2
    (found,) = measure(mask.astype(np.uint8), Grid(mask.shape, (0.5, 0.5, 0.5)), {"ball": 1})
    assert found.largest_diameter_mm == radius
    assert found.volume_ml == pytest.approx(4 / 3 * math.pi * (radius / 2) ** 3 / 1000, rel=0.002)
    assert found.components == 1


def two_boxes() -> np.ndarray:
    labels = np.zeros((10, 12, 6), np.uint16)
    labels[1:4, 1:5, 1:3] = 300
    labels[6:8, 6:8, 3:5] = 300
    labels[9, 11, 5] = 2
    return labels


NAMES = {"background": 0, "tumour": 2, "liver": 300, "spleen": 7}


def test_a_volume() -> None:
    grid = Grid((10, 12, 6), (2.0, 1.0, 5.0), np.diag([-2.0, 1, 5, 1]))
    tumour, liver, spleen = measure(two_boxes(), grid, NAMES)
    assert tumour.volume_ml == pytest.approx(0.01)
    assert (tumour.voxels, tumour.largest_diameter_mm, tumour.components) == (1, 0.0, 1)
    assert (liver.label, liver.voxels, liver.area_mm2, liver.components) == ("liver", 32, None, 2)
    assert liver.volume_ml == pytest.approx(0.32)
    assert liver.largest_diameter_mm == pytest.approx(math.hypot(6 * 2, 6 * 1, 3 * 5))
    assert spleen == Measurement("spleen", 0, 0.0, None, 0.0, 0)


def test_shear_counts_in_volumes_and_lengths() -> None:
    spacing = tuple(np.linalg.norm(SHEARED[:3, :3], axis=0))
    grid = Grid((10, 12, 6), spacing, SHEARED)
    liver = measure(two_boxes(), grid, {"liver": 300})[0]
    assert liver.volume_ml == pytest.approx(32 * abs(np.linalg.det(SHEARED)) / 1000)
    assert liver.volume_ml != pytest.approx(32 * math.prod(spacing) / 1000, rel=1e-3)
    assert liver.largest_diameter_mm == pytest.approx(by_brute_force(two_boxes() == 300, SHEARED[:3, :3]))


def test_an_image_has_an_area() -> None:
    labels = two_boxes()[:, :, 1]
    (liver,) = measure(labels, Grid((10, 12), (2.0, 1.0)), {"liver": 300})
    assert liver == Measurement("liver", 12, None, 24.0, 5.0, 1)


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".nrrd"])
def test_an_image_in_a_format_of_volumes_has_an_area(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"flat{suffix}"
    image = SimpleITK.GetImageFromArray(two_boxes()[:, :, 1].T.astype(np.float32))
    image.SetSpacing((2.0, 1.5))
    SimpleITK.WriteImage(image, path)
    grid = format_of(path).read_header(path).grid
    labels = two_boxes()[:, :, 1:2]
    (liver,) = measure(labels, grid, {"liver": 300})
    assert (liver.voxels, liver.volume_ml, liver.components) == (12, None, 1)
    assert liver.area_mm2 == pytest.approx(12 * 3.0)
    assert liver.largest_diameter_mm == pytest.approx(math.hypot(2 * 2, 3 * 1.5))
    # So --min-size is in mm2, as for a PNG or an X-ray.
    for least, left in ((35.9, 12), (36.1, 0)):
        cleaned = apply(labels, grid, PostProcessing(min_size_mm3=least), values=[300])
        assert np.count_nonzero(cleaned == 300) == left


def test_a_sheared_image_has_its_own_area_whatever_its_thickness() -> None:
    grid = Grid((10, 12, 1), (1.0, 1.0, 1.0), np.array(SHEARED), flat=True)
    assert voxel_size(grid) == pytest.approx(np.linalg.norm(np.cross(SHEARED[:3, 0], SHEARED[:3, 1])))


def test_a_volume_of_one_slice_stays_a_volume_and_its_mask_may_be_flat(tmp_path: Path) -> None:
    voxels = two_boxes()[:, :, 1:2]
    for folder, dims in (("images", 2), ("masks", 3)):
        (tmp_path / folder).mkdir()
        for name in "ab":
            stored = voxels[:, :, 0] if dims == 2 else voxels
            dims = 5 - dims
            nib.save(nib.Nifti1Image(stored, np.diag([2.0, 1, 1, 1])), tmp_path / folder / f"{name}.nii")
    dataset = read_dataset(tmp_path)
    assert dataset.problems == ()
    assert [item.header.grid.flat for item in dataset.items] == [True, False]
    assert check_items(dataset) == ()
    (liver,) = measure(voxels, dataset.items[1].header.grid, {"liver": 300})
    assert liver.volume_ml == pytest.approx(12 * 2 / 1000)
    assert liver.area_mm2 is None


@pytest.mark.parametrize("affine", [None, SHEARED])
def test_nothing_is_in_mm_where_the_spacing_is_unknown(affine: np.ndarray | None) -> None:
    grid = Grid((10, 12, 6), None, affine)
    assert voxel_size(grid) is None
    assert measure(two_boxes(), grid, {"liver": 300}) == [Measurement("liver", 32, None, None, None, 2)]


def test_voxels_that_share_an_edge_only_are_two_components() -> None:
    labels = np.zeros((4, 4), np.uint8)
    labels[1, 1] = labels[2, 2] = 1
    assert measure(labels, Grid((4, 4)), {"a": 1})[0].components == 2


def test_the_table(tmp_path: Path) -> None:
    rows = [
        ("case, 1", Measurement("left lung", 32, 0.1 + 0.2, None, 123456.7891, 2)),
        ("é", Measurement("absent", 0, None, 0.0, 0.0, 0)),
    ]
    path = tmp_path / "new" / "measurements.csv"
    write_csv(path, rows)
    with path.open(encoding="utf-8", newline="") as handle:
        header, *lines = csv.reader(handle)
    assert tuple(header) == COLUMNS
    assert lines == [
        ["case, 1", "left lung", "32", "0.3", "", "123456.789", "2"],
        ["é", "absent", "0", "", "0.0", "0.0", "0"],
    ]
    assert path.read_bytes().count(b"\n") == 3
    assert b"\r" not in path.read_bytes()
