"""Which images a file or a folder holds, when they are DICOM; files of other formats are in test_dataset.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_phantoms import AFFINES, write_ct_series, write_flat
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from medsaga.data.inputs import find_all_inputs, find_inputs
from medsaga.data.items import read_item
from medsaga.data.types import Series
from medsaga.errors import InputError

VOLUME = np.random.default_rng(0).integers(-900, 900, (6, 5, 4))
AFFINE = AFFINES["axial"]


def only_series(item: object) -> Series:
    (source,) = item.images  # type: ignore[attr-defined]
    assert isinstance(source, Series)
    return source


def test_a_folder_of_one_series_is_one_image(tmp_path: Path) -> None:
    write_ct_series(tmp_path / "ct", VOLUME, AFFINE)
    (item,) = find_inputs(tmp_path / "ct")
    assert item.name == "ct"
    np.testing.assert_array_equal(read_item(item)[0], VOLUME)


def test_an_export_of_one_examination_needs_a_choice(tmp_path: Path) -> None:
    study = generate_uid()
    write_ct_series(tmp_path / "st" / "1", VOLUME, AFFINE, study_uid=study, description="Thin")
    write_ct_series(tmp_path / "st" / "2", VOLUME[:, :, :2], AFFINE, study_uid=study, description="Topogram")
    with pytest.raises(InputError, match=r"1: CT 'Thin', 4 x .*; 2: CT 'Topogram', 2 x") as raised:
        find_inputs(tmp_path)
    assert "--series" in str(raised.value)
    for wanted in ("thin", "largest", "1"):
        (item,) = find_inputs(tmp_path, series=wanted)
        assert only_series(item).description == "Thin"
    uid = only_series(item).uid
    (item,) = find_inputs(tmp_path, series=uid)
    assert only_series(item).uid == uid
    with pytest.raises(InputError) as raised:
        find_inputs(tmp_path, series=uid + ".9")
    assert uid not in str(raised.value)


def test_examinations_are_images_of_their_own(tmp_path: Path) -> None:
    for case in ("p1", "p2"):
        study = generate_uid()
        write_ct_series(tmp_path / case / "a" / "T2", VOLUME, AFFINE, study_uid=study, description="t2", modality="MR")
        write_ct_series(tmp_path / case / "a" / "T1", VOLUME, AFFINE, study_uid=study, description="t1", modality="MR")
    items = find_inputs(tmp_path, series="t1")
    assert [item.name for item in items] == ["p1_a", "p2_a"]
    both = find_inputs(tmp_path, channels=("t2", "t1"))
    assert [item.header.channels for item in both] == [2, 2]
    first = both[0].images
    assert [source.description for source in first if isinstance(source, Series)] == ["t2", "t1"]


def test_files_of_their_own(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30)).astype(np.uint8)
    write_flat(tmp_path / "x" / "one.dcm", pixels)
    write_flat(tmp_path / "x" / "two.1", pixels)
    assert [item.name for item in find_inputs(tmp_path / "x")] == ["one", "two.1"]
    (item,) = find_inputs(tmp_path / "x" / "two.1")
    assert item.name == "two.1"
    np.testing.assert_array_equal(read_item(item)[0], pixels)


def test_examinations_in_one_folder_are_told_apart_by_their_first_files(tmp_path: Path) -> None:
    files = []
    for name in ("b", "a"):
        for k, file in enumerate(write_ct_series(tmp_path / name, VOLUME, AFFINE)):
            (tmp_path / "flat").mkdir(exist_ok=True)
            files.append(file.rename(tmp_path / "flat" / f"{name}_{3 - k:03d}{'.dcm' if k % 2 else ''}"))
    items = find_inputs(tmp_path / "flat")
    assert [item.name for item in items] == ["flat_a_000", "flat_b_000"]
    assert [{file.name[0] for file in only_series(item).files} for item in items] == [{"a"}, {"b"}]
    assert [item.name for item in find_all_inputs(files)] == ["flat_a_000", "flat_b_000"]
    # One that has a folder of its own keeps its name.
    write_ct_series(tmp_path / "flat" / "c", VOLUME, AFFINE)
    assert [item.name for item in find_inputs(tmp_path / "flat")] == ["c", "flat_a_000", "flat_b_000"]


def test_files_of_an_examination_in_two_folders_beside_another_one(tmp_path: Path) -> None:
    study, files = generate_uid(), []
    for name, shape in (("t1", "MR"), ("t2", "MR")):
        files += write_ct_series(
            tmp_path / "p1" / name, VOLUME, AFFINE, study_uid=study, description=name, modality=shape
        )
    files += write_ct_series(tmp_path / "p2", VOLUME, AFFINE, description="t1")
    assert [item.name for item in find_all_inputs(files, series="t1")] == ["p1", "p2"]
    with pytest.raises(InputError, match=r"for 2 examinations; found the number 1, which is another series in each"):
        find_all_inputs(files, series="1")


def test_a_number_chooses_a_series_of_one_examination_alone(tmp_path: Path) -> None:
    for case, first, second in (("p1", 4, 3), ("p2", 3, 4)):
        study = generate_uid()
        write_ct_series(tmp_path / case / "a", VOLUME[..., :first], AFFINE, study_uid=study, description="portal")
        write_ct_series(tmp_path / case / "b", VOLUME[..., :second], AFFINE, study_uid=study, description="native")
    for find in (find_inputs, lambda root, series: find_all_inputs([root / "p1", root / "p2"], series=series)):
        with pytest.raises(InputError, match=r"found the number 1, which is another series in each"):
            find(tmp_path, series="1")
    assert only_series(find_inputs(tmp_path / "p2", series="1")[0]).description == "native"


def test_an_examination_without_the_series_does_not_keep_the_others(tmp_path: Path) -> None:
    for case, description in (("p1", "portal"), ("p2", "native"), ("p3", "portal")):
        write_ct_series(tmp_path / case, VOLUME, AFFINE, description=description)
    problems: list[InputError] = []
    assert [item.name for item in find_inputs(tmp_path, series="portal", problems=problems)] == ["p1", "p3"]
    assert [problem.where for problem in problems] == [str(tmp_path / "p2")]
    with pytest.raises(InputError, match=r"p2: expected one DICOM series that fits 'portal'; found none"):
        find_inputs(tmp_path, series="portal")


def without_study(image: Dataset, k: int) -> None:
    """As some anonymisers leave it."""
    del k, image.StudyInstanceUID


@pytest.mark.parametrize("known", [True, False], ids=["other identifiers", "one identifier"])
def test_patients_without_a_study_are_not_one(tmp_path: Path, known: bool) -> None:
    for case in ("p1", "p2"):
        given: dict[str, Any] = {"edit": without_study, "patient_id": case if known else "anonymous"}
        write_ct_series(tmp_path / case / "a", VOLUME, AFFINE, description="t1", modality="MR", **given)
        write_ct_series(tmp_path / case / "b", VOLUME, AFFINE, description="t2", modality="MR", **given)
    if known:
        both = find_inputs(tmp_path, channels=("t1", "t2"))
        assert [(item.name, item.header.channels) for item in both] == [("p1", 2), ("p2", 2)]
    else:
        assert len(find_inputs(tmp_path)) == 4  # each by its folder: nothing says which belong together
    (one,) = find_inputs(tmp_path / "p1", channels=("t1", "t2"))
    assert one.header.channels == 2


def test_series_of_two_patients_make_no_image(tmp_path: Path) -> None:
    for case, description in (("p1", "t1"), ("p2", "t2")):
        write_ct_series(tmp_path / case, VOLUME, AFFINE, description=description, patient_id=case, edit=without_study)
    items = find_inputs(tmp_path, channels=("t1", "t2"))
    assert [(item.name, item.header.channels) for item in items] == [("p1", 1), ("p2", 1)]


def test_a_picture_that_cannot_be_opened_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        Image.new("L", (9, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "README").touch()
    opened = Path.open

    def refusing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "a.png":
            raise PermissionError(13, "denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refusing)
    monkeypatch.setattr("builtins.open", lambda path, *a, **k: refusing(Path(path), *a, **k))
    problems: list[InputError] = []
    assert [item.name for item in find_inputs(tmp_path, problems=problems)] == ["b"]
    assert [problem.where for problem in problems] == [str(tmp_path / "a.png")]


def test_outputs_are_no_images(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.jpg", "b_overlay.png"):
        Image.new("L", (9, 8)).save(tmp_path / name)
    asked, said = list[str](), list[str]()

    def is_output(path: Path) -> bool:
        asked.append(path.name)
        return path.suffix == ".png"

    items = find_inputs(tmp_path, leave_out=is_output, warn=said.append)
    assert [item.name for item in items] == ["a", "b"]
    assert sorted(asked) == ["a.jpg", "a.png", "b.jpg", "b_overlay.png"]
    (sentence,) = said
    assert "a.png" in sentence
    assert "b_overlay.png" in sentence
    paths = sorted(tmp_path.iterdir())
    assert [item.name for item in find_all_inputs(paths, leave_out=is_output)] == ["a", "b"]
    # Whoever names a single file means it.
    (item,) = find_all_inputs(paths[-1:], leave_out=is_output)
    assert item.name == "b_overlay"
    for some in ([tmp_path], paths):
        with pytest.raises(InputError, match=r"found nothing but what medsaga wrote there: a\.jpg, a\.png"):
            find_all_inputs(some, leave_out=lambda _: True)


def test_outputs_in_the_folder_of_a_series_are_no_other_images(tmp_path: Path) -> None:
    write_ct_series(tmp_path, VOLUME, AFFINE)
    for k in range(6):
        Image.new("L", (9, 8)).save(tmp_path / f"{k}_overlay.png")
    (item,) = find_inputs(tmp_path, leave_out=lambda path: path.suffix == ".png")
    assert len(only_series(item).files) == 4


def test_no_dicom_at_all(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_bytes(b"nothing of an image " * 9)
    with pytest.raises(InputError):
        find_inputs(tmp_path / "x.dcm")
    with pytest.raises(InputError, match="images that end in"):
        find_inputs(tmp_path)
