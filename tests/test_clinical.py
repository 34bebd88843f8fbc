"""From the archive and back to it: examinations of phantoms through the command line, as a hospital uses it.

What comes out is read by other programs: highdicom, pydicom, nibabel.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from clinical_phantoms import STRUCTURES, anatomy, write_examination, write_seg
from dicom_phantoms import AFFINES, IDENTITY, NAME, write_ct_series, write_flat
from PIL import Image
from pydicom import dcmread
from pydicom.uid import generate_uid

import medsaga
from medsaga.cli import main
from medsaga.data.types import Item
from medsaga.prediction.segmenter import Prediction, Segmenter

pytestmark = pytest.mark.xdist_group("clinical")

FAST = ["--image-size", "64", "--batch-size", "2", "--rank", "4", "--device", "cpu"]
LABELS = '{"labels": {"background": 0, "kidney": 1, "liver": 2}}'
Affine = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data``, three cases with segmentations, and ``run``, trained until it finds the organs."""
    root = tmp_path_factory.mktemp("clinic")
    for number in range(3):
        write_examination(root / "data", f"case{number}", seed=number)
    train = ["train", str(root / "data"), "--out", str(root / "run"), "--shots", "2", "--steps", "25", *FAST]
    assert main(train) == 0
    return root


def predict(clinic: Path, source: Path, out: Path, *options: str) -> int:
    return main(["predict", str(clinic / "run"), str(source), "--out", str(out), "--device", "cpu", *options])


def points_of(labels: npt.NDArray[Any], affine: Affine) -> set[tuple[int, ...]]:
    """Return label and place in 1/100 mm, RAS+, of every voxel that is not background."""
    index = np.argwhere(labels)
    places = np.rint((index @ affine[:3, :3].T + affine[:3, 3]) * 100).astype(int)
    return {(int(labels[tuple(at)]), *place) for at, place in zip(index, places.tolist(), strict=True)}


def from_nifti(path: Path) -> tuple[npt.NDArray[Any], Affine]:
    image = nib.load(path)
    return np.asarray(image.dataobj), np.asarray(image.affine)


