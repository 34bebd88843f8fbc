"""The header of a safetensors file, by which a delta file is known; without torch."""

from __future__ import annotations

import json
from pathlib import Path

KEY = "medsaga_delta"
"""Of the metadata of a delta file."""
_LENGTH_BYTES = 8
_LONGEST = 100_000_000
"""What safetensors itself takes for a header at most."""


def metadata_of(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; none if it is another file or cannot be read.

    A safetensors file begins with the length of its header, 8 bytes, little-endian; the header is JSON.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if length > _LONGEST:
                return {}
            metadata = json.loads(file.read(length)).get("__metadata__")
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def is_delta(path: Path) -> bool:
    """Return whether a path is a file that says it is a delta, whole or not."""
    return path.is_file() and KEY in metadata_of(path)
