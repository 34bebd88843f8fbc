"""What was painted keeps its meaning and reaches the folder, and the user is told where it does not."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import clinical_phantoms
import nibabel as nib
import numpy as np
import pytest
from conftest import write_toy_dataset
from page_server import Client, page, until
from PIL import Image

from medsaga.app.project import Project
from medsaga.errors import InputError

ONE = np.ones((1, 4, 4), np.uint8)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the page look after its folder ten times as often."""
    monkeypatch.setattr("medsaga.app.session._SAVE_EVERY", 0.05)


def labels_on_page(client: Client) -> list[str]:
    """The names of the labels as the page has them."""
    return [each["name"] for each in client.get("/api/state").json["project"]["labels"]]


def numbered(folder: Path, **masks: int) -> Path:
    """Write images of 20 x 30 pixels without a ``dataset.json``, each with a square of one value, or 0 for no mask."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for seed, (name, value) in enumerate(masks.items()):
        grey = np.random.default_rng(seed).integers(0, 255, (20, 30), np.uint8)
        Image.fromarray(grey).save(folder / "images" / f"{name}.png")
        if value:
            squared(folder / "masks" / f"{name}.png", value)
    return folder


def squared(path: Path, value: int) -> None:
    """Write a mask with a square of a value."""
    labels = np.zeros((20, 30), np.uint8)
    labels[10:15, 10:15] = value
    Image.fromarray(labels).save(path)


def taken_over(project: Project) -> bool:
    """Look twice for what other programs have written."""
    return project.watch() or project.watch()


def test_a_stroke_that_knows_the_classes_by_other_numbers_is_refused(tmp_path: Path) -> None:
    root = numbered(tmp_path / "data", a=1, b=3, c=0)
    with page(root, tmp_path) as client:
        key, project = client.key("b"), client.session.project
        stamp = client.get(f"/api/cases/{key}").json["stamp"]
        squared(root / "masks" / "c.png", 2)
        until(lambda: len(project.dataset.labels) == 4)
        query = "plane=image&start=0&top=9&left=9&slices=1&height=3&width=3"
        # The page has class 2 for the value 3, which is class 3 by now.
        answer = client.ask("POST", f"/api/cases/{key}/edit?{query}&seen={stamp}", bytes([2]) * 9)
        assert answer.status == 409
        assert client.get(f"/api/cases/{key}").json["stamp"] != stamp


def test_labels_are_written_down_at_the_first_stroke(tmp_path: Path) -> None:
    root = numbered(tmp_path / "data", a=1, b=3, c=0)
    with page(root, tmp_path) as client:
        client.get(f"/api/cases/{client.key('c')}")
        assert not (root / "dataset.json").exists()
        assert client.paint(client.key("c"), "image", (0, 0, 0), (1, 2, 2), 1).status == 200
        written = json.loads((root / "dataset.json").read_text())
    assert written["labels"] == {"background": 0, "label_1": 1, "label_3": 3}


def test_a_draft_keeps_its_label_when_another_program_names_more(tmp_path: Path) -> None:
    root = tmp_path / "data"
    clinical_phantoms.write_examination(root, "c1", seed=0, mask="seg")
    clinical_phantoms.write_examination(root, "c2", seed=1, mask="none")
    sources = clinical_phantoms.write_examination(root, "c3", seed=2, mask="none")
    with page(root, tmp_path) as client:
        key, names = client.key("c2"), labels_on_page(client)
        plane = next(iter(client.get(f"/api/cases/{key}").json["planes"]))
        assert client.paint(key, plane, (0, 0, 0), (1, 5, 5), names.index("kidney")).status == 200
        _, labels = clinical_phantoms.anatomy(2, clinical_phantoms.SHAPE)
        clinical_phantoms.write_seg(root / "masks" / "c3.dcm", labels, sources, names=("liver", "adrenal"))
        until(lambda: client.session.project.revision > 1)
        shown = np.frombuffer(client.get(f"/api/cases/{key}/labels?plane={plane}&index=0").body, np.uint8)
        assert {labels_on_page(client)[each] for each in np.unique(shown)} == {"background", "kidney"}


def test_a_finished_mask_that_waits_to_be_written_keeps_the_values_of_its_classes(tmp_path: Path) -> None:
    project = Project(numbered(tmp_path / "data", a=1, b=3))
    mask = project.mask(project.names["b"])
    mask.edit("brush", "image", (0, 0, 0), 2 * ONE)
    mask.set_values(np.array([0, 1, 2, 3]))
    assert (mask.classes[:4, :4] == 3).all()
    mask.save()
    assert (np.asarray(Image.open(mask.place.path))[:4, :4] == 3).all()


def test_what_another_program_saves_is_seen_also_while_another_case_is_written(toy: Path) -> None:
    project = Project(toy)
    one, other = project.names["img0"], project.names["img1"]
    project.mask(other)
    Image.fromarray(np.full((48, 64), 2, np.uint8)).save(toy / "masks" / "img1.png")
    for label in (1, 2):  # a stroke between every two looks
        project.mask(one).edit("brush", "image", (0, 0, 0), label * ONE)
        project.finish(one)
        found = project.watch()
    assert found
    assert (project.mask(other).classes == 2).all()


def test_a_mask_that_ours_takes_the_place_of_is_in_the_history(toy: Path) -> None:
    project = Project(toy)
    key = project.names["img0"]
    project.mask(key).edit("brush", "image", (0, 0, 0), 2 * ONE)
    Image.fromarray(np.ones((48, 64), np.uint8)).save(toy / "masks" / "img0.png")
    project.finish(key)
    (said,) = project.said()
    assert "img0" in said
    assert project.said() == []
    mask = Project(toy).mask(key)
    assert [(each["origin"], each["now"]) for each in mask.history] == [("file", True), ("other", False)]
    assert (mask.classes[:4, :4] == 2).all()
    mask.revert(2)
    assert (mask.classes == 1).all()


def test_a_mask_of_a_kind_that_is_not_written_becomes_one_that_is(toy: Path) -> None:
    old = toy / "masks" / "img0.png"
    with Image.open(old) as mask:
        mask.save(old.with_suffix(".bmp"))
    old.unlink()
    project = Project(toy)
    key = project.names["img0"]
    project.mask(key).edit("brush", "image", (0, 0, 0), np.full((1, 3, 3), 2, np.uint8))
    assert project.save_changes(at_once=True) == {}
    assert [path.name for path in (toy / "masks").glob("img0*")] == ["img0.png"]
    with Image.open(old) as mask:
        assert (np.asarray(mask)[:3, :3] == 2).all()


def test_an_error_with_one_mask_keeps_no_other_from_being_written(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for kind, dtype in (("images", np.float32), ("masks", np.uint8)):
        (root / kind).mkdir(parents=True)
        for name in ("a", "b"):
            nib.save(nib.Nifti1Image(np.zeros((9, 8, 4), dtype), np.eye(4)), root / kind / f"{name}.nii.gz")
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "disc": 1}}))
    with page(root, tmp_path) as client:
        a, b = client.key("a"), client.key("b")
        client.get(f"/api/cases/{a}")
        nib.save(nib.Nifti1Image(np.zeros((9, 8, 5), np.float32), np.eye(4)), root / "images" / "a.nii.gz")
        for key in (a, b):
            assert client.paint(key, "axial", (0, 1, 1), (1, 2, 2), 1).status == 200
        until(lambda: np.asarray(nib.load(root / "masks" / "b.nii.gz").dataobj).sum() == 4)
        (notice,) = client.until("/api/state", lambda state: state["notices"])["notices"]
        assert "9, 8, 5" in notice["text"]


def test_whatever_goes_wrong_does_not_end_the_writing(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with page(toy, tmp_path) as client:
        monkeypatch.setattr(client.session.project, "watch", lambda: 1 // 0)
        client.until("/api/state", lambda state: state["notices"])
        client.paint(client.key("img0"), "image", (0, 0, 0), (1, 2, 2), 1)
        monkeypatch.setattr(client.session.project, "finish", lambda key: 1 // 0)
        found = client.until("/api/state", lambda state: len(state["notices"]) > 1)
        assert "img0" in found["notices"][1]["text"]
        assert any(each.name == "keeper" and each.is_alive() for each in threading.enumerate())


@pytest.fixture
def unwritable(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy dataset whose masks cannot be written, as on Windows while another program has them open."""
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if Path(target).parent.name == "masks":
            raise PermissionError(13, "Permission denied", str(self))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    return toy


