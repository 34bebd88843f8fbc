"""The page in a real browser: everything a user does, with the mouse and by keys alone, and the pictures of the docs.

``MEDSAGA_PICTURES=FOLDER`` keeps the pictures that the tests take.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_server import TOKEN, Client, page

from medsaga.app.opening import PHANTOM, make_phantom
from medsaga.app.project import Project
from medsaga.data.phantom import write_phantom_ct

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
MOST_BYTES = 400_000
SECONDS = 300


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A tab in which an error of a script fails the test."""
    tab, errors = browser.new_page(viewport={"width": 1360, "height": 860}), []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    # A server that has ended is no error of the page.
    is_ours = lambda message: message.type == "error" and "ERR_CONNECTION" not in message.text  # noqa: E731
    tab.on("console", lambda message: errors.append(message.text) if is_ours(message) else None)
    tab.set_default_timeout(20_000)
    yield tab
    tab.close()
    assert errors == []


def enter(tab: Any, client: Client, view: str = "") -> None:
    tab.goto(f"http://127.0.0.1:{client.port}/?token={TOKEN}")
    assert "token" not in tab.url
    if view:
        tab.goto(f"http://127.0.0.1:{client.port}/#{view}")


def picture(tab: Any, name: str) -> None:
    folder = os.environ.get("MEDSAGA_PICTURES")
    if folder:
        tab.screenshot(path=Path(folder) / f"{name}.png")


def small_phantom(root: Path) -> Path:
    write_phantom_ct(root, cases=3, shape=(48, 48, 6))
    for number in (1, 2):
        (root / "labelsTr" / f"phantom_00{number}.nii.gz").unlink()
    return root


def so(tab: Any, expression: str, seconds: float = 20) -> None:
    """Wait until an expression holds on the page, whose policy lets no text be evaluated in it."""
    end = time.monotonic() + seconds
    while not tab.evaluate(f"() => Boolean({expression})"):
        assert time.monotonic() < end, expression
        tab.wait_for_timeout(50)


def paint(tab: Any, *points: tuple[float, float]) -> None:
    """Drag the mouse over the image; points as shares of its width and height."""
    box = tab.locator("canvas.paintable").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    tab.mouse.move(*places[0])
    tab.mouse.down()
    for place in places[1:]:
        tab.mouse.move(*place, steps=5)
    tab.mouse.up()
    so(tab, "document.querySelector('.saved').textContent === 'All strokes saved'")


def test_what_is_shipped_is_small() -> None:
    import medsaga.app

    folder = Path(medsaga.app.__file__).parent
    files = [path for name in ("static", "templates") for path in (folder / name).rglob("*") if path.is_file()]
    assert len(files) > 10
    assert sum(path.stat().st_size for path in files) < MOST_BYTES


def test_nothing_is_fetched_from_elsewhere() -> None:
    import medsaga.app

    for path in (Path(medsaga.app.__file__).parent / "static").iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text, path.name
        assert "https:" not in text, path.name
        assert "innerHTML" not in text, path.name


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
        for pressed in ("1", "b", "]", "ArrowRight", "ArrowDown", " ", "PageUp", "PageUp", " "):
            tab.keyboard.press(pressed)
            tab.wait_for_timeout(150)
        so(tab, "document.querySelector('.saved').textContent === 'All strokes saved'")
        painted = Project(root).mask(key)
        assert [int(painted.slice("axial", n).any()) for n in range(6)] == [0, 0, 0, 1, 0, 1]
        tab.keyboard.press("i")
        tab.wait_for_selector(".toast")
        tab.keyboard.press("PageDown")
        for pressed in (
            "p",
            "Shift+ArrowLeft",
            " ",
            "ArrowDown",
            "ArrowDown",
            "ArrowDown",
            " ",
            "ArrowRight",
            "ArrowRight",
            "ArrowRight",
            " ",
        ):
            tab.keyboard.press(pressed)
        tab.keyboard.press("3")
        tab.keyboard.press("Enter")
        tab.wait_for_timeout(500)
        painted = Project(root).mask(key)
        assert [int((painted.slice("axial", n) == 1).any()) for n in range(6)] == [0, 0, 0, 1, 1, 1]
        assert (painted.slice("axial", 4) == 3).any()
        tab.keyboard.press("?")
        tab.wait_for_selector("dialog[open]")
        tab.keyboard.press("Escape")
        tab.keyboard.press("Enter")
        client.until("/api/cases", lambda cases: cases[1]["state"] == "done")
        so(tab, "document.querySelector('.case-head h1').textContent === 'phantom_002'")


AUDIT = (Path(__file__).parents[1] / "page_audit.js").read_text(encoding="utf-8").partition("\n")[2]


def look_over(tab: Any, client: Client, views: dict[str, str]) -> None:
    """Find nothing wrong with views, each of which is there when something of it is."""
    for view, there in views.items():
        enter(tab, client, view)
        tab.wait_for_selector(there)
        tab.wait_for_timeout(300)
        assert tab.evaluate(AUDIT) == [], view


