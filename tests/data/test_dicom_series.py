"""Finding and choosing DICOM series: exports of any shape, damaged files, and nothing of the patient in words."""

from __future__ import annotations

import os
import shutil
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_phantoms import AFFINES, new_image, save, secrets_of, write_ct_series, write_flat
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RTStructureSetStorage,
    SegmentationStorage,
)

from medsaga.data.dicom import reading, walking
from medsaga.data.dicom.series import choose_series, find_series
from medsaga.data.types import Series
from medsaga.errors import InputError

VOLUME = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7))
AXIAL = AFFINES["axial"]


def message_of(action: Any, *arguments: Any) -> str:
    """Return the text of the InputError that ``action`` raises."""
    with pytest.raises(InputError) as caught:
        action(*arguments)
    return str(caught.value)


def test_a_nested_export_is_one_series_per_uid(tmp_path: Path) -> None:
    first = write_ct_series(tmp_path / "a", VOLUME, AXIAL, description="Thorax 5.0")
    write_ct_series(tmp_path / "deep" / "er" / "b", VOLUME[..., :3], AXIAL, description="Scout")
    half = tmp_path / "another folder"
    half.mkdir()
    for file in first[:3]:
        shutil.move(file, half / file.name)
    (tmp_path / "README.txt").write_text("DICM but no DICOM")
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(100))
    (tmp_path / "notes.dcm").write_text("A text that somebody named like an image. " * 4)
    (tmp_path / "empty").touch()
    found = find_series(tmp_path)
    assert [each.label() for each in found] == ["CT 'Thorax 5.0', 7 x (6 x 5)", "CT 'Scout', 3 x (6 x 5)"]
    assert found[0].files == tuple(sorted(found[0].files, key=str))
    assert {file.name for file in found[0].files} == {file.name for file in first}
    assert found == find_series(tmp_path)


def test_a_single_file_is_a_series_of_one(tmp_path: Path) -> None:
    file = write_ct_series(tmp_path, VOLUME, AXIAL)[2]
    (only,) = find_series(file)
    assert (only.files, only.images, only.root) == ((file,), 1, file)


@pytest.mark.parametrize(
    ("storage", "modality"),
    [(SegmentationStorage, "SEG"), (RTStructureSetStorage, "RTSTRUCT"), (BasicTextSRStorage, "SR")],
)
def test_what_describes_images_is_no_image(tmp_path: Path, storage: Any, modality: str) -> None:
    image = new_image(storage, modality)
    image.Rows = image.Columns = 4
    save(image, tmp_path / "x.dcm")
    assert find_series(tmp_path) == []


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_every_way_of_writing_is_read(tmp_path: Path, syntax: Any) -> None:
    write_ct_series(tmp_path, VOLUME[..., :1], AXIAL, transfer_syntax=syntax)
    (only,) = find_series(tmp_path)
    assert only.label() == "CT 'phantom', 1 x (6 x 5)"


def without_preamble(file: Path, *, implicit: bool = True) -> None:
    image = dcmread(file)
    del image.file_meta
    image.preamble = None
    image.save_as(file, implicit_vr=implicit, little_endian=True)


@pytest.mark.parametrize("implicit", [True, False])
def test_files_without_preamble_are_read(tmp_path: Path, implicit: bool) -> None:
    (file, *_) = write_ct_series(tmp_path, VOLUME[..., :1], AXIAL)
    without_preamble(file, implicit=implicit)
    (only,) = find_series(tmp_path)
    assert only.label() == "CT 'phantom', 1 x (6 x 5)"
    (tmp_path / "noise").write_bytes(b"\x08\x00" + np.random.default_rng(0).bytes(500))
    assert len(find_series(tmp_path)) == 1


