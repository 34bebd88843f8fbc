"""Flower's own commands as processes of ours: started with a home in our folder, stopped with all that they started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medsaga.errors import RunError

HOME = "flower"
"""The folder, in ours, that Flower takes for its home."""
TOLD = "told"
"""The kind of what is said to the user and has no consequences."""
LOG = "flower.log"
"""What its commands print."""
_PATIENCE = 15
"""Seconds that a process has to end when it is asked to."""


def environment(folder: Path, **given: str) -> dict[str, str]:
    """Return the environment of Flower's commands: a home in a folder of ours, no telemetry, our Python's commands.

    Args:
        folder: of the server or the site.
        given: further variables.
    """
    commands = str(Path(sys.executable).parent)
    path = os.pathsep.join([commands, os.environ.get("PATH", "")])
    own = {
        "FLWR_HOME": str((folder / HOME).resolve()),
        "PATH": path,
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
    return {**os.environ, **own, **given}


@contextlib.contextmanager
def running(command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of Flower's as long as the block; what it prints goes into the folder's log."""
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "medsaga.federated.keeper", *command],
            env=dict(variables),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Have a process that `running` has started end."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE)
        return
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it has started itself
    else:
        process.kill()
    process.wait()


@contextlib.contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """Within it, a request to end (SIGTERM) is what Ctrl-C is."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def call(command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> None:
    """Run a command of Flower's to its end.

    Raises:
        RunError: it failed; the message has the last line that it printed.
    """
    done = subprocess.run(command, env=dict(variables), capture_output=True, text=True, check=False)
    with (folder / LOG).open("a", encoding="utf-8") as log:
        log.write(done.stdout + done.stderr)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise RunError(
            f"{' '.join(command[:3])} failed: {lines[-1] if lines else 'it said nothing'} (see {folder / LOG})"
        )


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port: int = trial.getsockname()[1]
    return port


def listens(port: int) -> bool:
    """Whether somebody on this machine listens on a port."""
    with socket.socket() as trial:
        trial.settimeout(1)
        return trial.connect_ex(("127.0.0.1", port)) == 0


class Said:
    """What processes of ours leave for the one that the user started: a line of JSON each, with a kind and a text.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, path.stat().st_size if path.exists() else 0

    def say(self, text: str, kind: str = TOLD) -> None:
        """Add something; what a terminal would not print, as a text from elsewhere may hold, becomes blanks."""
        shown = "".join(letter if letter.isprintable() else " " for letter in text)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "text": shown}) + "\n")

    def new(self) -> list[tuple[str, str]]:
        """Return the kind and the text of all that has been added since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        lines = [json.loads(line) for line in whole.splitlines()]
        return [(line["kind"], line["text"]) for line in lines]
