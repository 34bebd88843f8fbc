"""What changes elsewhere while the page is open: in another tab, by another program, in another folder."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_toy_dataset
from page_browser import Held, enter, handled, needs_chromium, paint, so
from page_server import Client, page, until
from PIL import Image

from medsaga import run_folder
from medsaga.app.masks import PaintedMask
from medsaga.app.project import Project
from medsaga.app.versions import ChangedElsewhere
from medsaga.files import read_json, write_json


def labels_of(client: Client, key: str) -> np.ndarray:
    """The label map of a toy image as the server has it."""
    body = client.get(f"/api/cases/{key}/labels?plane=image&index=0").body
    return np.frombuffer(body, np.uint8).reshape(48, 64)


def begun(toy: Path) -> tuple[Project, str, Path, bytes]:
    """Begin a case, and return its id, the file of its mask, and what another program will write there."""
    mask = toy / "masks" / "img0.png"
    theirs = mask.read_bytes()
    mask.unlink()
    project = Project(toy)
    key = project.names["img0"]
    project.mask(key).edit("brush", "image", (0, 0, 0), np.full((1, 2, 2), 1, np.uint8))
    return project, key, mask, theirs


def test_a_mask_that_another_program_saves_of_a_case_that_was_begun_is_the_newest_version(toy: Path) -> None:
    project, key, mask, theirs = begun(toy)
    mask.write_bytes(theirs[:100])
    assert not project.watch()
    mask.write_bytes(theirs)
    assert not project.watch()  # it may still be being written
    assert project.watch()
    assert project.state(key) == project.mask(key).state == "done"
    assert (project.mask(key).classes == np.asarray(Image.open(mask))).all()
    project.finish(key)
    assert (np.asarray(Image.open(mask)) == project.mask(key).classes).all()
    assert len(project.mask(key).history) == 1  # what was begun here


def test_a_mask_that_was_saved_a_moment_ago_is_kept_when_the_case_is_finished(toy: Path) -> None:
    project, key, mask, theirs = begun(toy)
    mask.write_bytes(theirs)
    project.finish(key)
    assert np.count_nonzero(np.asarray(Image.open(mask))) == 4
    (kept,) = (toy / ".medsaga" / "masks" / key).glob("other.*")
    assert kept.read_bytes() == theirs


@pytest.mark.parametrize(
    "change",
    [
        lambda mask: mask.edit("brush", "image", (0, 0, 0), np.full((1, 2, 2), 1, np.uint8)),
        lambda mask: mask.begin("empty"),
        PaintedMask.reopen,
    ],
    ids=["a stroke", "a new beginning", "a draft again"],
)
def test_what_would_change_a_mask_that_another_program_saved_a_moment_ago_is_refused_and_shows_it(
    toy: Path, change: Callable[[PaintedMask], None]
) -> None:
    file, theirs = toy / "masks" / "img0.png", np.full((48, 64), 2, np.uint8)
    project = Project(toy)
    key = project.names["img0"]
    mask = project.mask(key)
    before = mask.stamp
    Image.fromarray(theirs).save(file)
    content = file.read_bytes()
    with pytest.raises(ChangedElsewhere):
        change(mask)
    assert file.read_bytes() == content
    assert (mask.classes == theirs).all()
    assert mask.stamp != before
    assert mask.history == []
    change(mask)  # who has seen it may
    (kept,) = project.home(key).glob("1.0.*")
    assert kept.read_bytes() == content


def test_a_change_of_labels_that_are_others_by_now_is_refused(toy: Path, tmp_path: Path) -> None:
    other = write_toy_dataset(tmp_path / "other", seed=5)
    with page(toy, tmp_path) as client:
        key = client.key("img0")
        about = f"/api/cases/{key}"

        def stamp() -> str:
            return str(client.get(about).json["stamp"])

        def edit(seen: str) -> int:
            query = f"kind=brush&plane=image&start=0&top=0&left=0&slices=1&height=1&width=1&seen={seen}"
            return client.ask("POST", f"{about}/edit?{query}", b"\2").status

        first = stamp()
        assert edit(first) == 200
        assert labels_of(client, key)[0, 0] == 2
        second = stamp()
        assert second != first
        assert edit(first) == 409
        for change in ("undo", "finish", "begin"):
            assert client.post(f"{about}/{change}", {"seen": first}).status == 409
        assert stamp() == second
        assert client.post(f"{about}/undo", {"seen": second}).status == 200
        assert labels_of(client, key)[0, 0] == 0
        client.post(f"{about}/finish")
        # Another program saves the mask.
        third = stamp()
        Image.fromarray(np.ones((48, 64), np.uint8)).save(toy / "masks" / "img0.png")
        client.until(about, lambda found: found["stamp"] != third)
        assert edit(third) == 409
        # The same name in another folder.
        last = stamp()
        client.post("/api/open", {"path": str(other)})
        before = labels_of(client, key)
        assert edit(last) == 409
        assert (labels_of(client, key) == before).all()


def is_held(project: Project) -> bool:
    """Whether another thread holds the folder."""
    is_free = bool(project.lock.acquire(blocking=False))
    if is_free:
        project.lock.release()
    return not is_free


@pytest.fixture
def kept_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the page look after its folder only where the test does."""
    monkeypatch.setattr("medsaga.app.session._SAVE_EVERY", 600)