def test_links_are_followed_wherever_they_lead(tmp_path: Path) -> None:
    todo, store = tmp_path / "todo", tmp_path / "store"
    files = write_ct_series(store / "p1", VOLUME, AXIAL)
    write_ct_series(store / "p2" / "deep", VOLUME[..., :3], AXIAL, description="second")
    # As git-annex keeps files: links to a store, here all of them, and the last slice of a patient that was copied.
    (todo / "p1").mkdir(parents=True)
    for file in files[:-1]:
        shutil.copy(file, todo / "p1")
    (todo / "p1" / files[-1].name).symlink_to(files[-1])
    (todo / "p2").symlink_to(store / "p2", target_is_directory=True)
    first, second = find_series(todo)
    assert {file.name for file in first.files} == {file.name for file in files}
    assert {file.parent for file in second.files} == {todo / "p2" / "deep"}
    assert (first.images, second.images) == (7, 3)
    (tmp_path / "annex").mkdir()
    for file in files:
        (tmp_path / "annex" / file.name).symlink_to(Path("..") / "store" / "p1" / file.name)
    (only,) = find_series(tmp_path / "annex")
    assert only.images == 7


def test_links_to_folders_are_followed_once_and_never_upwards(tmp_path: Path) -> None:
    write_ct_series(tmp_path / "outside", VOLUME[..., :1], AXIAL)
    inside = tmp_path / "inside"
    (slice_of_a,) = write_ct_series(inside / "b" / "a", VOLUME[..., :1], AXIAL, description="a")
    write_ct_series(tmp_path / "store" / "case", VOLUME[..., :2], AXIAL, description="case")
    write_ct_series(tmp_path / "store" / "another case", VOLUME, AXIAL, description="another case")
    (inside / "up").symlink_to(tmp_path, target_is_directory=True)
    (inside / "itself").symlink_to("itself")
    (inside / "b" / "a" / "loop").symlink_to("..", target_is_directory=True)
    (inside / "a before b").symlink_to(inside / "b" / "a", target_is_directory=True)
    for name in ("case", "case again"):
        (inside / name).symlink_to(tmp_path / "store" / "case", target_is_directory=True)
    (tmp_path / "store" / "case" / "up").symlink_to("..", target_is_directory=True)
    (inside / "broken").symlink_to(tmp_path / "nowhere")
    (inside / "device").symlink_to("/dev/zero")
    os.mkfifo(inside / "pipe")
    case, a = find_series(inside)
    assert [file.parent for file in case.files] == [inside / "case"] * 2
    assert a.files == (slice_of_a,)
    (root,) = find_series(inside / "a before b")
    assert root.images == 1


def test_a_slice_that_is_a_broken_link_is_named(tmp_path: Path) -> None:
    write_ct_series(tmp_path, VOLUME, AXIAL)
    (tmp_path / "last.dcm").symlink_to(tmp_path / "not fetched")
    assert "last.dcm: expected a DICOM file; found a broken link" in message_of(find_series, tmp_path)
    problems: list[InputError] = []
    assert find_series(tmp_path, problems) == []
    assert [Path(problem.where).name for problem in problems] == ["last.dcm"]


def test_a_slice_that_a_full_disk_left_is_named(tmp_path: Path) -> None:
    """Passed over, its series would end early without a word."""
    (file,) = write_ct_series(tmp_path / "one", VOLUME[..., :1], AXIAL)
    whole, last = file.read_bytes(), tmp_path / "ct" / "last.dcm"
    without_preamble(file)
    bare = file.read_bytes()
    write_ct_series(tmp_path / "ct", VOLUME, AXIAL)
    for content, found in (
        (b"", "an empty file"),
        (whole[:100], "a truncated file"),
        (whole[:131], "a truncated file"),
        (bytes(len(whole)), "zeros"),
        (bare[:100], "a truncated file"),
        (bare[:205], "a truncated file"),
    ):
        last.write_bytes(content)
        message = message_of(find_series, tmp_path / "ct")
        assert message.startswith(f"{last}: expected a DICOM file")
        assert f"; found {found}. Copy or export the file again; move it away if it is not needed." in message
        problems: list[InputError] = []
        assert find_series(tmp_path / "ct", problems) == []
        assert [problem.where for problem in problems] == [str(last)]
    last.rename(tmp_path / "ct" / "last")
    assert [each.images for each in find_series(tmp_path / "ct")] == [7]