def test_info_describes_examinations(clinic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(clinic / "data"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["layout"], told["problems"], told["warnings"]) == ("dicom", [], [])
    assert told["labels"] == {"background": 0, "kidney": 1, "liver": 2}
    assert [case["case"] for case in told["cases"]] == ["case0", "case1", "case2"]
    (image,) = told["cases"][0]["images"]
    assert (image["shape"], image["spacing_mm"]) == ([40, 36, 6], [0.9, 1.2, 4.0])


def test_the_model_has_learnt_and_is_scored_in_mm(clinic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(clinic / "run"), "--json", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((clinic / "run/result.json").read_text())
    assert min(result["dice"].values()) > 0.7
    assert max(result["hd95"].values()) < 20


@pytest.mark.parametrize("plane", ["axial", "feet first", "oblique"])
def test_a_segmentation_is_the_same_as_a_label_map(clinic: Path, tmp_path: Path, plane: str) -> None:
    volume, truth = anatomy(8)
    files = write_ct_series(tmp_path / "scan", volume, AFFINES[plane], modality="CT")

    assert predict(clinic, tmp_path / "scan", tmp_path / "seg.dcm") == 0
    assert predict(clinic, tmp_path / "scan", tmp_path / "labels.nii.gz") == 0

    segmentation = hd.seg.segread(tmp_path / "seg.dcm")
    found = segmentation.get_volume(combine_segments=True, relabel=False)
    labels, affine = from_nifti(tmp_path / "labels.nii.gz")
    points = points_of(labels, affine)
    assert points_of(found.array, np.diag([-1.0, -1, 1, 1]) @ found.affine) == points
    # Not only the same, but right.
    expected = points_of(truth, AFFINES[plane])
    for label in (1, 2):
        one, other = ({point for point in some if point[0] == label} for some in (points, expected))
        assert 2 * len(one & other) / (len(one) + len(other)) > 0.7
    require_belongs_to(segmentation, files)
    assert [segmentation.get_segment_description(number).segment_label for number in (1, 2)] == list(STRUCTURES)
    codes = [segmentation.get_segment_description(number).segmented_property_type.value for number in (1, 2)]
    assert codes == ["64033007", "10200004"]
    assert "not for clinical use" in segmentation.ContentDescription.lower()


def require_belongs_to(document: Any, files: Sequence[Path]) -> None:
    """Assert that an object is of the patient, study and space of images, is new, and says what it is not for."""
    source = dcmread(files[0], stop_before_pixels=True)
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert document.get(keyword) == source.get(keyword), keyword
    assert (document.PatientID, document.PatientName) == (IDENTITY, NAME)
    assert document.SeriesInstanceUID != source.SeriesInstanceUID
    assert "not for clinical use" in document.SeriesDescription.lower()
    known = {str(dcmread(file, stop_before_pixels=True).SOPInstanceUID) for file in files}
    named = {str(element.value) for element in document.iterall() if element.keyword == "ReferencedSOPInstanceUID"}
    assert known <= named
    assert named - known <= {str(source.StudyInstanceUID)}
    series = {str(element.value) for element in document.iterall() if element.keyword == "SeriesInstanceUID"}
    assert series == {str(source.SeriesInstanceUID), str(document.SeriesInstanceUID)}


@pytest.mark.parametrize(
    ("kind", "keyword"), [("seg", "StudyInstanceUID"), ("seg", "FrameOfReferenceUID"), ("rtstruct", "StudyInstanceUID")]
)
def test_what_a_result_must_repeat_is_missing(
    clinic: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    keyword: str,
) -> None:
    """As home-made anonymisers leave it. It is said before the model runs on that case; the others are segmented."""
    write_ct_series(tmp_path / "in/bad", anatomy(8)[0], AFFINES["axial"], edit=lambda image, _: delattr(image, keyword))
    write_ct_series(tmp_path / "in/good", anatomy(9)[0], AFFINES["axial"])
    segmented, predicted = list[str](), Segmenter.predict_item

    def noted(segmenter: Segmenter, item: Item, **options: Any) -> Prediction:
        segmented.append(item.name)
        return predicted(segmenter, item, **options)

    monkeypatch.setattr(Segmenter, "predict_item", noted)
    assert predict(clinic, tmp_path / "in", tmp_path / "out", "--format", kind) == 1
    said = capsys.readouterr()
    assert segmented == ["good"]
    assert [path.name for path in (tmp_path / "out").glob("*.dcm")] == ["good.dcm"]
    assert "1 of 2 images could not be segmented" in said.err
    assert (
        f"repeats; found no {keyword}. Export the images again with these, or write the prediction as NIfTI" in said.err
    )
    assert predict(clinic, tmp_path / "in", tmp_path / "nifti", "--format", "nifti") == 0


def test_a_structure_set_has_the_volumes_of_the_label_map(clinic: Path, tmp_path: Path) -> None:
    files = write_ct_series(tmp_path / "scan", anatomy(8)[0], AFFINES["tilted"])

    assert predict(clinic, tmp_path / "scan", tmp_path / "rt.dcm", "--format", "rtstruct") == 0
    assert predict(clinic, tmp_path / "scan", tmp_path / "labels.nii.gz", "--measure") == 0

    labels, affine = from_nifti(tmp_path / "labels.nii.gz")
    document = dcmread(tmp_path / "rt.dcm")
    require_belongs_to(document, files)
    names = {roi.ROINumber: roi.ROIName for roi in document.StructureSetROISequence}
    assert sorted(names.values()) == list(STRUCTURES)
    pixel = np.linalg.norm(np.cross(affine[:3, 0], affine[:3, 1]))
    for drawn in document.ROIContourSequence:
        area = 0.0
        for contour in drawn.ContourSequence:
            points = np.reshape([float(value) for value in contour.ContourData], (-1, 3))
            # Holes run the other way round and count less than nothing.
            area += np.cross(points, np.roll(points, -1, axis=0)).sum(axis=0)[2] / 2
        expected = int((labels == STRUCTURES.index(names[drawn.ReferencedROINumber]) + 1).sum())
        assert abs(area) / pixel == pytest.approx(expected, abs=0.1)
    with (tmp_path / "measurements.csv").open() as handle:
        rows = {row["label"]: row for row in csv.DictReader(handle)}
    for value, name in enumerate(STRUCTURES, start=1):
        volume = (labels == value).sum() * abs(np.linalg.det(affine[:3, :3])) / 1000
        assert int(rows[name]["voxels"]) == (labels == value).sum()
        assert float(rows[name]["volume_ml"]) == pytest.approx(volume, rel=1e-3)


def test_an_x_ray_gives_a_picture(clinic: Path, tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 400, (50, 70)).astype(np.uint16)
    grey[10:30, 40:60] += 300
    write_flat(tmp_path / "xray.dcm", grey, spacing=(0.2, 0.3))

    assert predict(clinic, tmp_path / "xray.dcm", tmp_path / "xray.png", "--measure", "--overlay") == 0

    labels = np.asarray(Image.open(tmp_path / "xray.png"))
    expected = medsaga.Segmenter.load(clinic / "run", device="cpu").predict(grey)
    np.testing.assert_array_equal(labels, expected.labels)
    assert labels.any()
    with (tmp_path / "measurements.csv").open() as handle:
        areas = {row["label"]: float(row["area_mm2"]) for row in csv.DictReader(handle)}
    assert areas["liver"] == pytest.approx((labels == 2).sum() * 0.06, abs=0.01)
    overlay = np.asarray(Image.open(tmp_path / "xray_overlay.png").convert("RGB")).astype(int)
    assert (np.ptp(overlay, axis=2) > 20).any(), "labels are in colour"


def an_export(root: Path) -> dict[str, list[Path]]:
    """Write one examination of three series, ``root/S0`` and so on."""
    study = generate_uid()
    series = {}
    for number, (description, plane, shape) in enumerate(
        [
            ("portal venous 4 mm", "axial", (40, 36, 6)),
            ("arterial", "oblique", (40, 36, 5)),
            ("scout", "coronal", (9, 8, 3)),
        ]
    ):
        volume, _ = anatomy(4, shape)
        series[description] = write_ct_series(
            root / f"S{number}", volume, AFFINES[plane], study_uid=study, description=description
        )
    return series


def test_an_examination_of_several_series_needs_a_choice(
    clinic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    series = an_export(tmp_path / "scan")
    out = tmp_path / "out.nii.gz"

    assert predict(clinic, tmp_path / "scan", out) == 2

    said = capsys.readouterr().err
    assert all(description in said for description in series)
    assert said.count("medsaga: ") == 1
    assert not out.exists()
    uid = str(dcmread(series["arterial"][0], stop_before_pixels=True).SeriesInstanceUID)
    # In the order of the message: the largest first.
    for wanted, slices in {"VENOUS": 6, uid: 5, "largest": 6, "2": 5, "scout": 3}.items():
        assert predict(clinic, tmp_path / "scan", out, "--series", wanted) == 0
        assert from_nifti(out)[0].shape[2] == slices
    assert predict(clinic, tmp_path / "scan", out, "--series", "delayed") == 2
    assert "delayed" in capsys.readouterr().err


def test_an_export_of_several_examinations(clinic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        write_ct_series(tmp_path / f"export/DCM/P{number}/ST1/SE1", anatomy(number + 4)[0], AFFINES["axial"])
    (tmp_path / "export/README.TXT").write_text("made by an archive")
    out = tmp_path / "out"

    assert predict(clinic, tmp_path / "export", out, "--measure", "--overlay", "--format", "nifti") == 0

    told = capsys.readouterr()
    names = [f"DCM_P{number}_ST1_SE1" for number in range(3)]
    assert told.out.split() == [str(out / f"{name}.nii.gz") for name in names]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [f"{name}{end}" for name in names for end in (".nii.gz", "_overlay.png")]
        + ["confidence.csv", "measurements.csv", "predictions.jsonl"]
    )
    with (out / "confidence.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert sorted(row["case"] for row in rows) == names
    scores = [float(row["confidence"]) for row in rows]
    assert scores == sorted(scores)
    assert 0 < scores[0] <= scores[-1] <= 1
    assert f"look at these first: {rows[0]['case']}" in told.err.replace("\n", " ")
    with (out / "measurements.csv").open() as handle:
        assert [(row["case"], row["label"]) for row in csv.DictReader(handle)] == [
            (name, label) for name in names for label in STRUCTURES
        ]


def test_masks_of_all_kinds_give_the_same_scores(
    clinic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Segmentations, structure sets, and label maps drawn on what dcm2niix makes, whose rows are turned round."""
    scores = {}
    for kind in ("seg", "rtstruct", "dcm2niix"):
        root = tmp_path / kind
        for number in (5, 6):
            write_examination(root, f"case{number}", seed=number, mask=kind)
        (root / "dataset.json").write_text(LABELS)
        assert main(["evaluate", str(clinic / "run"), "--data", str(root), "--json", "--device", "cpu"]) == 0
        result = json.loads(capsys.readouterr().out)
        scores[kind] = (result["dice"], result["hd95"])
    assert scores["seg"] == scores["rtstruct"] == scores["dcm2niix"]
    assert min(scores["seg"][0].values()) > 0.7


def write_mr(root: Path, name: str, seed: int, study: str) -> None:
    """Write T1 and FLAIR of one head, in which they show different things, into one folder."""
    volume, labels = anatomy(seed)
    contrasts = {"T1": np.where(labels == 2, 700, volume + 1200), "FLAIR": np.where(labels == 1, 2500, volume + 1200)}
    frame = generate_uid()
    for description, values in contrasts.items():
        files = write_ct_series(
            root / "images" / name / description,
            values,
            AFFINES["sagittal"],
            modality="MR",
            description=f"ax {description} tse",
            study_uid=study,
            frame_of_reference=frame,
            intercept=0,
        )
    (root / "masks").mkdir(exist_ok=True)
    write_seg(root / f"masks/{name}.dcm", labels, files)


def test_several_mr_contrasts_are_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    for number in range(3):
        write_mr(data, f"head{number}", number, generate_uid())
    document = json.loads(LABELS) | {"channel_names": {"0": "FLAIR", "1": "T1"}}
    (data / "dataset.json").write_text(json.dumps(document))

    assert main(["info", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["channels"] == ["FLAIR", "T1"]
    assert main(["train", str(data), "--out", str(run), "--shots", "2", "--steps", "2", *FAST]) == 0
    assert main(["predict", str(run), str(data / "images/head1"), "--out", str(tmp_path / "a.nii.gz")]) == 0
    labels, affine = from_nifti(tmp_path / "a.nii.gz")
    assert labels.shape == (40, 36, 6)
    np.testing.assert_allclose(affine, AFFINES["sagittal"], atol=1e-4)
    # The same arrays in the order of the channels, from files that another program would have made.
    for place, description in enumerate(("FLAIR", "T1")):
        (folder,) = (data / "images/head1").glob(description)
        (series,) = [
            sorted(folder.iterdir(), key=lambda file: float(dcmread(file).ImagePositionPatient[0]), reverse=True)
        ]
        stored = np.stack([dcmread(file).pixel_array.T for file in series], axis=-1).astype(np.int16)
        (tmp_path / "nifti").mkdir(exist_ok=True)
        nib.Nifti1Image(stored, AFFINES["sagittal"]).to_filename(tmp_path / f"nifti/head_{place:04d}.nii.gz")
    assert main(["predict", str(run), str(tmp_path / "nifti"), "--out", str(tmp_path / "out")]) == 0
    np.testing.assert_array_equal(from_nifti(tmp_path / "out/head.nii.gz")[0], labels)
    capsys.readouterr()
    shutil.rmtree(data / "images/head1/T1")
    assert main(["predict", str(run), str(data / "images/head1"), "--out", str(tmp_path / "b.nii.gz")]) == 2
    assert "FLAIR, T1" in capsys.readouterr().err


def test_a_missing_slice_is_refused(clinic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_examination(tmp_path, "case", seed=3)
    files[2].unlink()

    assert predict(clinic, tmp_path / "images/case", tmp_path / "out.dcm") == 2
    assert "a gap of 8 mm" in capsys.readouterr().err
    assert main(["info", str(tmp_path)]) == 2
    assert "a gap of 8 mm" in capsys.readouterr().err
    assert main(["train", str(tmp_path), "--out", str(tmp_path / "run"), *FAST]) == 2
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "out.dcm").exists()


def test_a_slice_that_is_there_twice_is_said(clinic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_examination(tmp_path, "case", seed=3)
    again = dcmread(files[1])
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    again.save_as(tmp_path / "images/case/again.dcm")

    assert predict(clinic, tmp_path / "images/case", tmp_path / "twice.nii.gz") == 0

    said = " ".join(capsys.readouterr().err.split())
    assert "twice: 1 of 7 slices are there twice" in said
    (tmp_path / "images/case/again.dcm").unlink()
    assert predict(clinic, tmp_path / "images/case", tmp_path / "once.nii.gz") == 0
    assert "twice" not in capsys.readouterr().err
    twice, once = (from_nifti(tmp_path / f"{name}.nii.gz")[0] for name in ("twice", "once"))
    np.testing.assert_array_equal(twice, once)


def test_inputs_are_never_written_over(clinic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_ct_series(tmp_path / "scan", anatomy(8)[0], AFFINES["axial"])
    target = next(file for file in files if file.suffix == ".dcm")
    before = {file: file.read_bytes() for file in files}

    assert predict(clinic, tmp_path / "scan", target) == 2
    assert "an output that is no input" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in files} == before
