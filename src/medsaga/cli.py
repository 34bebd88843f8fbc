"""The command line: one dataclass per verb, whose docstrings are its help and whose ``run`` does it.

What takes long to import is imported where it is used, so that ``medsaga --help`` answers at once.
"""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from medsaga import run_folder
from medsaga.cli_suggest import Suggest
from medsaga.cli_weights import Weights
from medsaga.config import Settings, SharedSettings
from medsaga.errors import InputError, Interrupted, MedsagaError, OutOfMemoryError, RunError

ABOUT = """Fine-tune SAM into a prompt-free, multi-class medical segmenter from a few labelled cases.

Research software, not a medical device. Exit codes: 0 done; 1 failed while running; 2 unusable arguments, settings
or data; 3 out of memory; 130 interrupted, with the state saved."""


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
class Info:
    """Describe a dataset: cases, channels, labels, spacing, problems."""

    data: Positional[Path]
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
        """
        from medsaga.info import describe, info_table

        description, problems = describe(self.data, console(), binary=self.binary)
        if self.json:
            print(json.dumps(description, indent=2))
        else:
            Console().print(info_table(description))
        if problems:
            raise problems[0]


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


@dataclass(kw_only=True)
class Evaluate:
    """Score a trained model on its held-out cases, or on another dataset."""

    folder: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    data: Path | None = None
    """Another dataset, with the same labels, to score all cases of."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    json: bool = False
    """Print the result as one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it."""
        from medsaga.evaluation.run import evaluate_run

        result = evaluate_run(self.folder, data=self.data, device=self.device, console=console())
        print_result(result, as_json=self.json)


@dataclass(kw_only=True)
class Predict:
    """Segment an image, a volume, a DICOM series, or a folder of them; label maps lie on the input's own grid.

    Of several images the least confident are named: look at those first.
    """

    folder: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    input: Positional[Path]
    """Image or volume file, DICOM series, or a folder of them."""
    out: Path
    """Label map to write, its format given by the suffix; a folder when INPUT has several images."""
    format: str = "auto"
    """auto (the input's own; of DICOM a segmentation object), seg, rtstruct, nifti, png or tiff."""
    series: str | None = None
    """Which DICOM series, where there are several: a part of its description, its number, its UID, or largest."""
    probabilities: bool = False
    """Write the probability of every class too."""
    overlay: bool = False
    """Write a picture of the label map on the image too."""
    measure: bool = False
    """Write measurements.csv too: volume, area, largest diameter, components of every class."""
    tta: bool = False
    """Average over the flips of each slice: often better, four times as long."""
    largest_component: bool = False
    """Keep the largest piece of every class only."""
    fill_holes: bool = False
    """Fill what a class encloses."""
    min_size: float = 0.0
    """Remove pieces smaller than this, in mm3 (2-D: mm2; without a spacing: voxels)."""
    codes: Path | None = None
    """JSON file with coded terminology of the labels, for DICOM."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it."""
        from medsaga.data.dicom.terminology import read_codes
        from medsaga.postprocess import PostProcessing
        from medsaga.predict import Wanted, predict_files

        written = predict_files(
            self.folder,
            self.input,
            self.out,
            Wanted(
                format=self.format,
                probabilities=self.probabilities,
                overlay=self.overlay,
                measure=self.measure,
                post=PostProcessing(self.largest_component, self.fill_holes, self.min_size),
                codes={} if self.codes is None else read_codes(self.codes),
            ),
            series=self.series,
            tta=self.tta,
            device=self.device,
            console=console(),
        )
        for path in written:
            print(path)