def test_nothing_is_made_of_a_mask_that_could_not_be_written(unwritable: Path, tmp_path: Path) -> None:
    with page(unwritable, tmp_path) as client:
        key = client.key("img0")
        assert client.paint(key, "image", (0, 0, 0), (1, 2, 2), 2).json["unwritten"] == ""
        found = client.post("/api/runs", {"time": 1, "model": "tiny", "image_size": 64})
        assert found.status == 422
        assert "img0" in found.json["message"]
        assert client.post("/api/export", {"what": "labels", "format": "png"}).status == 422
        assert not (unwritable / "exports").exists()
        assert client.get(f"/api/cases/{key}").json["unwritten"] == "permission denied"
        client.until("/api/state", lambda state: state["notices"])
        threading.Event().wait(0.4)  # tried again and again
        (notice,) = client.get("/api/state").json["notices"]
        assert "img0.png" in notice["text"]
        assert "/." not in notice["text"]


def test_a_mask_is_known_as_written_as_soon_as_it_can_be(
    unwritable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(unwritable)
    key = project.names["img0"]
    project.mask(key).edit("brush", "image", (0, 0, 0), 2 * ONE)
    with pytest.raises(InputError, match="permission denied"):
        project.require_saved()
    revision = project.revision
    monkeypatch.undo()
    project.require_saved()
    assert project.mask(key).problem == ""
    assert project.revision > revision


def test_a_mask_that_waited_when_the_server_was_killed_is_written_before_anything_is_made_of_it(toy: Path) -> None:
    project = Project(toy)
    project.mask(project.names["img0"]).edit("brush", "image", (0, 0, 0), 2 * ONE)
    Project(toy).require_saved()
    assert (np.asarray(Image.open(toy / "masks" / "img0.png"))[:4, :4] == 2).all()


def test_notices_are_numbered_however_many_there_were(toy: Path, tmp_path: Path) -> None:
    with page(toy, tmp_path) as client:
        for number in range(50):
            client.session.say(f"text {number // 2}")
        found = client.get("/api/state").json["notices"]
    assert [each["number"] for each in found] == list(range(31, 51))
    assert found[-1]["text"] == found[-2]["text"] == "text 24"


def test_a_finished_case_can_be_made_one_that_is_begun(toy: Path, tmp_path: Path) -> None:
    mask = toy / "masks" / "img0.png"
    before = np.asarray(Image.open(mask))
    with page(toy, tmp_path) as client:
        key = client.key("img0")
        about = client.get(f"/api/cases/{key}").json
        assert not about["empty"]
        assert client.post(f"/api/cases/{key}/reopen", {"seen": "another"}).status == 409
        found = client.post(f"/api/cases/{key}/reopen", {"seen": about["stamp"]}).json
        assert found["state"] == "draft"
        assert not mask.exists()
        assert client.get("/api/cases").json[0]["state"] == "draft"
        assert "img0" not in client.get("/api/runs").json["labelled"]
        client.paint(key, "image", (0, 0, 0), (1, 2, 2), 2)
        assert not mask.exists()
        client.post(f"/api/cases/{key}/undo")
        assert client.post(f"/api/cases/{key}/finish").json["state"] == "done"
        np.testing.assert_array_equal(np.asarray(Image.open(mask)), before)
        assert client.post(f"/api/cases/{key}/begin").json["empty"]


def test_what_is_opened_again_after_it_was_made_a_draft_is_what_was_painted(toy: Path) -> None:
    project = Project(toy)
    key = project.names["img0"]
    project.mask(key).edit("brush", "image", (0, 0, 0), 2 * ONE)
    painted = project.mask(key).classes.copy()
    project.reopen(key)
    assert not taken_over(project)
    again = Project(toy)
    assert again.state(key) == again.mask(key).state == "draft"
    np.testing.assert_array_equal(again.mask(key).classes, painted)


def test_labels_that_are_written_into_the_folder_meanwhile_stay(toy: Path) -> None:
    project = Project(toy)
    document = json.loads((toy / "dataset.json").read_text())
    document["labels"]["ring"] = 7
    (toy / "dataset.json").write_text(json.dumps(document))
    project.add_label("bow")
    assert json.loads((toy / "dataset.json").read_text())["labels"] == {**document["labels"], "bow": 8}
    document["labels"]["arc"] = 9
    (toy / "dataset.json").write_text(json.dumps(document))
    assert taken_over(project)
    assert project.dataset.labels == document["labels"]


def test_labels_that_cannot_be_read_take_nothing_away(toy: Path) -> None:
    project = Project(toy)
    before = project.dataset.labels
    (toy / "dataset.json").write_text('{"labels": ')
    assert not project.watch()
    with pytest.raises(InputError, match="JSON"):
        project.watch()
    with pytest.raises(InputError, match="JSON"):
        project.add_label("bow")
    assert project.dataset.labels == before


def test_an_image_that_was_replaced_is_decoded_anew(toy: Path, tmp_path: Path) -> None:
    with page(toy, tmp_path) as client:
        address = f"/api/cases/{client.key('img0')}/image?plane=image&index=0&channel=0"
        before = client.get(address).body
        Image.fromarray(255 - np.asarray(Image.open(toy / "images" / "img0.png"))).save(toy / "images" / "img0.png")
        assert client.get(address).body != before


def test_drafts_are_not_all_kept_in_memory(tmp_path: Path) -> None:
    toy = write_toy_dataset(tmp_path / "toy", images=8)
    for path in (toy / "masks").iterdir():
        path.unlink()
    with page(toy, tmp_path) as client:
        keys = [client.key(f"img{number}") for number in range(8)]
        for number, key in enumerate(keys):
            client.paint(key, "image", (0, number, 0), (1, 1, 3), 1)
        project = client.session.project
        assert len(project._masks) <= 4
        assert all(project.mask(key).classes[number, :3].all() for number, key in enumerate(keys))


def test_who_waits_for_a_label_map_that_leaves_the_memory_opens_it_again(toy: Path, tmp_path: Path) -> None:
    with page(toy, tmp_path) as client:
        key, project = client.key("img0"), client.session.project
        before = project.mask(key)
        answers: list[int] = []
        stroke = threading.Thread(
            target=lambda: answers.append(client.paint(key, "image", (0, 0, 0), (1, 2, 2), 2).status)
        )
        with before.lock:
            stroke.start()
            threading.Event().wait(0.3)
            assert answers == []
            project._drop(key, wait=True)  # by the thread that has the lock
        stroke.join()
        assert answers == [200]
        assert project.mask(key) is not before
        assert (project.mask(key).classes[:2, :2] == 2).all()
        assert not (before.classes[:2, :2] == 2).any()
