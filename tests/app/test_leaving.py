"""A user who goes elsewhere while the server works: what is answered then changes nothing but its own view."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from page_browser import Held, enter, handled, needs_chromium, paint, so
from page_server import Client, page
from PIL import Image

from medsaga.app.opening import PHANTOM
from medsaga.data.phantom import write_phantom_ct
from medsaga.files import write_json

pytestmark = needs_chromium


def leave(tab: Any, held: Held, document: Any = None, step: str = "Train") -> None:
    """Go to another step while requests are held, let them go, and find the page where the user went."""
    held.wait()
    tab.locator("#nav").get_by_role("link", name=step).click()
    so(tab, f"document.getElementById('view').dataset.view === {step.lower()!r}")
    held.let_go(document)
    handled(tab)
    assert tab.url.endswith(f"#{step.lower()}")
    assert tab.locator("#view").get_attribute("data-view") == step.lower()


def label(tab: Any, client: Client, name: str) -> None:
    enter(tab, client, f"label/{client.key(name)}")
    tab.wait_for_selector("canvas.paintable")


@pytest.mark.parametrize(
    ("name", "button", "pattern", "method"),
    [
        ("img0", "Finish case", "**/finish", "POST"),
        ("img0", "Finish case", "**/api/cases", "GET"),
        ("img1", "Next case", "**/api/cases", "GET"),
    ],
)
def test_who_finishes_a_case_and_goes_elsewhere_stays_there(
    tab: Any, tmp_path: Path, toy: Path, name: str, button: str, pattern: str, method: str
) -> None:
    (toy / "masks" / "img0.png").unlink()
    with page(toy, tmp_path) as client:
        label(tab, client, name)
        paint(tab, (0.5, 0.5), (0.55, 0.5))
        held = Held(tab, pattern, method)
        tab.get_by_role("button", name=button).click()
        leave(tab, held)
        assert {case["state"] for case in client.get("/api/cases").json} == {"done"} or name == "img1"


def test_who_mends_a_prediction_or_trains_again_and_goes_elsewhere_stays_there(
    tab: Any, tmp_path: Path, opened_run: Path
) -> None:
    with page(opened_run, tmp_path) as client:
        enter(tab, client, "results")
        tab.locator(".result", has_text="to review").click()
        held = Held(tab, "**/begin", "POST")
        tab.get_by_role("button", name="Mend", exact=True).click()
        leave(tab, held)
        (mended,) = (case for case in client.get("/api/cases").json if case["state"] != "done")
        assert mended["state"] == "draft"
        client.post(f"/api/cases/{mended['id']}/finish")
        enter(tab, client, "results")
        held = Held(tab, "**/again", "POST")
        tab.get_by_role("button", name="Train again with 1 new case").click()
        leave(tab, held, {"run": "0" * 12}, "Cases")


def test_a_case_that_comes_late_does_not_take_the_place_of_the_one_chosen_since(
    tab: Any, tmp_path: Path, opened_run: Path
) -> None:
    with page(opened_run, tmp_path) as client:
        enter(tab, client, "results")
        tab.wait_for_selector(".case-head h2")
        held = Held(tab, f"**/api/cases/{client.key('img2')}")
        tab.locator(".result", has_text="img2").click()
        held.wait()
        tab.locator(".result", has_text="img3").click()
        so(tab, "document.querySelector('.case-head h2').textContent === 'img3'")
        held.let_go()
        handled(tab)
        assert tab.locator(".case-head h2").inner_text() == "img3"


def test_a_view_that_comes_late_does_not_take_the_place_of_the_one_asked_for_since(
    tab: Any, tmp_path: Path, toy: Path
) -> None:
    with page(toy, tmp_path) as client:
        enter(tab, client, "cases")
        held = Held(tab, f"**/api/cases/{client.key('img2')}")
        tab.get_by_role("link", name="img2").click()
        leave(tab, held)


def test_what_changes_while_a_view_is_on_its_way_is_seen_in_it(tab: Any, tmp_path: Path, toy: Path) -> None:
    (toy / "masks" / "img0.png").unlink()
    with page(toy, tmp_path) as client:
        enter(tab, client, "train")
        tab.wait_for_selector(".run-place .empty")
        before, held = client.get("/api/cases").json, Held(tab, "**/api/cases")
        tab.locator("#nav").get_by_role("link", name="Cases").click()
        held.wait()
        held.pass_on()
        client.paint(client.key("img0"), "image", (0, 0, 0), (1, 5, 5), 1)
        client.post(f"/api/cases/{client.key('img0')}/finish")
        for _ in range(2):  # the page asks for it again and again
            tab.wait_for_event("response", lambda answer: answer.url.endswith("/api/state"))
        held.let_go(before)
        tab.get_by_text("6 images, 6 finished").wait_for()


def test_who_goes_elsewhere_before_the_first_view_is_there_still_hears_of_what_changes(
    tab: Any, tmp_path: Path, toy: Path
) -> None:
    (toy / "masks" / "img0.png").unlink()
    with page(toy, tmp_path) as client:
        held = Held(tab, "**/api/cases")
        enter(tab, client)
        held.wait()
        held.pass_on()
        tab.locator("#nav").get_by_role("link", name="Train").click()
        tab.get_by_text("On the 5 finished cases").wait_for()
        held.let_go()
        client.paint(client.key("img0"), "image", (0, 0, 0), (1, 5, 5), 1)
        tab.locator("#nav").get_by_role("link", name="Cases").click()
        tab.get_by_text("6 images, 5 finished").wait_for()
        client.post(f"/api/cases/{client.key('img0')}/finish")
        tab.get_by_text("6 images, 6 finished").wait_for()


def test_a_training_that_begins_late_is_seen_by_those_who_wait_for_it_alone(
    tab: Any, tmp_path: Path, toy: Path
) -> None:
    with page(toy, tmp_path) as client:
        enter(tab, client, "train")
        held = Held(tab, "**/api/runs", "POST")
        tab.get_by_role("button", name="Train", exact=True).click()
        leave(tab, held, {"run": "0" * 12}, "Cases")
        assert tab.locator(".toast").count() == 0


def test_an_older_answer_about_the_state_does_not_take_the_place_of_a_newer_one(tab: Any, tmp_path: Path) -> None:
    write_phantom_ct(tmp_path / PHANTOM, cases=2, shape=(32, 32, 4))
    with page(None, tmp_path) as client:
        enter(tab, client)
        tab.wait_for_selector(".choice")
        before, held = client.get("/api/state").json, Held(tab, "**/api/state")
        held.wait()
        held.pass_on()
        tab.get_by_role("button", name="Start with the phantom").click()
        tab.wait_for_selector(".card")
        held.let_go(before)
        handled(tab)
        assert tab.locator(".card").count() == 2


def test_a_stroke_on_its_way_is_seen_when_its_case_is_opened_again(tab: Any, tmp_path: Path, toy: Path) -> None:
    with page(toy, tmp_path) as client:
        label(tab, client, "img0")
        held = Held(tab, "**/edit?*", "POST")
        box = tab.locator("canvas.paintable").bounding_box()
        tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        held.wait()
        tab.get_by_role("link", name="Train", exact=True).click()
        so(tab, "document.getElementById('view').dataset.view === 'train'")
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(f"http://127.0.0.1:{client.port}/#label/{client.key('img0')}")
        handled(tab)
        assert not any("/labels" in address for address in asked)
        held.let_go()
        tab.wait_for_selector("button[title^=Undo]:enabled")


def test_nothing_is_painted_below_an_undo(tab: Any, tmp_path: Path, toy: Path) -> None:
    with page(toy, tmp_path) as client:
        key = client.key("img0")
        client.paint(key, "image", (0, 20, 20), (1, 5, 5), 2)
        label(tab, client, "img0")
        held = Held(tab, "**/undo", "POST")
        tab.keyboard.press("Control+z")
        held.wait()
        box = tab.locator("canvas.paintable").bounding_box()
        tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        held.let_go()
        tab.wait_for_selector("button[title^=Undo]:disabled")
        handled(tab)
        assert not client.get(f"/api/cases/{key}").json["undo"]


def test_nothing_is_painted_while_another_channel_is_on_its_way(tab: Any, tmp_path: Path) -> None:
    (tmp_path / "data" / "imagesTr").mkdir(parents=True)
    for channel in range(2):
        Image.new("L", (64, 48), 50 * channel).save(tmp_path / "data" / "imagesTr" / f"img0_000{channel}.png")
    about = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "disc": 1}, "file_ending": ".png"}
    write_json(tmp_path / "data" / "dataset.json", about)
    with page(tmp_path / "data", tmp_path) as client:
        label(tab, client, "img0")
        held = Held(tab, "**/image?*channel=1")
        tab.get_by_label("Channel").select_option("T2")
        held.wait()
        canvas = tab.locator("canvas.paintable")
        canvas.click()
        held.let_go()
        handled(tab)
        assert not client.get(f"/api/cases/{client.key('img0')}").json["undo"]
        canvas.click()
        tab.wait_for_selector("button[title^=Undo]:enabled")


def test_a_folder_that_was_chosen_and_is_not_listed_yet_cannot_be_taken_for_the_one_before(
    tab: Any, tmp_path: Path
) -> None:
    write_phantom_ct(tmp_path / "phantom", cases=2, shape=(32, 32, 2))
    Image.new("L", (32, 32)).save(tmp_path / "scan.png")
    with page(None, tmp_path) as client:
        enter(tab, client)
        tab.get_by_role("button", name="Open a folder").click()
        make = tab.get_by_role("button", name="Make a dataset")
        make.wait_for()
        held = Held(tab, "**/api/folders?*")
        tab.locator(".folders").get_by_role("button", name="phantom").click()
        held.wait()
        assert make.is_disabled()
        held.let_go()
        tab.get_by_role("button", name="Open", exact=True).click()
        tab.wait_for_selector(".card")
        assert client.get("/api/state").json["project"]["name"] == "phantom"
