"""What the routes share: the session of a request, JSON both ways, and numbers of its query."""

from __future__ import annotations

import json
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
    text = request.query_params.get(name, "")
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**31:
        raise InputError(name, expected="a number from 0 on", found=repr(text[:20]), do="Load the page again.")
    return value
