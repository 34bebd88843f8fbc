"""Which settings the methods of a comparison share and which they do not, and what it ran on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from medsaga.compare import statistics
from medsaga.compare.statistics import Cell
from medsaga.reports.environment import flat

CATEGORIES = ("weights", "gradients", "optimizer", "activations", "temporary")
"""What memory is counted as; the order in which it is shown."""
ALREADY_SHOWN = ("method", "shots", "seed")
"""Settings that make up the comparison: each row names them."""
EQUAL = (
    "image_size",
    "batch_size",
    "steps",
    "precision",
    "dice_weight",
    "dice_form",
    "loss_resolution",
    "augmentation",
)
"""Settings that a table of equal conditions promises to be equal, where the documents name them."""
ABSENT = "-"


def compare_settings(
    cells: Sequence[Cell], methods: Sequence[str]
) -> tuple[list[tuple[str, str]], list[tuple[str, ...]]]:
    """Divide the settings into those that are equal for all methods and those that are not.

    Methods are compared at the same number of shots and seed: a number of steps that grows with the shots alike for
    all is equal. Cells without settings, which failed before they were resolved, do not count.

    Returns:
        names and values of the equal ones, and for each other name the value of each of `statistics.present`'s
        methods; values that change with shots or seed stand in one text.
    """
    shown = statistics.present(cells, methods)
    values: dict[str, dict[tuple[int, int], dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    complete = [cell for cell in cells if cell["settings"] is not None]
    flattened = [dict(flat(cell["settings"])) for cell in complete]
    names = list(dict.fromkeys(name for document in flattened for name in document if name not in ALREADY_SHOWN))
    for cell, document in zip(complete, flattened, strict=True):
        place = cell["cell"]
        for name in names:
            values[name][place["shots"], place["seed"]][place["method"]] = _shown(document.get(name))
    equal: list[tuple[str, str]] = []
    differing: list[tuple[str, ...]] = []
    for name in names:
        at = [values[name][key] for key in sorted(values[name])]
        if all(len(set(of_method.values())) == 1 for of_method in at):
            equal.append((name, _joined(value for of_method in at for value in of_method.values())))
        else:
            texts = (_joined(of_method[method] for of_method in at if method in of_method) for method in shown)
            differing.append((name, *texts))
    return equal, differing


def unequal(cells: Sequence[Cell]) -> list[str]:
    """Return what the methods were promised to share, but do not: names of settings, and ``test cases``."""
    _, differing = compare_settings(cells, sorted({cell["cell"]["method"] for cell in cells}))
    tested: dict[tuple[int, int], set[tuple[str, ...]]] = defaultdict(set)
    for cell in cells:
        for result in statistics.results([cell]):
            names = sorted(item["name"] for item in result["cases"])
            tested[cell["cell"]["shots"], cell["cell"]["seed"]].add(tuple(names))
    names_of_differing = [name for name, *_ in differing if name in EQUAL]
    return names_of_differing + ["test cases"] * any(len(sets) > 1 for sets in tested.values())


def machine(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Return what the cells ran on, as names and values; where they differ, all values that occur."""
    documents = [dict(flat(cell.get("machine") or {})) for cell in cells]
    names = list(dict.fromkeys(name for document in documents for name in document))
    return [(name, _joined(sorted({_shown(d[name]) for d in documents if name in d}))) for name in names]


def more_than_one_machine(cells: Sequence[Cell]) -> bool:
    """Whether the cells' seconds were not all measured on the same machine."""
    return len({str(flat(cell.get("machine") or {})) for cell in cells}) > 1


def _shown(value: Any) -> str:
    return ABSENT if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _joined(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values)) or ABSENT
