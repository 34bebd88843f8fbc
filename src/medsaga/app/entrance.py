"""Opening the page in the user's browser without showing its token to the other users of the computer.

An address that a browser is started with can be read by all of them in the list of processes. So the browser is given
a file that only the user can read, which sends it on to the address; Jupyter does the same.
"""

from __future__ import annotations

import contextlib
import html
import tempfile
import webbrowser
from collections.abc import Iterator
from pathlib import Path

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={address}">
<title>medsaga</title>
<p>If nothing happens, <a href="{address}">open the page</a>.</p>
</html>
"""


@contextlib.contextmanager
def opened_in_browser(address: str) -> Iterator[None]:
    """Open an address in the user's browser; the file that leads there goes at the end of the block."""
    # A folder of this kind is its owner's alone.
    with tempfile.TemporaryDirectory(prefix="medsaga-", ignore_cleanup_errors=True) as folder:
        webbrowser.open(entrance(Path(folder), address).as_uri())
        yield


def entrance(folder: Path, address: str) -> Path:
    """Write a page that leads to an address, which only its owner can read; return its path."""
    path = folder / "medsaga.html"
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(_PAGE.format(address=html.escape(address)), encoding="utf-8")
    return path
