"""The browser that the page is tested in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_browser import chromium

from medsaga import run_folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, once for a module."""
    pytest.importorskip("playwright.sync_api")
    with chromium() as found:
        yield found


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A tab in which an error of a script fails the test."""
    tab, errors = browser.new_page(viewport={"width": 1360, "height": 860}), []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    # A server that has ended is no error of the page.
    is_ours = lambda message: message.type == "error" and "ERR_CONNECTION" not in message.text  # noqa: E731
    tab.on("console", lambda message: errors.append(message.text) if is_ours(message) else None)
    tab.set_default_timeout(60_000)
    yield tab
    tab.close()
    assert errors == []


@pytest.fixture
def opened_run(trained_toy: Path, tmp_path: Path) -> Path:
    """A toy dataset with a run in it that has segmented all, also an image that is without a mask and new to it."""
    from rich.console import Console

    from medsaga.prediction.files import predict_files

    data = tmp_path / "data"
    shutil.copytree(trained_toy / "data", data)
    run = data / "runs" / "run1"
    shutil.copytree(trained_toy / "run", run)
    split = json.loads((run / run_folder.SPLIT).read_text())
    (data / "masks" / f"{split['test'].pop(0)}.png").unlink()
    (run / run_folder.SPLIT).write_text(json.dumps(split))
    predict_files(run, data / "images", run / "predictions", console=Console(quiet=True), device="cpu")
    return data
