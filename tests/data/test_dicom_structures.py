from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dicom_phantoms import IDENTITY, SORTED_AFFINES, new_image, save, secrets_of, write_ct_series
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from medsaga.data.dicom.contours import inside
from medsaga.data.dicom.geometry import Geometry, geometry_of
from medsaga.data.dicom.series import find_series
from medsaga.data.dicom.structures import read_structures, structures_of
from medsaga.data.dicom.structures_writer import outlines, write_structures
from medsaga.errors import InputError

Points = npt.NDArray[np.float64]
Roi = tuple[str, Sequence[tuple[str, Points]]]

LEFT_ANTERIOR_SUPERIOR = {"axial": (9, 0, 5), "coronal": (9, 0, 0), "sagittal": (0, 0, 0)}
"""Which voxel of a 10 x 8 x 6 grid lies in that corner of the patient, by the columns of `SORTED_AFFINES`."""


def series_geometry(folder: Path, affine: npt.NDArray[np.float64], shape: tuple[int, int, int]) -> Geometry:
    write_ct_series(folder, np.zeros(shape), affine)
    (series,) = find_series(folder)
    return geometry_of(series)


def in_mm(affine: npt.NDArray[np.float64], indices: Iterable[Sequence[float]]) -> Points:
    """Return where voxel indices lie, ``(points, 3)``, in DICOM's LPS."""
    points = np.array(list(indices), dtype=np.float64)
    return (points @ affine[:3, :3].T + affine[:3, 3]) * [-1, -1, 1]


def rectangle(low: Sequence[float], high: Sequence[float], k: float) -> list[Sequence[float]]:
    return [(low[0], low[1], k), (high[0], low[1], k), (high[0], high[1], k), (low[0], high[1], k)]


def write_structure_set(
    path: Path,
    rois: Sequence[Roi],
    frame_of_reference: str,
    *,
    patient: str = IDENTITY,
    syntax: UID = ImplicitVRLittleEndian,
    number: str = "{:.10g}",
) -> Path:
    document: FileDataset = new_image(RTStructureSetStorage, "RTSTRUCT")
    document.file_meta.TransferSyntaxUID = syntax
    document.PatientID = patient
    document.StructureSetLabel = "phantom"
    space = Dataset()
    space.FrameOfReferenceUID = frame_of_reference
    document.ReferencedFrameOfReferenceSequence = [space]
    document.StructureSetROISequence, document.ROIContourSequence = [], []
    for roi_number, (name, contours) in enumerate(rois, start=3):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = roi_number, name, frame_of_reference
        drawn.ReferencedROINumber, drawn.ContourSequence = roi_number, []
        for kind, points in contours:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [number.format(value) for value in points.ravel()]
            drawn.ContourSequence.append(contour)
        document.StructureSetROISequence.append(roi)
        document.ROIContourSequence.append(drawn)
    return save(document, path, syntax)


@pytest.mark.parametrize("name", SORTED_AFFINES)
def test_a_contour_around_one_voxel_fills_that_voxel_alone(tmp_path: Path, name: str) -> None:
    affine = SORTED_AFFINES[name]
    geometry = series_geometry(tmp_path / "ct", affine, (10, 8, 6))
    marker = LEFT_ANTERIOR_SUPERIOR.get(name, (7, 2, 4))
    low, high = [marker[0] - 0.5, marker[1] - 0.5], [marker[0] + 0.5, marker[1] + 0.5]
    points = in_mm(affine, rectangle(low, high, marker[2]))
    path = write_structure_set(
        tmp_path / "rt.dcm", [("marker", [("CLOSED_PLANAR", points)])], geometry.frame_of_reference
    )

    labels, names, warnings = read_structures(path, geometry)

    assert (labels.shape, names, warnings) == ((10, 8, 6), {"marker": 1}, ())
    assert np.argwhere(labels).tolist() == [list(marker)]
    if name in LEFT_ANTERIOR_SUPERIOR:
        assert geometry.grid.affine is not None
        corners = np.array([[i, j, k, 1] for i in (0, 9) for j in (0, 7) for k in (0, 5)])
        positions = (corners @ geometry.grid.affine.T)[:, :3]
        assert corners[(positions @ [-1, 1, 1]).argmax(), :3].tolist() == list(marker)


def circle(centre: tuple[float, float], radius: float, points: int = 4000, sign: int = 1) -> Points:
    angles = sign * np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.array(centre) + radius * np.column_stack([np.cos(angles), np.sin(angles)])


