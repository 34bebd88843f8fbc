"""A marker in the left-anterior-superior corner stays in that corner, through every reader and every writer.

The truth is a set of points in mm, made from the affine of the phantom alone. What is read back comes from other
programs wherever one can read it: highdicom, pydicom, nibabel, SimpleITK. Shapes, spacings and the marker are
different along every axis, so no transposition and no flip goes unseen.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK
from clinical_phantoms import write_seg, write_structures
from dicom_phantoms import AFFINES, write_ct_series, write_enhanced
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from pydicom import dcmread
from pydicom.dataset import Dataset

from medsaga.data.dataset import read_dataset
from medsaga.data.formats import nifti
from medsaga.data.inputs import find_inputs
from medsaga.data.items import read_item, read_mask
from medsaga.data.outputs import LabelMapInfo, probabilities_suffix, write_labels, write_probabilities
from medsaga.data.slices import slice_view
from medsaga.data.types import Grid, Item

Affine = npt.NDArray[np.float64]
Points = npt.NDArray[np.float64]

SHAPE = (26, 17, 6)
"""About as long in mm along each axis, so that no rotation of the phantoms moves the corner to another octant."""
BRIGHT = 1500
"""The marker is brighter than this, and nothing else is."""
STRUCTURES = ("marker", "opposite")
NAMES = {"background": 0, "marker": 1, "opposite": 2}
MEANING = LabelMapInfo(NAMES, "phantom")
LPS = np.diag([-1.0, -1, 1, 1])
UNSHEARED = [name for name in AFFINES if name != "tilted"]
_AXES = itertools.permutations(("LR", "AP", "SI"))
AXIS_ORDERS = ["".join(ends) for axes in _AXES for ends in itertools.product(*axes)]
"""All 48 ways in which the axes of a stored volume can lie."""


@dataclass(frozen=True)
class Phantom:
    """A volume whose brightest voxels are the marker.

    Attributes:
        affine: voxel index to RAS+ mm.
        volume: ``(i, j, k)`` int16, another value at every voxel.
        labels: ``(i, j, k)`` uint8: 1 is the marker, 2 is a bar at the opposite corner.
    """

    affine: Affine
    volume: npt.NDArray[np.int16]
    labels: npt.NDArray[np.uint8]


def phantom(affine: Affine, shape: tuple[int, int, int] = SHAPE) -> Phantom:
    world = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)).argmax(axis=0)
    labels = np.zeros(shape, np.uint8)
    # As voxels counted from left, anterior, superior: an L that no symmetry of a box maps onto itself.
    towards = [affine[world[axis], axis] * (-1, 1, 1)[world[axis]] > 0 for axis in range(3)]
    from_corner = labels[tuple(slice(None, None, -1 if runs_there else 1) for runs_there in towards)]
    from_corner[:4, :3, :2] = 1
    from_corner[3, 2, :] = 0
    from_corner[3, 1, 1] = 0
    from_corner[-5:, -1, -1] = 2
    volume = np.arange(labels.size).reshape(shape) % 2500 - 1000 + 3000 * (labels == 1)
    return Phantom(affine, volume.astype(np.int16), labels)


def in_mm(indices: npt.NDArray[Any], affine: Affine) -> Points:
    return np.asarray(indices @ affine[:3, :3].T + affine[:3, 3])


def truth(made: Phantom, label: int = 1) -> Points:
    return in_mm(np.argwhere(made.labels == label), made.affine)


def assert_same_places(found: Points, expected: Points, within_mm: float = 0.02) -> None:
    """Assert that every point is one of the others, and the other way round."""
    assert found.shape == expected.shape
    distances = np.linalg.norm(found[:, np.newaxis] - expected[np.newaxis], axis=2)
    assert distances.min(axis=0).max() < within_mm
    assert distances.min(axis=1).max() < within_mm


def assert_in_its_corner(labels: npt.NDArray[Any], affine: Affine | None, made: Phantom) -> None:
    """Assert that a label map on a grid says what the phantom says."""
    assert affine is not None
    assert_marker_in_its_corner(labels == 1, affine, made)
    assert_same_places(in_mm(np.argwhere(labels == 2), affine), truth(made, 2))


def assert_marker_in_its_corner(marker: npt.NDArray[np.bool_], affine: Affine, made: Phantom) -> None:
    points = in_mm(np.argwhere(marker), affine)
    assert_same_places(points, truth(made))
    centre = in_mm((np.array(marker.shape) - 1) / 2, affine)
    assert (np.sign(points.mean(axis=0) - centre) == (-1, 1, 1)).all()


def reordered(made: Phantom, axes: str) -> Phantom:
    """Store a phantom with its axes running towards, for instance, L, A, S; of each pair one."""
    how = ornt_transform(io_orientation(made.affine), axcodes2ornt(axes))
    return Phantom(
        made.affine @ inv_ornt_aff(how, made.labels.shape),
        apply_orientation(made.volume, how).astype(np.int16),
        apply_orientation(made.labels, how).astype(np.uint8),
    )


def itk_of(voxels: npt.NDArray[Any], affine: Affine) -> Any:
    steps = (LPS @ affine)[:3, :3]
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.T))
    image.SetSpacing(np.linalg.norm(steps, axis=0).tolist())
    image.SetDirection((steps / np.linalg.norm(steps, axis=0)).ravel().tolist())
    image.SetOrigin((LPS @ affine)[:3, 3].tolist())
    return image


def from_itk(path: Path) -> tuple[npt.NDArray[Any], Affine]:
    image = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).T, LPS @ affine


def from_nibabel(path: Path) -> tuple[npt.NDArray[Any], Affine]:
    image = nib.load(path)
    return np.asarray(image.dataobj), np.asarray(image.affine)


def write_volume(path: Path, voxels: npt.NDArray[Any], affine: Affine) -> Path:
    """Write a volume with the program that invented its format, or is its reference."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        nib.Nifti1Image(voxels, affine).to_filename(path)
    else:
        SimpleITK.WriteImage(itk_of(voxels, affine), str(path))
    return path


