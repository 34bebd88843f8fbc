"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from medsaga.errors import InputError

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(text: str) -> int:
    """Return the number of bytes in a text such as 4GB, 3.5 GiB or 800MB.

    Raises:
        InputError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B)\s*", text.upper())
    if found is None or found[2] not in UNITS or float(found[1]) == 0:
        raise InputError(
            "--budget", expected="an amount of memory, such as 4GB or 800MiB", found=text, do="Give number and unit."
        )
    return int(float(found[1]) * UNITS[found[2]])
