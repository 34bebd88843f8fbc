"""The page in a real browser, as a user goes through it: entering, painting, and waiting for what is seen."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_server import TOKEN, Client

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
_SAVED = "document.querySelector('.saved').textContent === 'All strokes saved'"
_ROUND_TRIPS = 12
"""More than any handler of the page makes one after the other."""


def enter(tab: Any, client: Client, view: str = "") -> None:
    """Open the page with its token, then a view."""
    tab.goto(f"http://127.0.0.1:{client.port}/?token={TOKEN}")
    assert "token" not in tab.url
    if view:
        tab.goto(f"http://127.0.0.1:{client.port}/#{view}")


def picture(tab: Any, name: str) -> None:
    """Keep a picture of the tab, where somebody wants it."""
    folder = os.environ.get("MEDSAGA_PICTURES")
    if folder:
        tab.screenshot(path=Path(folder) / f"{name}.png")


def so(tab: Any, expression: str, seconds: float = 60) -> None:
    """Wait until an expression holds on the page, whose policy lets no text be evaluated in it."""
    end, pause = time.monotonic() + seconds, 20.0
    while not tab.evaluate(f"() => Boolean({expression})"):
        assert time.monotonic() < end, expression
        tab.wait_for_timeout(pause)
        pause = min(500, 1.3 * pause)


def paint(tab: Any, *points: tuple[float, float]) -> None:
    """Drag the mouse over the image, and wait until that is saved; points as shares of the canvas."""
    box = tab.locator("canvas.paintable").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    tab.mouse.move(*places[0])
    tab.mouse.down()
    for place in places[1:]:
        tab.mouse.move(*place, steps=5)
    tab.mouse.up()
    saved(tab)


def saved(tab: Any) -> None:
    """Wait until the page says that all strokes are."""
    so(tab, _SAVED)


def scroll(tab: Any, key: str) -> None:
    """Press a key that goes to another slice, and wait until that is seen."""
    caption = "document.querySelector('.main-pane .caption').textContent"
    before = tab.evaluate(caption)
    tab.keyboard.press(key)
    so(tab, f"{caption} !== {before!r}")


def planes_are_drawn(tab: Any) -> None:
    """Wait until the panes beside the image show their slices."""
    so(tab, "[...document.querySelectorAll('.side-panes canvas')].every(c => /slice/.test(c.ariaLabel))")


def handled(tab: Any) -> None:
    """Wait until the page has done all that follows from what has been answered so far."""
    for _ in range(_ROUND_TRIPS):
        tab.evaluate("() => fetch('/api/state').then((answer) => answer.text())")


class Held:
    """Requests of the page that wait until the test lets them go.

    Args:
        tab: whose requests.
        pattern: of their addresses, as Playwright takes it.
        method: theirs; others go on.
    """

    def __init__(self, tab: Any, pattern: str, method: str = "GET") -> None:
        self._tab, self._method, self._holds = tab, method, True
        self._waiting: list[Any] = []
        self._pattern = pattern
        tab.route(pattern, self._hold)

    def _hold(self, route: Any) -> None:
        if self._holds and route.request.method == self._method:
            self._waiting.append(route)
        else:
            route.continue_()

    def wait(self, seconds: float = 30) -> None:
        """Wait until there is one."""
        end = time.monotonic() + seconds
        while not self._waiting:
            assert time.monotonic() < end, f"nothing has asked for {self._pattern}"
            self._tab.wait_for_timeout(20)

    def pass_on(self) -> None:
        """Hold those that there are, and no others."""
        self._holds = False

    def let_go(self, document: Any = None) -> None:
        """Answer them, by the server or with a document, and hold no more."""
        from playwright.sync_api import Error

        self._holds = False
        for route in self._waiting:
            with contextlib.suppress(Error):  # the page does not wait for it any more
                if document is None:
                    route.continue_()
                else:
                    route.fulfill(json=document)
        self._waiting = []


def changed(tab: Any, pattern: str, **members: Any) -> None:
    """Let the page send what it sends to an address with some members of the JSON changed."""

    def send(route: Any) -> None:
        if route.request.method == "POST":
            route.continue_(post_data={**(route.request.post_data_json or {}), **members})
        else:
            route.continue_()

    tab.route(pattern, send)


def answered(tab: Any, pattern: str, document: Any) -> None:
    """Answer what the page asks of an address in the server's place."""
    tab.route(pattern, lambda route: route.fulfill(json=document))


def violations(tab: Any) -> list[str]:
    """Return what axe-core finds wrong with what is seen: contrast, names, roles, sizes, landmarks, headings."""
    from axe_playwright_python.sync_playwright import Axe

    options = {"resultTypes": ["violations"], "rules": {"target-size": {"enabled": True}}}
    found = Axe().run(tab, options=options).response["violations"]
    return [f"{rule['id']}: {node['html'][:160]}\n{node['failureSummary']}" for rule in found for node in rule["nodes"]]


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser for the block, of the one that the system has."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()
