"""Masks that name their segments: labels go by the names, whatever number a segment has in its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK
from dicom_phantoms import AFFINES, write_ct_series

from medsaga.data.dataset import check_items, read_dataset
from medsaga.data.items import read_mask, warnings_of

SHAPE = (9, 8, 6)
LIVER, SPLEEN = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
LIVER[2:4, 2:6, 1:5] = True
SPLEEN[5:8, 3:5, 2:4] = True
TRUTH = {"liver": LIVER, "spleen": SPLEEN}
STEPS, ORIGIN = np.diag([0.9, 1.1, 3.0]), np.array([-20.0, 35.5, 7.25])
"""LPS, as in the header of an NRRD file."""


def segment_notes(*segments: tuple[str, int, int]) -> dict[str, Any]:
    """Describe segments, (name, value, layer) each, as 3D Slicer 5 does."""
    notes: dict[str, Any] = {}
    for number, (name, value, layer) in enumerate(segments):
        notes |= {
            f"Segment{number}_ID": f"Segment_{number}",
            f"Segment{number}_Name": name,
            f"Segment{number}_LabelValue": str(value),
            f"Segment{number}_Layer": str(layer),
        }
    return notes


def write(path: Path, voxels: np.ndarray, notes: dict[str, Any] | None = None, origin: np.ndarray = ORIGIN) -> Path:
    """Write ``(i, j, k)``, or layers, ``(n, i, j, k)``, by pynrrd."""
    path.parent.mkdir(parents=True, exist_ok=True)
    steps: Any = STEPS if voxels.ndim == 3 else [[np.nan] * 3, *STEPS]
    place = {"space": "left-posterior-superior", "space directions": steps, "space origin": origin}
    kinds = {"kinds": ["list"] * (voxels.ndim - 3) + ["domain"] * 3}
    nrrd.write(str(path), voxels, {**place, **kinds, **(notes or {})})
    return path


def image(path: Path) -> Path:
    return write(path, np.random.default_rng(0).integers(0, 999, SHAPE).astype(np.int16))


def in_order(*names: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a label map with the segments numbered in an order, and its notes."""
    labels = sum((TRUTH[name] * np.uint8(value) for value, name in enumerate(names, 1)), np.zeros(SHAPE, np.uint8))
    return labels, segment_notes(*((name, value, 0) for value, name in enumerate(names, 1)))


def found_in(root: Path) -> list[dict[str, np.ndarray]]:
    """Return the voxels of each label of each item of a dataset without problems, by name."""
    dataset = read_dataset(root)
    assert dataset.problems == ()
    assert check_items(dataset) == ()
    masks = [read_mask(item) for item in dataset.items]
    return [{name: mask == value for name, value in dataset.labels.items() if value} for mask in masks]


def assert_true(found: list[dict[str, np.ndarray]], names: tuple[str, ...] = ("liver", "spleen")) -> None:
    for labels in found:
        assert set(labels) == set(names)
        for name in names:
            np.testing.assert_array_equal(labels[name], TRUTH[name])


@pytest.mark.parametrize("layout", ["folder", "described", "nnunet", "dicom", "nifti"])
def test_segments_created_in_another_order(tmp_path: Path, layout: str) -> None:
    orders = [("liver", "spleen"), ("spleen", "liver")]
    description: dict[str, Any] = {"labels": {"background": 0, "Spleen": 3, "LIVER": 7}}
    images, masks = ("imagesTr", "labelsTr") if layout == "nnunet" else ("images", "masks")
    for case, names in zip("ab", orders, strict=True):
        origin = ORIGIN
        if layout == "dicom":
            write_ct_series(tmp_path / f"images/{case}", np.zeros(SHAPE, np.int16) + LIVER, np.eye(4))
            continue
        if layout == "nifti":
            (tmp_path / "images").mkdir(exist_ok=True)
            affine = np.eye(4)
            affine[:3, :3], affine[:3, 3] = np.diag([-1.0, -1, 1]) @ STEPS, np.diag([-1.0, -1, 1]) @ ORIGIN
            volume = nib.Nifti1Image(LIVER.astype(np.int16), affine)
            volume.to_filename(tmp_path / f"images/{case}.nii.gz")
        else:
            image(tmp_path / images / f"{case}{'_0000' if layout == 'nnunet' else ''}.nrrd")
        write(tmp_path / masks / f"{case}.seg.nrrd", *in_order(*names), origin=origin)
    if layout == "dicom":
        place = {"space": "RAS", "space directions": np.eye(3), "space origin": np.zeros(3)}
        for case, names in zip("ab", orders, strict=True):
            labels, notes = in_order(*names)
            (tmp_path / "masks").mkdir(exist_ok=True)
            nrrd.write(str(tmp_path / f"masks/{case}.seg.nrrd"), labels, {**place, **notes})
    if layout == "nnunet":
        description |= {"channel_names": {"0": "CT"}, "file_ending": ".nrrd"}
    if layout in ("described", "nnunet"):
        (tmp_path / "dataset.json").write_text(json.dumps(description))
        found = found_in(tmp_path)
        assert read_dataset(tmp_path).labels == description["labels"] | {}
        found = [{name.lower(): voxels for name, voxels in labels.items()} for labels in found]
    else:
        found = found_in(tmp_path)
        assert read_dataset(tmp_path).labels == {"background": 0, "liver": 1, "spleen": 2}
    assert len(found) == 2
    assert_true(found)