@pytest.mark.parametrize("name", ["IM{}", "1.2.840.3.{}", "MR-{}-a", "SER01_{}.IMA"])
def test_a_slice_without_a_suffix_that_a_full_disk_left_is_known_by_its_name(tmp_path: Path, name: str) -> None:
    """Archives write names without a suffix."""
    (file,) = write_ct_series(tmp_path / "one", VOLUME[..., :1], AXIAL)
    whole = file.read_bytes()
    without_preamble(file)
    bare = file.read_bytes()
    for k, path in enumerate(write_ct_series(tmp_path / "ct", VOLUME, AXIAL), 1):
        path.rename(path.with_name(name.format(k)))
    last, others = tmp_path / "ct" / name.format(88), [tmp_path / "ct" / "VERSION", tmp_path / "2" / name.format(1)]
    for content in (b"", whole[:100], bytes(len(whole)), bare[:205]):
        for other in others:
            other.parent.mkdir(exist_ok=True)
            other.write_bytes(content)
        assert [each.images for each in find_series(tmp_path / "ct")] == [7]
        last.write_bytes(content)
        assert message_of(find_series, tmp_path / "ct").startswith(f"{last}: expected")
        problems: list[InputError] = []
        assert find_series(tmp_path / "ct", problems) == []
        assert [problem.where for problem in problems] == [str(last)]
        last.unlink()


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (PermissionError(13, "denied"), "a file that may not be read"),
        (OSError(5, "broken"), "a file that cannot be read"),
    ],
)
@pytest.mark.parametrize("k", [0, 1])
def test_a_slice_that_cannot_be_opened_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, found: str, k: int
) -> None:
    closed = write_ct_series(tmp_path, VOLUME, AXIAL)[k]  # the second one has no suffix
    opened = Path.open

    def refusing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == closed:
            raise error
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refusing)
    assert message_of(find_series, tmp_path).startswith(f"{closed}: expected a DICOM file; found {found}.")
    problems: list[InputError] = []
    assert find_series(tmp_path, problems) == []
    assert [problem.where for problem in problems] == [str(closed)]


def test_a_folder_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walking, "MOST_FILES", 3)
    write_ct_series(tmp_path, VOLUME, AXIAL)
    assert "expected at most 3 files; found more" in message_of(find_series, tmp_path)


def test_a_path_to_nothing(tmp_path: Path) -> None:
    assert "nothing: expected a DICOM file or a folder" in message_of(find_series, tmp_path / "nothing")


def five(tmp_path: Path) -> list[Series]:
    for n, description in enumerate(("Abdomen portal", "Abdomen native", "Topogram", "Lung", "Lung")):
        write_ct_series(tmp_path / str(n), VOLUME[..., : 7 - n], AXIAL, description=description)
    return find_series(tmp_path)


@pytest.mark.parametrize(
    ("wanted", "images"), [("largest", 7), ("2", 6), ("PORTAL", 7), ("topo", 5), ("uid", 3), ("native", 6)]
)
def test_a_series_is_chosen(tmp_path: Path, wanted: str, images: int) -> None:
    found = five(tmp_path)
    assert choose_series(found, found[4].uid if wanted == "uid" else wanted).images == images


def test_the_only_series_needs_no_choice(tmp_path: Path) -> None:
    write_ct_series(tmp_path, VOLUME, AXIAL)
    found = find_series(tmp_path)
    assert choose_series(found, None) == found[0]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (None, "5 series (1: CT 'Abdomen portal', 7 x (6 x 5); 2: CT 'Abdomen native', 6 x (6 x 5); 3: CT"),
        ("lung", "2 series (4: CT 'Lung', 4 x (6 x 5); 5: CT 'Lung', 3 x (6 x 5))"),
        ("liver", "none among 5 series (1: CT 'Abdomen portal'"),
    ],
)
def test_an_unclear_choice_lists_the_series(tmp_path: Path, wanted: str | None, words: str) -> None:
    found = five(tmp_path)
    message = message_of(choose_series, found, wanted)
    assert words in message
    assert "--series" in message
    assert_silent(message, found)


def test_no_series_at_all() -> None:
    assert "expected an image series; found none" in message_of(choose_series, [], None)


def assert_silent(words: str, found: list[Series]) -> None:
    """Fail where a name, identity, date or UID of the series is in ``words``."""
    assert not [secret for secret in secrets_of(file for each in found for file in each.files) if secret in words]


