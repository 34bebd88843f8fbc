"""The page's server on a free port of this machine, in a thread of the test or as the process that users start, and a
client that can also misbehave.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from medsaga.app.server import make_server
from medsaga.app.session import Session

TOKEN = "a-token-that-only-the-test-knows"


@dataclass
class Answer:
    """What the server said."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass
class Client:
    """A browser's side: it has the cookie and says where it comes from, unless a test says otherwise."""

    port: int
    session: Any
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.headers = {
            "Host": f"127.0.0.1:{self.port}",
            "Origin": f"http://127.0.0.1:{self.port}",
            "Cookie": f"medsaga-{self.port}={TOKEN}",
        }

    def ask(self, method: str, path: str, body: Any = None, **changed: str | None) -> Answer:
        """Send a request; a header that is None is left out."""
        headers = {**self.headers, **{name.replace("_", "-"): value for name, value in changed.items()}}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            if content is not None and "Content-Length" not in headers:
                headers["Content-Length"] = str(len(content))
            for name, value in headers.items():
                if value is not None:
                    connection.putheader(name, value)
            connection.endheaders()
            if content is not None:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.send(content)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **changed: str | None) -> Answer:
        """Send GET."""
        return self.ask("GET", path, **changed)

    def post(self, path: str, body: Any = None, **changed: str | None) -> Answer:
        """Send POST."""
        return self.ask("POST", path, {} if body is None else body, **changed)

    def key(self, name: str) -> str:
        """Return the id of an image."""
        return str(next(each["id"] for each in self.get("/api/cases").json if each["name"] == name))

    def paint(
        self, key: str, plane: str, corner: tuple[int, int, int], shape: tuple[int, int, int], label: int
    ) -> Answer:
        """Fill a box of an image with a label."""
        names = ("start", "top", "left", "slices", "height", "width")
        query = "&".join(f"{name}={value}" for name, value in zip(names, (*corner, *shape), strict=True))
        content = bytes([label]) * (shape[0] * shape[1] * shape[2])
        return self.ask("POST", f"/api/cases/{key}/edit?kind=brush&plane={quote(plane)}&{query}", content)

    def until(self, path: str, is_so: Any, seconds: float = 60) -> Any:
        """Ask again until the JSON is as wanted, less often the longer it takes; return it."""
        end, pause = time.monotonic() + seconds, 0.02
        while not is_so(found := self.get(path).json):
            assert time.monotonic() < end, found
            time.sleep(pause)
            pause = min(0.5, 1.3 * pause)
        return found


def until(is_so: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


@contextlib.contextmanager
def page(path: Path | None, folder: Path) -> Iterator[Client]:
    """Serve the page while the block lasts.

    Args:
        path: what is open at first.
        folder: where the user starts to look for data.
    """
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    session = Session(folder)
    if path is not None:
        session.open(path)
    server = make_server(session, token=TOKEN, port=port)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server has not started"
            time.sleep(0.01)
        yield Client(port, session)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@contextlib.contextmanager
def page_process(root: Path) -> Iterator[tuple[Client, subprocess.Popen[str]]]:
    """Start ``medsaga app`` on a folder for the block; it may be killed there."""
    command = [sys.executable, "-m", "medsaga", "app", str(root), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            port, token = int(address.split(":")[2].split("/")[0]), address.split("token=")[1]
            client = Client(port, None)
            client.headers["Cookie"] = f"medsaga-{port}={token}"
            yield client, process
        finally:
            process.terminate()
