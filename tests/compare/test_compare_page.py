"""The pages of a comparison: what failed is shown, hostile names do no harm, and nothing is loaded."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from medsaga.compare import figures, settings, statistics
from medsaga.compare.page import Example, write_pages
from medsaga.compare.tables import points, terminal_table

pytestmark = pytest.mark.xdist_group("compare_page")

MIB = 2**20
METHODS = ["medsaga", "samed", "unet"]
LABELS = ["disc", "bar"]
EVIL = "<script>alert('x')</script>\"|<img src=http://evil.example/a.png onerror=x>$sections &amp; $x$"


class Page(HTMLParser):
    """Elements, text, ids and addresses of a page; fails on tags that do not match."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(source)
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "srcset")]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data + "\n"


def cell(method: str, shots: int, seed: int, *, table: str = "equal", labels: Sequence[str] = LABELS) -> dict[str, Any]:
    rng = np.random.default_rng([METHODS.index(method), shots, seed])
    items: list[dict[str, Any]] = []
    for number in range(7):
        dice = {label: float(rng.uniform(0.4, 0.6)) + 0.1 * (2 - METHODS.index(method)) for label in labels}
        hd95: dict[str, float | None] = dict.fromkeys(labels, 3.0)
        mean = sum(dice.values()) / len(dice)
        items.append({"name": f"i{number}", "case": f"c{number}", "dice": dice, "hd95": hd95, "dice_mean": mean})
    items[0]["hd95"][labels[0]] = None
    dice = {label: sum(item["dice"][label] for item in items) / len(items) for label in labels}
    return {
        "cell": {"table": table, "method": method, "shots": shots, "seed": seed},
        "status": "done",
        "message": None,
        "settings": {"method": method, "steps": 10 * shots, "rank": 64 if method == "medsaga" else None, "seed": seed},
        "machine": {"device": "cpu", "platform": "Linux", "versions": {"medsaga": "1.2.3"}, "threads": 1},
        "result": {
            "metric_protocol": "mm",
            "dice_mean": sum(dice.values()) / len(dice),
            "dice": dice,
            "hd95": dict.fromkeys(labels, 3.0),
            "hd95_mean": 3.0,
            "hd95_unit": "mm",
            "cases": items,
            "peak_memory_bytes": (300 + METHODS.index(method)) * MIB,
            "memory_breakdown": {"weights": 100 * MIB, "activations": (200 + METHODS.index(method)) * MIB},
            "seconds_per_step": 0.5 + seed,
            "trainable_parameters": 1234,
            "projected_parameters": None,
            "steps": 10 * shots,
            "cases_trained_on": shots,
        },
        "seconds": 60.0 * (1 + seed),
    }


def lost(method: str, shots: int, seed: int, status: str, message: str) -> dict[str, Any]:
    return {**cell(method, shots, seed), "status": status, "message": message, "result": None}


def grid() -> list[dict[str, Any]]:
    cells = [cell(method, shots, seed) for method in METHODS for shots in (1, 4) for seed in range(3)]
    cells[-1] = lost("unet", 4, 2, "out of memory", "needed 9 GiB | and\nmore")
    cells[0] = lost("medsaga", 1, 0, "failed", "loss is not finite")
    return cells


def pages(out: Path, **changes: Any) -> tuple[str, str, str]:
    arguments = {"title": "Comparison on toy", "labels": LABELS, "methods": METHODS, "cells": grid(), "examples": []}
    write_pages(out, **{**arguments, **changes})
    assert sorted(entry.name for entry in out.iterdir()) == ["index.html", "results.csv", "results.md"]
    index, markdown, table = ((out / name).read_text("utf-8") for name in ("index.html", "results.md", "results.csv"))
    return index, markdown, table


Pages = tuple[str, str, str]
"""HTML, Markdown and CSV."""


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    """The pages of `grid`."""
    return pages(tmp_path_factory.mktemp("usual"))


def example(name: str = "scan1") -> Example:
    truth = np.zeros((40, 60), np.uint8)
    truth[10:30, 10:30], truth[5:8, 40:50] = 1, 2
    predictions = {"medsaga": truth, "unet": np.zeros_like(truth)}
    return Example(name, np.full((1, 40, 60), 90, np.uint8), truth, predictions, (2.0, 1.0))


def test_what_failed_is_shown_everywhere(usual: Pages) -> None:
    index, markdown, table = usual
    text = " ".join(Page(index).text.split())
    assert "unet: 1 out of memory (seed 2): needed 9 GiB | and more" in text
    assert "medsaga: 1 failed (seed 0): loss is not finite" in text
    assert "16 of 18 trainings done" in text
    assert "| 2 of 3 seeds; 1 out of memory (seed 2): needed 9 GiB \\| and more |" in markdown
    assert "needed 9 GiB" in table
    console = Console(file=io.StringIO(), width=200)
    console.print(terminal_table(grid(), METHODS))
    assert isinstance(console.file, io.StringIO)
    assert "2 of 3 seeds; 1 out of memory (seed 2): needed 9 GiB | and more" in console.file.getvalue()


