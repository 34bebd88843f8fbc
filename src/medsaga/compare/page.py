"""The page of a comparison: one HTML file for a researcher, beside the same tables as Markdown and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medsaga import files
from medsaga.colours import label_colours
from medsaga.compare import figures, settings, statistics, tables
from medsaga.compare.figures import Style
from medsaga.compare.statistics import Cell, Comparison, Row
from medsaga.evaluation import metrics, summary
from medsaga.prediction.overlay import GAP, Classes, Rgb, triptych
from medsaga.reports import html

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
    sections = [
        _section(name, statistics.cells_of(cells, name), labels, methods)
        for name in tables.TABLES
        if statistics.cells_of(cells, name)
    ]
    versions = dict(settings.machine(cells))
    page = html.page(
        "compare.html",
        title=html.text(title),
        subtitle=html.text(_subtitle(cells, methods)),
        cards=_cards(cells, labels, methods),
        sections="".join(sections) or '<p class="soft">No cell has been run.</p>',
        examples=_examples(examples, labels, methods),
        protocol="".join(f"<p>{html.text(note)}</p>" for note in tables.protocol_notes(cells)),
        machine=_machine(cells),
        notice=html.text(tables.NOTICE),
        version=html.text(f" {versions['versions.medsaga']}" if "versions.medsaga" in versions else ""),
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


def _cards(cells: Sequence[Cell], labels: Sequence[str], methods: Sequence[str]) -> str:
    """Return what the first table says at its largest number of shots."""
    table = next((name for name in tables.TABLES if statistics.cells_of(cells, name)), None)
    if table is None:
        return ""
    chosen = statistics.cells_of(cells, table)
    rows = _largest(statistics.rows(chosen, methods, labels))
    shots, heading = tables.shots_text(rows[0].shots), tables.TABLES[table][0].lower()
    entries: list[tuple[str, object, object]] = []
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
    return html.cards(entries)


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


def _section(table: str, cells: Sequence[Cell], labels: Sequence[str], methods: Sequence[str]) -> str:
    heading, explanation = tables.TABLES[table]
    rows = statistics.rows(cells, methods, labels)
    shown = figures.method_styles(methods)
    shots = statistics.all_shots(cells)
    pairs = [statistics.compare_methods(cells, methods, number) for number in shots]
    notes = " ".join([tables.PAIR_NOTE, *tables.few_cases_notes(cells, methods)])
    return "".join(
        [
            f'<section><h2>{html.text(heading)}</h2><p class="soft">{html.text(explanation)}</p>',
            "".join(f'<p class="bad">{html.text(note)}</p>' for note in tables.unequal_notes(table, cells) if note),
            _figures(rows, methods, table),
            f"<h3>All numbers</h3>{_table(rows, labels if len(labels) <= MOST_LABELS else [], shown)}",
            f"<h3>Dice per label</h3>{_label_table(rows, labels, shown)}" if len(labels) > MOST_LABELS else "",
            f'<p class="soft small">{html.text(f"{tables.ROW_NOTE} {tables.TIME_NOTE}")}</p>',
            f"<h3>Differences on the same cases</h3>{_against_first(pairs, shown)}",
            "".join(_matrix(one, shown) for one in pairs if one),
            f'<p class="soft small">{html.text(notes)}</p>',
            f"<h3>Settings</h3>{_settings(cells, methods)}</section>",
        ]
    )


def _figures(rows: Sequence[Row], methods: Sequence[str], table: str) -> str:
    largest = _largest(rows)
    shots = tables.shots_text(largest[0].shots)
    missing = [f"{row.method}, {row.problems[0].partition(':')[0]}" for row in largest if not row.dice]
    absent = f" Not shown: {'; '.join(missing)}." if missing else ""
    alike = "Vertical lines: 95 % t-intervals over seeds."
    bars = figures.memory_bars(largest, methods, f"{table}-memory")
    drawn = [
        (
            "Dice against the number of training cases",
            figures.dice_against_shots(rows, methods, f"{table}-shots"),
            alike,
        ),
        (
            f"Dice against memory, {shots}",
            figures.dice_against_memory(largest, methods, f"{table}-cost"),
            f"Up and to the left is better.{absent}",
        ),
    ]
    pictures = [
        f'<figure class="drawn"><figcaption><b>{html.text(name)}</b></figcaption>{svg}'
        f'<p class="soft small">{html.text(note)}</p></figure>'
        for name, svg, note in drawn
        if svg
    ]
    memory = (
        f'<figure class="drawn"><figcaption><b>What the peak memory is made of, {shots}</b></figcaption>'
        f"{html.legend(figures.memory_legend())}{bars}</figure>"
    )
    return f'<div class="pair">{"".join(pictures)}</div>{memory if bars else ""}'


def _table(rows: Sequence[Row], labels: Sequence[str], styles: Mapping[str, Style]) -> str:
    """Return the main table: by shots, then by method; what went wrong below the row that it happened to."""
    _, *headings, _ = tables.row_headings(labels, rows)
    head = html.cells("th", [html.text(heading) for heading in [*headings, "seeds"]])
    head += '<th class="time">s/step</th>'
    columns = len(headings) + 2
    lines = []
    for shots in sorted({row.shots for row in rows}):
        lines.append(f'<tr class="group"><th class="text" colspan="{columns}">{tables.shots_text(shots)}</th></tr>')
        here = [row for row in rows if row.shots == shots]
        best = max((row.dice.mean for row in here if row.dice), default=None)
        for row in here:
            _, _, dice, *middle, _ = (html.text(cell) for cell in tables.row_cells(row, labels))
            strong = row.dice is not None and row.dice.mean == best
            shown = [_named(row.method, styles), f"<b>{dice}</b>" if strong else dice, *middle]
            shown[2 + len(labels)] = _hd95(row)
            shown.append(f"{row.done}" if row.done == row.seeds else f'<b class="bad">{row.done} of {row.seeds}</b>')
            pace = html.text(tables.pace_cell(row))
            lines.append(f'<tr>{html.cells("td", shown)}<td class="time">{pace}</td></tr>')
            if row.problems:
                said = html.text(f"{row.method}: {'; '.join(row.problems)}")
                lines.append(f'<tr class="problem"><td class="text" colspan="{columns}">{said}</td></tr>')
    return html.table(head, lines)


def _label_table(rows: Sequence[Row], labels: Sequence[str], styles: Mapping[str, Style]) -> str:
    head = html.cells("th", ["method", *(html.text(label) for label in labels)])
    lines = []
    for shots in sorted({row.shots for row in rows}):
        group = f'<th class="text" colspan="{len(labels) + 1}">{tables.shots_text(shots)}</th>'
        lines.append(f'<tr class="group">{group}</tr>')
        for row in (row for row in rows if row.shots == shots):
            dices = [summary.dice_text(row.dice_of_label[label]) for label in labels]
            lines.append(f"<tr>{html.cells('td', [_named(row.method, styles), *dices])}</tr>")
    return html.table(head, lines)


def _hd95(row: Row) -> str:
    if row.hd95_unit == "mixed":
        return tables.hd95_cell(row)
    return f'{summary.hd95_text(row.hd95)}<span class="below">{tables.hd95_gap(row)}</span>'


def _named(method: str, styles: Mapping[str, Style]) -> str:
    return html.swatch(styles[method].colour) + html.text(method)


def _against_first(pairs: Sequence[Sequence[Comparison]], styles: Mapping[str, Style]) -> str:
    """Return every method against the first one, at every number of shots."""
    head = html.cells("th", ["pair", "difference [points]", "95 % CI", "p", "Holm p", "cases"])
    lines = []
    for of_shots in pairs:
        if not of_shots:
            continue
        group = tables.shots_text(of_shots[0].shots)
        lines.append(f'<tr class="group"><th class="text" colspan="6">{group}</th></tr>')
        for pair in of_shots:
            if pair.first != of_shots[0].first:
                continue
            _, _, difference, *others = (html.text(cell) for cell in tables.pair_cells(pair))
            names = f"{_named(pair.first, styles)} minus {_named(pair.second, styles)}"
            shown = f"<b>{difference}</b>" if _significant(pair) else difference
            lines.append(f"<tr>{html.cells('td', [names, shown, *others])}</tr>")
    return html.table(head, lines) if lines else '<p class="soft">There is only one method.</p>'


def _significant(pair: Comparison) -> bool:
    return pair.adjusted is not None and pair.adjusted < SIGNIFICANT


def _matrix(pairs: Sequence[Comparison], styles: Mapping[str, Style]) -> str:
    """Return all pairs of one number of shots: the row's Dice minus the column's, and Holm's p below it."""
    names = [pairs[0].first, *(pair.second for pair in pairs if pair.first == pairs[0].first)]
    by_names = {(pair.first, pair.second): pair for pair in pairs}
    lines = []
    for row in names:
        shown = [_named(row, styles)]
        for column in names:
            pair = by_names.get((row, column), by_names.get((column, row)))
            if pair is None or pair.difference is None:
                shown.append("" if row == column else "-")
                continue
            difference = tables.points(pair.difference if pair.first == row else -pair.difference)
            p = "too few cases" if pair.adjusted is None else f"p {tables.p_text(pair.adjusted)}"
            strong = f"<b>{difference}</b>" if _significant(pair) else difference
            shown.append(f'{strong}<span class="below">{html.text(p)}</span>')
        lines.append(f"<tr>{html.cells('td', shown)}</tr>")
    head = html.cells("th", ["row minus column [points]", *(html.text(name) for name in names)])
    title = f"All pairs, {tables.shots_text(pairs[0].shots)}"
    return f'<details class="matrix"><summary>{html.text(title)}</summary>{html.table(head, lines)}</details>'


