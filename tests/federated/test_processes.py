"""Flower's commands as processes of ours: they end with what has started them, and a request to end is a Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from federation import QUIET

from medsaga import files
from medsaga.errors import RunError
from medsaga.federated import processes, serving
from medsaga.federated.apps import LOCK, OVER, STARTED
from medsaga.federated.processes import Said

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes in /proc")
FOR_EVER = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]


def test_a_command_ends_with_the_block_and_after_the_death_of_who_waits_for_it(tmp_path: Path) -> None:
    def started(number: int) -> int:
        log = tmp_path / processes.LOG
        deadline = time.monotonic() + 60
        while len(log.read_text().split()) <= number:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return int(log.read_text().split()[number])

    def is_gone(child: int) -> bool:
        return not Path(f"/proc/{child}/cmdline").exists() or not Path(f"/proc/{child}/cmdline").read_bytes()

    with processes.running(FOR_EVER, tmp_path, os.environ) as keeper:
        child = started(0)
        assert keeper.poll() is None
    assert keeper.poll() is not None
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    # Whoever waits is killed: the keeper notices.
    code = f"import os, pathlib; from medsaga.federated.processes import running\nwith running({FOR_EVER!r}, "
    code += f"pathlib.Path({str(tmp_path)!r}), os.environ) as process: process.wait()"
    waiting = subprocess.Popen([sys.executable, "-c", code])
    child = started(1)
    waiting.kill()
    waiting.wait()
    deadline = time.monotonic() + 60
    while not is_gone(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_request_to_end_is_what_ctrl_c_is() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), processes.ended_as_by_ctrl_c():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_each_key_is_told_once_however_often_the_server_starts(tmp_path: Path) -> None:
    told: list[Path] = []
    public = [tmp_path / f"{name}.pub" for name in ("north", "south")]
    for path in public:
        path.write_text(f"key of {path.name}")
    serving.let_in(public[:1], tmp_path / "told.json", told.append)
    serving.let_in(public, tmp_path / "told.json", told.append)
    assert told == public


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process that a test takes for Flower's server; the server looks at it without pauses."""
    monkeypatch.setattr(serving, "_PAUSE", 0.01)
    process = subprocess.Popen(FOR_EVER, stdout=subprocess.DEVNULL)
    yield process
    process.kill()
    process.wait()


def test_the_server_does_not_wait_for_what_has_died(tmp_path: Path, link: subprocess.Popen[bytes]) -> None:
    said, lock = Said(tmp_path / "said.txt"), tmp_path / LOCK
    code = "import pathlib, sys, time; from medsaga.files import locked; from medsaga.federated.processes import Said\n"
    code += f"held = locked(pathlib.Path({str(lock)!r})); Said(pathlib.Path({str(tmp_path / 'said.txt')!r})).say('', "
    code += f"{STARTED!r}); time.sleep(600)"
    app = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not (tmp_path / "said.txt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    threading.Timer(1, app.kill).start()
    with pytest.raises(RunError, match=r"the server's app has ended .* goes on after the last complete round"):
        serving._follow(said, link, lock, QUIET)
    app.wait()
    threading.Timer(0.5, link.kill).start()
    with pytest.raises(RunError, match="Flower's server has ended"):
        serving._follow(said, link, lock, QUIET)
    # Its last words count.
    said.say("", OVER)
    serving._follow(said, link, lock, QUIET)


def test_an_app_that_never_starts_is_not_waited_for(
    tmp_path: Path, link: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_APP_STARTING", 0.1)
    with pytest.raises(RunError, match="the server's app has ended"):
        serving._follow(Said(tmp_path / "said.txt"), link, tmp_path / LOCK, QUIET)


def test_without_locks_the_server_waits_for_what_the_app_says(
    tmp_path: Path, link: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody_has_it(path: Path) -> Any:
        return path.open("ab")

    monkeypatch.setattr(files, "locked", nobody_has_it)
    said = Said(tmp_path / "said.txt")
    said.say("", STARTED)
    threading.Timer(0.5, said.say, ("", OVER)).start()
    serving._follow(said, link, tmp_path / LOCK, QUIET)