def series_item(folder: Path, made: Phantom, kind: str = "files") -> Item:
    if kind == "files":
        write_ct_series(folder, made.volume, made.affine)
    else:
        write_enhanced(folder / "frames.dcm", made.volume, made.affine)
    (item,) = find_inputs(folder)
    return item


def on_grid_of(item: Item, made: Phantom) -> npt.NDArray[np.uint8]:
    """Return the labels in the order in which the package stores the series."""
    grid = item.header.grid
    assert grid.affine is not None
    labels = np.zeros(grid.shape, np.uint8)
    back = np.linalg.inv(grid.affine).astype(np.float64)
    for label in (1, 2):
        i, j, k = np.rint(in_mm(truth(made, label), back)).astype(int).T
        labels[i, j, k] = label
    return labels


def assert_image(item: Item, made: Phantom) -> None:
    """Assert that what was read has every value at its place, and the marker in its corner."""
    image, affine = read_item(item)[0], item.header.grid.affine
    assert affine is not None
    assert_marker_in_its_corner(image > BRIGHT, affine, made)
    corners = np.array(list(itertools.product(*((0, size - 1) for size in made.volume.shape))))
    i, j, k = np.rint(in_mm(in_mm(corners, made.affine), np.linalg.inv(affine).astype(np.float64))).astype(int).T
    assert image[i, j, k].tolist() == made.volume[tuple(corners.T)].tolist()
    assert_in_view(item.header.grid, image > BRIGHT)


def assert_in_view(grid: Grid, marker: npt.NDArray[Any]) -> None:
    """Assert that slices are shown as the head of `medsaga.data.slices` says, in all three planes."""
    # Slices run to the superior, to the anterior, to the right; the sides that are meant are the ends of lines.
    last_slice = {"axial": True, "coronal": True, "sagittal": False}
    right_column = {"axial": True, "coronal": True, "sagittal": False}
    for plane in last_slice:
        view = slice_view(grid, plane)
        stack = view.of_labels(marker)
        where = np.argwhere(stack).mean(axis=0) / (np.array(stack.shape) - 1)
        assert (where[0] > 0.5) == last_slice[plane]
        assert where[1] < 0.5, "anterior of an axial slice and superior of the others is its first row"
        assert (where[2] > 0.5) == right_column[plane]
        assert np.array_equal(view.restore(stack), marker)


@pytest.fixture(params=AFFINES)
def made(request: pytest.FixtureRequest) -> Phantom:
    return phantom(AFFINES[request.param])


@pytest.mark.parametrize("kind", ["files", "frames"])
def test_dicom_images(tmp_path: Path, made: Phantom, kind: str) -> None:
    assert_image(series_item(tmp_path / "scan", made, kind), made)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_volumes(tmp_path: Path, made: Phantom, suffix: str) -> None:
    (item,) = find_inputs(write_volume(tmp_path / f"scan{suffix}", made.volume, made.affine))

    assert_image(item, made)


@pytest.mark.parametrize("name", UNSHEARED)
def test_a_nifti_that_has_a_qform_alone(tmp_path: Path, name: str) -> None:
    made = phantom(AFFINES[name])
    image = nib.Nifti1Image(made.volume, made.affine)
    image.set_sform(None, code=0)
    image.set_qform(made.affine, code=1)
    image.to_filename(tmp_path / "scan.nii")
    (item,) = find_inputs(tmp_path / "scan.nii")

    assert_image(item, made)