@pytest.mark.usefixtures("kept_by_hand")
def test_the_answer_to_a_stroke_is_of_its_labels_also_where_others_are_taken_over_at_once(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with page(toy, tmp_path) as client:
        key, project = client.key("img0"), client.session.project
        client.paint(key, "image", (0, 0, 0), (1, 2, 2), 1)
        project.save_changes(at_once=True)
        theirs = np.full((48, 64), 2, np.uint8)
        Image.fromarray(theirs).save(toy / "masks" / "img0.png")
        assert not project.watch()
        edit, second_look = PaintedMask.edit, threading.Thread(target=project.watch)

        def watched(mask: PaintedMask, *stroke: Any) -> None:
            second_look.start()
            until(lambda: is_held(project))
            edit(mask, *stroke)

        monkeypatch.setattr(PaintedMask, "edit", watched)
        seen = client.paint(key, "image", (0, 9, 9), (1, 2, 2), 1).json
        second_look.join()
        assert (labels_of(client, key) == theirs).all()
        assert seen["undo"]
        assert client.get(f"/api/cases/{key}").json["stamp"] != seen["stamp"]
        assert client.post(f"/api/cases/{key}/undo", {"seen": seen["stamp"]}).status == 409


@pytest.mark.usefixtures("kept_by_hand")
def test_what_is_finished_is_what_was_seen(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (toy / "masks" / "img0.png").unlink()
    with page(toy, tmp_path) as client:
        key, finish = client.key("img0"), Project.finish
        other_tab = threading.Thread(target=client.paint, args=(key, "image", (0, 0, 0), (1, 2, 2), 1))

        def finished_below_a_stroke(project: Project, key: str) -> None:
            other_tab.start()
            other_tab.join(0.3)  # it waits its turn
            finish(project, key)

        monkeypatch.setattr(Project, "finish", finished_below_a_stroke)
        stamp = client.get(f"/api/cases/{key}").json["stamp"]
        answer = client.post(f"/api/cases/{key}/finish", {"seen": stamp})
        other_tab.join()
        assert (answer.json["state"], answer.json["empty"]) == ("done", True)
        assert not np.asarray(Image.open(toy / "masks" / "img0.png")).any()
        assert labels_of(client, key).any()


@needs_chromium
def test_a_stroke_in_one_tab_does_not_take_back_what_was_painted_in_another(
    browser: Any, toy: Path, tmp_path: Path
) -> None:
    tab = browser.new_page(viewport={"width": 1360, "height": 860})
    with page(toy, tmp_path) as client:
        key = client.key("img0")
        enter(tab, client, f"label/{key}")
        tab.wait_for_selector("canvas.paintable")
        paint(tab, (0.5, 0.5), (0.55, 0.5))
        # The other tab, whose strokes the page does not hear of.
        client.paint(key, "image", (0, 0, 0), (1, 20, 20), 2)
        there = labels_of(client, key)
        paint(tab, (0.3, 0.3), (0.6, 0.6))
        tab.get_by_text("The last stroke was not saved").wait_for()
        assert (labels_of(client, key) == there).all()
        tab.locator(".toast button").click()
        paint(tab, (0.3, 0.3), (0.6, 0.6))
        after = labels_of(client, key)
        assert (after != there).any()
        assert (after[:15, :10] == 2).all()
        assert tab.locator(".toast").count() == 0
        tab.close()


@needs_chromium
def test_a_stroke_under_way_while_labels_of_another_tab_are_shown_is_not_saved(
    browser: Any, toy: Path, tmp_path: Path
) -> None:
    tab = browser.new_page(viewport={"width": 1360, "height": 860})
    with page(toy, tmp_path) as client:
        key = client.key("img0")
        enter(tab, client, f"label/{key}")
        canvas = tab.locator("canvas.paintable")
        canvas.wait_for()
        held = Held(tab, "**/edit?*", "POST")
        canvas.click()
        held.wait()
        client.paint(key, "image", (0, 0, 0), (1, 48, 64), 2)
        there = labels_of(client, key)
        box = canvas.bounding_box()
        tab.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.4 * box["height"])
        tab.mouse.down()
        held.let_go()
        tab.get_by_text("changed in another tab").wait_for()
        handled(tab)
        tab.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.6 * box["height"])
        tab.mouse.up()
        tab.get_by_text("have changed meanwhile").wait_for()
        handled(tab)
        assert (labels_of(client, key) == there).all()
        paint(tab, (0.3, 0.3), (0.7, 0.7))
        assert set(np.unique(labels_of(client, key))) == {1, 2}  # what was around it is of the other tab
        tab.close()


