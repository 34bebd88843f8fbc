"""SIGKILL of the server, of a training and of the browser, at ten random moments each.

The stroke under way may be lost, nothing else is, and the training goes on.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_toy_dataset
from page_browser import CHROMIUM, enter, needs_chromium, so
from page_server import Client, page, page_process

from medsaga import run_folder
from medsaga.app.project import Project
from medsaga.run_folder import read_metrics

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL"),
]
KILLS = 10
HEIGHT, WIDTH = 48, 64
SIDE = 3
"""Of the square that a stroke fills."""
STEPS, SECONDS = 100, 600
SMALL = {"model": "tiny", "image_size": 32, "hold_back": False}


@contextlib.contextmanager
def killed_after(seconds: float, kill: Any) -> Iterator[None]:
    """Kill something a while after the block has begun."""
    timer = threading.Timer(seconds, kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def strokes() -> Iterator[tuple[int, int, int]]:
    """Row, column and label of one square after the other, over and over."""
    label = 1
    while True:
        for top in range(0, HEIGHT, SIDE):
            for left in range(0, WIDTH - SIDE, SIDE):
                yield top, left, label
        label = 3 - label


def test_a_server_loses_no_stroke_and_its_training_goes_on(tmp_path: Path) -> None:
    root = write_toy_dataset(tmp_path / "toy", images=4)
    random, squares, painted = np.random.default_rng(0), strokes(), 0
    # On a finished mask, which is written again and again meanwhile.
    known = Project(root).mask(Project(root).names["img3"]).classes.copy()
    possible = known
    for kill in range(KILLS):
        with page_process(root) as (client, server):
            key = client.key("img3")
            shown = np.frombuffer(client.get(f"/api/cases/{key}/labels?plane=image&index=0").body, np.uint8)
            shown = shown.reshape(HEIGHT, WIDTH)
            assert np.array_equal(shown, known) or np.array_equal(shown, possible)
            known = possible = shown
            if kill == 0:
                assert client.post("/api/runs", {"time": STEPS, **SMALL}).status == 200
                client.until("/api/state", lambda state: state["jobs"][0]["state"] == "running")
            with (
                killed_after(random.uniform(0, 1.5), server.kill),
                contextlib.suppress(OSError, http.client.HTTPException),
            ):
                while True:
                    top, left, label = next(squares)
                    possible = known.copy()
                    possible[top : top + SIDE, left : left + SIDE] = label
                    assert client.paint(key, "image", (0, top, left), (1, SIDE, SIDE), label).status == 200
                    known, painted = possible, painted + 1
            assert server.wait() == -signal.SIGKILL
    assert painted > KILLS
    with page(root, tmp_path) as client:
        (about,) = client.until("/api/runs", lambda found: found["runs"], SECONDS)["runs"]
        assert finished(client, about["id"])["step"] == STEPS


def finished(client: Client, run: str) -> Any:
    """Wait for the end of a run, and go on with it where it was interrupted."""
    path = f"/api/runs/{run}"
    about = client.until(path, lambda about: about["state"] in ("done", "interrupted"), SECONDS)
    if about["state"] == "interrupted":
        client.post(f"{path}/resume")
    return client.until(path, lambda about: about["state"] == "done", SECONDS)


def test_a_training_goes_on(tmp_path: Path) -> None:
    root = write_toy_dataset(tmp_path / "toy", images=4)
    random, run = np.random.default_rng(1), root / "runs" / "run1"
    with page(root, tmp_path) as client:
        for kill in range(KILLS):
            train_and_kill(client, run, random, while_it_starts=kill % 2 == 1)
        (about,) = client.get("/api/runs").json["runs"]
        assert finished(client, about["id"])["step"] == STEPS
    steps = [line["step"] for line in read_metrics(run) if line["kind"] == "step"]
    assert steps == list(range(1, STEPS + 1))


def train_and_kill(client: Client, run: Path, random: np.random.Generator, *, while_it_starts: bool) -> None:
    """Begin a training, or go on with it, and kill it while it starts or while it makes steps."""
    found, begun = client.get("/api/runs").json["runs"], time.time()
    # One that was killed before it wrote its settings was none.
    path = f"/api/runs/{found[0]['id']}/resume" if found else "/api/runs"
    assert client.post(path, {"time": STEPS, **SMALL}).status == 200
    job = client.session.jobs.all()[-1]
    awaited(lambda: job.process is not None)
    if while_it_starts:
        time.sleep(random.uniform(0, 3))
    else:
        awaited(lambda: written_since(run, begun))
        step = last_step(run) + int(random.integers(0, 12))
        awaited(lambda: last_step(run) >= step)
        time.sleep(random.uniform(0, 0.1))
    job.process.kill()
    awaited(lambda: job.state == "failed")


def awaited(is_so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def written_since(run: Path, begun: float) -> bool:
    """Whether a run has logged a step since a time."""
    path = run / run_folder.METRICS
    return path.exists() and path.stat().st_mtime > begun and last_step(run) > 0


def last_step(run: Path) -> int:
    """The last step in the log of a run that goes on."""
    return max((line["step"] for line in read_metrics(run) if line["kind"] == "step"), default=0)


@contextlib.contextmanager
def browser_process(playwright: Any, folder: Path) -> Iterator[tuple[Any, subprocess.Popen[str]]]:
    """Start Chromium for the block, which may kill it with all its processes."""
    assert CHROMIUM is not None
    options = ("--headless=new", "--no-sandbox", "--no-first-run", "--remote-debugging-port=0")
    command = [CHROMIUM, *options, f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stderr is not None
            address = next(line.split()[-1] for line in process.stderr if line.startswith("DevTools listening on"))
            yield playwright.chromium.connect_over_cdp(address), process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@needs_chromium
def test_a_browser_loses_no_stroke(tmp_path: Path) -> None:
    from playwright.sync_api import Error, sync_playwright

    root = write_toy_dataset(tmp_path / "toy", images=2)
    random = np.random.default_rng(2)
    (root / "masks" / "img1.png").unlink()
    with page(root, tmp_path) as client, sync_playwright() as playwright:
        key, said = client.key("img1"), 0
        for kill in range(KILLS):
            with browser_process(playwright, tmp_path / f"profile{kill}") as (browser, process):
                tab = browser.contexts[0].new_page()
                enter(tab, client, f"label/{key}")
                tab.wait_for_selector("canvas.paintable")
                box = tab.locator("canvas.paintable").bounding_box()
                end = lambda pid=process.pid: os.killpg(pid, signal.SIGKILL)  # noqa: E731
                with killed_after(random.uniform(0, 1.5), end), contextlib.suppress(Error):
                    for label in itertools.cycle("12"):  # so that each stroke changes something
                        tab.keyboard.press(label)
                        tab.mouse.click(box["x"] + box["width"] * (0.3 + 0.04 * kill), box["y"] + box["height"] / 2)
                        so(tab, "document.querySelector('.saved').textContent === 'All strokes saved'")
                        said += 1
            kept = sum(1 for _ in edits(root, key))
            assert said <= kept <= said + 1
            said = kept
    assert said > KILLS


def edits(root: Path, key: str) -> Iterator[str]:
    """The strokes that are on the disk."""
    for journal in (root / ".medsaga" / "masks" / key).glob("*.jsonl"):
        yield from journal.read_text().splitlines()