def test_the_numbers_are_those_of_the_cells(usual: Pages) -> None:
    index, markdown, _ = usual
    dices = [cell("samed", 4, seed)["result"]["dice_mean"] for seed in range(3)]
    low, high = (np.mean(dices) + sign * 4.302653 * np.std(dices, ddof=1) / np.sqrt(3) for sign in (-1, 1))
    shown = f"{np.mean(dices):.3f} [{low:.3f}–{high:.3f}]"
    line = next(line for line in markdown.splitlines() if line.startswith("| 4 | samed"))
    assert line.split(" | ")[2] == shown
    assert "3.00 (3 of 42 undefined)" in line
    assert "301 MiB" in line
    page = Page(index)
    assert shown in page.text
    assert "3 of 42 undefined" in page.text
    for expected in ("1.2.3", "Protocol mm", "Research software, not a medical device", "t-interval over the seeds"):
        assert expected in page.text
    assert "this tests the difference on these" in page.text.lower()


def test_the_csv_parses_back(tmp_path: Path) -> None:
    cells = grid()
    random.Random(0).shuffle(cells)
    lines = list(csv.DictReader(io.StringIO(pages(tmp_path, cells=cells)[2])))
    assert [(line["method"], line["shots"], line["seed"]) for line in lines] == [
        (method, shots, seed) for method in METHODS for shots in "14" for seed in "012"
    ]
    assert list(lines[0])[-2:] == ["seconds_per_step", "seconds"]
    assert (lines[0]["status"], lines[0]["message"], lines[0]["dice_mean"]) == ("failed", "loss is not finite", "")
    assert lines[-1]["message"] == "needed 9 GiB | and\nmore"
    expected = cell("medsaga", 1, 1)["result"]
    assert float(lines[1]["dice_mean"]) == expected["dice_mean"]
    assert float(lines[1]["dice bar"]) == expected["dice"]["bar"]
    assert int(lines[1]["peak_memory_bytes"]) == 300 * MIB
    assert (lines[1]["hd95_undefined"], lines[1]["labels_scored"], lines[1]["cases_tested"]) == ("1", "14", "7")


def test_only_the_seconds_depend_on_the_day(tmp_path: Path) -> None:
    """An interrupted comparison gives the same tables, whatever the order and the pace of its trainings."""
    again = grid()
    random.Random(1).shuffle(again)
    for one in again:
        one["seconds"] = 7.0 + one["seconds"]
        if one["result"]:
            one["result"]["seconds_per_step"] *= 3
    first, second = pages(tmp_path / "a"), pages(tmp_path / "b", cells=again)
    assert first[1].partition("## Time")[0] == second[1].partition("## Time")[0]
    assert first[1] != second[1]
    timeless = [[line.rsplit(",", 2)[0] for line in table.splitlines()] for *_, table in (first, second)]
    assert timeless[0] == timeless[1]
    figures_of = [page.partition("<figure")[2].rpartition("</figure>")[0] for page, *_ in (first, second)]
    assert figures_of[0] == figures_of[1]


def test_it_loads_nothing(tmp_path: Path) -> None:
    index, *_ = pages(tmp_path, examples=[example()], cells=[*grid(), cell("samed", 4, 0, table="published")])
    page = Page(index)
    assert page.tags.count("img") == 4
    assert page.tags.count("svg") == 5
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.loads)
    assert {address[1:] for address in page.loads if address[0] == "#"} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not any(word in index for word in ("http:", "https:", "@import"))


def test_figures_take_ink_and_paper_from_the_page(usual: Pages) -> None:
    drawn = "".join(part.partition("</svg>")[0] for part in usual[0].split("<svg")[1:])
    assert drawn.count("currentColor") > 20
    assert "var(--paper)" in drawn
    assert not any(colour in drawn for colour in ("#010203", "#fdfcfb", "#ffffff", "#000000"))


def test_names_from_files_do_no_harm(tmp_path: Path) -> None:
    labels = [EVIL, b"caf\xe9".decode("utf-8", "surrogateescape")]
    cells = [cell(method, 1, seed, labels=labels) for method in METHODS for seed in range(2)]
    cells[0] = lost("medsaga", 1, 0, "failed", EVIL)
    cells[1]["settings"][EVIL] = EVIL
    cells[1]["machine"]["platform"] = EVIL
    cells[1]["result"]["metric_protocol"] = EVIL
    for one in cells[1:]:
        one["result"]["cases"][0]["case"] = EVIL
    index, markdown, table = pages(tmp_path, title=EVIL, labels=labels, cells=cells, examples=[example(EVIL)])
    page = Page(index)
    assert not {"script"} & set(page.tags)
    assert page.tags.count("img") == 4
    assert page.text.count(EVIL) >= 7
    assert "caf?" in page.text
    assert "<script" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith(("| shots | method | Dice", "| 1 | "))]
    assert {line.replace("\\|", "").count("|") for line in rows[:4]} == {len(LABELS) + 9}
    parsed = list(csv.DictReader(io.StringIO(table)))
    assert parsed[0]["message"] == EVIL
    assert float(parsed[1][f"dice {EVIL}"]) > 0