@needs_chromium
def test_an_open_case_is_shown_anew_when_another_program_saves_its_mask(tab: Any, toy: Path, tmp_path: Path) -> None:
    with page(toy, tmp_path) as client:
        key = client.key("img0")
        enter(tab, client, f"label/{key}")
        tab.wait_for_selector("canvas.paintable")
        Image.fromarray(np.full((48, 64), 2, np.uint8)).save(toy / "masks" / "img0.png")
        tab.wait_for_event("response", lambda answer: "/labels?plane=image" in answer.url)
        handled(tab)
        paint(tab, (0.5, 0.5), (0.55, 0.5))
        after = labels_of(client, key)
        assert set(np.unique(after)) == {1, 2}
        assert (after[:5] == 2).all()


@needs_chromium
def test_one_press_of_enter_finishes_one_case_however_long_it_is_held(tab: Any, toy: Path, tmp_path: Path) -> None:
    shutil.rmtree(toy / "masks")
    (toy / "masks").mkdir()
    with page(toy, tmp_path) as client:
        enter(tab, client, f"label/{client.key('img0')}")
        tab.wait_for_selector("canvas.paintable")
        paint(tab, (0.5, 0.5), (0.55, 0.5))
        for _ in range(20):
            tab.keyboard.down("Enter")  # again without "up" is what a held key sends
            tab.wait_for_timeout(50)
        tab.keyboard.up("Enter")
        so(tab, f"location.hash === '#label/{client.key('img1')}'")
        handled(tab)
        assert [case["state"] for case in client.get("/api/cases").json] == ["done"] + 5 * ["none"]


@needs_chromium
def test_a_case_without_a_label_is_finished_only_if_the_user_says_so_and_can_be_begun_again(
    tab: Any, toy: Path, tmp_path: Path
) -> None:
    shutil.rmtree(toy / "masks")
    (toy / "masks").mkdir()
    with page(toy, tmp_path) as client:
        key = client.key("img0")
        enter(tab, client, f"label/{key}")
        tab.wait_for_selector("canvas.paintable")
        handled(tab)
        tab.keyboard.press("Enter")
        tab.wait_for_selector("dialog[open]")
        tab.keyboard.press("Enter")  # what has the focus says no
        so(tab, "!document.querySelector('dialog')")
        assert client.get(f"/api/cases/{key}").json["state"] == "none"
        tab.keyboard.press("Enter")
        tab.get_by_role("button", name="Finish it empty").click()
        so(tab, f"location.hash === '#label/{client.key('img1')}'")
        assert client.get(f"/api/cases/{key}").json["state"] == "done"
        tab.goto(f"http://127.0.0.1:{client.port}/#label/{key}")
        tab.get_by_role("button", name="Not finished yet").click()
        so(tab, "document.querySelector('.badge.draft')")
        assert list((toy / "masks").iterdir()) == []


@needs_chromium
def test_escape_leaves_the_name_of_a_label_as_it_was(tab: Any, toy: Path, tmp_path: Path) -> None:
    with page(toy, tmp_path) as client:
        enter(tab, client, f"label/{client.key('img0')}")
        tab.get_by_role("button", name="Rename disc").click()
        tab.keyboard.type("oops")
        tab.keyboard.press("Escape")
        tab.get_by_role("button", name="disc", exact=True).wait_for()
        tab.locator("canvas.paintable").click()
        handled(tab)
        assert [each["name"] for each in client.get("/api/state").json["project"]["labels"]][1] == "disc"


@needs_chromium
def test_labels_keep_their_names_when_others_are_changed(tab: Any, toy: Path, tmp_path: Path) -> None:
    with page(toy, tmp_path) as client:
        enter(tab, client, f"label/{client.key('img0')}")
        tab.wait_for_selector("canvas.paintable")
        # One name after the other, without waiting.
        tab.get_by_role("button", name="Rename disc").click()
        tab.get_by_label("Name of the label").fill("liver")
        tab.get_by_role("button", name="Rename bar").click()
        tab.get_by_role("button", name="Rename liver").wait_for()
        # Two new ones, the second before the first is answered; and one of another tab, unknown to this one.
        held = Held(tab, "**/api/labels", "POST")
        for name in ("spleen", "kidney"):
            tab.get_by_label("Name of a new label").fill(name)
            tab.get_by_label("Name of a new label").press("Enter")
        client.post("/api/labels", {"add": "aorta"})
        held.let_go()
        tab.get_by_role("button", name="Rename kidney").wait_for()
        names = [label["name"] for label in client.get("/api/state").json["project"]["labels"]]
        assert names[:4] == ["background", "liver", "bar", "aorta"]
        assert set(names[4:]) == {"spleen", "kidney"}


