"""``medsaga compare``: every method on the same cases, for several numbers of labelled cases and several seeds."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from medsaga import files
from medsaga.compare.cells import CELLS, Cell, each_free, finished, read_examples, remove_leftover, run_cell
from medsaga.compare.page import Example, write_pages
from medsaga.data.labels import listed
from medsaga.data.splits import Split, pool_and_test
from medsaga.data.types import Dataset, Item
from medsaga.device import choose_device
from medsaga.distributed.group import ALONE, Group
from medsaga.errors import InputError, Interrupted, RunError
from medsaga.evaluation.summary import dice_text
from medsaga.methods import METHODS, method_named
from medsaga.planning.resolve import choose_model, find_weights, resolve
from medsaga.runs.configuration import facts_of
from medsaga.runs.loading import LoadedData, load_data, split_of
from medsaga.settings.options import Settings, SharedSettings

EXAMPLES = 3
DATA_SETTINGS = (
    "fold",
    "validation_cases",
    "binary",
    "channels",
    "tile",
    "axis",
    "neighbours",
    "intensity",
    "window",
    "protocol",
    "device",
)
"""What a published recipe takes over from the comparison, beside the model, its weights and the number of steps."""


def compare(
    data: Path,
    out: Path,
    shared: SharedSettings,
    *,
    methods: Sequence[str],
    shots: Sequence[int],
    seeds: int,
    published: bool = False,
    retry: bool = False,
    test_cases: int | None = None,
    pictures: bool = True,
    keep_runs: bool = False,
    console: Console,
    group: Group = ALONE,
) -> list[dict[str, Any]]:
    """Train and test every method at every number of shots with every seed, and write tables and a page.

    Only cells without a file in ``out`` are run, so that a comparison goes on where it was stopped, be it in the middle
    of a run, and grows when methods or seeds are added. A cell that another command runs in the same folder is waited
    for.

    Args:
        data: the dataset.
        out: folder for ``cells/``, ``results.md``, ``results.csv`` and ``index.html``.
        shared: settings of all runs; what is left open is each method's own, except the image size, which is the
            first method's.
        methods: keys of ``METHODS``, in the order in which they are shown.
        shots: numbers of labelled cases. With one seed all are tested on the same cases, which no run has trained on.
        seeds: how many; they are 0, 1 and so on.
        test_cases: how many to test on; None tests on all that no run trains on.
        published: also train each method by the recipe of its publication, if it has one, as a second table.
        retry: run the cells again that have failed.
        pictures: keep and show predictions of a few test cases. False is for a page that leaves the hospital: then what
            an error says stands in ``cells/`` alone, too.
        keep_runs: keep the run folders with their models.
        console: where progress is shown.
        group: of the processes that deal the cells out among themselves, each of which calls this; every cell is run by
            one of them alone.

    Returns:
        the documents of all cells.

    Raises:
        InputError: the data or the settings cannot be used, or ``out`` holds another comparison.
        Interrupted: the user pressed Ctrl-C; the finished cells and the state of the one that was being run are kept.
        RunError: every cell has failed.
    """
    methods, shots = list(dict.fromkeys(methods)), sorted(set(shots))
    _check(methods, shots, seeds, test_cases)
    _check_out(out)
    loaded = group.once(lambda: load_data(data, Settings(channels=shared.channels, binary=shared.binary), console))
    dataset = loaded.dataset
    test_cases = _test_cases(dataset, shared.fold or 0, max(shots), test_cases)
    grid = {
        cell: settings_of(cell, shared, methods, test_cases, loaded)
        for seed in range(seeds)
        for count in shots
        for table in ("equal", "published")[: 1 + published]
        for cell in (Cell(table, method, count, seed) for method in methods)
        if table == "equal" or METHODS[cell.method].recipe is not None
    }
    splits = [split_of(loaded, settings) for settings in grid.values()]
    device = choose_device(shared.device)
    one_of_each = {(cell.table, cell.method): grid[cell] for cell in grid}
    for settings in one_of_each.values():  # which says what cannot be used, before there is a folder
        resolve(settings, facts_of(loaded, split_of(loaded, settings), device))
    examples = _examples(loaded, splits[0]) if pictures else ()
    shown = {Cell("equal", method, max(shots), 0) for method in methods}

    def kept(cell: Cell) -> dict[str, Any] | None:
        document = finished(out, cell, grid[cell], loaded.fingerprint)
        return None if retry and document is not None and document["status"] != "done" else document

    done = group.once(lambda: {cell: kept(cell) for cell in grid})
    # By this folder the same command knows its comparison again, even if it is killed before a first run is done.
    (out / CELLS).mkdir(parents=True, exist_ok=True)
    bar = console if console.is_terminal and group.size == 1 else Console(file=io.StringIO())
    missing = _dealt([cell for cell, document in done.items() if document is None], group)
    try:
        for cell in each_free(out, missing, console):
            # Another command may have run it since.
            if (document := kept(cell)) is None:
                number = _finished_in(done) + 1
                console.print(
                    f"{number}/{len(grid)}: {cell.method}, {cell.shots} shots, seed {cell.seed} ({cell.table})"
                )
                document = run_cell(
                    data,
                    out,
                    cell,
                    grid[cell],
                    loaded=loaded,
                    examples=examples if cell in shown else (),
                    keep_run=keep_runs,
                    console=bar,
                )
                _say(document, console)
            done[cell] = document
    except (Interrupted, KeyboardInterrupt):
        said = f"{out}: stopped with {_finished_in(done)} of {len(grid)} runs done. Continue with the same command."
        raise group.told_once(Interrupted(said)) from None
    of_all = group.collect(done)
    documents = [next(found for run in of_all if (found := run[cell]) is not None) for cell in grid]
    if group.is_first:
        for document in documents:
            remove_leftover(out, document)
        write_pages(
            out,
            title=dataset.root.resolve().name,
            labels=[name for name, value in dataset.labels.items() if value != 0],
            methods=methods,
            cells=documents if pictures else list(map(_without_paths, documents)),
            examples=_pictures(out, examples, methods, max(shots)),
        )
    if all(document["status"] != "done" for document in documents):
        said = f"{out}: every run has failed; the first says: {documents[0]['message']}"
        raise group.told_once(RunError(said))
    return documents


def _without_paths(document: dict[str, Any]) -> dict[str, Any]:
    """Leave out where files lie, which may name patients: what an error says, and the folder of the weights."""
    settings = document["settings"]
    if settings is not None:
        names = {key: Path(settings[key]).name for key in ("weights", "recipe") if settings.get(key) is not None}
        settings = settings | names
    return document | {"message": None, "without_pictures": None, "settings": settings}


def _finished_in(done: Mapping[Cell, dict[str, Any] | None]) -> int:
    return sum(document is not None for document in done.values())


def _say(document: dict[str, Any], console: Console) -> None:
    if document["status"] != "done":
        console.print(f"  {document['status']}: {document['message']}", markup=False)
    else:
        console.print(f"  Dice {dice_text(document['result']['dice_mean'])}", highlight=False)
    if document["without_pictures"] is not None:
        console.print(f"  no pictures: {document['without_pictures']}", markup=False, highlight=False)


def _dealt(cells: Sequence[Cell], group: Group) -> list[Cell]:
    """Return the cells that this process runs.

    Round by round another process comes first: with as many methods as processes none has always the slowest.
    """
    return [cell for n, cell in enumerate(cells) if (n + n // group.size) % group.size == group.rank]


def check_expected(out: Path, documents: Sequence[dict[str, Any]]) -> None:
    """Raise RunError if a run of a finished comparison has failed by a fault of the program.

    Runs that were out of memory, or that their data or settings stopped, are rows like all others.
    """
    faulty = [Cell(**document["cell"]) for document in documents if document.get("unexpected")]
    if faulty:
        raise RunError(
            f"{out}: {len(faulty)} of {len(documents)} runs failed unexpectedly: "
            f"{listed([cell.name for cell in faulty], len(faulty))}. Where it happened is in {faulty[0].traceback(out)}"
            f"{' and beside it' if len(faulty) > 1 else ''}. Run them again with --retry."
        )


def _check(methods: Sequence[str], shots: Sequence[int], seeds: int, test_cases: int | None) -> None:
    for name in methods:
        method_named(name)
    tested = [1 if test_cases is None else test_cases]
    for flag, numbers in (("--shots", list(shots)), ("--seeds", [seeds]), ("--test-cases", tested)):
        if not numbers or min(numbers) < 1:
            raise InputError(flag, expected="numbers of at least 1", found=str(numbers), do="Give larger numbers.")


def _check_out(out: Path) -> None:
    files.require_writable(out)
    if out.is_dir() and any(out.iterdir()) and not (out / CELLS).is_dir():
        raise InputError(
            out,
            expected="the folder of a comparison, or a new or empty one",
            found="a folder with other files",
            do="Choose another --out.",
        )


def _test_cases(dataset: Dataset, fold: int, most: int, wanted: int | None) -> int | None:
    """The number of cases to test on, which no run trains on; None where the dataset itself fixes them."""
    pool, settled_test = pool_and_test(dataset, fold)
    available = len(pool) - ((wanted or 1) if settled_test is None else 0)
    if most > available:
        raise InputError(
            "--shots",
            expected=f"at most {available}, so that enough cases are left to test on",
            found=str(most),
            do="Choose fewer shots.",
        )
    return wanted or (len(pool) - most if settled_test is None else None)


def settings_of(
    cell: Cell, shared: SharedSettings, methods: Sequence[str], test_cases: int | None, loaded: LoadedData
) -> Settings:
    """The settings of one run.

    Raises:
        InputError: they do not suit the method.
    """
    method, given = METHODS[cell.method], _given(shared, cell.method)
    drawn: dict[str, Any] = {"shots": cell.shots, "seed": cell.seed, "test_cases": test_cases}
    if cell.table == "published":
        kept = (*DATA_SETTINGS, "model", "random_weights", "steps")
        given = {name: value for name, value in given.items() if name in kept} | {"recipe": method.recipe}
    elif shared.image_size is None:
        first = Settings(**_given(shared, methods[0]) | {"budget": None}, method=methods[0], **drawn)
        facts = facts_of(loaded, split_of(loaded, first), choose_device(shared.device))
        given["image_size"] = resolve(first, facts).image_size
    settings = Settings(**given, method=cell.method, **drawn)
    find_weights(choose_model(settings))
    return settings


def _given(shared: SharedSettings, method: str) -> dict[str, Any]:
    """What the user has said, as far as it is for a method."""
    given = dataclasses.asdict(shared)
    return given if METHODS[method].trains_sam else given | {"model": None, "random_weights": None}


def _examples(loaded: LoadedData, split: Split) -> tuple[Item, ...]:
    """Choose items to show, before any result is known: those of the test cases that show most labels."""
    labels_of_cases = loaded.survey.labels_of_cases

    def rank(case: str) -> tuple[int, bytes]:
        return -len(labels_of_cases[case]), hashlib.sha256(os.fsencode(case)).digest()

    cases = sorted(split.test, key=rank)[:EXAMPLES]
    return tuple(next(item for item in loaded.dataset.items if item.case == case) for case in cases)


def _pictures(out: Path, items: Sequence[Item], methods: Sequence[str], shots: int) -> list[Example]:
    kept = {method: read_examples(out, Cell("equal", method, shots, 0)) for method in methods}
    kept = {method: examples for method, examples in kept.items() if len(examples) == len(items)}
    if not kept or not items:
        return []
    first = next(iter(kept.values()))
    return [
        Example(
            name=item.name,
            image=first[n]["image"],
            truth=first[n]["truth"],
            predictions={method: examples[n]["prediction"] for method, examples in kept.items()},
            spacing=(float(first[n]["spacing"][0]), float(first[n]["spacing"][1]))
            if first[n]["spacing"].size
            else None,
        )
        for n, item in enumerate(items)
    ]