def test_what_dataset_json_does_not_name_is_background(tmp_path: Path) -> None:
    image(tmp_path / "images/a.nrrd")
    write(tmp_path / "masks/a.seg.nrrd", *in_order("spleen", "liver"))
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1}}')
    assert_true(found_in(tmp_path), ("liver",))
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "kidney": 1}}')
    (problem,) = read_dataset(tmp_path).problems
    assert "expected one of the labels kidney; found spleen, liver" in str(problem)


@pytest.mark.parametrize("program", ["slicer", "slicer 4", "mitk"])
def test_overlapping_layers(tmp_path: Path, program: str) -> None:
    """The highest label wins, as in a DICOM SEG, and the voxels are counted."""
    image(tmp_path / "images/a.nrrd")
    organ = LIVER | SPLEEN
    layers = np.stack([SPLEEN, organ]).astype(np.uint8)
    if program == "slicer":
        layers[0] *= 5
        notes = segment_notes(("spleen", 5, 0), ("organ", 1, 1))
    elif program == "slicer 4":
        notes = {"Segment0_Name": "spleen", "Segment1_Name": "organ"}
    else:
        layers[1] *= 9
        groups = [{"labels": [{"name": "spleen", "value": 1}]}, {"labels": [{"name": "organ", "value": 9}]}]
        notes = {"org.mitk.multilabel.segmentation.labelgroups": json.dumps(groups)}
    write(tmp_path / f"masks/a{'.nrrd' if program == 'mitk' else '.seg.nrrd'}", layers, notes)
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "organ": 1, "spleen": 2}}')
    ((_, wins), *_) = ((labels["organ"], labels["spleen"]) for labels in found_in(tmp_path))
    np.testing.assert_array_equal(wins, SPLEEN)
    (item,) = read_dataset(tmp_path).items
    np.testing.assert_array_equal(read_mask(item), organ + SPLEEN.astype(int))
    assert warnings_of(item) == (f"voxels in more than one label, of which the highest wins: {SPLEEN.sum()}",)


@pytest.mark.parametrize("turned", [False, True])
def test_a_segmentation_that_covers_a_box_of_its_image(tmp_path: Path, turned: bool) -> None:
    image(tmp_path / "images/a.nrrd")
    labels, notes = in_order("spleen", "liver")
    box = labels[1:8, 2:7, 1:5]
    origin = ORIGIN + STEPS @ (1, 2, 1)
    write(tmp_path / "masks/a.seg.nrrd", box, notes, origin)
    if turned:
        # ITK's own flip keeps every voxel at its place.
        oracle = SimpleITK.Flip(SimpleITK.ReadImage(tmp_path / "masks/a.seg.nrrd"), (True, False, True))
        flipped = SimpleITK.GetArrayFromImage(oracle).T
        directions = np.reshape(oracle.GetDirection(), (3, 3)) * oracle.GetSpacing()
        place = {"space": "LPS", "space directions": directions.T, "space origin": oracle.GetOrigin()}
        nrrd.write(str(tmp_path / "masks/a.seg.nrrd"), flipped, {**place, **notes})
    assert_true(found_in(tmp_path))


def test_a_box_that_reaches_out_of_its_image(tmp_path: Path) -> None:
    image(tmp_path / "images/a.nrrd")
    labels, notes = in_order("spleen", "liver")
    around = np.pad(labels, 2)
    write(tmp_path / "masks/a.seg.nrrd", around, notes, ORIGIN - STEPS @ (2, 2, 2))
    assert_true(found_in(tmp_path))
    around[0, 0, 0] = 1
    write(tmp_path / "masks/a.seg.nrrd", around, notes, ORIGIN - STEPS @ (2, 2, 2))
    (problem,) = check_items(read_dataset(tmp_path))
    assert "reach out of it" in str(problem)


def test_a_box_of_a_plain_label_map_is_refused(tmp_path: Path) -> None:
    """Only a segmentation means that there is nothing around its box; a label map may have lost slices."""
    image(tmp_path / "images/a.nrrd")
    write(tmp_path / "masks/a.nrrd", in_order("spleen", "liver")[0][..., 1:], None, ORIGIN + STEPS @ (0, 0, 1))
    (problem,) = read_dataset(tmp_path).problems
    assert "the size of its image" in str(problem)