def distances(shape: tuple[int, int], centre: tuple[float, float]) -> Points:
    i, j = np.indices(shape)
    return np.hypot(i - centre[0], j - centre[1])


def test_a_disc_holds_the_points_within_its_radius_and_has_its_area() -> None:
    centre = (61.37, 48.91)
    mask = inside([circle(centre, 40.03)], (128, 100))
    assert (mask == (distances(mask.shape, centre) < 40.03)).all()
    assert mask.sum() == pytest.approx(np.pi * 40.03**2, rel=2e-3)


def test_a_ring_is_the_same_by_keyhole_and_by_two_contours() -> None:
    centre, outer, inner = (61.37, 48.91), circle((61.37, 48.91), 40.03), circle((61.37, 48.91), 17.77, sign=-1)
    keyhole = np.concatenate([outer, outer[:1], inner, inner[:1]])
    distance = distances((128, 100), centre)
    expected = (distance > 17.77) & (distance < 40.03)
    assert (inside([outer, inner], (128, 100)) == expected).all()
    assert (inside([keyhole], (128, 100)) == expected).all()
    assert expected.sum() == pytest.approx(np.pi * (40.03**2 - 17.77**2), rel=3e-3)


def test_a_triangle_holds_the_points_on_the_inner_side_of_its_edges() -> None:
    corners = np.array([[3.3, 2.1], [50.7, 9.4], [20.2, 44.8]])
    i, j = np.indices((60, 50))
    sides = [
        (b[0] - a[0]) * (j - a[1]) - (b[1] - a[1]) * (i - a[0])
        for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)
    ]
    expected = np.all(np.array(sides) > 0, axis=0)
    for order in (corners, corners[::-1], np.roll(corners, 1, axis=0)):
        assert (inside([order], (60, 50)) == expected).all()


def test_any_polygon_agrees_with_matplotlib() -> None:
    from matplotlib.path import Path as Polygon

    random = np.random.default_rng(5)
    grid = np.indices((30, 25)).reshape(2, -1).T
    for _ in range(100):
        points = np.round(random.uniform(-8, 36, (random.integers(3, 12), 2)), 4)
        closed = np.concatenate([points, points[:1]])
        expected = Polygon(closed).contains_points(grid).reshape(30, 25)
        assert (inside([points], (30, 25)) == expected).all()


def test_areas_that_share_an_edge_through_points_share_no_point() -> None:
    left, right = np.array([[2, 2], [5, 2], [5, 8], [2, 8.0]]), np.array([[5, 2], [9, 2], [9, 8], [5, 8.0]])
    first, second = inside([left], (12, 12)), inside([right], (12, 12))
    assert not (first & second).any()
    assert (first | second).sum() == 7 * 6
    # The last digits of a coordinate decide nothing.
    assert (inside([left + 1e-7], (12, 12)) == first).all()
    assert (inside([left - 1e-7], (12, 12)) == first).all()


def plane_of(k: float, low: Sequence[float] = (1.5, 1.5), high: Sequence[float] = (5.5, 4.5)) -> tuple[str, Points]:
    return "CLOSED_PLANAR", in_mm(SORTED_AFFINES["axial"], rectangle(low, high, k))


@pytest.fixture
def geometry(tmp_path: Path) -> Geometry:
    return series_geometry(tmp_path / "ct", SORTED_AFFINES["axial"], (10, 8, 6))


def voxels_of(labels: npt.NDArray[Any], label: int) -> dict[int, int]:
    """Return the number of voxels of a label on each slice that has some."""
    counts = (labels == label).sum(axis=(0, 1))
    return {int(k): int(counts[k]) for k in np.flatnonzero(counts)}


def test_contours_between_slices_belong_to_the_nearer_and_those_outside_to_none(
    tmp_path: Path, geometry: Geometry
) -> None:
    rois: list[Roi] = [
        ("between", [plane_of(1.4), plane_of(2.3)]),
        ("outside", [plane_of(-0.7), plane_of(7)]),
        ("first and last", [plane_of(-0.4), plane_of(5.4)]),
    ]
    path = write_structure_set(tmp_path / "rt.dcm", rois, geometry.frame_of_reference)
    labels, names, warnings = read_structures(path, geometry)
    assert names == {"between": 1, "outside": 2, "first and last": 3}
    assert voxels_of(labels, 1) == {1: 12, 2: 12}
    assert voxels_of(labels, 2) == {}
    assert voxels_of(labels, 3) == {0: 12, 5: 12}
    assert warnings == (
        "outside: contours left out, for they lie outside of the slices: 2",
        "outside: meets no slice of the series; contours: 2",
        "first and last: slices without a contour between its first and its last one, which stay empty: 4",
    )