def test_nothing_shows_the_patient(tmp_path: Path) -> None:
    found = five(tmp_path)
    assert_silent(repr(found) + "".join(each.label() for each in found), found)


def test_a_description_is_printable_and_short(tmp_path: Path) -> None:
    (file,) = write_ct_series(tmp_path, VOLUME[..., :1], AXIAL, description="x" * 64)
    file.write_bytes(file.read_bytes().replace(b"x" * 64, b"a\x1b[31m\r\n\tb" + b"c" * 54))
    (only,) = find_series(tmp_path)
    assert only.description == "a [31m b" + "c" * 52


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:700])


def without_rows(file: Path) -> None:
    rewrite(file, lambda image: image.__delattr__("Rows"))


def with_letters_for_rows(file: Path) -> None:
    content = bytearray(file.read_bytes())
    at = content.index(b"\x28\x00\x10\x00US")
    content[at : at + 6] = b"\x28\x00\x10\x00PN"
    file.write_bytes(content)


def with_a_long_element(file: Path) -> None:
    content = file.read_bytes()
    at = content.index(b"\x08\x00\x60\x00CS")
    file.write_bytes(content[:at] + b"\x08\x00\x54\x00UT\0\0" + (2**32 - 2).to_bytes(4, "little") + content[at:])


def with_a_wanted_long_element(file: Path) -> None:
    content = file.read_bytes()
    at = content.index(b"\x08\x00\x60\x00CS")
    file.write_bytes(content[:at] + b"\x08\x00\x60\x00UT\0\0" + (2**32 - 2).to_bytes(4, "little") + content[at + 10 :])


def only_magic(file: Path) -> None:
    file.write_bytes(bytes(128) + b"DICM")


def rewrite(file: Path, edit: Any) -> None:
    image = dcmread(file)
    edit(image)
    image.save_as(file)


@pytest.mark.parametrize(
    "damage",
    [truncated, without_rows, with_letters_for_rows, with_a_long_element, with_a_wanted_long_element, only_magic],
)
def test_a_damaged_file_is_named_and_costs_nothing(tmp_path: Path, damage: Any) -> None:
    file = write_ct_series(tmp_path, VOLUME, AXIAL)[0]
    secrets = secrets_of([file])
    damage(file)
    start = time.perf_counter()
    tracemalloc.start()
    message = message_of(find_series, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message.startswith(str(file))
    assert not [secret for secret in secrets if secret in message]
    assert peak < 2**24
    assert time.perf_counter() - start < 5


def test_a_deflate_bomb_is_not_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_INFLATED_BYTES", 2**20)

    (file,) = write_ct_series(tmp_path, VOLUME[..., :1], AXIAL)
    image = dcmread(file)
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    image.PixelData = bytes(2**24)
    image.save_as(file)
    assert file.stat().st_size < 2**16
    tracemalloc.start()
    assert "a header without end" in message_of(find_series, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


def test_deep_nesting_ends(tmp_path: Path) -> None:
    image = new_image(CTImageStorage, "CT")
    item = Dataset()
    for _ in range(200):
        outer = Dataset()
        outer.ReferencedStudySequence = [item]
        item = outer
    image.ReferencedStudySequence = [item]
    save(image, tmp_path / "x")
    content = (tmp_path / "x").read_bytes()
    start = b"\xfe\xff\x00\xe0\xff\xff\xff\xff\x08\x00\x10\x11SQ\0\0\xff\xff\xff\xff"
    at = content.index(b"\x08\x00\x10\x11SQ")
    (tmp_path / "x").write_bytes(content[:at] + b"\x08\x00\x10\x11SQ\0\0\xff\xff\xff\xff" + start * 50_000)
    assert str(tmp_path / "x") in message_of(find_series, tmp_path)


def test_x_rays_are_series_too(tmp_path: Path) -> None:
    write_flat(tmp_path / "a.dcm", np.zeros((8, 9), np.uint16))
    (only,) = find_series(tmp_path)
    assert only.label() == "DX 'flat phantom', 1 x (8 x 9)"