@dataclass(kw_only=True)
class Memory:
    """Predict the memory of a training run, without a GPU and without data; with --budget, choose what fits.

    Takes the options of `medsaga train`. The peak is that of all tensors; a GPU's own context comes on top.
    """

    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)
    classes: int = 9
    """Number of classes, background included."""
    in_channels: int = 3
    """Channels of the model's input; a single grey one takes what three take."""
    json: bool = False
    """Print one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it."""
        from medsaga.planning.report import memory_document, memory_tables

        document = memory_document(self.settings, classes=self.classes, in_channels=self.in_channels)
        if self.json:
            print(json.dumps(document, indent=2))
            return
        for table in memory_tables(document):
            Console().print(table)


@dataclass(kw_only=True)
class Compare:
    """Train and test several methods on the same cases; write tables and a page. Goes on where it was stopped."""

    data: Positional[Path]
    """Dataset folder, in one of the layouts."""
    out: Path
    """Folder for the results."""
    methods: str = "medsaga,samed,full,frozen,daeformer,unet"
    """Methods of `medsaga train`, with commas between; the first is compared with all others."""
    shots: str = "1,4,16"
    """Numbers of labelled cases to train on, with commas between; all are tested on the same other cases."""
    seeds: int = 3
    """Number of seeds: they choose the cases, the initial weights and the batches."""
    test_cases: int | None = None
    """Number of cases to test on; by default all that no run trains on."""
    published: bool = False
    """Train each method by the recipe of its publication too; only MODEL, its weights and STEPS override it."""
    retry: bool = False
    """Run again what has failed."""
    no_pictures: bool = False
    """Show no test cases: for a page that leaves the hospital."""
    keep_runs: bool = False
    """Keep the run folders with their models."""
    settings: Annotated[SharedSettings, tyro.conf.arg(name="")] = field(default_factory=SharedSettings)
    json: bool = False
    """Print all results as one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it."""
        from medsaga.compare.grid import compare
        from medsaga.compare.tables import terminal_table

        methods = [name.strip() for name in self.methods.split(",")]
        shots = whole_numbers("--shots", self.shots)
        cells = compare(
            self.data,
            self.out,
            self.settings,
            methods=methods,
            shots=shots,
            seeds=self.seeds,
            test_cases=self.test_cases,
            published=self.published,
            retry=self.retry,
            pictures=not self.no_pictures,
            keep_runs=self.keep_runs,
            console=console(),
        )
        if self.json:
            print(json.dumps(cells, indent=2))
            return
        Console().print(terminal_table(cells, methods))
        console().print(f"page: {self.out / 'index.html'}")


Verb = Demo | Info | Train | Evaluate | Predict | Suggest | Compare | Memory | Weights


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


def console() -> Console:
    """Return the console for everything that is not the result: stderr."""
    return Console(stderr=True)


def print_result(result: dict[str, Any], *, as_json: bool) -> None:
    """Print a result on stdout, as a table for people or as JSON for machines."""
    if as_json:
        print(json.dumps(result, indent=2))
        return
    from medsaga.evaluation.summary import table

    rendered: Table = table(result)
    Console().print(rendered)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code that its help documents."""
    debug = "--debug" in (sys.argv if argv is None else argv)
    try:
        verb: Any = tyro.cli(
            Verb,
            prog="medsaga",
            description=ABOUT,
            args=argv,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes),
        )
        verb.run()
        return 0
    except BaseException as error:
        if isinstance(error, SystemExit):  # help, and arguments that tyro has already complained about
            raise
        if debug:
            traceback.print_exc()
        code, message = _explain(error)
        _say(message)
        return code


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, MedsagaError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return Interrupted.exit_code, "interrupted"
    if "torch" in sys.modules or isinstance(error, MemoryError):
        from medsaga.memory.tracker import is_out_of_memory

        if is_out_of_memory(error):
            return OutOfMemoryError.exit_code, f"out of memory: {error}"
    return RunError.exit_code, f"{type(error).__name__}: {error} (unexpected; --debug shows where it happened)"


def _say(message: str) -> None:
    # Rich would take [brackets] in a file's name for markup.
    print(f"medsaga: {message}", file=sys.stderr)
