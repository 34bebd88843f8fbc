"""Phantoms that several tests share."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from medsaga.settings.options import Settings


def pytest_collection_finish() -> None:
    """Keep the garbage collector from what the imports have made: it would look through them again and again."""
    gc.collect()
    gc.freeze()


def write_toy_dataset(root: Path, *, images: int = 6, seed: int = 0) -> Path:
    """Write grey images with a bright disc (1) and a mid-grey bar (2) on noise, in the plain layout."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rows, columns = np.mgrid[:48, :64]
    for number in range(images):
        centre, radius = rng.uniform([16, 16], [32, 30]), rng.uniform(8, 12)
        labels = np.zeros((48, 64), np.uint8)
        labels[:, 48 : 48 + int(rng.integers(6, 12))] = 2
        labels[(rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2] = 1
        grey = np.array([40, 220, 130])[labels] + rng.normal(0, 12, labels.shape)
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(root / "images" / f"img{number}.png")
        Image.fromarray(labels).save(root / "masks" / f"img{number}.png")
    (root / "dataset.json").write_text('{"labels": {"background": 0, "disc": 1, "bar": 2}}')
    return root


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A dataset of six images of 64 x 48 pixels."""
    return write_toy_dataset(tmp_path / "toy")


@pytest.fixture(scope="session")
def trained_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data``, a toy dataset, and ``run``, trained on it; nobody writes there."""
    from medsaga.runs.train import train

    root = tmp_path_factory.mktemp("trained_toy")
    settings = Settings(model="tiny", shots=2, image_size=64, steps=2, batch_size=2, rank=4, device="cpu")
    train(write_toy_dataset(root / "data"), root / "run", settings)
    return root


@pytest.fixture
def quick() -> Settings:
    """Settings of a run that takes a second or two."""
    return Settings(
        model="tiny",
        shots=3,
        image_size=64,
        steps=4,
        batch_size=2,
        evaluate_every=2,
        refresh_every=3,
        rank=8,
        device="cpu",
    )


def fit_only(
    data: Path, out: Path, settings: Settings, *, resume: bool = False, console: Console | None = None
) -> None:
    """Train as ``medsaga train`` does, without the test and the report, which take longer than a few steps."""
    from medsaga.runs.prepare import new_run, resumed_run
    from medsaga.runs.train import fit

    console = console or Console(quiet=True)
    run = (resumed_run if resume else new_run)(data, out, settings, console)
    with contextlib.closing(run.train), contextlib.closing(run.monitor):
        fit(run, console)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Settings], Path]:
    """Makes a whole run on the toy dataset, once for the same settings; nobody writes to its folder."""
    from medsaga.runs.train import train

    root = tmp_path_factory.mktemp("uninterrupted")
    data, runs = write_toy_dataset(root / "toy"), dict[Settings, Path]()

    def whole(settings: Settings) -> Path:
        if settings not in runs:
            runs[settings] = root / f"run{len(runs)}"
            train(data, runs[settings], settings, console=Console(quiet=True))
        return runs[settings]

    return whole


@contextlib.contextmanager
def no_more_than(size: int) -> Iterator[None]:
    """Let no file become larger, as if the disk were full: the system knows this limit for each process."""
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def interrupt_in(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Press Ctrl-C in a step of the training; the first is 1."""
    # Only those who train have to wait for torch.
    from medsaga.training import out_of_memory, step

    original, updates = step.clip, 0

    def interrupted(*args: Any, **kwargs: Any) -> bool:
        nonlocal updates
        updates += 1
        if updates == number:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **kwargs)

    monkeypatch.setattr(out_of_memory, "clip", interrupted)


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def labels_in(path: Path) -> np.ndarray:
    """A label map in PNG."""
    with Image.open(path) as picture:
        return np.asarray(picture)
