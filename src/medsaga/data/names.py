"""Names as they are compared, hashed, printed and written: one form for what people see as one name.

An umlaut is one character on Windows and Linux, and often a letter and a combining mark in names from a Mac. Both look
the same. Everything that is a name, of a file, a case, a label or a channel, takes the form of `normal` where it is
read; files are opened by their own paths.
"""

from __future__ import annotations

import re
import unicodedata

_OF_SYSTEMS = ("__macosx", "@eadir", "$recycle.bin", "system volume information")
"""Folders that a Mac's archives, network drives and Windows put among others."""


def is_hidden(name: str) -> bool:
    """Whether a file or a folder was put there by a system and not by the user: ``._scan.png``, ``__MACOSX``."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def normal(name: str) -> str:
    """Return a name with composed characters (Unicode's form NFC), without white space at its ends."""
    return unicodedata.normalize("NFC", name).strip()


def is_named_ct(channel: str) -> bool:
    """Whether the name of a channel says that it is CT."""
    return re.search(r"(?<![a-z])ct(?![a-z])", channel.lower()) is not None
