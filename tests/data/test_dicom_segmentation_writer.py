from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pytest
from dicom_phantoms import IDENTITY, NAME, SORTED_AFFINES, new_image, save, secrets_of, set_pixels, write_flat
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    generate_uid,
)
from seg_phantoms import SHAPE, Images, blobs, images_in

from medsaga.data.dicom import terminology
from medsaga.data.dicom.geometry import geometry_of
from medsaga.data.dicom.segmentation import read_segmentation
from medsaga.data.dicom.segmentation_writer import SERIES_DESCRIPTION, write_segmentation
from medsaga.data.dicom.series import find_series
from medsaga.errors import InputError


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return images_in(tmp_path / "ct", SORTED_AFFINES["axial"])


def written(path: Path, images: Images, labels: npt.NDArray[Any], names: dict[str, int], **options: Any) -> FileDataset:
    write_segmentation(path, labels, images.series, images.geometry, names, model="vit_b", **options)
    return dcmread(path)


@pytest.mark.parametrize("name", SORTED_AFFINES)
def test_highdicom_reads_the_voxels_that_were_written(tmp_path: Path, name: str) -> None:
    images = images_in(tmp_path / "ct", SORTED_AFFINES[name])
    labels = blobs(3)
    path = tmp_path / "out" / "seg.dcm"
    written(path, images, labels, {"background": 0, "liver": 1, "kidney": 2, "other": 3})
    segmentation = hd.seg.segread(path)
    pixels = segmentation.get_pixels_by_source_instance(
        [header.SOPInstanceUID for header in images.headers], combine_segments=True
    )
    assert (pixels.transpose(2, 1, 0) == labels).all()
    found, names, warnings = read_segmentation(path, images.geometry)
    assert (found == labels).all()
    assert (names, warnings) == ({"liver": 1, "kidney": 2, "other": 3}, ())
    positions = {
        tuple(map(float, groups.PlanePositionSequence[0].ImagePositionPatient))
        for groups in segmentation.PerFrameFunctionalGroupsSequence
    }
    drawn = np.flatnonzero(labels.any(axis=(0, 1)))
    assert positions == {tuple(map(float, images.headers[k].ImagePositionPatient)) for k in drawn}


def test_label_values_with_gaps_become_consecutive_segments(tmp_path: Path, images: Images) -> None:
    labels = np.array([0, 1, 4], np.uint8)[blobs(2)]
    path = tmp_path / "seg.dcm"
    written(path, images, labels, {"tumour core": 4, "edema": 1, "never seen": 300})
    found, names, _ = read_segmentation(path, images.geometry)
    assert names == {"edema": 1, "tumour core": 2, "never seen": 3}
    assert (found == np.array([0, 1, 0, 0, 2])[labels]).all()


def test_labels_without_a_voxel_are_segments_without_a_frame(tmp_path: Path, images: Images) -> None:
    document = written(tmp_path / "seg.dcm", images, np.zeros(SHAPE, np.uint8), {"liver": 1, "spleen": 2})
    assert [str(each.SegmentLabel) for each in document.SegmentSequence] == ["liver", "spleen"]
    assert int(document.NumberOfFrames) >= 1
    found, names, _ = read_segmentation(tmp_path / "seg.dcm", images.geometry)
    assert names == {"liver": 1, "spleen": 2}
    assert not found.any()


