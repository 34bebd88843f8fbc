"""``medsaga export``: a run as a small file, and whether it segments as the run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from medsaga import run_folder
from medsaga.deltas.making import LARGEST_ERROR, export_delta
from medsaga.prediction.segmenter import Segmenter
from medsaga.progress import counting
from medsaga.runs.evaluate import evaluate_run, labelled
from medsaga.settings.run_config import read_config


def export_run(
    run: Path,
    out: Path,
    *,
    error: float = LARGEST_ERROR,
    codes: str = "int8",
    base: str | None = None,
    check: Path | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> dict[str, Any]:
    """Write what a run has changed as a delta file, and compare the two on labelled cases if asked to.

    Args:
        run: the run folder.
        out: the file; see `medsaga.deltas.making.export_delta`, also for ``error``, ``codes`` and ``base``.
        error: bound of what is lost of the change.
        codes: how factors are stored.
        base: where the weights are that the run started from, if not where they were.
        check: a dataset with the run's labels, such as its own; what the run has seen is left out.
        device: where the models are compared.
        console: where progress is shown; stderr by default.

    Returns:
        what `medsaga.deltas.making.export_delta` returns, ``file``, and with ``check`` also ``dice_of_run``,
        ``dice_of_file`` and ``cases_compared``.

    Raises:
        InputError: something cannot be used.
    """
    console = console or Console(stderr=True)
    if check is not None:
        labelled(check, read_config(run / run_folder.CONFIG), Console(quiet=True))  # before the file is written
    done = export_delta(run, out, error=error, codes=codes, base=base, progress=counting(console, "looking at weights"))
    document = {"file": str(out), **done}
    if check is None:
        return document
    if base is None and done["base_sha256"] is not None:
        base = read_config(run / run_folder.CONFIG).settings.weights
    dice = {}
    # One after the other: two models would take twice the memory.
    for name, load in (
        ("dice_of_run", lambda: Segmenter.load(run, device)),
        ("dice_of_file", lambda: Segmenter.load(out, device, base)),
    ):
        result = evaluate_run(run, data=check, segmenter=load(), console=console)
        dice[name] = None if result["dice_mean"] is None else round(result["dice_mean"], 5)
    return document | dice | {"cases_compared": result["case_count"]}
