"""The verb `medsaga suggest`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from medsaga.cli.options import arg
from medsaga.cli.runs import run_meant


@dataclass(kw_only=True)
class Suggest:
    """Suggest which unlabelled cases to annotate next."""

    folders: Annotated[Positional[tuple[Path, ...]], arg("[RUN] FOLDER")]
    """Run folder, if there is one; then a folder of images or series, or a dataset of which not all have masks."""
    n: Annotated[int | None, arg("N", shown="5")] = None
    """Number of cases to suggest."""
    model: Annotated[str | None, arg("MODEL", shown="starter")] = None
    """Weights of SAM to look with when there is no run, as `medsaga train --model` takes them."""
    series: Annotated[str | None, arg("SERIES", shown="the only one")] = None
    """Which DICOM series, where there are several: a part of its description, its number, its UID, or largest."""
    device: Annotated[str, arg("DEVICE", shown="a GPU if any")] = "auto"
    """cpu, cuda, cuda:N or mps."""
    json: bool = False
    """Print one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it.

        Raises:
            InputError: there is no folder, or more than two.
        """
        from medsaga.errors import InputError
        from medsaga.suggest.run import suggest

        if not 1 <= len(self.folders) <= 2:
            raise InputError(
                "suggest",
                expected="FOLDER, or RUN FOLDER",
                found=f"{len(self.folders)} folders",
                do="Name the folder with the unlabelled images last.",
            )
        *run, folder = self.folders
        document = suggest(
            folder,
            run=run_meant(run[0], [folder], "medsaga suggest {run} {data}") if run else None,
            model=self.model,
            count=self.n,
            series=self.series,
            device=self.device,
            console=Console(stderr=True),
        )
        if self.json:
            print(json.dumps(document, indent=2))
        else:
            Console().print(_table(document))
            counts = f"{document['unlabelled']} unlabelled cases, {document['labelled']} labelled"
            Console().print(f"{counts}; looked at with {document['looked_with']}", markup=False, highlight=False)


def _table(document: dict[str, Any]) -> Table:
    """Lay suggestions out: the case, and what speaks for it."""
    suggestions = document["suggestions"]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    columns: dict[str, str] = {"images": "d", "stands_for": "d", "distance": ".2f", "uncertainty": ".3f"}
    table.add_column("case")
    shown = [name for name in columns if any(suggestion[name] is not None for suggestion in suggestions)]
    for name in shown:
        table.add_column(name.replace("_", " "), justify="right")
    for suggestion in suggestions:
        cells = ["-" if suggestion[name] is None else format(suggestion[name], columns[name]) for name in shown]
        table.add_row(Text(suggestion["case"]), *cells)
    return table
