"""Fetching a file of weights, for those who ask for it: nothing else in this package opens a connection by itself.

The exception is a Hugging Face id that the user names, which huggingface_hub downloads.
"""

from __future__ import annotations

import http.client
import shutil
import urllib.error
import urllib.parse
import urllib.request
from email.message import Message
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from medsaga import files
from medsaga.errors import InputError, RunError
from medsaga.models.weights.registry import KnownWeights, weights_named

SECONDS = 30
"""How long a silent server is waited for."""
CHUNK = 2**20
LOOPBACK = ("127.0.0.1", "::1", "localhost")
PARTIAL = 206
"""HTTP's status for the part of a file that was asked for."""


def fetch(name: str, console: Console, url: str | None = None) -> Path:
    """Bring the file of known weights into the cache, unless it is there; go on with a download that was cut off.

    Args:
        name: of the weights.
        console: where progress is shown.
        url: of a mirror, for instance one in the hospital; by default the publisher's. The SHA-256 must be the same.

    Returns:
        the path of the file.

    Raises:
        InputError: there are no such weights, the cache cannot be written to, or the address is neither https nor on
            this machine.
        RunError: the file cannot be had, the disk is full, or what came is another file.
    """
    known = weights_named(name)
    if known.url is None:
        known.check(files.sha256(known.located()))
        return known.path
    if known.path.is_file():
        if files.sha256(known.path) == known.sha256:
            return known.path
        console.print(f"{known.path} is damaged: fetching it again", markup=False)
    url = url or known.url
    _check_address(url)
    partial = known.path.with_name(f"{known.file}.part")
    files.require_writable(partial.parent, "Make room there; XDG_CACHE_HOME may name a folder on another disk.")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        _download(url, partial, known, console)
        digest = files.sha256(partial)
        if digest != known.sha256:
            partial.unlink()
            raise RunError(
                f"{url}: expected SHA-256 {known.sha256}; found {digest}. It is another file, perhaps the page of a"
                f" proxy, and was removed. {_by_hand(known)}"
            )
        partial.replace(known.path)
    except (OSError, http.client.HTTPException) as error:
        # A URLError wraps what really happened.
        reason = error.reason if type(error) is urllib.error.URLError else error
        raise RunError(f"{url}: cannot be fetched: {reason}. {_by_hand(known)}") from None
    return known.path


def _download(url: str, partial: Path, known: KnownWeights, console: Console) -> None:
    """Append what ``partial`` lacks of the file."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = _opener(url).open(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
        return  # all of it is there already
    with answer:
        if answer.status != PARTIAL:
            have = 0
        length = answer.headers["Content-Length"]
        whole = have + int(length) if length else known.megabytes * 10**6
        free = shutil.disk_usage(partial.parent).free
        if free < whole - have:
            raise RunError(
                f"{partial.parent}: expected {(whole - have) / 1e6:,.0f} MB of free disk; found {free / 1e6:,.0f} MB."
                " Make room; on Linux, XDG_CACHE_HOME may name a folder on another disk."
            )
        with partial.open("ab" if have else "wb") as file, _bar(console) as bar:
            task = bar.add_task(known.file, total=whole, completed=have)
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                bar.advance(task, len(chunk))
    if length and partial.stat().st_size < whole:
        raise RunError(
            f"{url}: the connection ended after {partial.stat().st_size / 1e6:,.1f} of {whole / 1e6:,.1f} MB."
            " The same command goes on from there."
        )


def _by_hand(known: KnownWeights) -> str:
    return (
        f"By hand: download {known.url} where there is internet ({known.megabytes:,} MB), copy it to {known.path},"
        f" and check it with: medsaga weights verify {known.name}"
    )


def _check_address(url: str) -> None:
    """Raise InputError unless the address is one of https, or of this machine itself."""
    parts = urllib.parse.urlsplit(url)
    if (parts.scheme == "https" and parts.hostname) or (parts.scheme == "http" and parts.hostname in LOOPBACK):
        return
    raise InputError("--url", expected="an address that begins with https://", found=url, do="Give another address.")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follow a server to another address only if that one would do by itself."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        """Check the new address first."""
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _opener(url: str) -> Any:
    local = urllib.parse.urlsplit(url).hostname in LOOPBACK
    # A proxy of the network cannot reach this machine.
    handlers = [urllib.request.ProxyHandler({})] if local else []
    return urllib.request.build_opener(_SafeRedirects, *handlers)


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(compact=True), console=console, disable=not console.is_terminal)
