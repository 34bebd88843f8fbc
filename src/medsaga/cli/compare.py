"""The verb `medsaga compare`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional

from medsaga.cli.options import CompareOptions, arg, settings_of
from medsaga.cli.printing import console
from medsaga.cli.runs import require_data
from medsaga.errors import InputError
from medsaga.settings.options import SharedSettings


@dataclass(kw_only=True)
class Compare:
    """Train and test methods on the same cases; draw a page."""

    data: Annotated[Positional[Path], arg("DATA")]
    """Dataset folder, in one of the layouts."""
    out: Annotated[Path, arg("OUT")]
    """Folder for the results; a comparison that was stopped there goes on."""
    methods: Annotated[str, arg("METHOD[,METHOD...]", shown="all six")] = "medsaga,samed,full,frozen,daeformer,unet"
    """Methods of `medsaga train`, with commas between; the first is compared with all others."""
    shots: Annotated[str, arg("N[,N...]", shown="1,4,16")] = "1,4,16"
    """Numbers of labelled cases to train on, with commas between; all are tested on the same other cases."""
    seeds: Annotated[int, arg("N", shown="3")] = 3
    """Number of seeds: they choose the cases, the initial weights and the batches."""
    test_cases: Annotated[int | None, arg("N", shown="all that no run trains on")] = None
    """Number of cases to test on."""
    published: bool = False
    """Train each method by the recipe of its publication too; only --model, --random-weights and --steps override."""
    retry: bool = False
    """Run again what has failed."""
    no_pictures: bool = False
    """Show no test cases, texts of errors or folders, which may name patients: for a page that leaves the hospital."""
    keep_runs: bool = False
    """Keep the run folders with their models."""
    options: CompareOptions
    devices: Annotated[int, arg("N", shown="1")] = 1
    """GPUs, or CPU processes, each of which trains one run at a time."""
    json: bool = False
    """Print all results as one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""

    @property
    def device(self) -> str:
        """Where it runs."""
        return self.options.memory.device

    def run(self) -> None:
        """Do it.

        Raises:
            RunError: a run has failed unexpectedly; all results have been printed.
        """
        from medsaga.compare.grid import check_expected, compare
        from medsaga.compare.tables import terminal_table
        from medsaga.distributed.joining import joined

        require_data(self.data, "Name the folder of the labelled cases.")
        methods = [name.strip() for name in self.methods.split(",")]
        shots = whole_numbers("--shots", self.shots)
        with joined() as group:
            cells = compare(
                self.data,
                self.out,
                settings_of(SharedSettings, self.options),
                methods=methods,
                shots=shots,
                seeds=self.seeds,
                test_cases=self.test_cases,
                published=self.published,
                retry=self.retry,
                pictures=not self.no_pictures,
                keep_runs=self.keep_runs,
                console=console(),
                group=group,
            )
        if not group.is_first:
            return
        if self.json:
            print(json.dumps(cells, indent=2))
        else:
            Console().print(terminal_table(cells, methods))
            console().print(f"page: {self.out / 'index.html'}")
        check_expected(self.out, cells)


def whole_numbers(flag: str, text: str) -> list[int]:
    """Return the numbers of a list such as 1,4,16.

    Raises:
        InputError: it is none.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        do = "Give numbers like that."
        raise InputError(flag, expected="whole numbers such as 1,4,16", found=text, do=do) from None
