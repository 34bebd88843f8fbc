"""Who may talk to the page: a browser on this machine that was given the token, and no page of another origin.

A server on 127.0.0.1 can be reached by every page that the user's browser shows. So the Host is checked (a foreign name
that resolves to 127.0.0.1 is DNS rebinding), the Origin (a form or script of another page), and a random token, which
the address carries once and a cookie from then on, which no script can read.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 2**25
"""Of a request's body. What is larger is cut off, whatever its header says."""
MOST_BYTES_OF_A_STROKE = 2**28
"""Of the body of a stroke, a byte for each pixel of its box: filling a picture of 16,384 x 16,384 pixels."""
_STROKE = re.compile(r"/api/cases/[0-9a-f]+/edit")
MOST_REQUESTS = 256
"""That are worked on or wait at a time; others are answered 503."""
SAFE = frozenset({"GET", "HEAD"})
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'"
"""Of a run's report, which brings its style and pictures with it and has no script."""
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
_GO_ON = (
    '<!doctype html><html lang="en"><meta http-equiv="refresh" content="0; url=/"><title>medsaga</title>'
    '<link rel="icon" href="/static/icon.svg"></html>'
)
_DENIED = "This address lacks its token. Use the address that `medsaga app` printed when it started.\n"


class Guard:
    """Lets requests through to an application that come from its own page, and bounds their size.

    Args:
        app: what it guards.
        token: which the first request brings.
        port: that the server listens on.
    """

    def __init__(self, app: ASGIApp, *, token: str, port: int) -> None:
        self._app = app
        self._token = token.encode()
        self._cookie = f"medsaga-{port}"
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._origins = {f"http://{host}" for host in self._hosts}
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the application answer."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, _with_headers(send))
            return
        if self._open >= MOST_REQUESTS:
            busy = PlainTextResponse("too many requests at a time\n", 503, {"Retry-After": "1"})
            await busy(scope, receive, _with_headers(send))
            return
        self._open += 1
        try:
            await self._app(scope, _bounded(receive, _most(scope)), _with_headers(send))
        finally:
            self._open -= 1

    def _refusal(self, scope: Scope) -> Response | None:
        """Return the answer to a request that goes no further; None for one that does."""
        headers = Headers(scope=scope)
        if [host.lower() for host in headers.getlist("host")] not in [[host] for host in self._hosts]:
            return PlainTextResponse("this server answers to 127.0.0.1 alone\n", 421)
        origins = headers.getlist("origin")
        if not set(origins) <= self._origins or (scope["method"] not in SAFE and len(origins) != 1):
            return PlainTextResponse("requests come from the page itself alone\n", 403)
        is_entry = scope["path"] == "/" and scope["method"] == "GET"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not is_entry:
            return PlainTextResponse("requests come from the page itself alone\n", 403)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", []) if is_entry else []
        if given:
            if not self._is_token(given):
                return PlainTextResponse(_DENIED, 403)
            return self._let_in(is_from_file=headers.get("sec-fetch-site") == "cross-site")
        if not self._is_token(self._cookies(headers)):
            return PlainTextResponse(_DENIED, 403)
        most, length = _most(scope), headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > most:
            return PlainTextResponse(f"at most {most:,} bytes in a request\n", 413, {"Connection": "close"})
        return None

    def _let_in(self, *, is_from_file: bool) -> Response:
        """Put the token into a cookie and take it out of the address, where it would stay in the browser's history.

        A browser that comes from the file which `medsaga.app.entrance` writes does not bring such a cookie along where
        it is sent on by a status: a page of our own must send it.
        """
        answer = HTMLResponse(_GO_ON) if is_from_file else RedirectResponse("/", 303)
        answer.set_cookie(self._cookie, self._token.decode(), path="/", httponly=True, samesite="strict")
        answer.headers["Cache-Control"] = "no-store"
        return answer

    def _cookies(self, headers: Headers) -> list[str]:
        try:
            jars = [SimpleCookie(each) for each in headers.getlist("cookie")]
        except CookieError:
            return []
        return [jar[self._cookie].value for jar in jars if self._cookie in jar]

    def _is_token(self, given: Iterable[str]) -> bool:
        """Compare in a time that does not tell how much of it is right."""
        values = list(given)
        return len(values) == 1 and hmac.compare_digest(values[0].encode("utf-8", "surrogateescape"), self._token)


def _most(scope: Scope) -> int:
    """Return how many bytes the body of a request may have."""
    return MOST_BYTES_OF_A_STROKE if _STROKE.fullmatch(scope["path"]) else MOST_BYTES


def _bounded(receive: Receive, most: int) -> Receive:
    """Count what a client sends, for a header may lie and a stream has none."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most:
            raise HTTPException(413, f"at most {most:,} bytes in a request", {"Connection": "close"})
        return message

    return counted


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers.setdefault("Content-Security-Policy", POLICY)
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending
