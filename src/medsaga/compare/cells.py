"""The cells of a comparison: one training run each, and one JSON file for what came of it."""

from __future__ import annotations

import dataclasses
import io
import shutil
import time
import traceback
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from medsaga import files, run_folder
from medsaga.data.items import read_mask
from medsaga.data.labels import listed
from medsaga.data.types import Item
from medsaga.errors import InputError, Interrupted, MedsagaError, OutOfMemoryError
from medsaga.memory.tracker import is_out_of_memory
from medsaga.prediction.segmenter import Segmenter
from medsaga.runs.evaluate import most_labelled_slice
from medsaga.runs.loading import LoadedData
from medsaga.runs.train import train
from medsaga.settings.options import ResolvedSettings, Settings, in_json, named
from medsaga.settings.run_config import read_config

CELLS = "cells"
"""The folder, in that of a comparison, with a file for each cell."""
_WAITING_SECONDS = 1.0


@dataclass(frozen=True)
class Cell:
    """One training run of a comparison.

    Attributes:
        table: ``equal``, where all methods share the settings, or ``published``.
        method: key of ``METHODS``.
        shots: labelled cases.
        seed: of the run.
    """

    table: str
    method: str
    shots: int
    seed: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.table}-{self.method}-{self.shots:03d}-shots-seed-{self.seed}"

    def traceback(self, out: Path) -> Path:
        """Where the traceback of an unexpected error is kept."""
        return out / CELLS / f"{self.name}.traceback.txt"

    def run(self, out: Path) -> Path:
        """The run folder, which goes when the cell is finished, unless it is to be kept."""
        return out / "runs" / self.name


def finished(out: Path, cell: Cell, settings: Settings, fingerprint: str) -> dict[str, Any] | None:
    """Return what a cell came to, or None if it has not been run.

    Raises:
        InputError: it was run on other data, or with other settings.
    """
    path = out / CELLS / f"{cell.name}.json"
    if not path.exists():
        return None
    document = files.read_json(path)
    for what, expected, found in (
        ("settings", named(settings), document.get("requested")),
        ("data", fingerprint, document.get("data_fingerprint")),
    ):
        if expected != found:
            raise InputError(
                path,
                expected=f"the {what} of this comparison, {expected}",
                found=f"{found}",
                do="Choose another --out, or give the options that the comparison began with.",
            )
    return document


def each_free(out: Path, cells: Sequence[Cell], console: Console) -> Iterator[Cell]:
    """Yield the cells one after another, each while no other command runs it.

    Those that another command runs come last, when it is done with them; whoever gets one looks whether it is finished.

    Args:
        out: folder of the comparison, in which there are `CELLS`.
        cells: which ones.
        console: where it is said that others are waited for.
    """
    left, told = list(cells), False
    while left:
        taken = []
        for cell in left:
            with files.holding(out / CELLS / f"{cell.name}.lock") as is_ours:
                if is_ours:
                    yield cell
                else:
                    taken.append(cell)
        if len(taken) == len(left):
            if not told:
                names = listed([cell.name for cell in taken], 3)
                said = f"waiting for another command that runs the same: {names}"
                console.print(said, markup=False, highlight=False, soft_wrap=True)
                told = True
            time.sleep(_WAITING_SECONDS)
        left = taken


