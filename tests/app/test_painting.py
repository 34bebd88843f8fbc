"""Painting: what is on the disk after each stroke, undo and redo, versions, and other programs that paint too."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import write_toy_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from page_server import page
from PIL import Image

from medsaga.app.interpolation import between, gaps_beside
from medsaga.app.journal import Box, Edit, Journal, packed, unpacked
from medsaga.app.masks import write_mask
from medsaga.app.project import Project
from medsaga.app.slices import OpenImage
from medsaga.data.dataset import read_dataset
from medsaga.data.items import read_mask
from medsaga.data.phantom import write_phantom_ct
from medsaga.data.types import Grid
from medsaga.errors import InputError


def mask_of(root: Path, name: str) -> np.ndarray:
    """Read a mask as the command line does."""
    return read_mask(next(item for item in read_dataset(root, masks_required=False).items if item.name == name))


def unlabelled_phantom(root: Path) -> Path:
    """A small phantom of which the second case has no mask."""
    write_phantom_ct(root, cases=2, shape=(32, 24, 6))
    (root / "labelsTr" / "phantom_001.nii.gz").unlink()
    return root


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from("eeur"), max_size=30), st.integers(0, 400))
def test_a_journal_that_was_cut_anywhere_holds_every_whole_line(
    tmp_path_factory: pytest.TempPathFactory, acts: list[str], cut: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "1.jsonl"
    journal, stack, wanted, undone = Journal(path), [0], [0], [0]
    for number, act in enumerate(acts, start=1):
        if act == "e":
            box = Box("axial", 0, 1, 2, (1, 2, 3))
            values = np.full(box.shape, number)
            journal.add(Edit("brush", box, packed(values - 1), packed(values)))
            wanted, undone = [*wanted, number], [0]
        elif act == "u" and journal.undo():
            undone.append(wanted.pop())
        elif act == "r" and journal.redo():
            wanted.append(undone.pop())
        stack.append(len(path.read_bytes()) if path.exists() else 0)
    content = path.read_bytes() if path.exists() else b""
    path.write_bytes(content[: max(0, len(content) - cut)])
    again = Journal(path)
    whole = path.read_bytes().count(b"\n")
    assert again.changes == whole
    assert path.read_bytes() == b"".join(content.splitlines(keepends=True)[:whole])
    if whole == content.count(b"\n"):
        assert [int(unpacked(edit.after, edit.box)[0, 0, 0]) for edit in again.done] == wanted[1:]


def test_a_stroke_is_on_the_disk_when_it_is_answered_and_undone_in_every_plane(tmp_path: Path) -> None:
    root = unlabelled_phantom(tmp_path / "phantom")
    with page(root, tmp_path) as client:
        key = client.key("phantom_001")
        strokes = [
            ("axial", (2, 3, 4), (1, 5, 6), 1),
            ("coronal", (10, 1, 5), (1, 3, 7), 2),
            ("sagittal", (7, 0, 2), (2, 4, 4), 3),
        ]
        states = [np.zeros((32, 24, 6), np.uint8)]
        for stroke in strokes:
            assert client.paint(key, *stroke).status == 200
            # What a server that was killed now would leave: another project reads the same files.
            states.append(Project(root).mask(key).classes.copy())
            assert (states[-1] != states[-2]).sum() > 0
            assert set(np.unique(states[-1])) >= {stroke[3]}
        for state in states[-2::-1]:
            assert client.post(f"/api/cases/{key}/undo").status == 200
            np.testing.assert_array_equal(Project(root).mask(key).classes, state)
        assert client.post(f"/api/cases/{key}/undo").json["at"] is None
        for state in states[1:]:
            assert client.post(f"/api/cases/{key}/redo").status == 200
            np.testing.assert_array_equal(Project(root).mask(key).classes, state)


def test_what_is_painted_lies_where_the_image_is_and_the_command_line_finds_it(tmp_path: Path) -> None:
    root = unlabelled_phantom(tmp_path / "phantom")
    with page(root, tmp_path) as client:
        key = client.key("phantom_001")
        about = client.get(f"/api/cases/{key}").json
        hu = np.frombuffer(client.get(f"/api/cases/{key}/image?plane=axial&index=3&channel=0").body, "<u2")
        hu = (
            hu.reshape(about["planes"]["axial"]["height"], -1) * about["channels"][0]["step"]
            + about["channels"][0]["offset"]
        )
        # Bone, as a threshold on what the page shows: on the disk the same voxels are above it.
        bone = (hu > 200).astype(np.uint8)
        assert bone.sum() > 3
        query = f"kind=brush&plane=axial&start=3&slices=1&top=0&left=0&height={bone.shape[0]}&width={bone.shape[1]}"
        assert client.ask("POST", f"/api/cases/{key}/edit?{query}", bone.tobytes()).status == 200
        assert client.get("/api/cases").json[1]["state"] == "draft"
        assert not (root / "labelsTr" / "phantom_001.nii.gz").exists()
        assert client.post(f"/api/cases/{key}/finish").json["state"] == "done"
        image = nib.load(root / "imagesTr" / "phantom_001_0000.nii.gz")
        mask = nib.load(root / "labelsTr" / "phantom_001.nii.gz")
        np.testing.assert_array_equal(mask.affine, image.affine)
        slices = np.flatnonzero(np.asarray(mask.dataobj).any((0, 1)))
        assert len(slices) == 1
        np.testing.assert_array_equal(
            np.asarray(mask.dataobj)[..., slices[0]] == 1, np.asarray(image.dataobj)[..., slices[0]] > 200
        )
        assert read_dataset(root).problems == ()


def test_a_finished_mask_follows_what_is_painted_and_what_was_there_is_kept(toy: Path, tmp_path: Path) -> None:
    before = (toy / "masks" / "img0.png").read_bytes()
    with page(toy, tmp_path) as client:
        key = client.key("img0")
        assert client.paint(key, "image", (0, 0, 0), (1, 5, 5), 2).status == 200
        client.until("/api/state", lambda state: state["project"]["revision"] > 1)
        assert (mask_of(toy, "img0")[:5, :5] == 2).all()
        kept = [path for path in (toy / ".medsaga" / "masks" / key).iterdir() if path.suffix == ".png"]
        assert [path.read_bytes() for path in kept] == [before]
        client.post(f"/api/cases/{key}/undo")
        client.until("/api/state", lambda state: state["project"]["revision"] > 2)
        np.testing.assert_array_equal(mask_of(toy, "img0"), np.asarray(Image.open(kept[0])))


def test_what_was_painted_last_is_written_when_the_server_starts_again(toy: Path, tmp_path: Path) -> None:
    project = Project(toy)
    key = project.names["img0"]
    project.mask(key).edit("brush", "image", (0, 0, 0), np.full((1, 3, 3), 2, np.uint8))
    # Killed here: nothing has been written into the dataset.
    again = Project(toy)
    assert (again.mask(key).classes[:3, :3] == 2).all()
    again.save_changes(at_once=True)
    assert (mask_of(toy, "img0")[:3, :3] == 2).all()


def test_a_mask_that_another_program_saves_is_taken_over_and_ours_stays_in_the_history(
    toy: Path, tmp_path: Path
) -> None:
    (toy / "masks" / "img1.png").unlink()
    with page(toy, tmp_path) as client:
        key, new = client.key("img0"), client.key("img1")
        client.paint(key, "image", (0, 0, 0), (1, 5, 5), 2)
        revision = client.until("/api/state", lambda state: state["project"]["revision"] > 1)["project"]["revision"]
        foreign = np.zeros((48, 64), np.uint8)
        foreign[20:30, 20:30] = 1
        for name in ("img0", "img1"):
            Image.fromarray(foreign).save(tmp_path / "saved.png")
            (tmp_path / "saved.png").replace(toy / "masks" / f"{name}.png")
        client.until("/api/state", lambda state: state["project"]["revision"] > revision)
        for each in (key, new):
            shown = np.frombuffer(client.get(f"/api/cases/{each}/labels?plane=image&index=0").body, np.uint8)
            np.testing.assert_array_equal(shown.reshape(48, 64), foreign)
        assert len(client.get(f"/api/cases/{key}").json["history"]) == 1
        assert client.post(f"/api/cases/{key}/begin", {"version": 1}).status == 200
        shown = np.frombuffer(client.get(f"/api/cases/{key}/labels?plane=image&index=0").body, np.uint8)
        assert (shown.reshape(48, 64)[:5, :5] == 2).all()


def test_a_folder_is_open_in_one_page_at_a_time(toy: Path, tmp_path: Path) -> None:
    with page(toy, tmp_path) as client, page(None, tmp_path) as other:
        answer = other.post("/api/open", {"path": str(toy)})
        assert answer.status == 422
        assert "another" in answer.json["message"]
        assert client.post("/api/open", {"path": str(toy)}).status == 200
    with page(toy, tmp_path) as again:
        assert again.get("/api/cases").status == 200


def test_two_that_save_one_mask_at_a_time_lose_neither(toy: Path) -> None:
    project = Project(toy)
    key = project.names["img0"]
    project.mask(key).edit("brush", "image", (0, 0, 0), np.full((1, 3, 3), 2, np.uint8))
    foreign = np.ones((48, 64), np.uint8)
    Image.fromarray(foreign).save(toy / "masks" / "img0.png")
    project.save_changes(at_once=True)
    assert (mask_of(toy, "img0")[:3, :3] == 2).all()
    (kept,) = (toy / ".medsaga" / "masks" / key).glob("other.*.png")
    np.testing.assert_array_equal(np.asarray(Image.open(kept)), foreign)


def test_what_another_program_saves_while_the_page_writes_the_mask_is_not_taken_for_it(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, foreign = Project(toy), np.ones((48, 64), np.uint8)
    key = project.names["img0"]

    def overtaken(*args: Any) -> None:
        write_mask(*args)
        Image.fromarray(foreign).save(toy / "masks" / "img0.png")

    monkeypatch.setattr("medsaga.app.masks.write_mask", overtaken)
    project.mask(key).edit("brush", "image", (0, 0, 0), np.full((1, 3, 3), 2, np.uint8))
    project.save_changes(at_once=True)
    np.testing.assert_array_equal(mask_of(toy, "img0"), project.mask(key).classes)
    (kept,) = (toy / ".medsaga" / "masks" / key).glob("other.*.png")
    np.testing.assert_array_equal(np.asarray(Image.open(kept)), foreign)


def test_damaged_masks_are_said_and_end_nothing(toy: Path, tmp_path: Path) -> None:
    (toy / "masks" / "img0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 50)
    (toy / "masks" / "img1.png").write_bytes(b"")
    Image.fromarray(np.full((48, 64), 9, np.uint8)).save(toy / "masks" / "img2.png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(toy / "masks" / "img3.png")
    with page(toy, tmp_path) as client:
        for name in ("img0", "img1", "img2", "img3"):
            answer = client.get(f"/api/cases/{client.key(name)}")
            assert answer.status == 422, name
            assert answer.json["do"]
        assert client.get(f"/api/cases/{client.key('img4')}").status == 200


@pytest.mark.exhaustive
def test_what_is_wrong_with_the_files_is_found_in_a_process_of_its_own(toy: Path, tmp_path: Path) -> None:
    (toy / "masks" / "img0.png").write_bytes(b"")
    (toy / "images" / "img1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 50)
    (toy / "masks" / "img2.png").unlink()
    with page(toy, tmp_path) as client:
        found = client.until("/api/state", lambda state: state["project"]["checked"])
        assert sorted(Path(each.split(":")[0]).name for each in found["project"]["problems"]) == [
            "img0.png",
            "img1.png",
        ]


def test_damaged_journals_and_boxes_that_lie_outside_are_refused(toy: Path, tmp_path: Path) -> None:
    with page(toy, tmp_path) as client:
        key = client.key("img0")
        for corner, shape in (
            ((0, 40, 0), (1, 20, 5)),
            ((1, 0, 0), (1, 2, 2)),
            ((0, 0, 0), (2, 2, 2)),
            ((0, 0, 63), (1, 1, 2)),
        ):
            assert client.paint(key, "image", corner, shape, 1).status == 422
        assert client.paint(key, "image", (0, 0, 0), (1, 2, 2), 3).status == 422
        assert client.paint(key, "axial", (0, 0, 0), (1, 2, 2), 1).status == 404
        assert (
            client.ask(
                "POST", f"/api/cases/{key}/edit?plane=image&start=0&top=0&left=0&slices=1&height=2&width=2", b"xxx"
            ).status
            == 422
        )
        assert client.get(f"/api/cases/{key}/image?plane=image&index=7&channel=0").status == 404
        assert client.get(f"/api/cases/{key}/image?plane=image&index=-1&channel=0").status == 422
        client.paint(key, "image", (0, 0, 0), (1, 2, 2), 2)
        client.paint(key, "image", (0, 9, 9), (1, 2, 2), 2)
    journal = toy / ".medsaga" / "masks" / key / "1.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text(lines[0] + '{"kind": 3}\n' + lines[1])
    with page(toy, tmp_path) as client:
        shown = np.frombuffer(client.get(f"/api/cases/{key}/labels?plane=image&index=0").body, np.uint8).reshape(48, 64)
        assert (shown[:2, :2] == 2).all()
        assert journal.with_suffix(".damaged").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="files have no limit of size there")
def test_a_stroke_that_the_disk_has_no_room_for_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    import resource

    path, rng = tmp_path / "1.jsonl", np.random.default_rng(0)

    def stroke(label: int) -> Edit:
        values = rng.integers(0, 9, (1, 40, 40)) + label
        return Edit("brush", Box("axial", label, 0, 0, (1, 40, 40)), packed(0 * values), packed(values))

    journal = Journal(path)
    journal.add(stroke(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, limits[1]))
        with pytest.raises(OSError, match=r"large|space"):
            journal.add(stroke(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert journal.changes == 1
    for label in (3, 4):
        journal.add(stroke(label))
    again = Journal(path)
    assert [edit.box.start for edit in again.done] == [1, 3, 4]
    assert again.done == journal.done
    assert not path.with_suffix(".damaged").exists()


def test_a_journal_that_was_removed_while_it_is_open_begins_anew(tmp_path: Path) -> None:
    path, box = tmp_path / "masks" / "1.jsonl", Box("axial", 0, 1, 2, (1, 2, 3))
    journal = Journal(path)
    for number in range(3):
        journal.add(Edit("brush", box, packed(np.zeros(box.shape, int)), packed(np.full(box.shape, number))))
        if number == 1:
            shutil.rmtree(path.parent)
    assert Journal(path).done == journal.done[2:]


def test_labels_are_named_and_added_and_the_folder_says_so(tmp_path: Path) -> None:
    toy = write_toy_dataset(tmp_path / "toy", images=2)
    (toy / "dataset.json").unlink()
    shutil.rmtree(toy / "masks")
    with page(toy, tmp_path) as client:
        key = client.key("img0")
        assert client.post(f"/api/cases/{key}/finish").status == 422
        client.post("/api/labels", {"add": "disc", "colour": "#112233"})
        found = client.post("/api/labels", {"add": "bar", "colour": "no"}).json
        assert [(each["name"], each["value"]) for each in found] == [("background", 0), ("disc", 1), ("bar", 2)]
        usual = found[2]["colour"]
        for wrong in ("", "bar", "background", "x" * 61, " "):
            assert client.post("/api/labels", {"add": wrong}).status == 422
            assert client.post("/api/labels", {"value": 1, "name": wrong}).status == 422
        for value in (0, 3, None):
            assert client.post("/api/labels", {"value": value, "name": "other"}).status == 422
        client.paint(key, "image", (0, 0, 0), (1, 9, 9), 2)
        client.post("/api/labels", {"value": 1, "name": "ring"})
        client.post("/api/labels", {"add": "<b>third</b>", "colour": "#445566"})
        colours = {each["name"]: each["colour"] for each in client.post("/api/labels", {"value": 2}).json}
        assert colours == {"background": "#000000", "ring": "#112233", "bar": usual, "<b>third</b>": "#445566"}
        assert client.post(f"/api/cases/{key}/finish").status == 200
    assert json.loads((toy / "dataset.json").read_text())["labels"] == {
        "background": 0,
        "ring": 1,
        "bar": 2,
        "<b>third</b>": 3,
    }
    assert (mask_of(toy, "img0")[:9, :9] == 2).all()


def test_masks_with_an_addition_to_their_names_stay_together(tmp_path: Path) -> None:
    toy = write_toy_dataset(tmp_path / "toy", images=3)
    for path in list((toy / "masks").iterdir()):
        path.rename(path.with_stem(f"{path.stem}_seg"))
    (toy / "masks" / "img2_seg.png").unlink()
    project = Project(toy)
    key = project.names["img2"]
    project.mask(key).edit("brush", "image", (0, 0, 0), np.ones((1, 3, 3), np.uint8))
    project.finish(key)
    assert (toy / "masks" / "img2_seg.png").exists()
    assert read_dataset(toy).problems == ()


def test_a_name_that_occurs_in_what_is_added_to_it_gets_the_addition_of_the_others(tmp_path: Path) -> None:
    toy = write_toy_dataset(tmp_path / "toy", images=3)
    for kind in ("images", "masks"):
        for path, name in zip(sorted((toy / kind).iterdir()), "asb", strict=True):
            path.rename(path.with_stem(name if kind == "images" else f"mask_{name}"))
    (toy / "masks" / "mask_b.png").unlink()
    project = Project(toy)
    project.finish(project.names["b"])
    assert sorted(path.name for path in (toy / "masks").iterdir()) == ["mask_a.png", "mask_b.png", "mask_s.png"]
    assert read_dataset(toy).problems == ()


def test_files_for_each_structure_are_only_looked_at(tmp_path: Path) -> None:
    toy = write_toy_dataset(tmp_path / "toy", images=2)
    for path in list((toy / "masks").iterdir()):
        labels = np.asarray(Image.open(path))
        path.unlink()
        for name, value in (("disc", 1), ("bar", 2)):
            (toy / "masks" / name).mkdir(exist_ok=True)
            Image.fromarray((labels == value).astype(np.uint8)).save(toy / "masks" / name / path.name)
    before = {str(path) for path in toy.rglob("*")}
    project = Project(toy)
    with pytest.raises(InputError, match="structure"):
        project.mask(project.names["img0"]).edit("brush", "image", (0, 0, 0), np.ones((1, 3, 3), np.uint8))
    assert {str(path) for path in toy.rglob("*")} == before


def test_interpolation_between_discs_is_the_disc_between() -> None:
    rows, columns = np.mgrid[:64, :64]

    def disc(radius: float, column: float = 32) -> np.ndarray:
        return (rows - 32) ** 2 + (columns - column) ** 2 < radius**2

    found = between(disc(6), disc(18), 3)
    for share, each in zip((0.25, 0.5, 0.75), found, strict=True):
        wanted = disc(6 + share * 12)
        assert 2 * (each & wanted).sum() / (each.sum() + wanted.sum()) > 0.96
    apart = between(disc(6, 12), disc(6, 52), 1)[0]
    assert 2 * (apart & disc(6, 32)).sum() / (apart.sum() + disc(6, 32).sum()) > 0.9
    np.testing.assert_array_equal(between(disc(9), disc(9), 2), np.stack([disc(9)] * 2))


def test_only_gaps_beside_the_slice_are_filled() -> None:
    present = np.array([1, 0, 0, 1, 1, 0, 1, 0, 0, 1], bool)
    assert gaps_beside(present, 1) == [(0, 3)]
    assert gaps_beside(present, 3) == [(0, 3)]
    assert gaps_beside(present, 6) == [(4, 6), (6, 9)]
    assert gaps_beside(present[:5], 4) == []


def test_interpolation_fills_background_alone_and_is_undone_at_once(tmp_path: Path) -> None:
    root = unlabelled_phantom(tmp_path / "phantom")
    with page(root, tmp_path) as client:
        key = client.key("phantom_001")
        for index in (0, 4):
            client.paint(key, "axial", (index, 8, 8), (1, 9, 9), 1)
        client.paint(key, "axial", (2, 8, 8), (1, 3, 3), 2)
        answer = client.post(f"/api/cases/{key}/interpolate", {"plane": "axial", "index": 0, "label": 1})
        assert answer.json["filled"] == 3
        shown = [
            np.frombuffer(client.get(f"/api/cases/{key}/labels?plane=axial&index={n}").body, np.uint8) for n in range(5)
        ]
        assert [int((each == 1).sum()) for each in shown] == [81, 81, 72, 81, 81]
        assert (shown[2] == 2).sum() == 9
        client.post(f"/api/cases/{key}/undo")
        assert not np.frombuffer(client.get(f"/api/cases/{key}/labels?plane=axial&index=1").body, np.uint8).any()
        assert client.post(f"/api/cases/{key}/interpolate", {"plane": "axial", "index": 0, "label": 3}).status == 422


@pytest.mark.parametrize(
    "voxels",
    [
        np.arange(-700, 500, dtype=np.int16).reshape(1, 30, 40),
        np.arange(1200, dtype=np.uint8).reshape(1, 30, 40),
        np.linspace(-3.5, 8, 1200, dtype=np.float32).reshape(1, 30, 40),
        np.array([[-(2**30), 2**30], [0, 5]], dtype=np.int32).reshape(1, 2, 2),
        np.array([[np.nan, np.inf], [1, 2]], dtype=np.float32).reshape(1, 2, 2),
    ],
    ids=["int16", "uint8", "float32", "int32", "not finite"],
)
def test_sixteen_bits_hold_the_values_within_half_a_step(voxels: np.ndarray) -> None:
    image = OpenImage(voxels, Grid(voxels.shape[1:]))
    (offset, step), sent = image.scales[0], image.slice("image", 0, 0)
    assert sent.dtype == np.dtype("<u2")
    finite = np.isfinite(voxels[0])
    found = offset + step * sent.astype(np.float64)
    exact = voxels.dtype.kind in "ui" and np.ptp(voxels.astype(np.int64)) < 2**16
    np.testing.assert_allclose(found[finite], voxels[0][finite], atol=0 if exact else step * 0.51)