def test_the_segmentation_has_what_dcmqi_and_viewers_need(tmp_path: Path, images: Images) -> None:
    document = written(tmp_path / "seg.dcm", images, blobs(2), {"liver": 1, "kidney_left": 2})
    source = images.headers[0]
    for word in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID"):
        assert document[word].value == source[word].value
    assert document.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert document.SeriesInstanceUID != source.SeriesInstanceUID
    assert document.Modality == "SEG"
    assert document.SeriesDescription == SERIES_DESCRIPTION
    assert "not for clinical use" in SERIES_DESCRIPTION
    assert len(SERIES_DESCRIPTION) <= 64
    assert (document.Manufacturer, document.ManufacturerModelName) == ("medsaga", "medsaga")
    assert document.ContentLabel == "SEGMENTATION"
    assert (document.SegmentationType, document.BitsAllocated, document.SegmentsOverlap) == ("BINARY", 1, "NO")

    (series,) = document.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    referenced = {each.ReferencedSOPInstanceUID for each in series.ReferencedInstanceSequence}
    assert referenced == {header.SOPInstanceUID for header in images.headers}

    for number, segment in enumerate(document.SegmentSequence, start=1):
        assert segment.SegmentNumber == number
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert segment.SegmentAlgorithmName == "medsaga segmentation"
        assert len(segment.RecommendedDisplayCIELabValue) == 3
        for word in ("SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence"):
            (code,) = segment[word].value
            assert code.CodeValue
            assert code.CodingSchemeDesignator == "SCT"
            assert code.CodeMeaning
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmSource, algorithm.AlgorithmParameters) == ("medsaga", "model=vit_b")
    (kidney,) = document.SegmentSequence[1].SegmentedPropertyTypeCodeSequence
    (side,) = kidney.SegmentedPropertyTypeModifierCodeSequence
    assert (kidney.CodeMeaning, side.CodeMeaning) == ("Kidney", "Left")

    (shared,) = document.SharedFunctionalGroupsSequence
    (measures,) = shared.PixelMeasuresSequence
    assert [float(value) for value in measures.PixelSpacing] == [0.7, 0.8]
    assert float(measures.SliceThickness) == float(measures.SpacingBetweenSlices) == 2.5
    assert list(shared.PlaneOrientationSequence[0].ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]

    pointers = [int(each.DimensionIndexPointer) for each in document.DimensionIndexSequence]
    assert pointers == [0x0062000B, 0x00200032]
    places = {tuple(map(float, header.ImagePositionPatient)): header.SOPInstanceUID for header in images.headers}
    assert len(document.PerFrameFunctionalGroupsSequence) == document.NumberOfFrames
    for groups in document.PerFrameFunctionalGroupsSequence:
        position = tuple(map(float, groups.PlanePositionSequence[0].ImagePositionPatient))
        (derivation,) = groups.DerivationImageSequence
        (image,) = derivation.SourceImageSequence
        assert image.ReferencedSOPInstanceUID == places[position]
        assert image.ReferencedSOPClassUID == source.SOPClassUID
        assert image.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert derivation.DerivationCodeSequence[0].CodeValue == "113076"
        number, index = groups.FrameContentSequence[0].DimensionIndexValues
        assert number == groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        assert 1 <= index <= SHAPE[2]


def test_given_codes_go_before_known_names(tmp_path: Path, images: Images) -> None:
    given = terminology.Terminology(
        terminology.MORPHOLOGY, terminology.Code("4147007", "SCT", "Mass"), terminology.Code("24028007", "SCT", "Right")
    )
    names = {"liver": 1, "spleen": 2, "thing": 3}
    document = written(tmp_path / "seg.dcm", images, blobs(3), names, codes={"liver": given})
    types = [each.SegmentedPropertyTypeCodeSequence[0] for each in document.SegmentSequence]
    assert [each.CodeMeaning for each in types] == ["Mass", "Spleen", "Tissue"]
    assert types[0].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Right"


def test_names_of_patients_in_other_scripts_and_odd_headers_survive(tmp_path: Path) -> None:
    def edit(image: Dataset, _: int) -> None:
        image.SpecificCharacterSet = "ISO_IR 100"
        image.PatientName = "Müller^Jürgen"
        image.StudyDate = "2019.04.31"
        del image.PatientSex, image.ReferringPhysicianName, image.AccessionNumber, image.SeriesNumber

    with disable_value_validation():
        images = images_in(tmp_path / "ct", SORTED_AFFINES["axial"], edit=edit)
    document = written(tmp_path / "seg.dcm", images, blobs(1), {"Läsion \\ Übergang": 1})
    assert document.PatientName == "Müller^Jürgen"
    assert document.SegmentSequence[0].SegmentLabel == "Läsion / Übergang"
    assert document.StudyDate == ""


