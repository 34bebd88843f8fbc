"""What the verbs print, and on which streams: results on stdout, everything else on stderr."""

from __future__ import annotations

import codecs
import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

_TOLERANT = "medsaga.tolerant"
_ASCII = {"\N{BULLET}": "*", "\N{EN DASH}": "-", "\N{HORIZONTAL ELLIPSIS}": "...", "\N{PLUS-MINUS SIGN}": "+-"}
"""What is printed instead of our own characters where the encoding lacks them."""


def console(*, quiet: bool = False) -> Console:
    """Return the console for everything that is not the result: stderr."""
    return Console(stderr=True, quiet=quiet)


def say(text: str) -> None:
    """Print a line for people on stderr, as it is: rich would take [brackets] in a file's name for markup."""
    print(text, file=sys.stderr)


def print_result(result: dict[str, Any], *, as_json: bool) -> None:
    """Print a result on stdout, as a table for people or as JSON for machines."""
    if as_json:
        print(json.dumps(result, indent=2))
        return
    from medsaga.evaluation.summary import table

    rendered: Table = table(result)
    Console().print(rendered)


def print_document(document: dict[str, Any], *, as_json: bool) -> None:
    """Print names and values on stdout, as lines for people or as JSON for machines."""
    if as_json:
        print(json.dumps(document, indent=2))
        return
    _print_lines({name: value for name, value in document.items() if name != "data"})
    for source in document.get("data", ()):
        print(f"\ntrained on {source['name']}")
        _print_lines({name: value for name, value in source.items() if name != "name"}, indent="  ")


def _print_lines(values: dict[str, Any], indent: str = "") -> None:
    for name, value in values.items():
        if value is not None:
            text = ", ".join(value) if isinstance(value, list) else value
            # Not through rich: it would break a SHA-256 or a path in two.
            print(f"{indent}{name.replace('_', ' ')}: {text}")


def print_whatever_comes() -> None:
    r"""Let stdout and stderr print every text: consoles of cp1252 or ASCII lack most characters.

    Of a file's name that is no UTF-8 the bytes are printed as they are, so that a script that reads them finds the
    file. What the encoding lacks is written as ``\u2192``.
    """
    for stream in (sys.stdout, sys.stderr):
        # A test or a program around us may have put something else there.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_TOLERANT)


def _printable(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return _ASCII.get(character) or character.encode("ascii", "backslashreplace").decode("ascii"), error.start + 1


codecs.register_error(_TOLERANT, _printable)
