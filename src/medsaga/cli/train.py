"""The verbs `medsaga demo`, `medsaga train` and `medsaga continue`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from medsaga import files, run_folder
from medsaga.cli.options import ContinueOptions, TrainOptions, arg, settings_of
from medsaga.cli.printing import console, print_result, say
from medsaga.cli.runs import is_run, require_data, run_meant
from medsaga.errors import InputError
from medsaga.settings.options import Settings


@dataclass(kw_only=True)
class Demo:
    """Try it all on a generated phantom CT: on a CPU, in minutes."""

    out: Annotated[Path, arg("DIR", shown="demo")] = Path("demo")
    """Folder for the data, the run and the pictures; it must not exist."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it."""
        from medsaga.runs.demo import demo

        print_result(demo(self.out, console()), as_json=False)


@dataclass(kw_only=True)
class Train:
    """Fine-tune a model on labelled cases and test it on the others."""

    folders: Annotated[Positional[tuple[Path, ...]], arg("DATA")] = ()
    """Dataset folder: nnU-Net layout, or images/ and masks/ (DICOM: images/CASE/, masks/CASE.dcm)."""
    out: Annotated[Path | None, arg("RUN")] = None
    """Run folder to make; it can also be named behind DATA."""
    options: TrainOptions
    devices: Annotated[int, arg("N", shown="1")] = 1
    """Share batches among N GPUs or CPU processes."""
    resume: bool = False
    """Finish an interrupted run; needs no DATA."""
    json: bool = False
    """Print the result as one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""

    @property
    def device(self) -> str:
        """Where it runs."""
        return self.options.memory.device

    def run(self) -> None:
        """Do it.

        Raises:
            InputError: there is no data or no run folder, or more than needed.
        """
        data, out, before = self._places()
        _train(data, out, settings_of(Settings, self.options), before=before, resume=self.resume, as_json=self.json)

    def _places(self) -> tuple[Path, Path, Path | None]:
        """Return the dataset, the run folder, and the run that an interrupted one continues."""
        folders, out = list(self.folders), self.out
        if out is None and (len(folders) > 1 or (self.resume and folders and is_run(folders[-1]))):
            out = folders.pop()
        if out is None:
            raise InputError("train", expected="the run folder to make", found="none", do="Add --out RUN.")
        if self.resume:
            out = run_meant(out)
            if not folders and is_run(out):
                return data_of(out)[0], out, data_of(out)[1]
        if len(folders) != 1:
            raise InputError(
                "train",
                expected="DATA",
                found=f"{len(folders)} folders" if folders else "none",
                do="Name the folder of the labelled cases once.",
            )
        require_data(
            folders[0],
            "Finish it with --resume --out {run}, or go on with new cases: medsaga continue {run} NEW --out RUN2.",
        )
        return folders[0], out, None


@dataclass(kw_only=True)
class Continue:
    """Go on from a finished run with new or corrected cases."""

    before: Annotated[Positional[Path], arg("RUN")]
    """Run to start from: its weights, its settings, its training cases, and the same test cases."""
    new: Annotated[Positional[Path], arg("NEW")]
    """Dataset folder of the cases to add; one that the run trained on is replaced."""
    out: Annotated[Path, arg("RUN2")]
    """Run folder to make."""
    options: ContinueOptions
    devices: Annotated[int, arg("N", shown="1")] = 1
    """Share batches among N GPUs or CPU processes."""
    resume: bool = False
    """Go on with the interrupted run in RUN2, to the same result."""
    json: bool = False
    """Print the result as one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""

    @property
    def device(self) -> str:
        """Where it runs."""
        return self.options.memory.device

    def run(self) -> None:
        """Do it.

        Raises:
            InputError: the run and the new cases are exchanged, or cannot be used.
        """
        before = run_meant(self.before, [self.new], "medsaga continue {run} {data} --out RUN2")
        require_data(self.new, "Name the folder of the new cases behind the run: medsaga continue RUN NEW --out RUN2.")
        out = run_meant(self.out) if self.resume else self.out
        settings = settings_of(Settings, self.options)
        _train(self.new, out, settings, before=before, resume=self.resume, as_json=self.json)


def _train(data: Path, out: Path, settings: Settings, *, before: Path | None, resume: bool, as_json: bool) -> None:
    from medsaga.distributed.joining import joined
    from medsaga.runs.train import train

    with joined() as group:
        shown = console(quiet=not group.is_first)
        result = train(data, out, settings, continue_from=before, resume=resume, console=shown, group=group)
    if group.is_first:
        print_result(result, as_json=as_json)
        say(f"report: {out / run_folder.REPORT}")


def data_of(run: Path) -> tuple[Path, Path | None]:
    """Return the dataset that a run is trained on, of which one that continues another has the new cases, and that one.

    Raises:
        InputError: its files are damaged.
    """
    from medsaga.settings.run_config import read_config

    config = read_config(run / run_folder.CONFIG)
    before = files.read_json(run / run_folder.MANIFEST).get("continues", {}).get("run")
    return Path(config.added[-1] if before else config.data), Path(before) if before else None