def test_contours_closer_than_the_slices_do_not_cancel_each_other(tmp_path: Path, geometry: Geometry) -> None:
    contours = [
        plane_of(1.7, (2.5, 1.5)),
        plane_of(2.0),
        plane_of(2.3, (2.5, 1.5)),
        plane_of(2.01, (2.5, 2.5), (3.5, 3.5)),
    ]
    path = write_structure_set(tmp_path / "rt.dcm", [("dense", contours)], geometry.frame_of_reference)
    labels, _, warnings = read_structures(path, geometry)
    assert voxels_of(labels, 1) == {2: 11}
    assert warnings == ("dense: contours left out, for those of a plane nearer to the slice count: 2",)


def test_a_contour_that_the_file_holds_twice_counts_once(tmp_path: Path, geometry: Geometry) -> None:
    path = write_structure_set(
        tmp_path / "rt.dcm", [("twice", [plane_of(2), plane_of(2)])], geometry.frame_of_reference
    )
    labels, _, warnings = read_structures(path, geometry)
    assert voxels_of(labels, 1) == {2: 12}
    assert warnings == ("twice: contours that occur a second time and count once: 1",)


def test_points_lines_and_crooked_contours_are_left_out_with_a_warning(tmp_path: Path, geometry: Geometry) -> None:
    point = ("POINT", in_mm(SORTED_AFFINES["axial"], [(3, 3, 2)]))
    crooked = ("CLOSED_PLANAR", in_mm(SORTED_AFFINES["axial"], [(1, 1, 1), (5, 1, 1), (5, 5, 4), (1, 5, 4)]))
    two = ("CLOSED_PLANAR", in_mm(SORTED_AFFINES["axial"], [(1, 1, 1), (5, 1, 1)]))
    rois: list[Roi] = [("isocentre", [point]), ("organ", [plane_of(2), point, crooked, two]), ("empty", [])]
    path = write_structure_set(tmp_path / "rt.dcm", rois, geometry.frame_of_reference)
    labels, names, warnings = read_structures(path, geometry)
    assert names == structures_of(path) == {"organ": 1, "empty": 2}
    assert voxels_of(labels, 1) == {2: 12}
    assert set(warnings) == {
        "isocentre: contours left out, for they enclose nothing (points, open lines): 1",
        "organ: contours left out, for they enclose nothing (points, open lines): 1",
        "organ: contours left out, for they have less than 3 points: 1",
        "organ: contours left out, for they are not parallel to the slices: 1",
    }


def test_where_structures_overlap_the_highest_label_wins_and_is_counted(tmp_path: Path, geometry: Geometry) -> None:
    big, small = plane_of(2), plane_of(2, (2.5, 1.5), (3.5, 4.5))
    for first, second, highest in ((big, small, 3), (small, big, 12)):
        rois: list[Roi] = [("a", [first]), ("b", [second])]
        path = write_structure_set(tmp_path / "rt.dcm", rois, geometry.frame_of_reference)
        labels, _, warnings = read_structures(path, geometry)
        assert warnings == ("voxels in more than one label, of which the highest wins: 3",)
        assert (labels > 0).sum() == 12
        assert (labels == 2).sum() == highest


def test_structures_of_one_name_are_one_label(tmp_path: Path, geometry: Geometry) -> None:
    other = plane_of(2, (6.5, 1.5), (8.5, 4.5))
    rois: list[Roi] = [("lesion", [plane_of(2)]), ("liver", [plane_of(3)]), ("lesion", [other])]
    path = write_structure_set(tmp_path / "rt.dcm", rois, geometry.frame_of_reference)
    labels, names, warnings = read_structures(path, geometry)
    assert names == {"lesion": 1, "liver": 2}
    assert voxels_of(labels, 1) == {2: 18}
    assert warnings == ("2 are called 'lesion': read as one label",)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize("number", ["{:.10g}", " {:.7e} ", "{:+.3f}"])
