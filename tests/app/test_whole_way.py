"""The whole way in a real browser, from the first page to the exported files; this takes the pictures of the docs.

``MEDSAGA_PICTURES=FOLDER`` keeps the pictures, of the phantom as users get it and of trainings as the page offers them;
else both are small.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clinical_phantoms import write_examination
from conftest import write_toy_dataset
from page_browser import answered, changed, enter, needs_chromium, paint, picture, planes_are_drawn, scroll, so
from page_server import page

from medsaga import run_folder
from medsaga.app.opening import PHANTOM, make_phantom
from medsaga.app.project import Project
from medsaga.app.results import predictions
from medsaga.data.phantom import write_phantom_ct
from medsaga.files import read_json

pytestmark = [needs_chromium, pytest.mark.exhaustive]
SECONDS = 600
LABELLED = 4
SMALL = {"model": "tiny", "image_size": 32}


def write_small_phantom(root: Path) -> None:
    """Write what the page takes for the phantom that it has made before."""
    write_phantom_ct(root, cases=7, shape=(64, 64, 8))
    for mask in sorted((root / "labelsTr").iterdir())[LABELLED:]:
        mask.unlink()


def keep_small(tab: Any) -> None:
    """Let the steps of a training be small, and going on take few; nothing is segmented while it trains."""
    for pattern in ("**/api/runs", "**/api/memory"):
        changed(tab, pattern, **SMALL)
    changed(tab, "**/api/runs/*/again", time=3)
    picture = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    tab.route("**/picture?*", lambda route: route.fulfill(body=picture, content_type="image/svg+xml"))


def is_segmented(jobs: list[dict[str, Any]]) -> bool:
    """Whether the last training has been followed by what it made of the other cases."""
    return jobs[-1]["kind"] == "predict" and all(job["state"] == "done" for job in jobs)


def see_results(tab: Any, client: Any) -> None:
    """Wait until a training is over and the other cases are segmented, and see what came of it."""
    tab.wait_for_selector("[data-state=done]", timeout=1000 * SECONDS)
    # Its process may still be about to end; nothing is left to be stopped.
    assert tab.query_selector("[data-act=stop]") is None
    tab.get_by_role("link", name="See results").click()
    client.until("/api/state", lambda state: is_segmented(state["jobs"]), SECONDS)
    tab.wait_for_selector(".result")
    so(tab, "[...document.querySelectorAll('.stage .caption')].every(each => each.textContent)")


def test_the_phantom(tab: Any, tmp_path: Path) -> None:
    """Label two cases, train 60 steps, mend one, train again, export."""
    if not os.environ.get("MEDSAGA_PICTURES"):
        write_small_phantom(tmp_path / PHANTOM)
        keep_small(tab)
        answered(tab, "**/preview", {"case": "phantom_006", "step": 20})
    with page(None, tmp_path) as client:
        enter(tab, client)
        tab.get_by_role("button", name="Start with the phantom").click()
        tab.wait_for_selector(".card")
        tab.get_by_text("nothing is wrong").wait_for()
        picture(tab, "cases")
        tab.get_by_role("link", name="phantom_002").click()
        tab.wait_for_selector("canvas.paintable")
        planes_are_drawn(tab)
        picture(tab, "page")
        for number in (4, 5):
            tab.goto(f"http://127.0.0.1:{client.port}/#label/{client.key(f'phantom_00{number}')}")
            tab.wait_for_selector(f"h1:text('phantom_00{number}')")
            tab.keyboard.press("1")
            for _ in range(3):
                paint(tab, (0.30, 0.45), (0.35, 0.50), (0.32, 0.55))
                paint(tab, (0.36, 0.42), (0.42, 0.43))
                scroll(tab, "PageUp")
            picture(tab, "label")
            tab.get_by_role("button", name="Finish case").click()
            client.until("/api/cases", lambda cases, n=number: cases[n]["state"] == "done")
        tab.locator("#nav").get_by_role("link", name="Train").click()
        tab.get_by_role("radio", name="Quick").check()
        tab.wait_for_selector(".expected strong", timeout=1000 * SECONDS)
        tab.get_by_role("button", name="Train", exact=True).click()
        # The curve grows while it trains.
        line = "document.querySelector('[data-state=training] .loss-line')?.getAttribute('d').split('L').length > 5"
        so(tab, line, SECONDS)
        tab.wait_for_selector(".look img", timeout=1000 * SECONDS)
        picture(tab, "train")
        see_results(tab, client)
        picture(tab, "results")
        tab.locator(".result", has_text="to review").first.click()
        tab.get_by_role("button", name="Mend", exact=True).click()
        tab.wait_for_selector("canvas.paintable")
        tab.keyboard.press("3")
        paint(tab, (0.2, 0.2), (0.4, 0.2))
        tab.get_by_role("button", name="Finish case").click()
        client.until("/api/cases", lambda cases: sum(case["state"] == "done" for case in cases) == LABELLED + 3)
        tab.locator("#nav").get_by_role("link", name="Results").click()
        tab.get_by_role("button", name="Train again with 1 new case").click()
        tab.wait_for_selector("h2:text('run2: Finished')", timeout=1000 * SECONDS)
        picture(tab, "train-second")
        tab.locator("#nav").get_by_role("link", name="Export").click()
        tab.get_by_role("button", name="Export", exact=True).click()
        tab.wait_for_selector("code.path")
        assert len(list((tmp_path / PHANTOM / "exports").rglob("*.nii.gz"))) == LABELLED + 3
        assert make_phantom(tmp_path) == tmp_path / PHANTOM  # it is there, and stays as it is
    steps = [read_json(run / run_folder.RESULT)["steps"] for run in Project(tmp_path / PHANTOM).runs.found().values()]
    assert steps[0] == 60


def write_series(folder: Path) -> None:
    for number in range(3):
        write_examination(folder.parent / "scanner", f"case{number}", seed=number, mask="none")
    (folder.parent / "scanner" / "images").rename(folder)


def write_pictures(folder: Path) -> None:
    (write_toy_dataset(folder.parent / "toy", images=3) / "images").rename(folder)


@pytest.mark.parametrize(
    ("write", "kind", "written"),
    [(write_series, "DICOM SEG", "*.dcm"), (write_pictures, "PNG", "*.png")],
    ids=["DICOM series", "pictures"],
)
def test_a_folder_of(write: Callable[[Path], None], kind: str, written: str, tab: Any, tmp_path: Path) -> None:
    """Make a dataset of it, name a label, outline two cases, train, accept the third, train again, export."""
    write(tmp_path / "holiday")
    changed(tab, "**/api/runs", time=4, **SMALL)
    changed(tab, "**/api/runs/*/again", time=3)
    answered(tab, "**/preview", {"case": "", "step": 0})
    answered(tab, "**/api/memory", {"state": "done", "bytes": 2**28})
    with page(None, tmp_path) as client:
        enter(tab, client)
        tab.get_by_role("button", name="Open a folder").click()
        tab.locator(".folders").get_by_role("button", name="holiday").click()
        tab.get_by_role("button", name="Make a dataset").click()
        tab.get_by_role("link", name="Label the first case").click()
        tab.get_by_label("Name of a new label").fill("liver")
        tab.get_by_role("button", name="Add").click()
        tab.get_by_role("button", name="liver", exact=True).wait_for()
        for number in (2, 3):
            paint(tab, (0.45, 0.45), (0.50, 0.50), (0.48, 0.55))
            tab.get_by_role("button", name="Finish case").click()
            tab.get_by_text(f"case {number} of 3").wait_for()
        tab.locator("#nav").get_by_role("link", name="Train").click()
        tab.get_by_text("On the 2 finished cases").wait_for()
        tab.get_by_role("button", name="Train", exact=True).click()
        see_results(tab, client)
        assert tab.locator(".result").count() == 1
        tab.get_by_role("button", name="Accept", exact=True).click()
        tab.get_by_text("accepted", exact=True).wait_for()
        tab.get_by_role("button", name="Train again with 1 new case").click()
        tab.wait_for_selector("h2:text('run2: Finished')", timeout=1000 * SECONDS)
        tab.locator("#nav").get_by_role("link", name="Export").click()
        tab.get_by_role("radio", name=kind).check()
        tab.get_by_role("button", name="Export", exact=True).click()
        tab.get_by_text("3 files written to").wait_for()
        answered(tab, "**/delta", {"state": "done", "folder": "somewhere", "files": 1})
        tab.get_by_role("radio", name="Delta").check()
        tab.get_by_role("button", name="Export", exact=True).click()
        tab.get_by_text("1 file written to").wait_for()
    project = Project(tmp_path / "holiday-dataset")
    assert len(list((project.root / "exports").rglob(written))) == 3
    first, second = project.runs.found().values()
    assert len(predictions(project, first)) == 1
    results = [read_json(run / run_folder.RESULT) for run in (first, second)]
    assert [(each["steps"], each["cases_trained_on"]) for each in results] == [(4, 2), (3, 3)]
