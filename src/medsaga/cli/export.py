"""The verb `medsaga export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from medsaga.cli.options import arg
from medsaga.cli.printing import console, print_document
from medsaga.cli.runs import run_meant


@dataclass(kw_only=True)
class Export:
    """Write what a run has changed as a small file, to send."""

    folder: Annotated[Positional[Path], arg("RUN")]
    """Run folder."""
    delta: Annotated[Path, arg("FILE")]
    """File to write; it ends in .safetensors and must not exist."""
    error: Annotated[float, arg("SHARE", shown="0.1")] = 0.1
    """How much of the change of the encoder's matrices may be lost (Frobenius norm, of all together)."""
    codes: Annotated[Literal["int8", "fp16"], arg("int8|fp16", shown="int8")] = "int8"
    """How the factors are stored."""
    base: Annotated[str | None, arg("WEIGHTS", shown="where they were")] = None
    """The weights that the run started from, as --model takes them, if they have moved."""
    check: Annotated[Path | None, arg("DATA", shown="not done")] = None
    """Compare the Dice of the run and of the file on labelled cases; of the run's own data, on its test cases."""
    device: Annotated[str, arg("DEVICE", shown="a GPU if any")] = "auto"
    """Of the comparison: cpu, cuda, cuda:N or mps."""
    json: bool = False
    """Print one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it."""
        from medsaga.runs.export import export_run

        run = run_meant(self.folder, [self.delta], "medsaga export {run} --delta {data}")
        document = export_run(
            run,
            self.delta,
            error=self.error,
            codes=self.codes,
            base=self.base,
            check=self.check,
            device=self.device,
            console=console(),
        )
        print_document(document, as_json=self.json)
