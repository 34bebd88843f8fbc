"""The verbs `medsaga info` and `medsaga evaluate`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional

from medsaga.cli.options import arg
from medsaga.cli.printing import console, print_result
from medsaga.cli.runs import require_data, run_meant
from medsaga.errors import InputError


@dataclass(kw_only=True)
class Info:
    """Describe a dataset: cases, labels, spacing, problems."""

    data: Annotated[Positional[Path], arg("DATA")]
    """Dataset folder: nnU-Net layout, or images/ and masks/ (DICOM: images/CASE/ and masks/CASE.dcm)."""
    binary: bool = False
    """Read every mask as background and foreground, whatever its values are."""
    json: bool = False
    """Print one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it.

        Raises:
            InputError: the dataset has problems; they have been printed.
            SystemExit: likewise, where the error's message would stand below them.
        """
        from medsaga.runs.info import describe, info_table

        require_data(
            self.data, "Name the data it was trained on; what came of it is in {run}/report.html and {run}/result.json."
        )
        description, problems = describe(self.data, console(), binary=self.binary)
        if self.json:
            print(json.dumps(description, indent=2))
        else:
            Console().print(info_table(description))
        if problems and not self.json and sys.stdout.isatty() and sys.stderr.isatty():
            raise SystemExit(InputError.exit_code)  # the table above has said it on the same terminal
        if problems:
            raise problems[0]


@dataclass(kw_only=True)
class Evaluate:
    """Score a trained model on its held-out or on other cases."""

    folder: Annotated[Positional[Path], arg("RUN")]
    """Run folder, or a delta file."""
    other: Annotated[Positional[Path | None], arg("[DATA]", shown="its own")] = None
    """Another dataset, with the same labels, or the run's own where it lies now; what the run has seen is left out."""
    data: Annotated[Path | None, arg("DATA")] = None
    """The same as DATA."""
    base: Annotated[str | None, arg("WEIGHTS", shown="found by their SHA-256")] = None
    """The weights that a delta file belongs to, as --model takes them."""
    device: Annotated[str, arg("DEVICE", shown="a GPU if any")] = "auto"
    """cpu, cuda, cuda:N or mps."""
    devices: Annotated[int, arg("N", shown="1")] = 1
    """GPUs, or CPU processes, that share the images."""
    json: bool = False
    """Print the result as one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it.

        Raises:
            InputError: there are two datasets, or the run and the dataset are exchanged.
        """
        from medsaga.distributed.joining import joined
        from medsaga.runs.evaluate import evaluate_run

        if self.other is not None and self.data is not None:
            found = f"{self.other} and {self.data}"
            raise InputError("evaluate", expected="one dataset", found=found, do="Leave one of them out.")
        data = self.other or self.data
        run = run_meant(self.folder, [data] if data else [], "medsaga evaluate {run} {data}")
        with joined() as group:
            shown = console(quiet=not group.is_first)
            result = evaluate_run(run, data=data, device=self.device, base=self.base, console=shown, group=group)
        if group.is_first:
            print_result(result, as_json=self.json)
