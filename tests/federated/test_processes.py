"""Flower's commands as processes of ours: they end with what has started them, and a request to end is a Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medsaga.federated import processes, serving

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
