"""Which images a file or a folder holds, when they are DICOM; files of other formats are in test_dataset.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_phantoms import AFFINES, write_ct_series, write_flat
from pydicom.uid import generate_uid

from medsaga.data.inputs import find_inputs
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


def test_no_dicom_at_all(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_bytes(b"nothing")
    with pytest.raises(InputError):
        find_inputs(tmp_path / "x.dcm")
    with pytest.raises(InputError, match="images that end in"):
        find_inputs(tmp_path)