@pytest.mark.parametrize("name", ["axial", "oblique", "tilted"])
def test_all_orders_of_the_axes_are_read_and_shown_alike(tmp_path: Path, name: str) -> None:
    made = phantom(AFFINES[name])
    assert len(AXIS_ORDERS) == 48
    for axes in AXIS_ORDERS:
        stored = reordered(made, axes)
        path = write_volume(tmp_path / f"{axes}.nii", stored.volume, stored.affine)
        (item,) = find_inputs(path)
        assert_image(item, made)


@pytest.mark.parametrize("kind", ["files", "frames"])
def test_segmentations_are_written_for_highdicom(tmp_path: Path, made: Phantom, kind: str) -> None:
    item = series_item(tmp_path / "scan", made, kind)

    write_labels(tmp_path / "seg.dcm", on_grid_of(item, made), item, "seg", MEANING)

    segmentation = hd.seg.segread(tmp_path / "seg.dcm")
    for label in (1, 2):
        name = segmentation.get_segment_description(label).segment_label
        assert NAMES[name] == label
        assert_same_places(places_of_segment(segmentation, label), truth(made, label))
    if made.affine is not AFFINES["tilted"]:
        volume = segmentation.get_volume(combine_segments=True, relabel=False)
        assert_in_its_corner(volume.array, LPS @ volume.affine, phantom(made.affine))