def run_cell(
    data: Path,
    out: Path,
    cell: Cell,
    settings: Settings,
    *,
    loaded: LoadedData,
    examples: Sequence[Item],
    keep_run: bool,
    console: Console,
) -> dict[str, Any]:
    """Train and test, and write the cell's file. A run that fails is a cell too; one that is interrupted is none.

    A run that a command before this was stopped in goes on, to the same result. An error that is neither the user's nor
    a lack of memory is a fault of the program: the cell's file calls it ``unexpected``, and its traceback is kept
    beside it. Pictures that cannot be made are no failure of the run.

    Args:
        data: the dataset.
        out: folder of the comparison.
        cell: which one.
        settings: of the run.
        loaded: the dataset.
        examples: items whose prediction is kept, in ``NAME.npz``.
        keep_run: whether the run folder stays.
        console: where progress is shown.
    """
    began = time.perf_counter()
    folder = cell.run(out)
    has_failed = (out / CELLS / f"{cell.name}.json").exists()
    goes_on = not has_failed and _is_begun(folder, settings, loaded.fingerprint)
    if not goes_on:
        shutil.rmtree(folder, ignore_errors=True)
    before = sum(line["seconds"] for line in run_folder.read_metrics(folder) if line["kind"] == "step")
    cell.traceback(out).unlink(missing_ok=True)
    status, message, result, unexpected = "done", None, None, False
    try:
        result = train(data, folder, settings, resume=goes_on, loaded=loaded, console=console)
    except Interrupted:
        raise
    except Exception as error:  # whatever it is, the other cells go on and this one says so
        short = isinstance(error, OutOfMemoryError) or is_out_of_memory(error)
        status = "out of memory" if short else "failed"
        unexpected = not short and not isinstance(error, MedsagaError)
        message = str(error) if isinstance(error, MedsagaError) else f"{type(error).__name__}: {error}"
        if unexpected:
            files.write_text(cell.traceback(out), "".join(traceback.format_exception(error)))
    without_pictures = None
    if status == "done" and examples:
        try:
            _keep_examples(out / CELLS / f"{cell.name}.npz", folder, examples, settings.device)
        except Interrupted:
            raise
        except Exception as error:  # the result is there all the same
            without_pictures = f"{type(error).__name__}: {error}"
    document = {
        "cell": dataclasses.asdict(cell),
        "status": status,
        "message": message,
        "unexpected": unexpected,
        "without_pictures": without_pictures,
        "requested": named(settings),
        "data_fingerprint": loaded.fingerprint,
        "settings": _settings(folder),
        "machine": _machine(folder),
        "result": result,
        "run_kept": keep_run,
        "seconds": before + time.perf_counter() - began,
    }
    files.write_json(out / CELLS / f"{cell.name}.json", document)
    if not keep_run:
        shutil.rmtree(folder, ignore_errors=True)
    return document


def remove_leftover(out: Path, document: dict[str, Any]) -> None:
    """Remove the run folder that a command left which was killed after it had written the cell's file."""
    # One that has failed may be run again by another command.
    if document["status"] == "done" and not document.get("run_kept", True):
        shutil.rmtree(Cell(**document["cell"]).run(out), ignore_errors=True)


def read_examples(out: Path, cell: Cell) -> list[dict[str, npt.NDArray[Any]]]:
    """Return what a cell has kept of each example: ``image``, ``truth``, ``prediction`` and ``spacing``, in order."""
    path = out / CELLS / f"{cell.name}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = ("image", "truth", "prediction", "spacing")
            return [{name: stored[f"{name}_{n}"] for name in names} for n in range(len(stored.files) // len(names))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(path, expected="predictions of a cell", found=str(error), do="Remove the file.") from None


def _is_begun(folder: Path, settings: Settings, fingerprint: str) -> bool:
    """Whether a folder is a run that was begun with these settings, whether named or left open, on the same data."""
    if not (folder / run_folder.MANIFEST).exists():
        return False
    manifest = files.read_json(folder / run_folder.MANIFEST)
    return bool(manifest.get("requested") == named(settings) and manifest.get("data_fingerprint") == fingerprint)


def _keep_examples(path: Path, run: Path, items: Sequence[Item], device: str) -> None:
    segmenter = Segmenter.load(run, device)
    kept: dict[str, Any] = {}
    for n, item in enumerate(items):
        shown = most_labelled_slice(segmenter.predict_item(item), read_mask(item), segmenter.label_values)
        kept |= {f"image_{n}": shown.image, f"truth_{n}": shown.truth, f"prediction_{n}": shown.prediction}
        kept[f"spacing_{n}"] = np.array(shown.spacing or (), dtype=np.float64)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **kept)
    with files.replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _settings(run: Path) -> dict[str, Any] | None:
    if not (run / run_folder.CONFIG).exists():
        return None
    settings: ResolvedSettings = read_config(run / run_folder.CONFIG).settings
    return {name: in_json(value) for name, value in dataclasses.asdict(settings).items()}


def _machine(run: Path) -> dict[str, Any]:
    if not (run / run_folder.MANIFEST).exists():
        return {}
    manifest = files.read_json(run / run_folder.MANIFEST)
    threads = {"threads": torch.get_num_threads()}
    return {name: manifest[name] for name in ("device", "platform", "versions")} | threads
