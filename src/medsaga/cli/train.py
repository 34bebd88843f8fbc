"""The verbs `medsaga demo` and `medsaga train`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from medsaga import files, run_folder
from medsaga.cli.printing import console, print_result, say
from medsaga.cli.runs import is_run, require_data, run_meant
from medsaga.config import Settings, read_config
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

    folders: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[DATA]")] = ()
    """Dataset folder: nnU-Net layout, or images/ and masks/ (DICOM: images/CASE/ and masks/CASE.dcm)."""
    out: Path | None = None
    """Run folder to make; it can also be named behind DATA."""
    before: Annotated[Path | None, tyro.conf.arg(name="continue")] = None
    """Run to start from: its weights, its settings, its training cases, and the same test cases."""
    new: Annotated[Path | None, tyro.conf.arg(name="data")] = None
    """With --continue: dataset folder of the cases to add; one that the run trained on is replaced."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)
    resume: bool = False
    """Go on with the interrupted run in OUT, to the same result; its data are found again without DATA."""
    json: bool = False
    """Print the result as one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it.

        Raises:
            InputError: there is no data or no run folder, or more than needed.
        """
        from medsaga.training.loop import train

        data, out, before = self._places()
        result = train(data, out, self.settings, continue_from=before, resume=self.resume, console=console())
        print_result(result, as_json=self.json)
        say(f"report: {out / run_folder.REPORT}")

    def _places(self) -> tuple[Path, Path, Path | None]:
        """Return the dataset, the run folder, and the run to start from."""
        folders, out = list(self.folders), self.out
        before = None if self.before is None else run_meant(self.before)
        if self.resume and out is None and folders and is_run(folders[-1]):
            out = folders.pop()
        if out is None and len(folders) > (self.new is None):
            out = folders.pop()
        if out is None:
            raise InputError("train", expected="the run folder to make", found="none", do="Add --out RUN.")
        if self.resume:
            out = run_meant(out)
        if self.new is not None:
            folders.append(self.new)
        if self.resume and not folders and is_run(out):
            found, earlier = data_of(out)
            return found, out, before or earlier
        if len(folders) != 1 or (self.new is None) != (before is None):
            raise InputError(
                "train",
                expected="DATA, or --continue RUN with --data NEW",
                found="neither" if not folders else "a mixture of both",
                do="Name the folder of the labelled cases once.",
            )
        require_data(
            folders[0],
            "Finish it with --resume --out {run}, or go on with new cases: --continue {run} --data NEW --out RUN2.",
        )
        return folders[0], out, before


def data_of(run: Path) -> tuple[Path, Path | None]:
    """Return the dataset that a run is trained on, of which one that continues another has the new cases, and that one.

    Raises:
        InputError: its files are damaged.
    """
    config = read_config(run / run_folder.CONFIG)
    before = files.read_json(run / run_folder.MANIFEST).get("continues", {}).get("run")
    return Path(config.added[-1] if before else config.data), Path(before) if before else None
