"""What benchmarks share: their arguments, and that no run on real images is made twice."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medsaga import files


def described(module_doc: str | None) -> argparse.ArgumentParser:
    """Return a parser without arguments, whose help is the text of a module as it stands there."""
    return argparse.ArgumentParser(description=module_doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def parser_for(module_doc: str | None, out: Path) -> argparse.ArgumentParser:
    """Return a parser of the folder of datasets, the folder of runs, and that of the results, by default ``out``."""
    parser = described(module_doc)
    parser.add_argument("datasets", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=out)
    return parser


def measured_once(place: Path, measure: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Return the record ``place.json``; make it first, if it is not there, in the folder ``place``, which goes again.

    Args:
        place: without a suffix. A folder of this name is one that an interrupted run has left, and goes first.
        measure: takes a folder that does not exist, to make a run in, and returns the record.
    """
    record = place.with_name(f"{place.name}.json")
    if not record.exists():
        shutil.rmtree(place, ignore_errors=True)
        files.write_json(record, measure(place))
        shutil.rmtree(place)
    document: dict[str, Any] = files.read_json(record)
    return document
