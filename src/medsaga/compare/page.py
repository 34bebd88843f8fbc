"""The page of a comparison: one HTML file for a researcher, beside the same tables as Markdown and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medsaga import files
from medsaga.colours import label_colours
from medsaga.compare import figures, settings, statistics, tables
from medsaga.compare.figures import Style
from medsaga.compare.statistics import Cell, Comparison, Row
from medsaga.evaluation import metrics, summary
from medsaga.prediction.overlay import GAP, Classes, Rgb, triptych
from medsaga.reports.environment import Content, Span, Table, TableRow, render
from medsaga.reports.figures import png

WIDEST_PANEL = 400
MOST_PANELS = 5
"""Of a line: more would be too small to judge an outline."""
MOST_LABELS = 4
"""Of the main table: where there are more, they have a table of their own, and both fit the paper."""
SIGNIFICANT = 0.05


@dataclass(frozen=True, eq=False)
class Example:
    """One test image or slice, as every method segments it.

    Attributes:
        name: of the item.
        image: uint8, ``(channels, height, width)``.
        truth: class indices, uint8 ``(height, width)``; 0 is background.
        predictions: method to class indices, ``(height, width)``.
        spacing: height and width of a pixel in mm, where known.
    """

    name: str
    image: npt.NDArray[np.uint8]
    truth: Classes
    predictions: Mapping[str, Classes]
    spacing: tuple[float, float] | None


def write_pages(
    out: Path,
    *,
    title: str,
    labels: Sequence[str],
    methods: Sequence[str],
    cells: Sequence[Cell],
    examples: Sequence[Example],
) -> None:
    """Write ``results.md``, ``results.csv`` and ``index.html``, which loads nothing from anywhere.

    Args:
        out: folder.
        title: of the pages.
        labels: names of the classes without the background, in the order of their indices.
        methods: the order of rows and colours; every cell's method is among them. All are compared with the first.
        cells: documents of the trainings, done or not, in any order.
        examples: pictures, in the order in which they are shown.
    """
    files.write_text(out / "results.md", tables.write_markdown(title, labels, methods, cells))
    files.write_text(out / "results.csv", tables.write_csv(labels, methods, cells))
    chosen = {name: statistics.cells_of(cells, name) for name in tables.TABLES}
    page = render(
        "compare.html",
        title=title,
        subtitle=_subtitle(cells, methods),
        cards=_cards(cells, labels, methods),
        sections=[_section(name, of_table, labels, methods) for name, of_table in chosen.items() if of_table],
        kinds_of_memory=figures.memory_legend(),
        row_note=f"{tables.ROW_NOTE} {tables.TIME_NOTE}",
        labels=list(zip(labels, label_colours(len(labels)), strict=True)),
        examples=[_example(one, methods) for one in examples],
        protocols=tables.protocol_notes(cells),
        machine=settings.machine(cells),
        several_machines=settings.more_than_one_machine(cells),
        version=dict(settings.machine(cells)).get("versions.medsaga", ""),
    )
    files.write_text(out / "index.html", page)


def _subtitle(cells: Sequence[Cell], methods: Sequence[str]) -> str:
    """Say how large the comparison is, and which of it is missing."""
    done = len(statistics.results(cells))
    shots = ", ".join(map(str, statistics.all_shots(cells)))
    seeds = len({cell["cell"]["seed"] for cell in cells})
    absent = [method for method in methods if method not in statistics.present(cells, methods)]
    size = f"{len(methods)} methods, {shots or 'no'} shots, {seeds} seed{'s' * (seeds != 1)}"
    missing = f"; nothing was run of {', '.join(absent)}" if absent else ""
    return f"{size}: {done} of {len(cells)} trainings done{missing}"


def _cards(cells: Sequence[Cell], labels: Sequence[str], methods: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return what the first table says at its largest number of shots."""
    table = next((name for name in tables.TABLES if statistics.cells_of(cells, name)), None)
    if table is None:
        return []
    chosen = statistics.cells_of(cells, table)
    rows = _largest(statistics.rows(chosen, methods, labels))
    shots, heading = tables.shots_text(rows[0].shots), tables.TABLES[table][0].lower()
    entries: list[tuple[str, str, str]] = []
    scored = sorted((row for row in rows if row.dice), key=lambda row: -_mean_dice(row))
    if scored:
        origin = f"{tables.seeds_text(scored[0])}, {shots}, {heading}"
        entries.append(("Highest mean Dice", f"{scored[0].method} {_mean_dice(scored[0]):.3f}", origin))
    if len(scored) > 1:
        entries.append(("Next", f"{scored[1].method} {_mean_dice(scored[1]):.3f}", _verdict(chosen, methods, scored)))
    measured = [row for row in rows if row.peak_bytes]
    if measured:
        leanest = min(measured, key=lambda row: row.peak_bytes or 0)
        dice = f"mean Dice {_mean_dice(leanest):.3f}, {shots}" if leanest.dice else shots
        entries.append(("Least memory", f"{leanest.method} {tables.peak_cell(leanest)}", dice))
    tested = {item["case"] for result in statistics.results(chosen) for item in result["cases"]}
    protocols = sorted({result["metric_protocol"] for result in statistics.results(chosen)})
    entries.append(("Tested on", f"{len(tested)} cases", f"all seeds together, protocol {', '.join(protocols) or '-'}"))
    return entries


