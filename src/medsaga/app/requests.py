"""What the routes share: the session of a request, JSON both ways, and the numbers and paths that it brings."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from medsaga.app.session import Session
from medsaga.errors import InputError


class Json(JSONResponse):
    """JSON in ASCII: names of files need not be UTF-8, and a path with such a name comes back as it was."""

    def render(self, content: Any) -> bytes:
        """Return the bytes of the body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def session_of(request: Request) -> Session:
    """Return the session of the server."""
    session: Session = request.app.state.session
    return session


async def document(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body of a request.

    Raises:
        InputError: there is none.
    """
    try:
        found = json.loads(await request.body() or b"{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError("the request", expected="a JSON object", found="something else", do="Load the page again.")
    return found


def number(request: Request, name: str) -> int:
    """Return a whole number of the address's query.

    Raises:
        InputError: it is none.
    """
    return _whole(name, request.query_params.get(name, ""))


def number_in(asked: dict[str, Any], name: str, otherwise: int) -> int:
    """Return a whole number of a document, or another where it has none of this name.

    Raises:
        InputError: it is none.
    """
    return _whole(name, asked.get(name, otherwise))


def path_of(text: str) -> Path:
    """Return the path that a user has typed or chosen.

    Raises:
        InputError: there can be none of this name, or nobody may look whether there is.
    """
    found = "one with a character that no name has"
    try:
        if b"\0" not in os.fsencode(text):
            path = Path(text).expanduser()
            path.exists()  # where nobody can say so, an error tells why
            return path
    except (OSError, RuntimeError) as error:  # the latter of a home of nobody
        found = (getattr(error, "strerror", None) or str(error)).lower()
    except ValueError:  # half of a character
        pass
    raise InputError("the folder", expected="a path", found=found, do="Choose a folder.")


def _whole(name: str, given: Any) -> int:
    try:
        value = -1 if isinstance(given, bool | float) else int(given)
    except (TypeError, ValueError):
        value = -1
    if not 0 <= value < 2**31:
        raise InputError(name, expected="a number from 0 on", found=repr(given)[:20], do="Load the page again.")
    return value
