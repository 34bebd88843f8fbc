"""What ``medsaga info`` says of a dataset."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from medsaga.data.dataset import raise_problems, read_dataset
from medsaga.data.items import overlap, warnings_of
from medsaga.data.labels import listed
from medsaga.data.survey import survey
from medsaga.data.types import Dataset, Item
from medsaga.errors import InputError
from medsaga.progress import counting

SHOWN_PROBLEMS = 20


def describe(data: Path, console: Console, *, binary: bool = False) -> tuple[dict[str, Any], tuple[InputError, ...]]:
    """Read a dataset whole, image by image, and describe it.

    Args:
        data: the folder.
        console: where progress is shown.
        binary: whether masks are read as background and foreground, whatever their values are.

    Returns:
        a JSON document with ``cases``, ``labels``, ``problems`` and more, and the problems as errors.

    Raises:
        InputError: there is no such folder.
    """
    dataset = read_dataset(data, binary=binary)
    if not data.exists():
        raise_problems(dataset.problems)
    found = survey(dataset, counting(console, "checking images"))
    problems = (*dataset.problems, *found.problems)
    warnings = [*dataset.warnings, *found.warnings]
    if not problems:
        warnings += [f"{item.name}: {text}" for item in dataset.items for text in warnings_of(item)]
    document = {
        "data": str(data),
        "layout": dataset.layout,
        "cases": [
            {"case": case, "images": [_image(item) for item in dataset.items_of((case,))]} for case in dataset.cases
        ],
        "channels": list(dataset.channels),
        "labels": dataset.labels,
        "test_cases": list(dataset.test),
        "value_range": dataset.value_range,
        "overlapping_structures": None if problems else _overlaps(dataset),
        "warnings": warnings,
        "problems": [str(problem) for problem in problems],
    }
    return document, problems


def info_table(document: dict[str, Any]) -> Table:
    """Lay the description out for people to read."""
    # Names may hold what rich takes for markup: cells are texts.
    table = Table(title=Text(document["data"]), show_header=False)

    def row(name: str, value: str) -> None:
        table.add_row(name, Text(value))

    images = [image for case in document["cases"] for image in case["images"]]
    shapes = Counter("x".join(map(str, image["shape"])) for image in images)
    spacings = Counter(_spacing(image["spacing_mm"]) for image in images)
    problems = document["problems"]
    row("layout", document["layout"])
    row("cases", str(len(document["cases"])))
    row("images", str(len(images)))
    row("channels", ", ".join(document["channels"]))
    row("labels", ", ".join(f"{value} {name}" for name, value in document["labels"].items()))
    row("shape", _most_common(shapes))
    row("spacing", _most_common(spacings))
    if document["test_cases"]:
        row("kept for the test", f"{len(document['test_cases'])} cases: {listed(document['test_cases'], 4)}")
    if document["value_range"] is not None:
        row("values", "{:g} to {:g}, by the layout".format(*document["value_range"]))
    overlaps = document["overlapping_structures"]
    if overlaps is not None:
        found = f"{overlaps['pixels']:,} pixels in {overlaps['images']} images; the label with the higher number wins"
        row("structures overlap", found if overlaps["pixels"] else "nowhere")
    warnings = document["warnings"]
    row("warnings", "none" if not warnings else f"{len(warnings)}")
    for warning in warnings[:SHOWN_PROBLEMS]:
        row("", warning)
    row("problems", "none" if not problems else f"{len(problems)}")
    for problem in problems[:SHOWN_PROBLEMS]:
        row("", problem)
    return table


def _overlaps(dataset: Dataset) -> dict[str, int] | None:
    """Count where binary masks of several structures overlap; None where masks are label maps."""
    items = [item for item in dataset.items if item.structures]
    counts = [overlap(item) for item in items]
    return {"images": sum(count > 0 for count in counts), "pixels": sum(counts)} if items else None


def _image(item: Item) -> dict[str, Any]:
    grid = item.header.grid
    return {
        "name": item.name,
        "shape": list(grid.shape),
        "spacing_mm": None if grid.spacing is None else [round(float(size), 6) for size in grid.spacing],
        "dtype": str(item.header.dtype),
    }


def _spacing(spacing: list[float] | None) -> str:
    return "unknown" if spacing is None else "x".join(f"{size:g}" for size in spacing) + " mm"


def _most_common(counted: Counter[str]) -> str:
    shown = [f"{value} ({count})" for value, count in counted.most_common(3)]
    return ", ".join(shown) + (f" and {len(counted) - 3} more" if len(counted) > 3 else "")
