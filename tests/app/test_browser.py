"""Labelling in a real browser, with the mouse and by keys alone, and what the page is made of."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_browser import answered, enter, needs_chromium, paint, saved, scroll, so
from page_server import page

import medsaga.app
from medsaga.app.project import Project
from medsaga.data.phantom import write_phantom_ct

PARTS = Path(medsaga.app.__file__).parent
MOST_BYTES = 400_000
MOST_LINES = 400


def small_phantom(root: Path) -> Path:
    write_phantom_ct(root, cases=3, shape=(48, 48, 6))
    for number in (1, 2):
        (root / "labelsTr" / f"phantom_00{number}.nii.gz").unlink()
    return root


def test_what_is_shipped_is_small() -> None:
    files = [path for name in ("static", "templates") for path in (PARTS / name).rglob("*") if path.is_file()]
    assert len(files) > 10
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    assert {path.name for path in files if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES} == set()


def test_nothing_is_fetched_from_elsewhere() -> None:
    for path in (PARTS / "static").iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text, path.name
        assert "https:" not in text, path.name
        assert "innerHTML" not in text, path.name


def test_only_who_is_still_there_goes_to_another_view() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in (PARTS / "static").glob("*.js")}
    going = {name for name, text in texts.items() if re.search(r"location\.hash\s*=[^=]", text)}
    assert going == {"visit.js", "main.js"}, "Visit.go asks whether the user is"


@needs_chromium
def test_a_stroke_of_the_mouse_is_on_the_disk_where_it_was_painted(tab: Any, tmp_path: Path) -> None:
    root = small_phantom(tmp_path / "phantom")
    with page(root, tmp_path) as client:
        key = client.key("phantom_001")
        enter(tab, client, f"label/{key}")
        tab.wait_for_selector("canvas.paintable")
        tab.keyboard.press("2")
        paint(tab, (0.4, 0.5), (0.5, 0.5))
        classes = Project(root).mask(key).slice("axial", 3)
        assert set(np.unique(classes)) == {0, 2}
        rows, columns = np.nonzero(classes)
        # The middle of the stroke lies at 45 % of a square image in a pane that is wider than it.
        assert abs(rows.mean() - 23.5) < 1.5
        assert 12 < columns.mean() < 23
        tab.keyboard.press("Control+z")
        so(tab, "document.querySelector('button[title^=Undo]').disabled")
        assert not Project(root).mask(key).classes.any()
        tab.keyboard.press("Control+Shift+z")
        so(tab, "!document.querySelector('button[title^=Undo]').disabled")
        np.testing.assert_array_equal(Project(root).mask(key).slice("axial", 3), classes)


@needs_chromium
@pytest.mark.exhaustive
def test_all_of_labelling_by_keys_alone(tab: Any, tmp_path: Path) -> None:
    root = small_phantom(tmp_path / "phantom")
    with page(root, tmp_path) as client:
        enter(tab, client)
        key = client.key("phantom_001")
        tab.wait_for_selector(".card")
        while tab.evaluate("document.activeElement.textContent") != "Label the next case":
            tab.keyboard.press("Tab")
        tab.keyboard.press("Enter")
        tab.wait_for_selector("canvas.paintable")
        while tab.evaluate("document.activeElement.className") != "pane paintable":
            tab.keyboard.press("Tab")
        # Keys come faster than slices.
        for pressed in ("1", "b", "]", "ArrowRight", "ArrowDown", " ", "PageUp", "PageUp", " "):
            tab.keyboard.press(pressed)
        so(tab, "document.querySelector('.main-pane .caption').textContent.includes('6 / 6')")
        saved(tab)
        painted = Project(root).mask(key)
        assert [int(painted.slice("axial", n).any()) for n in range(6)] == [0, 0, 0, 1, 0, 1]
        tab.keyboard.press("i")
        tab.wait_for_selector(".toast")
        scroll(tab, "PageDown")
        down, right = ["ArrowDown"] * 3, ["ArrowRight"] * 3
        for pressed in ("p", "Shift+ArrowLeft", " ", *down, " ", *right, " ", "3", "Enter"):
            tab.keyboard.press(pressed)
        saved(tab)
        painted = Project(root).mask(key)
        assert [int((painted.slice("axial", n) == 1).any()) for n in range(6)] == [0, 0, 0, 1, 1, 1]
        assert (painted.slice("axial", 4) == 3).any()
        tab.keyboard.press("?")
        tab.wait_for_selector("dialog[open]")
        tab.keyboard.press("Escape")
        tab.keyboard.press("Enter")
        client.until("/api/cases", lambda cases: cases[1]["state"] == "done")
        so(tab, "document.querySelector('.case-head h1').textContent === 'phantom_002'")


@needs_chromium
def test_open_takes_the_path_that_was_typed(tab: Any, tmp_path: Path, toy: Path) -> None:
    other = shutil.copytree(toy, tmp_path / "typed")
    with page(toy, tmp_path) as client:
        enter(tab, client)
        tab.locator("#other").click()
        tab.get_by_role("button", name="Open", exact=True).wait_for()
        tab.get_by_label("Folder", exact=True).fill(str(other))
        tab.locator("dialog").get_by_role("button", name="Open", exact=True).click()
        tab.get_by_text("6 images, 6 finished").wait_for()
        so(tab, "document.querySelector('dialog') === null")
        assert client.get("/api/state").json["project"]["path"] == str(other)


@needs_chromium
def test_names_of_files_and_labels_are_text_and_never_markup(tab: Any, tmp_path: Path, toy: Path) -> None:
    name = "<img src=x onerror=alert(1)>"
    for kind in ("images", "masks"):
        (toy / kind / "img0.png").rename(toy / kind / f"{name}.png")
    with page(toy, tmp_path) as client:
        client.post("/api/labels", {"value": 1, "name": "<b>disc</b>"})
        enter(tab, client, f"label/{client.key(name)}")
        tab.wait_for_selector("canvas.paintable")
        assert tab.locator(".case-head h1").inner_text() == name
        assert tab.locator(".label-name").first.inner_text() == "<b>disc</b>"
        assert "img0" not in tab.title()
        assert name not in tab.title()


@needs_chromium
def test_the_focus_stays_where_it_is_while_the_cases_are_listed_anew(tab: Any, tmp_path: Path, toy: Path) -> None:
    (toy / "masks" / "img0.png").unlink()
    with page(toy, tmp_path) as client:
        enter(tab, client)
        tab.get_by_role("link", name="img3").focus()
        client.paint(client.key("img0"), "image", (0, 0, 0), (1, 5, 5), 1)
        client.post(f"/api/cases/{client.key('img0')}/finish")
        tab.get_by_text("6 images, 6 finished").wait_for()
        assert "img3" in tab.evaluate("document.activeElement.textContent")


@needs_chromium
def test_a_name_is_written_on_while_a_stroke_is_saved(tab: Any, tmp_path: Path, toy: Path) -> None:
    with page(toy, tmp_path) as client:
        enter(tab, client, f"label/{client.key('img0')}")
        tab.wait_for_selector("canvas.paintable")
        tab.get_by_label("Name of a new label").fill("third")
        paint(tab, (0.4, 0.5), (0.5, 0.5))
        assert tab.get_by_label("Name of a new label").input_value() == "third"
        tab.get_by_role("button", name="Add").click()
        tab.get_by_role("button", name="third", exact=True).wait_for()
    assert json.loads((toy / "dataset.json").read_text())["labels"]["third"] == 3


@needs_chromium
def test_the_images_of_a_suggested_case_are_those_to_label(tab: Any, tmp_path: Path, toy: Path) -> None:
    lines = [f"img{number},patient{number // 2}" for number in range(6)]
    (toy / "cases.csv").write_text("\n".join(["name,case", *lines]))
    for number in range(2, 6):
        (toy / "masks" / f"img{number}.png").unlink()
    with page(toy, tmp_path) as client:
        enter(tab, client)
        answered(tab, "**/api/suggest", {"state": "done", "cases": ["patient2"]})
        tab.get_by_role("button", name="Suggest which to label").click()
        tab.get_by_text("label this").first.wait_for()
        hinted = tab.locator(".card", has_text="label this").locator(".card-name").all_inner_texts()
        assert hinted == ["img4", "img5"]
        address = tab.get_by_role("link", name="Label the next case").get_attribute("href")
        assert address == f"#label/{client.key('img4')}"