def test_controls_have_names_and_texts_contrast(tab: Any, tmp_path: Path, toy: Path) -> None:
    with page(None, tmp_path) as client:
        enter(tab, client)
        tab.wait_for_selector(".choice")
        assert tab.evaluate(AUDIT) == []
        picture(tab, "start")
        tab.get_by_role("button", name="Open a folder").click()
        tab.wait_for_selector(".folders li")
        assert tab.evaluate(AUDIT) == []
    with page(toy, tmp_path) as client:
        look_over(tab, client, {"cases": ".card", "label": "canvas.paintable", "train": ".run-place .empty"})
        tab.keyboard.press("?")
        tab.wait_for_selector("dialog[open]")
        assert tab.evaluate(AUDIT) == []


@pytest.mark.exhaustive
def test_controls_of_results_have_names_and_texts_contrast(tab: Any, tmp_path: Path, trained_toy: Path) -> None:
    from rich.console import Console

    from medsaga.prediction.files import predict_files

    data = tmp_path / "data"
    shutil.copytree(trained_toy / "data", data)
    run = data / "runs" / "run1"
    shutil.copytree(trained_toy / "run", run)
    (data / "masks" / "img0.png").unlink()
    predict_files(run, data / "images", run / "predictions", console=Console(quiet=True), device="cpu")
    with page(data, tmp_path) as client:
        look_over(tab, client, {"train": ".curves", "results": ".result", "export": ".segments"})


def test_names_of_files_and_labels_are_text_and_never_markup(tab: Any, tmp_path: Path, toy: Path) -> None:
    name = "<img src=x onerror=alert(1)>"
    for kind in ("images", "masks"):
        (toy / kind / "img0.png").rename(toy / kind / f"{name}.png")
    with page(toy, tmp_path) as client:
        client.post("/api/labels", {"labels": [{"name": "<b>disc</b>"}, {"name": "bar"}]})
        enter(tab, client, f"label/{client.key(name)}")
        tab.wait_for_selector("canvas.paintable")
        assert tab.locator(".case-head h1").inner_text() == name
        assert tab.locator(".label-name").first.inner_text() == "<b>disc</b>"
        assert "img0" not in tab.title()
        assert name not in tab.title()


@pytest.mark.exhaustive
def test_the_whole_way_with_the_phantom(tab: Any, tmp_path: Path) -> None:
    """Open the phantom, label two cases, train, mend one, train again, export; this takes the pictures of the docs."""
    with page(None, tmp_path) as client:
        enter(tab, client)
        tab.get_by_role("button", name="Start with the phantom").click()
        tab.wait_for_selector(".card")
        client.until("/api/state", lambda state: state["project"]["checked"])
        tab.get_by_text("nothing is wrong").wait_for()
        picture(tab, "cases")
        tab.get_by_role("link", name="phantom_002").click()
        tab.wait_for_selector("canvas.paintable")
        tab.wait_for_timeout(1000)
        picture(tab, "page")
        for number in (4, 5):
            tab.goto(f"http://127.0.0.1:{client.port}/#label/{client.key(f'phantom_00{number}')}")
            tab.wait_for_selector(f"h1:text('phantom_00{number}')")
            tab.wait_for_timeout(500)
            tab.keyboard.press("1")
            for _ in range(3):
                paint(tab, (0.30, 0.45), (0.35, 0.50), (0.32, 0.55))
                paint(tab, (0.36, 0.42), (0.42, 0.43))
                tab.keyboard.press("PageUp")
                tab.wait_for_timeout(200)
            picture(tab, "label")
            tab.get_by_role("button", name="Finish case").click()
            client.until("/api/cases", lambda cases, n=number: cases[n]["state"] == "done")
        for turn in ("first", "second"):
            if turn == "first":
                tab.get_by_role("link", name="Train", exact=True).click()
                tab.get_by_role("radio", name="Quick").check()
                tab.get_by_role("button", name="Train", exact=True).click()
            else:
                tab.get_by_role("button", name="Train again with").click()
            # The curve grows while it trains.
            so(tab, "document.querySelector('.loss-line')?.getAttribute('d').split('L').length > 5", 300)
            if turn == "first":
                tab.wait_for_selector(".look img", timeout=1000 * SECONDS)
            picture(tab, f"train-{turn}")
            tab.wait_for_selector("[data-state=done]", timeout=1000 * SECONDS)
            tab.get_by_role("link", name="See results").click()
            client.until(
                "/api/state",
                lambda state: all(job["state"] == "done" for job in state["jobs"] if job["kind"] != "memory"),
                300,
            )
            tab.wait_for_selector(".result")
            tab.wait_for_timeout(1500)
            picture(tab, f"results-{turn}")
            if turn == "first":
                tab.locator(".result", has_text="to review").first.click()
                tab.get_by_role("button", name="Mend", exact=True).click()
                tab.wait_for_selector("canvas.paintable")
                tab.keyboard.press("3")
                paint(tab, (0.2, 0.2), (0.4, 0.2))
                tab.get_by_role("button", name="Finish case").click()
                client.until("/api/cases", lambda cases: sum(case["state"] == "done" for case in cases) == 7)
                tab.get_by_role("link", name="Results", exact=True).click()
        tab.get_by_role("link", name="Export", exact=True).click()
        tab.get_by_role("button", name="Export", exact=True).click()
        tab.wait_for_selector("code.path")
        exported = list((tmp_path / PHANTOM / "exports").rglob("*.nii.gz"))
        assert len(exported) == 7
        assert make_phantom(tmp_path) == tmp_path / PHANTOM  # it is there, and stays as it is