def _verdict(cells: Sequence[Cell], methods: Sequence[str], best: Sequence[Row]) -> str:
    """Say whether the two best differ on these cases."""
    two = {best[0].method, best[1].method}
    pairs = statistics.compare_methods(cells, methods, best[0].shots)
    pair = next(pair for pair in pairs if {pair.first, pair.second} == two)
    if pair.adjusted is None or pair.difference is None:
        return "too few cases to test the difference"
    seeds = "" if best[1].done == best[1].seeds else f"{tables.seeds_text(best[1])}; "
    return (
        f"{seeds}{abs(100 * pair.difference):.1f} points apart on the same cases, Holm p {tables.p_text(pair.adjusted)}"
    )


def _mean_dice(row: Row) -> float:
    assert row.dice is not None
    return row.dice.mean


def _largest(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the largest number of shots."""
    return [row for row in rows if row.shots == max(row.shots for row in rows)]


def _section(table: str, cells: Sequence[Cell], labels: Sequence[str], methods: Sequence[str]) -> dict[str, Any]:
    """Return what the page shows of one of the tables."""
    heading, explanation = tables.TABLES[table]
    rows = statistics.rows(cells, methods, labels)
    largest = _largest(rows)
    shown = figures.method_styles(methods)
    pairs = [statistics.compare_methods(cells, methods, shots) for shots in statistics.all_shots(cells)]
    equal, differing = settings.compare_settings(cells, methods)
    return {
        "heading": heading,
        "explanation": explanation,
        "warnings": [note for note in tables.unequal_notes(table, cells) if note],
        "shots": tables.shots_text(largest[0].shots),
        "dice_against_shots": figures.dice_against_shots(rows, methods, f"{table}-shots"),
        "dice_against_memory": figures.dice_against_memory(largest, methods, f"{table}-cost"),
        "not_shown": [f"{row.method}, {row.problems[0].partition(':')[0]}" for row in largest if not row.dice],
        "memory": figures.memory_bars(largest, methods, f"{table}-memory"),
        "numbers": _numbers(rows, labels if len(labels) <= MOST_LABELS else [], shown),
        "labels": _label_table(rows, labels, shown) if len(labels) > MOST_LABELS else None,
        "pairs": _against_first(pairs, shown),
        "matrices": [{"shots": tables.shots_text(one[0].shots), "table": _matrix(one, shown)} for one in pairs if one],
        "pair_note": " ".join([tables.PAIR_NOTE, *tables.few_cases_notes(cells, methods)]),
        "different": Table(["setting", *statistics.present(cells, methods)], [TableRow(line) for line in differing]),
        "equal": equal,
    }


def _numbers(rows: Sequence[Row], labels: Sequence[str], styles: Mapping[str, Style]) -> Table:
    """Return the main table: by shots, then by method; what went wrong below the row that it happened to."""
    _, *headings, _ = tables.row_headings(labels, rows)
    lines = []
    for shots, here in _by_shots(rows):
        lines.append(TableRow([shots], "group"))
        best = max((row.dice.mean for row in here if row.dice), default=None)
        for row in here:
            _, _, dice, *middle, _ = tables.row_cells(row, labels)
            strong = row.dice is not None and row.dice.mean == best
            shown: list[Content] = [_named(row.method, styles), Span(dice, strong=strong), *middle]
            shown[2 + len(labels)] = _hd95(row)
            complete = row.done == row.seeds
            shown.append(f"{row.done}" if complete else Span(f"{row.done} of {row.seeds}", "bad", strong=True))
            lines.append(TableRow([*shown, tables.pace_cell(row)]))
            if row.problems:
                lines.append(TableRow([f"{row.method}: {'; '.join(row.problems)}"], "problem"))
    return Table([*headings, "seeds", "s/step"], lines, timed=True)


def _label_table(rows: Sequence[Row], labels: Sequence[str], styles: Mapping[str, Style]) -> Table:
    lines = []
    for shots, here in _by_shots(rows):
        lines.append(TableRow([shots], "group"))
        for row in here:
            dices = [summary.dice_text(row.dice_of_label[label]) for label in labels]
            lines.append(TableRow([_named(row.method, styles), *dices]))
    return Table(["method", *labels], lines)


def _by_shots(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    numbers = sorted({row.shots for row in rows})
    return [(tables.shots_text(number), [row for row in rows if row.shots == number]) for number in numbers]


def _hd95(row: Row) -> Content:
    if row.hd95_unit == "mixed":
        return tables.hd95_cell(row)
    return [summary.hd95_text(row.hd95), Span(tables.hd95_gap(row), "below")]


def _named(method: str, styles: Mapping[str, Style]) -> Span:
    return Span(method, colour=styles[method].colour)


def _against_first(pairs: Sequence[Sequence[Comparison]], styles: Mapping[str, Style]) -> Table:
    """Return every method against the first one, at every number of shots."""
    lines = []
    for of_shots in filter(None, pairs):
        lines.append(TableRow([tables.shots_text(of_shots[0].shots)], "group"))
        for pair in (pair for pair in of_shots if pair.first == of_shots[0].first):
            _, _, difference, *others = tables.pair_cells(pair)
            names: Content = [_named(pair.first, styles), " minus ", _named(pair.second, styles)]
            lines.append(TableRow([names, Span(difference, strong=_significant(pair)), *others]))
    return Table(tables.PAIR_HEADINGS[1:], lines)


def _significant(pair: Comparison) -> bool:
    return pair.adjusted is not None and pair.adjusted < SIGNIFICANT


def _matrix(pairs: Sequence[Comparison], styles: Mapping[str, Style]) -> Table:
    """Return all pairs of one number of shots: the row's Dice minus the column's, and Holm's p below it."""
    names = [pairs[0].first, *(pair.second for pair in pairs if pair.first == pairs[0].first)]
    by_names = {(pair.first, pair.second): pair for pair in pairs}
    lines = []
    for row in names:
        shown: list[Content] = [_named(row, styles)]
        for column in names:
            pair = by_names.get((row, column), by_names.get((column, row)))
            if pair is None or pair.difference is None:
                shown.append("" if row == column else "-")
                continue
            difference = tables.points(pair.difference if pair.first == row else -pair.difference)
            p = "too few cases" if pair.adjusted is None else f"p {tables.p_text(pair.adjusted)}"
            shown.append([Span(difference, strong=_significant(pair)), Span(p, "below")])
        lines.append(TableRow(shown))
    return Table(["row minus column [points]", *names], lines)


def _example(one: Example, methods: Sequence[str]) -> dict[str, Any]:
    """Return image, truth and all segmentations of one example, in lines of equal length."""
    image, truth, _ = _panels(one, one.truth)
    panels = [("image", image, ""), ("truth", truth, "")]
    for method in (method for method in methods if method in one.predictions):
        drawn = _panels(one, one.predictions[method])[2]
        panels.append((method, drawn, summary.dice_text(_dice(one.predictions[method], one.truth))))
    lines = -(-len(panels) // MOST_PANELS)
    return {
        "name": one.name,
        "columns": -(-len(panels) // lines),
        "panels": [{"name": name, "address": png(drawn, WIDEST_PANEL), "dice": dice} for name, drawn, dice in panels],
    }


def _panels(one: Example, labels: Classes) -> list[Rgb]:
    """Return the image, the truth on it and ``labels`` on it, in the proportions of the body."""
    drawn = triptych(one.image, one.truth, labels, spacing=one.spacing)
    width = (drawn.shape[1] - 2 * GAP) // 3
    return [drawn[:, start : start + width] for start in (0, width + GAP, 2 * (width + GAP))]


def _dice(prediction: Classes, truth: Classes) -> float | None:
    present = np.union1d(prediction, truth)
    scores = [metrics.dice(prediction == label, truth == label) for label in present if label != 0]
    return float(np.mean(scores)) if scores else None