def _settings(cells: Sequence[Cell], methods: Sequence[str]) -> str:
    equal, differing = settings.compare_settings(cells, methods)
    names = ["setting", *statistics.present(cells, methods)]
    head = html.cells("th", [html.text(name) for name in names])
    lines = [f"<tr>{html.cells('td', [html.text(value) for value in line])}</tr>" for line in differing]
    different = html.table(head, lines) if lines else '<p class="soft">No setting differs between the methods.</p>'
    summarised = f"Settings that are the same for all methods ({len(equal)})"
    return f"{different}<details><summary>{summarised}</summary>{html.listing(equal)}</details>"


def _machine(cells: Sequence[Cell]) -> str:
    several = settings.more_than_one_machine(cells)
    warning = '<p class="bad">Not all trainings ran on the same machine and versions: seconds do not compare.</p>'
    return html.listing(settings.machine(cells)) + (warning if several else "")


def _examples(examples: Sequence[Example], labels: Sequence[str], methods: Sequence[str]) -> str:
    if not examples:
        return ""
    legend = html.legend(list(zip(labels, label_colours(len(labels)), strict=True)))
    note = (
        "Below each segmentation its Dice in this picture, averaged over the labels that occur in it or in the truth."
    )
    blocks = [_example(one, methods) for one in examples]
    return f'<section><h2>Examples</h2>{legend}<p class="soft small">{note}</p>{"".join(blocks)}</section>'