def test_the_tables_are_named_and_apart(tmp_path: Path, usual: Pages) -> None:
    published = cell("unet", 4, 0, table="published")
    published["result"]["dice_mean"] = 0.123
    index, markdown, _ = pages(tmp_path, cells=[*grid(), published])
    equal, _, other = markdown.partition("## Published recipes")
    assert "0.123" not in equal
    assert "0.123 [1 seed]" in other
    assert "samed" not in other.partition("## Metrics")[0]
    assert "Published recipes" in Page(index).text
    assert "Published recipes" not in usual[0]


def test_what_was_to_be_equal_and_is_not_is_said(tmp_path: Path, usual: Pages) -> None:
    assert "Not equal in these trainings" not in "".join(usual)
    cells = grid()
    cells[-2]["settings"]["steps"] = 99
    cells[-2]["result"]["cases"] = cells[-2]["result"]["cases"][1:]
    index, markdown, _ = pages(tmp_path, cells=cells)
    for text in (index, markdown):
        assert "Not equal in these trainings: steps, test cases." in text


def test_settings_are_compared_at_the_same_shots_and_seed() -> None:
    equal, differing = settings.compare_settings(statistics.cells_of(grid(), "equal"), METHODS)
    assert ("steps", "10, 40") in equal
    assert differing == [("rank", "64", "-", "-")]


def test_few_cases_get_no_p(tmp_path: Path, usual: Pages) -> None:
    cells = [cell(method, 1, 0) for method in METHODS]
    for one in cells:
        one["result"]["cases"] = one["result"]["cases"][:5]
    assert "| too few cases | - | 5 |" in pages(tmp_path, cells=cells)[1]
    # Seven cases suffice for one pair, but not for three: 3 * 2 / 2**7 is below 0.05, 3 * 2 / 2**6 is not.
    assert "whatever the differences" not in usual[1]
    for one in cells:
        one["result"]["cases"] = cell(one["cell"]["method"], 1, 0)["result"]["cases"][:6]
    assert "no Holm p falls below 0.094" in pages(tmp_path, cells=cells)[1]


def test_the_matrix_is_antisymmetric(usual: Pages) -> None:
    matrix = usual[0].partition("All pairs, 4 shots")[2].partition("</details>")[0]
    cells = [row.split("<td>")[1:] for row in matrix.split("<tr>")[2:]]
    values = [[entry.replace("<b>", "").partition("<")[0] for entry in row] for row in cells]
    for row in range(3):
        assert values[row][row] == ""
        for column in range(row):
            assert float(values[row][column].replace("\u2212", "-")) == -float(
                values[column][row].replace("\u2212", "-")
            )
            assert values[row][column] != "0.0"


def test_examples_show_image_truth_and_each_method(tmp_path: Path, usual: Pages) -> None:
    index, *_ = pages(tmp_path, examples=[example()])
    text = " ".join(Page(index).text.split())
    assert "scan1 image truth medsaga 1.000 unet 0.000" in text
    assert "Examples" not in Page(usual[0]).text


@pytest.mark.parametrize("cells", [[], [lost(method, 4, 0, "failed", "no") for method in METHODS], grid()[1:2]])
def test_a_comparison_that_has_hardly_begun(tmp_path: Path, cells: list[dict[str, Any]]) -> None:
    index, *_ = pages(tmp_path, cells=cells)
    assert "trainings done" in Page(index).text
    assert terminal_table(cells, METHODS).row_count == (len(cells) + 1 if cells else 0)


def test_many_labels_have_a_table_of_their_own(tmp_path: Path, usual: Pages) -> None:
    labels = [f"organ {number}" for number in range(8)]
    cells = [cell(method, 1, 0, labels=labels) for method in METHODS]
    assert "Dice per label" in pages(tmp_path, labels=labels, cells=cells)[0]
    assert "Dice per label" not in usual[0]


def test_labels_of_curves_do_not_overlap_and_keep_their_order() -> None:
    heights = [0.5, 0.51, 0.9, 0.505, 0.1]
    placed = figures.spread(heights, 0.06)
    assert np.argsort(placed).tolist() == np.argsort(heights).tolist()
    assert np.diff(sorted(placed)).min() > 0.0599
    assert figures.spread([0.2, 0.8], 0.06) == [0.2, 0.8]


def test_methods_keep_their_style_and_differ() -> None:
    many = [f"m{number}" for number in range(12)]
    styles = figures.method_styles(many)
    assert len(set(styles.values())) == 12
    assert figures.method_styles(many[:3]) == {name: styles[name] for name in many[:3]}


def test_points_have_a_sign() -> None:
    assert [points(value) for value in (0.0123, -0.0123, 0.0, -0.0001, None)] == ["+1.2", "−1.2", "0.0", "0.0", "-"]


def test_every_kind_of_memory_is_shown() -> None:
    """The names are repeated so that the page needs no torch; they have to stay the same."""
    from medsaga.memory.tracker import CATEGORIES

    assert settings.CATEGORIES == CATEGORIES
    assert [name for name, _ in figures.memory_legend()] == list(CATEGORIES)