def test_numbers_are_read_however_they_are_written(
    tmp_path: Path, geometry: Geometry, syntax: UID, number: str
) -> None:
    path = tmp_path / "rt.dcm"
    write_structure_set(path, [("organ", [plane_of(2)])], geometry.frame_of_reference, syntax=syntax, number=number)
    assert voxels_of(read_structures(path, geometry)[0], 1) == {2: 12}


def damaged(path: Path, edit: Any) -> Path:
    document = dcmread(path)
    edit(document)
    document.save_as(path)
    return path


def contour_of(document: Dataset) -> Dataset:
    return document.ROIContourSequence[0].ContourSequence[0]


DAMAGE: dict[str, tuple[Any, str]] = {
    "odd number": (lambda d: contour_of(d).__setattr__("ContourData", ["1", "2"]), "three finite coordinates"),
    "unknown structure": (
        lambda d: d.ROIContourSequence[0].__setattr__("ReferencedROINumber", 77),
        "structures that the file names",
    ),
    "equal numbers": (
        lambda d: d.StructureSetROISequence.append(d.StructureSetROISequence[0]),
        "ROI numbers that differ",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_structure_set_is_one_clear_error(tmp_path: Path, geometry: Geometry, name: str) -> None:
    edit, words = DAMAGE[name]
    path = write_structure_set(tmp_path / "rt.dcm", [("organ", [plane_of(2)])], geometry.frame_of_reference)
    with pytest.raises(InputError, match=words) as caught:
        read_structures(damaged(path, edit), geometry)
    assert not [secret for secret in secrets_of([path]) if secret in str(caught.value)]


@pytest.mark.parametrize("bad", [b"nan", b"inf", b"x", b"1e300", b""])
def test_coordinates_that_are_no_numbers_are_refused(tmp_path: Path, geometry: Geometry, bad: bytes) -> None:
    points = np.full((3, 3), 12345.678)
    path = write_structure_set(
        tmp_path / "rt.dcm", [("organ", [("CLOSED_PLANAR", points)])], geometry.frame_of_reference
    )
    content = path.read_bytes()
    path.write_bytes(content.replace(b"12345.678", bad.ljust(9), 1))
    with pytest.raises(InputError):
        read_structures(path, geometry)


def test_any_truncation_is_an_input_error(tmp_path: Path, geometry: Geometry) -> None:
    path = write_structure_set(tmp_path / "rt.dcm", [("organ", [plane_of(2)])], geometry.frame_of_reference)
    content = path.read_bytes()
    random = np.random.default_rng(1)
    for size in [0, 1, 132, *random.integers(132, len(content) - 1, 100).tolist()]:
        path.write_bytes(content[:size])
        with pytest.raises(InputError) as caught:
            read_structures(path, geometry)
        assert not [secret for secret in (IDENTITY, "Secret") if secret in str(caught.value)]


def test_another_patient_or_frame_of_reference_is_refused_without_saying_who(
    tmp_path: Path, geometry: Geometry
) -> None:
    path = write_structure_set(tmp_path / "rt.dcm", [("organ", [plane_of(2)])], generate_uid())
    with pytest.raises(InputError, match="another examination") as caught:
        read_structures(path, geometry)
    other = write_structure_set(
        tmp_path / "rt2.dcm", [("organ", [plane_of(2)])], geometry.frame_of_reference, patient="Other-1"
    )
    with pytest.raises(InputError, match="another patient") as second:
        read_structures(other, geometry)
    for error in (caught.value, second.value):
        assert not re.search(r"\d\.\d+\.\d+\.\d+|Other-1|" + IDENTITY, str(error))


@pytest.mark.parametrize("crooked", [True, False])
def test_contours_that_take_too_long_are_refused_before_they_are_filled(
    tmp_path: Path, geometry: Geometry, crooked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medsaga.data.dicom.structures._MOST_WORK", 3000)
    zigzag = np.tile([[0, 0, 2], [5, 1e6, 2.0]], (500, 1))
    organ = [("CLOSED_PLANAR", in_mm(SORTED_AFFINES["axial"], zigzag))] if crooked else [plane_of(2)] * 1000
    path = write_structure_set(tmp_path / "rt.dcm", [("organ", organ)], geometry.frame_of_reference)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"need \d\.\d times as long"):
        read_structures(path, geometry)
    assert time.monotonic() - start < 3


# Writing


def test_outlines_of_any_mask_fill_it_again_exactly() -> None:
    random = np.random.default_rng(2)
    for density in (0.1, 0.5, 0.9):
        for _ in range(20):
            mask = random.random((13, 9)) < density
            assert (inside(outlines(mask), mask.shape) == mask).all()


def test_outlines_are_corners_and_keep_pixels_that_touch_at_a_corner_apart() -> None:
    assert outlines(np.zeros((3, 3), np.bool_)) == []
    (block,) = outlines(np.pad(np.ones((4, 2), np.bool_), 1))
    assert sorted(block.tolist()) == [[0.5, 0.5], [0.5, 2.5], [4.5, 0.5], [4.5, 2.5]]
    for mask in (np.eye(3, dtype=np.bool_), np.eye(3, dtype=np.bool_)[::-1]):
        assert [len(contour) for contour in outlines(mask)] == [4, 4, 4]
    ring = np.ones((5, 5), np.bool_)
    ring[2, 2] = False
    areas = []
    for i, j in (contour.T for contour in outlines(ring)):
        areas.append(0.5 * float(i @ np.roll(j, -1) - j @ np.roll(i, -1)))
    assert sorted(areas) == [-1, 25]


@pytest.mark.parametrize("name", SORTED_AFFINES)
def test_structures_that_were_written_are_read_voxel_for_voxel(tmp_path: Path, name: str) -> None:
    write_ct_series(tmp_path / "ct", np.zeros((10, 8, 6)), SORTED_AFFINES[name])
    (series,) = find_series(tmp_path / "ct")
    geometry = geometry_of(series)
    labels = np.random.default_rng(0).integers(0, 3, (10, 8, 6)).astype(np.uint8)
    path = tmp_path / "rt.dcm"
    names = {"background": 0, "Leber": 1, "Läsion": 2, "empty": 7}
    write_structures(path, labels, series, geometry, names, model="vit_b")
    found, read_names, warnings = read_structures(path, geometry)
    assert (found == labels).all()
    assert (read_names, warnings) == ({"Leber": 1, "Läsion": 2, "empty": 3}, ())


def test_a_structure_set_has_what_planning_programs_need(tmp_path: Path) -> None:
    files = write_ct_series(tmp_path / "ct", np.zeros((10, 8, 6)), SORTED_AFFINES["axial"])
    (series,) = find_series(tmp_path / "ct")
    labels = np.zeros((10, 8, 6), np.uint8)
    labels[2:5, 2:5, 1:3] = 1
    write_structures(tmp_path / "rt.dcm", labels, series, geometry_of(series), {"liver": 1}, model="vit_b")
    document, source = dcmread(tmp_path / "rt.dcm"), dcmread(files[1])
    for word in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "FrameOfReferenceUID"):
        assert document[word].value == source[word].value
    assert (document.Modality, document.ApprovalStatus) == ("RTSTRUCT", "UNAPPROVED")
    assert "not for clinical use" in document.SeriesDescription
    (space,) = document.ReferencedFrameOfReferenceSequence
    (referenced,) = space.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
    assert len(referenced.ContourImageSequence) == 6
    (roi,), (drawn,) = document.StructureSetROISequence, document.ROIContourSequence
    (observation,) = document.RTROIObservationsSequence
    assert roi.ROINumber == drawn.ReferencedROINumber == observation.ReferencedROINumber
    assert (roi.ROIName, roi.ROIGenerationAlgorithm, len(drawn.ROIDisplayColor)) == ("liver", "AUTOMATIC", 3)
    contour = drawn.ContourSequence[0]
    assert contour.ContourImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert contour.NumberOfContourPoints * 3 == len(contour.ContourData) == 12


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_structures_need_the_uids_of_their_images(tmp_path: Path, keyword: str) -> None:
    write_ct_series(
        tmp_path / "ct",
        np.zeros((4, 4, 2)),
        np.diag([-1.0, -1, 1, 1]),
        edit=lambda image, _: delattr(image, keyword),
    )
    (series,) = find_series(tmp_path / "ct")
    labels = np.ones((4, 4, 2), np.uint8)
    with pytest.raises(InputError, match=f"the UIDs that a structure set repeats; found no {keyword}\\."):
        write_structures(tmp_path / "rt.dcm", labels, series, geometry_of(series), {"liver": 1}, model="vit_b")
    assert not (tmp_path / "rt.dcm").exists()
