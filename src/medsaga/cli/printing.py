"""What the verbs share: the console for everything that is no result, and how results are printed."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table


def console() -> Console:
    """Return the console for everything that is not the result: stderr."""
    return Console(stderr=True)


def print_result(result: dict[str, Any], *, as_json: bool) -> None:
    """Print a result on stdout, as a table for people or as JSON for machines."""
    if as_json:
        print(json.dumps(result, indent=2))
        return
    from medsaga.evaluation.summary import table

    rendered: Table = table(result)
    Console().print(rendered)