def test_names_beside_values_need_to_be_told_the_values(tmp_path: Path) -> None:
    for case in "ab":
        image(tmp_path / f"images/{case}.nrrd")
    write(tmp_path / "masks/a.seg.nrrd", *in_order("spleen", "liver"))
    write(tmp_path / "masks/b.nrrd", in_order("liver", "spleen")[0])
    (problem,) = read_dataset(tmp_path).problems
    assert "because b.nrrd holds values and a.seg.nrrd names" in str(problem)
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1, "spleen": 2}}')
    assert_true(found_in(tmp_path))


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        (segment_notes(("liver", 1, 0), ("spleen", 1, 0)), "a value of its own"),
        (segment_notes(("liver", 1, 0), ("spleen", 2, 1)), "layer 1 for 'spleen'"),
        (segment_notes(("liver", 0, 0), ("spleen", 2, 0)), "the value 0"),
        (segment_notes(("liver", 1, 0)), r"which belong to none"),
        ({"Segment0_Name": "liver", "Segment0_LabelValue": "one"}, "whole numbers"),
        ({"org.mitk.multilabel.segmentation.labelgroups": "[" * 9999}, "cannot be read"),
        ({"org.mitk.multilabel.segmentation.labelgroups": '[{"labels": [{"value": 1}]}]'}, "cannot be read"),
    ],
)
def test_segments_that_are_described_wrongly(tmp_path: Path, notes: dict[str, Any], message: str) -> None:
    image(tmp_path / "images/a.nrrd")
    path = write(tmp_path / "masks/a.seg.nrrd", in_order("liver", "spleen")[0], notes)
    dataset = read_dataset(tmp_path)
    problems = dataset.problems or check_items(dataset)
    assert problems
    for problem in problems:
        assert message in str(problem)
        assert problem.where == str(path)


def nifti_with_table(path: Path, labels: np.ndarray, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = "".join(f'<Label Key="{n}" Red="1" Green="0">{name}</Label>' for n, name in enumerate(names, 1))
    text = f'<?xml version="1.0"?><CaretExtension><LabelTable>{table}</LabelTable></CaretExtension>'
    image = nib.Nifti1Image(labels, np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, text.encode()))
    image.to_filename(path)


def test_label_tables_of_nifti_are_compared_and_do_not_count(tmp_path: Path) -> None:
    """A table is kept by who renumbers the voxels, so that the values decide; that the names differ is said."""
    labels = in_order("liver", "spleen")[0]
    for case, names in (("a", ("liver", "spleen")), ("b", ("spleen", "R&amp;D"))):
        nifti_with_table(tmp_path / f"masks/{case}.nii.gz", labels, *names)
        nifti_with_table(tmp_path / f"images/{case}.nii.gz", labels * 9)
    (warning,) = read_dataset(tmp_path).warnings
    assert warning.startswith(
        "1 is called 'spleen' in the header of b.nii.gz and 'liver' in a.nii.gz: the values count"
    )
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "Liver": 1, "spleen": 2}}')
    (warning,) = read_dataset(tmp_path).warnings
    assert "and 'Liver' in dataset.json" in warning
    assert_true([{"liver": each["Liver"], "spleen": each["spleen"]} for each in found_in(tmp_path)])
    nifti_with_table(tmp_path / "masks/b.nii.gz", labels, "LIVER", "spleen", "R&amp;D")
    assert read_dataset(tmp_path).warnings == ()


def test_an_oblique_series_with_a_segmentation(tmp_path: Path) -> None:
    affine = AFFINES["oblique"]
    write_ct_series(tmp_path / "images/a", LIVER.astype(np.int16), affine)
    labels, notes = in_order("spleen", "liver")
    lps = np.diag([-1.0, -1, 1]) @ affine[:3]
    place = {"space": "LPS", "space directions": lps[:, :3].T, "space origin": lps[:, 3]}
    (tmp_path / "masks").mkdir()
    nrrd.write(str(tmp_path / "masks/a.seg.nrrd"), labels, {**place, **notes})
    dataset = read_dataset(tmp_path)
    assert dataset.problems == ()
    (item,) = dataset.items
    found, grid = read_mask(item), item.header.grid
    assert grid.affine is not None
    places = np.argwhere(found == dataset.labels["spleen"]) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    truth = np.argwhere(SPLEEN) @ affine[:3, :3].T + affine[:3, 3]
    np.testing.assert_allclose(sorted(places.round(3).tolist()), sorted(truth.round(3).tolist()), atol=0.02)