def test_a_failed_writing_leaves_no_file_and_names_no_patient(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def edit(image: Dataset, _: int) -> None:
        # highdicom quotes a name that it finds odd in its log.
        image.PatientName = "Secret=Name=with=many=parts^^^^^^^"
        del image.StudyInstanceUID

    with disable_value_validation():
        images = images_in(tmp_path / "ct", SORTED_AFFINES["axial"], edit=edit)
    path = tmp_path / "seg.dcm"
    with pytest.raises(InputError, match=r"UIDs that a segmentation repeats; found no StudyInstanceUID\.") as caught:
        written(path, images, blobs(1), {"liver": 1})
    assert not path.exists()
    assert [each.name for each in tmp_path.iterdir()] == ["ct"]
    shown = "".join([str(caught.value), *capfd.readouterr()])
    assert not [secret for secret in secrets_of(images.files) if secret in shown]


@pytest.mark.parametrize("value", [None, ""])
def test_uids_that_are_missing_are_named(tmp_path: Path, value: str | None) -> None:
    lost = ["StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"]

    def edit(image: Dataset, _: int = 0) -> None:
        for keyword in lost:
            if value is None and keyword in image:
                delattr(image, keyword)
            else:
                setattr(image, keyword, "")

    images = images_in(tmp_path / "ct", SORTED_AFFINES["axial"], edit=edit)
    found = "found no StudyInstanceUID and no SeriesInstanceUID and no FrameOfReferenceUID"
    with pytest.raises(InputError, match=f"{found}.*as NIfTI"):
        written(tmp_path / "seg.dcm", images, blobs(1), {"liver": 1})
    # An image without a place needs no space to lie in.
    del lost[:2]
    write_flat(tmp_path / "dx" / "1.dcm", np.zeros((9, 13), np.uint16), edit=edit)
    (series,) = find_series(tmp_path / "dx")
    write_segmentation(
        tmp_path / "flat.dcm", np.ones((9, 13), np.uint8), series, geometry_of(series), {"heart": 1}, model="vit_b"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ct", "dx", "flat.dcm"]


def test_images_that_do_not_say_how_thick_they_are(tmp_path: Path) -> None:
    def edit(image: Dataset, _: int) -> None:
        del image.SliceThickness

    images = images_in(tmp_path / "ct", SORTED_AFFINES["axial"], edit=edit)
    labels = blobs(1)
    written(tmp_path / "seg.dcm", images, labels, {"liver": 1})
    assert (read_segmentation(tmp_path / "seg.dcm", images.geometry)[0] == labels).all()


def test_an_image_without_a_position_gets_a_segmentation_that_refers_to_it(tmp_path: Path) -> None:
    image = new_image(DigitalXRayImageStorageForPresentation, "DX")
    image.SeriesDescription = "chest"
    image.ImagerPixelSpacing = [0.2, 0.2]
    set_pixels(image, np.zeros((9, 13), np.uint16))
    save(image, tmp_path / "dx" / "1.dcm")
    (series,) = find_series(tmp_path / "dx")
    images = Images(series, geometry_of(series), [tmp_path / "dx" / "1.dcm"], np.eye(4))
    assert images.geometry.grid.shape == (9, 13)
    labels = np.random.default_rng(0).integers(0, 3, (9, 13)).astype(np.uint8)
    path = tmp_path / "seg.dcm"
    document = written(path, images, labels, {"heart": 1, "lung": 2})
    found, names, _ = read_segmentation(path, images.geometry)
    assert (found == labels).all()
    assert names == {"heart": 1, "lung": 2}
    assert document.PatientName == NAME


def test_a_multi_frame_image_gets_a_segmentation_frame_by_frame(tmp_path: Path) -> None:
    single = images_in(tmp_path / "ct", SORTED_AFFINES["oblique"])
    enhanced = hd.legacy.LegacyConvertedEnhancedCTImage(
        legacy_datasets=[dcmread(file) for file in single.files[::-1]],
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
    )
    path = tmp_path / "enhanced" / "1.dcm"
    path.parent.mkdir()
    enhanced.save_as(path)
    (series,) = find_series(path.parent)
    images = Images(series, geometry_of(series), [path], single.affine)
    assert images.geometry.grid.shape == SHAPE
    labels = blobs(2)
    written(tmp_path / "seg.dcm", images, labels, {"liver": 1, "spleen": 2})
    for geometry in (images.geometry, single.geometry):
        assert (read_segmentation(tmp_path / "seg.dcm", geometry)[0] == labels).all()


def test_no_message_nor_representation_shows_the_patient(images: Images) -> None:
    shown = f"{images.series!r} {images.series.label()} {images.geometry!r}"
    assert IDENTITY not in shown
    assert not [uid for uid in (header.SOPInstanceUID for header in images.headers) if uid in shown]
