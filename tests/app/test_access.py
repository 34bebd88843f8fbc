"""What axe-core says of the page and of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from page_browser import enter, needs_chromium, picture, planes_are_drawn, violations
from page_server import Client, page

pytestmark = needs_chromium


def look_over(tab: Any, client: Client, views: dict[str, str]) -> None:
    """Find nothing wrong with views, each of which is there when something of it is."""
    for view, there in views.items():
        enter(tab, client, view)
        tab.wait_for_selector(there)
        planes_are_drawn(tab)
        assert tab.locator("h1").count() == 1
        assert violations(tab) == [], view


def test_what_is_wrong_is_found(tab: Any) -> None:
    tab.set_content("<html lang=en><title>t</title><main><h1 style='color: #999'>Pale</h1><button></button></main>")
    assert {each.partition(":")[0] for each in violations(tab)} == {"button-name", "color-contrast"}


def test_nothing_is_wrong_with_the_way_to_a_training(tab: Any, tmp_path: Path, toy: Path) -> None:
    with page(None, tmp_path) as client:
        enter(tab, client)
        tab.wait_for_selector(".choice")
        assert violations(tab) == []
        picture(tab, "start")
        tab.get_by_role("button", name="Open a folder").click()
        tab.wait_for_selector(".folders li")
        assert violations(tab) == []
    with page(toy, tmp_path) as client:
        look_over(tab, client, {"cases": ".card", "label": "canvas.paintable", "train": ".run-place .empty"})
        tab.keyboard.press("?")
        tab.wait_for_selector("dialog[open]")
        assert violations(tab) == []


@pytest.mark.exhaustive
def test_nothing_is_wrong_with_the_results_and_the_report(tab: Any, opened_run: Path, tmp_path: Path) -> None:
    with page(opened_run, tmp_path) as client:
        look_over(tab, client, {"train": ".curves", "results": ".result", "export": ".segments"})
    # As a file: the page serves it in a sandbox, in which axe cannot run either.
    tab.goto((opened_run / "runs" / "run1" / "report.html").as_uri())
    assert violations(tab) == []
