"""The verbs `medsaga demo` and `medsaga train`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from medsaga import run_folder
from medsaga.cli.printing import console, print_result
from medsaga.config import Settings
from medsaga.errors import InputError


@dataclass(kw_only=True)
class Demo:
    """Generate a phantom CT, train on it, evaluate, and draw a picture: offline, on a CPU, in minutes."""

    out: Path = Path("demo")
    """Folder for the data, the run and the pictures; it must not exist."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it."""
        from medsaga.demo import demo

        print_result(demo(self.out, console()), as_json=False)


@dataclass(kw_only=True)
class Train:
    """Fine-tune a model on the labelled cases of a dataset and test it on the held-out ones.

    With --continue RUN --data NEW, go on from a finished run with new or corrected cases.
    """

    folder: Annotated[Positional[Path | None], tyro.conf.arg(metavar="[DATA]")] = None
    """Dataset folder: nnU-Net layout, or images/ and masks/ (DICOM: images/CASE/ and masks/CASE.dcm)."""
    out: Path
    """Run folder to make."""
    before: Annotated[Path | None, tyro.conf.arg(name="continue")] = None
    """Run to start from: its weights, its settings, its training cases, and the same test cases."""
    new: Annotated[Path | None, tyro.conf.arg(name="data")] = None
    """With --continue: dataset folder of the cases to add; one that the run trained on is replaced."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)
    resume: bool = False
    """Go on with the interrupted run in OUT, to the same result."""
    json: bool = False
    """Print the result as one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it.

        Raises:
            InputError: there is no data, or more than needed.
        """
        from medsaga.training.loop import train

        data, other = (self.folder, self.new) if self.before is None else (self.new, self.folder)
        if data is None or other is not None:
            raise InputError(
                "train",
                expected="DATA, or --continue RUN with --data NEW",
                found="neither" if data is None and other is None else "a mixture of both",
                do="Name the folder of the labelled cases once.",
            )
        result = train(data, self.out, self.settings, continue_from=self.before, resume=self.resume, console=console())
        print_result(result, as_json=self.json)
        console().print(f"report: {self.out / run_folder.REPORT}")
