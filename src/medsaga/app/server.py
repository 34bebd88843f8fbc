"""The server: one address on this machine, one token, one page."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from importlib import metadata, resources
from pathlib import Path

import uvicorn
from jinja2 import Environment, PackageLoader
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from medsaga.app import routes_images, routes_project, routes_runs
from medsaga.app.entrance import opened_in_browser
from medsaga.app.requests import Json
from medsaga.app.security import Guard
from medsaga.app.session import Session
from medsaga.app.versions import ChangedElsewhere
from medsaga.errors import InputError, MedsagaError

HOST = "127.0.0.1"
_TOKEN_BYTES = 32
_GRACE = 3
"""Seconds in which requests may end when the server stops."""


def make_app(session: Session, *, token: str, port: int) -> Guard:
    """Return the application, which lets nobody in but the page itself.

    Args:
        session: what it shows; it is closed when the server stops.
        token: of this server.
        port: that it listens on.
    """
    page = Environment(loader=PackageLoader("medsaga.app"), autoescape=True).get_template("index.html")
    html = page.render(version=metadata.version("medsaga"))

    def index(request: Request) -> Response:
        return HTMLResponse(html)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        session.close()

    app = Starlette(
        routes=[
            Route("/", index),
            *routes_project.ROUTES,
            *routes_images.ROUTES,
            *routes_runs.ROUTES,
            Mount("/static", StaticFiles(directory=str(resources.files("medsaga.app") / "static"))),
        ],
        lifespan=lifespan,
        exception_handlers={
            InputError: _of_the_user,
            MedsagaError: _of_the_user,
            ChangedElsewhere: _of_another,
            KeyError: _unknown,
            IndexError: _unknown,
            HTTPException: _refused,
            OSError: _of_the_disk,
        },
    )
    app.state.session = session
    return Guard(app, token=token, port=port)


def make_server(session: Session, *, token: str, port: int) -> uvicorn.Server:
    """Return what serves the application; see `make_app`."""
    config = uvicorn.Config(
        make_app(session, token=token, port=port),
        http="h11",
        ws="none",
        log_config=None,  # an address is never logged: the first one carries the token
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
    )
    return uvicorn.Server(config)


def serve(
    path: Path | None, *, port: int, open_browser: bool, say: Callable[[str], None], folder: Path | None = None
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        path: a dataset or a run to open; None for the start page.
        port: to listen on; 0 for any that is free.
        open_browser: whether to open the address in the user's browser.
        say: is told the address, with its token, once the server listens.
        folder: where the user starts to look for data; the current folder by default.

    Raises:
        InputError: the port is taken, or the path cannot be opened.
    """
    listening = _listening(port)
    port = listening.getsockname()[1]
    session = Session(folder or Path.cwd())
    try:
        if path is not None:
            session.open(path)
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        address = f"http://{HOST}:{port}/?token={token}"
        say(f"medsaga app: {address}")
        opened = opened_in_browser(address) if open_browser else contextlib.nullcontext()
        with contextlib.suppress(KeyboardInterrupt), opened:  # the usual end
            make_server(session, token=token, port=port).run(sockets=[listening])
    finally:
        listening.close()
        session.close()


def _listening(port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if os.name == "posix":  # on Windows it would let others take the same port
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOST, port))
        found.listen(2048)
    except OSError as error:
        found.close()
        do = "Choose another, or leave --port out."
        raise InputError("--port", expected="a free port", found=error.strerror or str(port), do=do) from None
    return found


def _of_the_user(request: Request, error: Exception) -> Response:
    if isinstance(error, InputError):
        parts = {"where": Path(error.where).name, "expected": error.expected, "found": error.found, "do": error.do}
        return Json({"message": str(error), **parts}, 422)
    return Json({"message": str(error)}, 500)


def _of_another(request: Request, error: Exception) -> Response:
    return Json({"message": str(error)}, 409)


def _of_the_disk(request: Request, error: Exception) -> Response:
    said = getattr(error, "strerror", None) or type(error).__name__
    return Json({"message": f"A file cannot be read or written: {said}. Nothing was lost."}, 500)


def _unknown(request: Request, error: Exception) -> Response:
    return Json({"message": "There is nothing at this address. Load the page again."}, 404)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Json({"message": error.detail}, error.status_code, dict(error.headers or {}))