def places_of_segment(segmentation: Any, number: int) -> Points:
    """Return the points of a segment from the plane positions of its frames, RAS+ mm."""
    measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    orientation = segmentation.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    across, down = np.reshape([float(value) for value in orientation.ImageOrientationPatient], (2, 3))
    between_rows, between_columns = map(float, measures.PixelSpacing)
    points = []
    for frame, groups in zip(segmentation.pixel_array, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        if groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber != number:
            continue
        position = np.array([float(value) for value in groups.PlanePositionSequence[0].ImagePositionPatient])
        rows, columns = np.nonzero(frame)
        points.append(position + np.outer(columns * between_columns, across) + np.outer(rows * between_rows, down))
    return np.concatenate(points) * (-1, -1, 1)


def test_structure_sets_are_written_for_planning_programs(tmp_path: Path, made: Phantom) -> None:
    item = series_item(tmp_path / "scan", made)

    write_labels(tmp_path / "rt.dcm", on_grid_of(item, made), item, "rtstruct", MEANING)

    document = dcmread(tmp_path / "rt.dcm")
    names = {roi.ROINumber: roi.ROIName for roi in document.StructureSetROISequence}
    pixel = float(np.linalg.norm(np.cross(made.affine[:3, 0], made.affine[:3, 1])))
    for drawn in document.ROIContourSequence:
        areas, centres = zip(*(area_and_centre(contour) for contour in drawn.ContourSequence), strict=True)
        expected = truth(made, NAMES[names[drawn.ReferencedROINumber]])
        assert sum(areas) / pixel == pytest.approx(len(expected), rel=1e-3)
        centre = np.average(centres, axis=0, weights=areas) * (-1, -1, 1)
        np.testing.assert_allclose(centre, expected.mean(axis=0), atol=0.01)
    assert sorted(names.values()) == list(STRUCTURES)


def area_and_centre(contour: Dataset) -> tuple[float, Points]:
    """Return area in mm2 and centroid in mm, LPS, of a closed planar contour, by Gauss's formula in its plane."""
    points = np.array([float(value) for value in contour.ContourData]).reshape(-1, 3)
    origin = points[0]
    one, other = points - origin, np.roll(points, -1, axis=0) - origin
    crosses = np.cross(one, other)
    normal = crosses.sum(axis=0)
    twice = float(np.linalg.norm(normal))
    weights = crosses @ (normal / twice)
    return twice / 2, origin + ((one + other) * weights[:, np.newaxis]).sum(axis=0) / (3 * twice)


def test_label_maps_of_dicom_are_written_as_nifti(tmp_path: Path, made: Phantom) -> None:
    item = series_item(tmp_path / "scan", made)
    labels = on_grid_of(item, made)
    soft = np.stack([labels == label for label in (0, 1, 2)]).astype(np.float32)

    write_labels(tmp_path / "labels.nii.gz", labels, item, "nifti", MEANING)
    path = tmp_path / f"soft{probabilities_suffix(item)}"
    write_probabilities(path, soft, item)

    assert_in_its_corner(*from_nibabel(tmp_path / "labels.nii.gz"), made)
    probabilities, affine = from_nibabel(path)
    assert_in_its_corner(probabilities.argmax(axis=-1), affine, made)
    if made.affine is not AFFINES["tilted"]:
        assert_in_its_corner(*from_itk(tmp_path / "labels.nii.gz"), made)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_label_maps_of_volumes_are_written_in_their_own_format_and_as_nifti(
    tmp_path: Path, made: Phantom, suffix: str
) -> None:
    (item,) = find_inputs(write_volume(tmp_path / f"scan{suffix}", made.volume, made.affine))
    labels = on_grid_of(item, made)
    soft = np.stack([labels == label for label in (0, 1, 2)]).astype(np.float32)
    from_own = from_nibabel if suffix.startswith(".nii") else from_itk

    write_labels(tmp_path / f"labels{suffix}", labels, item, "auto", MEANING)
    write_labels(tmp_path / "other.nii.gz", labels, item, "nifti", MEANING)
    path = tmp_path / f"soft{probabilities_suffix(item)}"
    write_probabilities(path, soft, item)

    assert_in_its_corner(*from_own(tmp_path / f"labels{suffix}"), made)
    assert_in_its_corner(*from_nibabel(tmp_path / "other.nii.gz"), made)
    probabilities, affine = from_own(path)
    # ITK puts vectors behind the spatial axes, and what is turned round here comes first.
    assert_in_its_corner(probabilities.argmax(axis=-1 if suffix.startswith(".nii") else 0), affine, made)


def masks(folder: Path, kind: str, made: Phantom, files: list[Path]) -> Path:
    """Write the labels as another program would."""
    if kind == "seg":
        return write_seg(folder / "case.dcm", made.labels, files, STRUCTURES)
    if kind == "rtstruct":
        return write_structures(folder / "case.dcm", made.labels, made.affine, files, STRUCTURES)
    stored = reordered(made, kind.split()[1])
    return write_volume(folder / f"case{kind.split()[0]}", stored.labels, stored.affine)


@pytest.mark.parametrize("kind", ["seg", "rtstruct", ".nii.gz LAS", ".nii.gz SRP", ".nrrd PIR", ".mha RAI"])
def test_masks_of_other_programs_come_onto_their_series(tmp_path: Path, made: Phantom, kind: str) -> None:
    files = write_ct_series(tmp_path / "images/case", made.volume, made.affine)
    masks(tmp_path / "masks", kind, made, files)
    dataset = read_dataset(tmp_path)

    assert dataset.problems == ()
    (item,) = dataset.items
    found = read_mask(item)
    named = dataset.labels if kind in ("seg", "rtstruct") else NAMES
    translated = sum((found == named[name]) * NAMES[name] for name in STRUCTURES)
    assert_in_its_corner(np.asarray(translated), item.header.grid.affine, made)


@pytest.mark.parametrize("name", ["sagittal", "oblique", "tilted"])
def test_masks_in_all_orders_of_the_axes_come_onto_their_image(tmp_path: Path, name: str) -> None:
    made = phantom(AFFINES[name])
    image = reordered(made, "PIR")
    for number, axes in enumerate(AXIS_ORDERS):
        stored = reordered(made, axes)
        write_volume(tmp_path / f"images/{number}.nii", image.volume, image.affine)
        write_volume(tmp_path / f"masks/{number}{('.nii', '.nrrd', '.mha')[number % 3]}", stored.labels, stored.affine)
    dataset = read_dataset(tmp_path)

    assert dataset.problems == ()
    for item in dataset.items:
        assert_in_its_corner(read_mask(item), item.header.grid.affine, made)


@pytest.mark.parametrize("kind", ["seg", "rtstruct", "nifti"])
def test_what_is_written_can_be_trained_on(tmp_path: Path, made: Phantom, kind: str) -> None:
    item = series_item(tmp_path / "images/case", made)
    path = tmp_path / f"masks/case{'.nii.gz' if kind == 'nifti' else '.dcm'}"
    path.parent.mkdir()
    write_labels(path, on_grid_of(item, made), item, kind, MEANING)
    dataset = read_dataset(tmp_path)

    assert dataset.problems == ()
    assert_in_its_corner(read_mask(dataset.items[0]), dataset.items[0].header.grid.affine, made)


def test_the_places_can_be_told_apart(tmp_path: Path) -> None:
    """The comparison itself fails for every order of the axes but the true one."""
    made = phantom(AFFINES["axial"])
    wrong = [axes for axes in AXIS_ORDERS if reordered(made, axes).labels.shape == SHAPE]
    assert len(wrong) == 8
    matching = 0
    for axes in wrong:
        try:
            assert_in_its_corner(reordered(made, axes).labels, made.affine, made)
            matching += 1
        except AssertionError:
            pass
    assert matching == 1


def test_a_sheared_grid_is_written_with_an_sform_alone(tmp_path: Path) -> None:
    """A program that reads the qform would be misled by one, for a qform knows no shear."""
    made = phantom(AFFINES["tilted"])
    nifti.write_labels(tmp_path / "labels.nii", made.labels, Grid(SHAPE, None, made.affine))

    image = nib.load(tmp_path / "labels.nii")

    assert (int(image.header["sform_code"]) > 0, int(image.header["qform_code"])) == (True, 0)
    assert_in_its_corner(*from_nibabel(tmp_path / "labels.nii"), made)