def test_small_pictures_are_known_by_what_they_show(toy: Path, tmp_path: Path) -> None:
    other = shutil.copytree(toy, tmp_path / "other")
    with page(toy, tmp_path) as client:
        key = client.key("img0")

        def picture() -> str:
            return str(next(case["picture"] for case in client.get("/api/cases").json if case["id"] == key))

        seen = [picture()]
        assert picture() == seen[0]
        client.paint(key, "image", (0, 0, 0), (1, 5, 5), 2)
        seen.append(picture())
        client.post("/api/open", {"path": str(other)})
        seen.append(picture())
        assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("part", ["masks", "labels"])
def test_a_mask_is_not_written_through_a_link_out_of_the_folder(toy: Path, tmp_path: Path, part: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (toy / "masks").rename(elsewhere)
    (elsewhere / "img0.png").unlink()
    before = {path.name: path.read_bytes() for path in elsewhere.iterdir()}
    (toy / part).symlink_to(elsewhere)
    with page(toy, tmp_path) as client:
        key = client.key("img0")
        client.paint(key, "image", (0, 0, 0), (1, 5, 5), 1)
        answer = client.post(f"/api/cases/{key}/finish")
        assert answer.status == 422
        assert "leads out" in answer.json["found"]
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == before


@needs_chromium
def test_a_prediction_takes_the_place_of_labels_only_after_a_question(
    tab: Any, tmp_path: Path, opened_run: Path
) -> None:
    with page(opened_run, tmp_path) as client:
        enter(tab, client, "results")
        (key,) = (case["id"] for case in client.get("/api/cases").json if case["state"] == "none")
        tab.locator(f"[data-act='{key}']").click()
        handled(tab)

        def accept(press: str = "") -> None:
            """Press a key, or the button."""
            button = tab.locator(".stage button:enabled", has_text="Accept")
            button.wait_for()
            if press:
                tab.keyboard.press(press)
            else:
                button.click()
            handled(tab)

        accept("a")
        predicted = labels_of(client, key)
        assert [each["origin"] for each in client.get(f"/api/cases/{key}").json["history"]] == ["prediction"]
        accept()  # nothing has been painted since
        assert tab.locator("dialog").count() == 0
        client.paint(key, "image", (0, 0, 0), (1, 9, 9), 2)
        accept("a")
        assert (labels_of(client, key)[:9, :9] == 2).all()
        accept()
        tab.get_by_role("button", name="Close", exact=True).click()
        handled(tab)
        assert (labels_of(client, key)[:9, :9] == 2).all()
        accept()
        tab.get_by_role("button", name="Replace them").click()
        handled(tab)
        assert (labels_of(client, key) == predicted).all()
        # Another program's labels are not what was accepted.
        (name,) = (case["name"] for case in client.get("/api/cases").json if case["id"] == key)
        Image.fromarray(np.ones((48, 64), np.uint8)).save(opened_run / "masks" / f"{name}.png")
        client.until(f"/api/cases/{key}", lambda found: not any(each["now"] for each in found["history"]))
        handled(tab)
        accept()
        tab.wait_for_selector("dialog[open]")


@needs_chromium
def test_only_the_prediction_that_is_seen_is_accepted(tab: Any, tmp_path: Path, opened_run: Path) -> None:
    parts = opened_run / "runs" / "run1" / run_folder.SPLIT
    split = read_json(parts)
    (opened_run / "masks" / f"{split['test'].pop()}.png").unlink()
    write_json(parts, split)
    with page(opened_run, tmp_path) as client:
        enter(tab, client, "results")
        accept = tab.locator(".stage button:enabled", has_text="Accept")
        accept.wait_for()
        held = Held(tab, "**/labels?*")  # without which the next one is not seen
        accept.dblclick()
        held.wait()
        tab.keyboard.press("a")
        handled(tab)
        assert [case["state"] for case in client.get("/api/cases").json].count("none") == 1
        held.let_go()
        accept.wait_for()
        tab.keyboard.press("a")
        client.until("/api/cases", lambda cases: all(case["state"] == "done" for case in cases))
