"""Volumes become slices that look alike whatever the storage order, and come back without loss."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff

from medsaga.data.slices import common_axis, slice_channels, slice_view
from medsaga.data.types import Grid
from medsaga.errors import InputError

ORIENTATIONS = [
    "".join(codes) for order in itertools.permutations(["LR", "PA", "IS"]) for codes in itertools.product(*order)
]
PLANES = ["axial", "coronal", "sagittal"]


def stored_as(volume: npt.NDArray, codes: str, spacing: tuple[float, ...]) -> tuple[npt.NDArray, Grid]:
    """Store a RAS+ volume, ``(x, y, z)``, in another order, by nibabel's own functions."""
    ornt = nib.orientations.ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    stored = apply_orientation(volume, ornt)
    affine = np.diag([*spacing, 1.0]) @ inv_ornt_aff(ornt, volume.shape)
    return stored, Grid(stored.shape, tuple(np.linalg.norm(affine[:3, :3], axis=0)), affine)


def rotation(degrees: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    x, y, z = np.deg2rad(degrees)
    about_x = [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
    about_y = [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]
    about_z = [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]
    return np.array(about_z) @ np.array(about_y) @ np.array(about_x)


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_the_same_anatomy_looks_the_same_from_any_storage_order(codes: str) -> None:
    volume = np.random.default_rng(0).integers(0, 1000, (4, 5, 6))
    stored, grid = stored_as(volume, codes, (1.0, 1.5, 2.0))
    # Radiological convention, spelled out on the RAS+ volume.
    expected = {
        "axial": np.stack([volume[::-1, ::-1, z].T for z in range(6)]),
        "coronal": np.stack([volume[::-1, y, ::-1].T for y in range(5)]),
        "sagittal": np.stack([volume[x, ::-1, ::-1].T for x in range(4)]),
    }
    spacing = {"axial": (1.5, 1.0), "coronal": (2.0, 1.0), "sagittal": (2.0, 1.5)}
    for plane in PLANES:
        view = slice_view(grid, plane)
        np.testing.assert_array_equal(view.view(stored[None])[:, 0], expected[plane])
        assert view.spacing == pytest.approx(spacing[plane])
        assert (view.slices, *view.slice_shape) == expected[plane].shape


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_agrees_with_nibabel_closest_canonical(codes: str) -> None:
    stored, grid = stored_as(np.random.default_rng(1).integers(0, 99, (3, 4, 5)).astype(np.int16), codes, (1, 2, 3))
    canonical = np.asarray(nib.as_closest_canonical(nib.Nifti1Image(stored, grid.affine)).dataobj)
    axial = slice_view(grid, "axial").view(stored[None])[:, 0]
    np.testing.assert_array_equal(axial[:, ::-1, ::-1].transpose(2, 1, 0), canonical)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_marker_at_left_anterior_superior_is_top_right_on_the_last_axial_slice(codes: str) -> None:
    volume = np.zeros((3, 4, 5))
    volume[0, -1, -1] = 1  # RAS+: x grows to the right, so index 0 is the left
    stored, grid = stored_as(volume, codes, (1.0, 1.0, 1.0))
    assert np.argwhere(slice_view(grid, "axial").view(stored[None])[:, 0]).tolist() == [[4, 0, 2]]
    assert np.argwhere(slice_view(grid, "coronal").view(stored[None])[:, 0]).tolist() == [[3, 0, 2]]
    assert np.argwhere(slice_view(grid, "sagittal").view(stored[None])[:, 0]).tolist() == [[0, 0, 0]]


@settings(deadline=None, max_examples=150)
@given(
    codes=st.sampled_from(ORIENTATIONS),
    degrees=st.tuples(*[st.floats(-80, 80)] * 3),
    shape=st.tuples(*[st.integers(1, 4)] * 3),
    axis=st.sampled_from(["auto", "i", "j", "k", *PLANES]),
    channels=st.integers(1, 3),
)
def test_restore_undoes_view_without_copying(
    codes: str, degrees: tuple[float, float, float], shape: tuple[int, int, int], axis: str, channels: int
) -> None:
    stored, grid = stored_as(np.arange(np.prod(shape)).reshape(shape), codes, (0.8, 1.1, 4.0))
    assert grid.affine is not None
    oblique = np.eye(4)
    oblique[:3, :3] = rotation(degrees) @ grid.affine[:3, :3]
    view = slice_view(Grid(stored.shape, grid.spacing, oblique), axis)
    image = np.stack([stored + 1000 * n for n in range(channels)])
    stack = view.view(image)
    assert np.shares_memory(stack, image)
    assert stack.shape == (view.slices, channels, *view.slice_shape)
    np.testing.assert_array_equal(view.restore(stack), image)
    np.testing.assert_array_equal(view.restore(stack[:, 0]), stored)
    np.testing.assert_array_equal(view.restore(stack[:, None]), image[None])
    assert np.shares_memory(view.restore(stack), image)


def test_oblique_slices_follow_the_closest_axes() -> None:
    volume = np.random.default_rng(2).integers(0, 99, (4, 5, 6))
    stored, grid = stored_as(volume, "PIR", (1.0, 1.0, 3.0))
    assert grid.affine is not None
    tilted = np.eye(4)
    tilted[:3, :3] = rotation((20, -10, 15)) @ grid.affine[:3, :3]
    straight = slice_view(grid, "axial").view(stored[None])
    np.testing.assert_array_equal(
        slice_view(Grid(stored.shape, grid.spacing, tilted), "axial").view(stored[None]), straight
    )


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
@pytest.mark.parametrize(
    ("spacing", "plane"),
    [
        ((0.8, 0.8, 5.0), "axial"),
        ((0.5, 4.0, 0.5), "coronal"),
        ((4.0, 0.5, 0.5), "sagittal"),
        ((1.0, 1.0, 1.0), "axial"),
        ((1.0, 1.0, 1.04), "axial"),
        ((0.8, 0.8, 0.5), "axial"),  # thin-slice CT: no axis is the coarsest
        ((1.04, 1.0, 1.0), "axial"),
        ((1.1, 1.0, 1.0), "sagittal"),
    ],
)
def test_auto_cuts_across_the_coarsest_spacing(codes: str, spacing: tuple[float, ...], plane: str) -> None:
    _, grid = stored_as(np.zeros((8, 8, 8)), codes, spacing)
    assert slice_view(grid).axis == plane


def test_a_volume_of_one_voxel_thickness_is_one_slice() -> None:
    view = slice_view(Grid((64, 48, 1), (2.0, 2.0, 1.0), np.diag([2.0, 2.0, 1.0, 1.0])))
    assert (view.axis, view.slices, view.slice_shape) == ("axial", 1, (48, 64))


def test_stored_axes_can_be_named() -> None:
    _, grid = stored_as(np.zeros((4, 5, 6)), "PIR", (1.0, 1.0, 1.0))
    assert [slice_view(grid, axis).axis for axis in "ijk"] == ["coronal", "axial", "sagittal"]


def test_an_image_is_its_own_slice() -> None:
    image = np.arange(24).reshape(2, 3, 4)
    view = slice_view(Grid((3, 4), (0.5, 0.25)), "coronal")
    np.testing.assert_array_equal(view.view(image), image[None])
    np.testing.assert_array_equal(view.restore(view.view(image)), image)
    np.testing.assert_array_equal(view.restore(image[:1]), image[0])
    assert (view.axis, view.slices, view.slice_shape, view.spacing) == ("image", 1, (3, 4), (0.5, 0.25))


def test_a_volume_without_an_affine_counts_as_ras() -> None:
    volume = np.random.default_rng(0).integers(0, 99, (1, 3, 4, 5))
    plain, ras = Grid((3, 4, 5)), Grid((3, 4, 5), (1, 1, 1), np.eye(4))
    np.testing.assert_array_equal(slice_view(plain).view(volume), slice_view(ras).view(volume))


def test_unknown_axis() -> None:
    with pytest.raises(InputError, match="axial, coronal"):
        slice_view(Grid((3, 4, 5)), "transversal")


def test_common_axis_is_that_of_most_volumes() -> None:
    axial, coronal = Grid((4, 4, 4), (1, 1, 5), np.eye(4)), Grid((4, 4, 4), (1, 5, 1), np.eye(4))
    picture = Grid((4, 4))
    assert common_axis([axial, coronal, coronal, picture]) == "coronal"
    assert common_axis([coronal, axial]) == "axial"
    assert common_axis([axial], "sagittal") == "sagittal"
    assert common_axis([picture]) == "auto"


def test_neighbours_are_channels_and_the_ends_repeat() -> None:
    stack = np.arange(5)[:, None, None, None] * np.ones((1, 1, 2, 2), int) + np.array([0, 100])[None, :, None, None]
    assert slice_channels(stack, 2, 1)[:, 0, 0].tolist() == [1, 101, 2, 102, 3, 103]
    assert slice_channels(stack, 0, 2)[:, 0, 0].tolist() == [0, 100, 0, 100, 0, 100, 1, 101, 2, 102]
    assert slice_channels(stack, 4, 1)[::2, 0, 0].tolist() == [3, 4, 4]
    np.testing.assert_array_equal(slice_channels(stack, 3, 0), stack[3])
