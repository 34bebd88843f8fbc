from __future__ import annotations

import itertools

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from medsaga.data.reorientation import reorientation
from medsaga.data.types import Grid

SHAPE = (5, 4, 3)
OBLIQUE = np.array([[0.8, 0.3, -0.1, 12.0], [-0.35, 1.1, 0.2, -40.0], [0.1, -0.2, 2.5, 7.5], [0, 0, 0, 1]])
"""Voxel index to RAS+ mm of a grid at no right angles to anything."""
ORIENTATIONS = [
    np.array(list(zip(axes, signs, strict=True)))
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


SIZES = (1.0, 1e-2, 5e-6)
"""Millimetres: of a scanner, a micro-CT and an electron microscope."""


@pytest.mark.parametrize("shape", [SHAPE, (6, 6, 6)])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda each: str(each.astype(int).ravel().tolist()))
def test_every_order_of_axes_comes_back(orientation: np.ndarray, size: float, shape: tuple[int, ...]) -> None:
    """Array and affine are turned round by nibabel; the array comes back by the two affines alone."""
    labels = np.arange(np.prod(shape)).reshape(shape)
    turned = apply_orientation(labels, orientation)
    image = np.diag([size, size, size, 1]) @ OBLIQUE
    affine = image @ inv_ornt_aff(orientation, shape)
    found = reorientation(Grid(turned.shape, None, affine), Grid(shape, None, image))
    assert found is not None
    np.testing.assert_array_equal(found(turned), labels)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "change",
    [
        lambda affine: affine + np.array([[0, 0, 0, 0.5], [0] * 4, [0] * 4, [0] * 4]),
        lambda affine: affine * np.array([1.02, 1, 1, 1]),
        lambda affine: affine @ np.array([[0.98, 0.2, 0, 0], [-0.2, 0.98, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    ],
    ids=["moved by half a voxel", "other spacing", "turned a little"],
)
def test_other_voxels_are_refused(change: object, size: float) -> None:
    assert callable(change)
    to_mm = np.diag([size, size, size, 1])
    assert reorientation(Grid(SHAPE, None, to_mm @ change(OBLIQUE)), Grid(SHAPE, None, to_mm @ OBLIQUE)) is None


def test_another_size_or_no_place_in_space_is_refused() -> None:
    assert reorientation(Grid((5, 4, 2), None, OBLIQUE), Grid(SHAPE, None, OBLIQUE)) is None
    assert reorientation(Grid((4, 5)), Grid((5, 4))) is None


def test_without_affines_the_same_shape_is_the_same_grid() -> None:
    labels = np.arange(20).reshape(5, 4)
    found = reorientation(Grid((5, 4)), Grid((5, 4)))
    assert found is not None
    np.testing.assert_array_equal(found(labels), labels)
