"""The generated abdominal CT: deterministic, in nnU-Net's layout, plausible, and no matter of a threshold."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

from medsaga.data.phantom import LABELS, phantom_ct, write_phantom_ct

SHAPE = (64, 64, 12)


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_layout_of_nnunet(tmp_path: Path) -> None:
    write_phantom_ct(tmp_path, cases=2, shape=SHAPE)
    description = json.loads((tmp_path / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "CT"}
    assert description["labels"] == {"background": 0, "liver": 1, "spleen": 2, "kidney": 3}
    assert description["numTraining"] == 2
    assert description["file_ending"] == ".nii.gz"
    assert sorted(digests(tmp_path)) == [
        "dataset.json",
        "imagesTr/phantom_000_0000.nii.gz",
        "imagesTr/phantom_001_0000.nii.gz",
        "labelsTr/phantom_000.nii.gz",
        "labelsTr/phantom_001.nii.gz",
    ]


def test_images_and_labels_lie_on_one_grid_of_true_geometry(tmp_path: Path) -> None:
    write_phantom_ct(tmp_path, cases=2, shape=SHAPE)
    for case in range(2):
        image = nib.load(tmp_path / f"imagesTr/phantom_{case:03}_0000.nii.gz")
        labels = nib.load(tmp_path / f"labelsTr/phantom_{case:03}.nii.gz")
        np.testing.assert_array_equal(image.affine, labels.affine)
        assert image.shape == labels.shape == SHAPE
        assert image.get_data_dtype() == np.int16
        assert image.header.get_zooms() == pytest.approx((6, 6, 5))
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        oblique = np.abs(image.affine[:3, :3]).astype(bool).sum() > 3
        assert oblique == (case == 1)


def test_organs_lie_where_they_do_in_patients(tmp_path: Path) -> None:
    write_phantom_ct(tmp_path, cases=4, shape=SHAPE)
    for path in sorted((tmp_path / "labelsTr").iterdir()):
        image = nib.load(path)
        labels = np.asarray(image.dataobj)
        centres = {
            name: apply_affine(image.affine, np.argwhere(labels == value)).mean(0) for name, value in LABELS.items()
        }
        assert centres["liver"][0] > 20, "right"
        assert centres["spleen"][0] < -40, "left"
        assert abs(centres["kidney"][0]) < 30, "one on either side"
        assert centres["kidney"][1] < centres["liver"][1], "behind the liver"
        assert centres["kidney"][2] < centres["spleen"][2], "below the spleen"


def test_the_seed_decides_and_cases_do_not_depend_on_their_number(tmp_path: Path) -> None:
    write_phantom_ct(tmp_path / "a", cases=2, shape=SHAPE, seed=4)
    write_phantom_ct(tmp_path / "b", cases=3, shape=SHAPE, seed=4)
    write_phantom_ct(tmp_path / "c", cases=2, shape=SHAPE, seed=5)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    volumes = [name for name in a if name.endswith(".nii.gz")]
    assert all(a[name] == b[name] and a[name] != c[name] for name in volumes)
    assert a[volumes[0]] != a[volumes[1]], "cases differ"


@pytest.mark.parametrize("seed", range(5))
def test_every_case_has_every_organ_and_slices_without_any(seed: int) -> None:
    hu, labels = phantom_ct(np.random.default_rng(seed), (96, 96, 12))
    assert [hu.dtype, labels.dtype] == [np.dtype(np.int16), np.dtype(np.uint8)]
    assert hu.min() >= -1024
    assert hu.max() <= 3071
    volumes_ml = np.bincount(labels.ravel(), minlength=4)[1:] * (4 * 4 * 5) / 1000
    assert (volumes_ml > (200, 10, 20)).all()
    assert 1 <= (labels.reshape(-1, 12).max(0) == 0).sum() <= 4
    border = np.ones(hu.shape[:2], bool)
    border[3:-3, 3:-3] = False
    assert np.median(hu[border]) < -950, "air around the body"
    assert not labels[border].any()


def test_grey_values_overlap_so_that_no_threshold_will_do() -> None:
    overlap = dict.fromkeys(("liver", "spleen", "kidney"), 0.0)
    cases = [phantom_ct(np.random.default_rng(seed), SHAPE) for seed in range(6)]
    for name in overlap:
        best = 0.0
        inside = np.concatenate([hu[labels == LABELS[name]] for hu, labels in cases])
        everywhere = np.concatenate([hu.ravel() for hu, _ in cases])
        ends = np.percentile(inside, [1, 5, 10, 25, 75, 90, 95, 99])
        for low in ends[:4]:
            for high in ends[4:]:
                hit = ((inside >= low) & (inside <= high)).sum()
                taken = ((everywhere >= low) & (everywhere <= high)).sum()
                best = max(best, float(2 * hit / (taken + len(inside))))
        overlap[name] = best
    assert overlap["liver"] < 0.75
    assert overlap["spleen"] < 0.3
    assert overlap["kidney"] < 0.4
