"""The commands of `medsaga` that the page runs: each a process of its own, one at a time, the others wait.

A process holds a lock in the dataset's folder for as long as it lives. So a server that starts again after it was
killed knows whether a training of its predecessor still goes on, and does not start a second one beside it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from medsaga import files
from medsaga.errors import MedsagaError

JobState = Literal["waiting", "running", "done", "failed", "stopped"]
_ENDED = ("done", "failed", "stopped")
_LAST_LINES = 2000
_NICENESS = 5
"""How much a job stands back, so that slices come at once while it computes."""
_PATIENCE = 30.0
"""Seconds in which a training that was asked to stop may end its step and save, before the page goes."""
_KEPT = 50


@dataclass(eq=False)
class Job:
    """One command.

    Attributes:
        number: of this session, from 1.
        kind: such as ``train`` or ``predict``.
        arguments: of ``medsaga``.
        run: the id of the run that it is about.
        state: where it stands.
        message: of an error, in the words of the command line, also of what comes ``then``; else empty.
        stdout: what it printed, when it is over.
        then: called after it is done.
    """

    number: int
    kind: str
    arguments: list[str]
    run: str = ""
    state: JobState = "waiting"
    message: str = ""
    stdout: str = ""
    then: Callable[[], None] | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    asked_to_stop: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return what the page shows of it."""
        return {
            "number": self.number,
            "kind": self.kind,
            "run": self.run,
            "state": self.state,
            "message": self.message,
            "stopping": self.asked_to_stop and self.state == "running",
        }


class Jobs:
    """A queue of commands, and the thread that runs them.

    Args:
        folder: where their output and the lock lie; made if need be.
        command: what runs `medsaga`; tests put something quicker there.
    """

    def __init__(self, folder: Path, command: tuple[str, ...] = (sys.executable, "-m", "medsaga")) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._command = folder, command
        self._lock = folder / "lock"
        self._numbers = itertools.count(1)
        self._all: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def add(self, kind: str, arguments: list[str], *, run: str = "", then: Callable[[], None] | None = None) -> Job:
        """Put a command at the end of the queue."""
        with self._changed:
            job = Job(next(self._numbers), kind, arguments, run, then=then)
            self._all = [each for each in self._all if each.state not in _ENDED][-_KEPT:] + [
                each for each in self._all if each.state in _ENDED
            ][-_KEPT:]
            self._all.append(job)
            self._changed.notify_all()
            return job

    def all(self) -> list[Job]:
        """Return the jobs of this session, the newest last."""
        with self._changed:
            return sorted(self._all, key=lambda job: job.number)

    def stop(self, number: int) -> None:
        """Stop a job: one that runs ends its step and saves, one that waits goes. KeyError where there is none."""
        with self._changed:
            job = next((each for each in self._all if each.number == number), None)
            if job is None:
                raise KeyError(number)
            job.asked_to_stop = True
            if job.state == "waiting":
                job.state = "stopped"
            elif job.state == "running" and job.process is not None:
                _interrupt(job.process.pid)
            self._changed.notify_all()

    def elsewhere(self) -> dict[str, Any] | None:
        """Return what a job of an earlier server, which still runs, wrote of itself; None where there is none."""
        with self._changed:
            if any(job.state == "running" for job in self._all):
                return None
            with contextlib.suppress(OSError, ValueError):
                lock = files.locked(self._lock)
                if lock is not None:
                    lock.close()
                    return None
                found: dict[str, Any] = json.loads((self._folder / "running.json").read_text(encoding="utf-8"))
                return found
            return None

    def stop_elsewhere(self) -> None:
        """Ask a job of an earlier server to stop."""
        found = self.elsewhere()
        if found is not None:
            _interrupt(int(found["pid"]))

    def close(self) -> None:
        """Stop what runs, and wait until it has saved."""
        with self._changed:
            self._closed = True
            for job in self._all:
                job.asked_to_stop = True
                if job.state == "waiting":
                    job.state = "stopped"
                elif job.process is not None and job.state == "running":
                    _interrupt(job.process.pid)
            self._changed.notify_all()
        self._thread.join(_PATIENCE)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (job := self._next()) and not self._closed:
                    self._changed.wait(1.0)
                if self._closed:
                    return
            assert job is not None
            try:
                self._folder.mkdir(parents=True, exist_ok=True)  # the user may have cleared it away
                lock = files.locked(self._lock)
                if lock is None:  # a job of an earlier server
                    time.sleep(1.0)
                    continue
                with lock:
                    self._run(job, lock)
            except OSError as error:  # such as of a full disk: the jobs that wait go on
                with self._changed:
                    if job.state not in _ENDED:
                        job.state, job.message = "failed", f"The command could not be run: {error.strerror or error}."

    def _next(self) -> Job | None:
        return next((job for job in self._all if job.state == "waiting"), None)

    def _run(self, job: Job, lock: IO[bytes]) -> None:
        output, errors = (self._folder / f"last.{name}" for name in ("out", "err"))
        with output.open("wb") as stdout, errors.open("wb") as stderr:
            with self._changed:
                if job.state != "waiting":
                    return
                job.process = subprocess.Popen(
                    [*self._command, *job.arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    start_new_session=True,  # Ctrl-C in the terminal is for the server, which asks the job itself
                    pass_fds=(lock.fileno(),) if os.name == "posix" else (),
                    env=_environment(),
                )
                job.state = "running"
            with contextlib.suppress(OSError, AttributeError):
                os.setpriority(os.PRIO_PROCESS, job.process.pid, _NICENESS)
            about = {"pid": job.process.pid, "kind": job.kind, "run": job.run}
            with contextlib.suppress(OSError):  # only a server that starts after this one would miss it
                (self._folder / "running.json").write_text(json.dumps(about), encoding="utf-8")
            code = job.process.wait()
        with self._changed:
            job.stdout = output.read_text(encoding="utf-8", errors="replace")
            if code != 0:
                job.message = _said(errors.read_text(encoding="utf-8", errors="replace"))
            job.state = "done" if code == 0 else "stopped" if job.asked_to_stop or code == 130 else "failed"
            with contextlib.suppress(OSError):
                (self._folder / "running.json").unlink()
        if job.state == "done" and job.then is not None and not self._closed:
            try:
                job.then()
            except (MedsagaError, OSError) as error:  # such as no cases left to segment: the jobs that wait go on
                job.message = str(error)


def _said(text: str) -> str:
    """Return the message of an error, which is the last that a command says."""
    before, mark, message = text.rpartition("medsaga: ")
    return (message if mark else before + message).strip()[-_LAST_LINES:]


def _interrupt(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGINT if os.name == "posix" else signal.SIGTERM)


def _environment() -> dict[str, str]:
    """Leave one core to the page, unless the user has said how many threads there are to be."""
    threads = max(1, (os.cpu_count() or 2) - 1)
    return {"OMP_NUM_THREADS": str(threads), **os.environ}
