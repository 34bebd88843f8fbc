"""The verbs of `medsaga weights`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from medsaga.cli.options import arg
from medsaga.cli.printing import print_document

MIB = 2**20
COLUMNS = {
    "name": "name",
    "millions": "param.\nM",
    "megabytes": "file\nMB",
    "512px": "512 px\nMiB",
    "1024px": "1024 px\nMiB",
    "time": "time of\na step",
    "licence": "licence",
    "status": "status",
}
"""Of the table of all weights: what is in them, and the header."""
NUMBERS = ("millions", "megabytes", "512px", "1024px", "time")
LEGEND = """
param.: parameters. 512 px, 1024 px: what a training step takes by plan, with
one image of that side, 9 classes, rank 64, bf16 weights, 8-bit state, blocks
computed again. time of a step: on a CPU, relative to ViT-B's.
"""
WIDTH = 100
"""Characters that the table may take where no terminal says how many there are; with fewer the licences go below."""
NARROWEST = 76
"""Characters that the table takes at least: a narrower terminal breaks its lines, and nothing is left out."""


@dataclass(kw_only=True)
class List:
    """List the weights that medsaga knows by name; with NAME, say all there is to say about these."""

    name: Annotated[Positional[str | None], arg("[NAME]", shown="all")] = None
    """Name of the weights."""
    json: bool = False
    """Print one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it."""
        from medsaga.models.weights.registry import describe, known_weights, weights_named

        if self.name is not None:
            document = describe(weights_named(self.name))
            print_document(document, as_json=self.json)
            return
        documents = [describe(known) for known in known_weights().values()]
        if self.json:
            print(json.dumps(documents, indent=2))
            return
        width = max(NARROWEST, Console().width) if sys.stdout.isatty() else WIDTH
        narrow = width < WIDTH
        Console(width=width).print(table_of(documents, narrow=narrow), highlight=False)
        print(LEGEND + (_licences(documents) if narrow else ""), end="")


@dataclass(kw_only=True)
class Fetch:
    """Download known weights into the cache, or go on with a download; print the path. Nothing else downloads them."""

    name: Annotated[Positional[str], arg("NAME")]
    """Name of the weights, as `medsaga weights list` has it."""
    url: Annotated[str | None, arg("URL", shown="the publisher's")] = None
    """Address of a mirror, instead of the publisher's; the file must be the same."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it."""
        from medsaga.models.weights.fetching import fetch

        print(fetch(self.name, Console(stderr=True), self.url))


@dataclass(kw_only=True)
class Verify:
    """Check that weights can be used: the file is whole, every tensor is there and finite. Exit code 0 only then."""

    source: Annotated[Positional[str], arg("WEIGHTS")]
    """Name of the weights, a file, a Hugging Face folder or hub id."""
    json: bool = False
    """Print one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it."""
        from medsaga.models.weights.verification import verify

        print_document(verify(self.source), as_json=self.json)


@dataclass(kw_only=True)
class Convert:
    """Write weights as a safetensors file with medsaga's names (for SAM, the official ones), which --model takes."""

    source: Annotated[Positional[str], arg("WEIGHTS")]
    """Name of the weights, a file, a Hugging Face folder or hub id."""
    out: Annotated[Positional[Path], arg("FILE")]
    """File to write; it ends in .safetensors and must not exist."""
    half: bool = False
    """Write float16: half the size."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it."""
        from medsaga.models.weights.verification import convert

        convert(self.source, self.out, half=self.half)
        print(self.out)


@dataclass(kw_only=True)
class Weights:
    """List, fetch, verify and convert pre-trained weights."""

    verb: Annotated[List | Fetch | Verify | Convert, tyro.conf.arg(name="")]

    def run(self) -> None:
        """Do it."""
        self.verb.run()


def table_of(documents: list[dict[str, Any]], *, narrow: bool = False) -> Table:
    """Lay known weights out, one a line; closer together and without their licences if ``narrow``."""
    table = Table(box=None, pad_edge=False, padding=(0, 1 if narrow else 2, 0, 0))
    shown = [name for name in COLUMNS if not (narrow and name == "licence")]
    for name in shown:
        table.add_column(COLUMNS[name], justify="right" if name in NUMBERS else "left", no_wrap=True)
    for known in documents:
        row = _row(known)
        table.add_row(*(row[name] for name in shown))
    return table


def _licences(documents: list[dict[str, Any]]) -> str:
    names: dict[str, list[str]] = {}
    for known in documents:
        names.setdefault(known["licence"], []).append(known["name"])
    if len(names) == 1:
        return f"licence of all: {next(iter(names))}\n"
    return "".join(f"licence of {', '.join(those)}: {licence}\n" for licence, those in names.items())


def _row(known: dict[str, Any]) -> dict[str, str]:
    name, architecture, time = known["name"], known["architecture"], known["relative_step_time"]
    cells = {
        "name": name if name.startswith(architecture) else f"{name} ({architecture})",
        "millions": f"{known['parameters'] / 1e6:.1f}",
        "megabytes": str(known["megabytes"]),
        "512px": f"{known['peak_memory_bytes_512px'] / MIB:.0f}",
        "1024px": f"{known['peak_memory_bytes_1024px'] / MIB:.0f}",
        "time": "?" if time is None else f"{time:.2f}",
        "licence": known["licence"],
        "status": known["status"],
    }
    assert cells.keys() == COLUMNS.keys()
    return cells
