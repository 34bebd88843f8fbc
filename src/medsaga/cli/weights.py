"""The verbs of `medsaga weights`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from medsaga.cli.options import arg

SHORT = 12
"""Digits of a SHA-256 that the table of all weights shows."""


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
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("name", "MB", "licence", "status", "SHA-256"):
            table.add_column(title, justify="right" if title == "MB" else "left", no_wrap=True)
        for known in documents:
            about = [str(known[name]) for name in ("name", "megabytes", "licence", "status")]
            table.add_row(*about, known["sha256"][:SHORT])
        Console().print(table)


@dataclass(kw_only=True)
class Fetch:
    """Download known weights into the cache, or go on with a download; print the path. Nothing else downloads them."""

    name: Positional[str]
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

    source: Positional[str]
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

    source: Positional[str]
    """Name of the weights, a file, a Hugging Face folder or hub id."""
    out: Positional[Path]
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