def _example(one: Example, methods: Sequence[str]) -> str:
    """Return image, truth and all segmentations of one example, in lines of equal length."""
    image, truth, _ = _panels(one, one.truth)
    panels = [("image", image, ""), ("truth", truth, "")]
    for method in (method for method in methods if method in one.predictions):
        drawn = _panels(one, one.predictions[method])[2]
        panels.append((method, drawn, summary.dice_text(_dice(one.predictions[method], one.truth))))
    lines = -(-len(panels) // MOST_PANELS)
    columns = -(-len(panels) // lines)
    pictures = "".join(
        f'<div><img alt="{html.text(f"{one.name}: {name}")}" src="{html.png(drawn, WIDEST_PANEL)}">'
        f"<span>{html.text(name)} <b>{dice}</b></span></div>"
        for name, drawn, dice in panels
    )
    return (
        f"<figure><figcaption>{html.text(one.name)}</figcaption>"
        f'<div class="panels" style="grid-template-columns:repeat({columns}, 1fr)">{pictures}</div></figure>'
    )


def _panels(one: Example, labels: Classes) -> list[Rgb]:
    """Return the image, the truth on it and ``labels`` on it, in the proportions of the body."""
    drawn = triptych(one.image, one.truth, labels, spacing=one.spacing)
    width = (drawn.shape[1] - 2 * GAP) // 3
    return [drawn[:, start : start + width] for start in (0, width + GAP, 2 * (width + GAP))]


def _dice(prediction: Classes, truth: Classes) -> float | None:
    present = np.union1d(prediction, truth)
    scores = [metrics.dice(prediction == label, truth == label) for label in present if label != 0]
    return float(np.mean(scores)) if scores else None
