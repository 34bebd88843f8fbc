"""What ``medsaga info`` says of a dataset."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from medsaga.data.dataset import check_items, read_dataset
from medsaga.data.types import Item
from medsaga.errors import InputError
from medsaga.progress import counting

SHOWN_PROBLEMS = 20


def describe(data: Path, console: Console) -> tuple[dict[str, Any], tuple[InputError, ...]]:
    """Read a dataset whole, image by image, and describe it.

    Returns:
        a JSON document with ``cases``, ``labels``, ``problems`` and more, and the problems as errors.

    Raises:
        InputError: the folder is no dataset at all.
    """
    dataset = read_dataset(data)
    problems = (*dataset.problems, *check_items(dataset, counting(console, "checking images")))
    document = {
        "data": str(data),
        "layout": dataset.layout,
        "cases": [
            {"case": case, "images": [_image(item) for item in dataset.items_of((case,))]} for case in dataset.cases
        ],
        "channels": list(dataset.channels),
        "labels": dataset.labels,
        "problems": [str(problem) for problem in problems],
    }
    return document, problems


def info_table(document: dict[str, Any]) -> Table:
    """Lay the description out for people to read."""
    table = Table(title=document["data"], show_header=False)
    images = [image for case in document["cases"] for image in case["images"]]
    shapes = Counter("x".join(map(str, image["shape"])) for image in images)
    spacings = Counter(_spacing(image["spacing_mm"]) for image in images)
    problems = document["problems"]
    table.add_row("layout", document["layout"])
    table.add_row("cases", str(len(document["cases"])))
    table.add_row("images", str(len(images)))
    table.add_row("channels", ", ".join(document["channels"]))
    table.add_row("labels", ", ".join(f"{value} {name}" for name, value in document["labels"].items()))
    table.add_row("shape", _most_common(shapes))
    table.add_row("spacing", _most_common(spacings))
    table.add_row("problems", "none" if not problems else f"{len(problems)}")
    for problem in problems[:SHOWN_PROBLEMS]:
        table.add_row("", Text(problem))
    return table


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
