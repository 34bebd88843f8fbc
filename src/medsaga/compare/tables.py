"""The tables of a comparison as text: Markdown, CSV and a terminal's, and the words that the page uses too."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from medsaga.compare import settings, statistics
from medsaga.compare.statistics import Cell, Comparison, Row
from medsaga.evaluation import summary
from medsaga.evaluation.protocols import PROTOCOL_NOTES
from medsaga.reports.environment import NOTICE, bytes_text, count_text, duration_text, unicode_text

TABLES = {
    "equal": (
        "Equal conditions",
        "Every method with the same cases, image size, batch, steps, precision and loss: what differs is the method.",
    ),
    "published": (
        "Published recipes",
        "Each method by the recipe of its own publication: the recipes differ too, so a difference is not the method's "
        "alone. Not to be mixed with the table of equal conditions.",
    ),
}
"""Title and explanation of each table, in their order."""
ROW_NOTE = (
    "Dice: mean over labels, test cases and seeds, with the 95 % t-interval over the seeds, each of which draws other "
    "training cases; what a method rightly finds nothing of does not count for it. Per label: the mean over cases and "
    "seeds. HD95: the mean where it is defined, and in how many of the scored labels of single images it is not, "
    "because the method missed or invented the label: read it together with Dice. Peak memory: of one training step, "
    "the largest over the seeds. Projected: trained parameters whose gradients are projected to a low rank."
)
PAIR_NOTE = (
    "Unit: one test case, its Dice averaged over labels, images and the seeds in which both methods were tested on it. "
    "Where nothing is to be found in a case and one of the two finds something all the same, the other has a Dice of 1 "
    "there; where neither does, the case does not count. "
    "Difference in Dice points (1 point = 0.01) with the 95 % bootstrap interval over the cases; p: two-sided Wilcoxon "
    "signed-rank test; Holm p: adjusted over all pairs of this number of shots. This tests the difference on these "
    "cases by these trainings; it does not say how another training would come out. For that, see the intervals over "
    "seeds."
)
TIME_NOTE = (
    "Seconds depend on the machine and on what else it did. No other number depends on how often the comparison was "
    "interrupted."
)


def write_markdown(title: str, labels: Sequence[str], methods: Sequence[str], cells: Sequence[Cell]) -> str:
    """Return all tables in Markdown. The seconds have a section of their own at the end, ``## Time``."""
    lines = [f"# {_plain(title)}", "", NOTICE]
    times = []
    for table, (heading, explanation) in TABLES.items():
        chosen = statistics.cells_of(cells, table)
        if not chosen:
            continue
        rows = statistics.rows(chosen, methods, labels)
        lines += ["", f"## {heading}", "", explanation, "", *unequal_notes(table, chosen)]
        lines += _markdown(row_headings(labels, rows), [row_cells(row, labels) for row in rows])
        lines += ["", ROW_NOTE, "", f"### Paired differences, {heading.lower()}", ""]
        pairs = [
            p for shots in statistics.all_shots(chosen) for p in statistics.compare_methods(chosen, methods, shots)
        ]
        lines += _markdown(PAIR_HEADINGS, [pair_cells(pair) for pair in pairs])
        lines += ["", " ".join([PAIR_NOTE, *few_cases_notes(chosen, methods)])]
        lines += ["", f"### Settings, {heading.lower()}", "", *_settings(chosen, methods)]
        times += ["", f"### {heading}", "", *_markdown(TIME_HEADINGS, [time_cells(row) for row in rows])]
    lines += ["", "## Metrics", "", *(_plain(note) for note in protocol_notes(cells))]
    lines += ["", "## Machine", "", *_markdown(("what", "value"), settings.machine(cells))]
    lines += ["", "## Time", "", TIME_NOTE, *times]
    return unicode_text("\n".join(lines) + "\n")


def _settings(cells: Sequence[Cell], methods: Sequence[str]) -> list[str]:
    equal, differing = settings.compare_settings(cells, methods)
    shown = statistics.present(cells, methods)
    lines = ["Different:", "", *_markdown(("setting", *shown), differing)] if differing else ["None differs."]
    return [*lines, "", "The same for all:", "", *_markdown(("setting", "value"), equal)]


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    shown = ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in (head, *lines)]
    return [shown[0], "|---" * len(head) + "|", *shown[1:]]


def _plain(text: str) -> str:
    """Keep what a name holds from being read as Markdown's table or as HTML."""
    for sign, escaped in {"\\": "\\\\", "|": "\\|", "<": "&lt;", "\n": " "}.items():
        text = text.replace(sign, escaped)
    return text


def row_headings(labels: Sequence[str], rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the headings of `row_cells`."""
    units = sorted({row.hd95_unit for row in rows if row.hd95_unit})
    return (
        "shots",
        "method",
        "Dice [95 % CI]",
        *(f"Dice {label}" for label in labels),
        f"HD95 [{' or '.join(units)}]" if units else "HD95",
        "peak memory",
        "trained",
        "projected",
        "seeds",
    )


def row_cells(row: Row, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the cells of a row of the main table, without the seconds; the Dice of these labels."""
    return (
        str(row.shots),
        row.method,
        dice_cell(row),
        *(summary.dice_text(row.dice_of_label[label]) for label in labels),
        hd95_cell(row),
        peak_cell(row),
        _count(row.trainable),
        _count(row.projected),
        status_text(row),
    )


def dice_cell(row: Row) -> str:
    """Return the mean Dice with its interval over seeds."""
    if row.dice is None:
        return "-"
    spread = summary.interval_text(row.dice.interval) if row.dice.interval else "1 seed"
    return f"{row.dice.mean:.3f} [{spread}]"


def hd95_cell(row: Row) -> str:
    """Return the mean HD95, and in how many of the scored labels it is undefined."""
    if row.hd95_unit == "mixed":
        return "mixed units"
    undefined = hd95_gap(row)
    return summary.hd95_text(row.hd95) + (f" ({undefined})" if undefined else "")


def hd95_gap(row: Row) -> str:
    """Say in how many of the scored labels HD95 is undefined, if in any."""
    return f"{row.hd95_undefined} of {row.hd95_counted} undefined" if row.hd95_undefined else ""


def peak_cell(row: Row) -> str:
    """Return the largest peak of memory."""
    return "-" if row.peak_bytes is None else bytes_text(row.peak_bytes)


def _count(number: int | None) -> str:
    return "-" if number is None else count_text(number)


def seeds_text(row: Row) -> str:
    """Return how many seeds the row's numbers come from."""
    if row.done == row.seeds:
        return f"{row.seeds} seed{'s' * (row.seeds != 1)}"
    return f"{row.done} of {row.seeds} seeds"


def status_text(row: Row) -> str:
    """Return how many seeds the row's numbers come from, and what happened to the others."""
    return "; ".join([seeds_text(row), *row.problems])


TIME_HEADINGS = ("shots", "method", "s/step (median)", "one training and its test (median)")


def time_cells(row: Row) -> tuple[str, ...]:
    """Return the cells that depend on the machine."""
    whole = "-" if row.seconds is None else duration_text(row.seconds)
    return str(row.shots), row.method, pace_cell(row), whole


def pace_cell(row: Row) -> str:
    """Return the seconds of a step."""
    return "-" if row.seconds_per_step is None else f"{row.seconds_per_step:.3g}"


PAIR_HEADINGS = ("shots", "pair", "difference [points]", "95 % CI", "p", "Holm p", "cases")


def pair_cells(pair: Comparison) -> tuple[str, ...]:
    """Return the cells of a paired comparison."""
    low_high = f"{points(pair.interval[0])} to {points(pair.interval[1])}" if pair.interval else "-"
    p = "too few cases" if pair.p is None else p_text(pair.p)
    adjusted = "-" if pair.adjusted is None else p_text(pair.adjusted)
    names = f"{pair.first} minus {pair.second}"
    return str(pair.shots), names, points(pair.difference), low_high, p, adjusted, str(pair.cases)


def points(difference: float | None) -> str:
    """Return a difference of Dice scores in points, with its sign."""
    if difference is None:
        return "-"
    shown = f"{100 * difference:+.1f}"
    return "0.0" if float(shown) == 0 else shown.replace("-", "\u2212")


def p_text(p: float) -> str:
    """Return a p value for reading."""
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def few_cases_notes(cells: Sequence[Cell], methods: Sequence[str]) -> list[str]:
    """Say where there are too few cases for any difference to be significant."""
    notes = []
    for shots in statistics.all_shots(cells):
        pairs = statistics.compare_methods(cells, methods, shots)
        smallest = statistics.smallest_adjusted_p(pairs)
        if smallest is not None and smallest > 0.05:
            cases = max(pair.cases for pair in pairs)
            notes.append(
                f"At {shots_text(shots)}, {cases} cases are too few for {len(pairs)} pairs: whatever the differences, "
                f"no Holm p falls below {p_text(smallest)}."
            )
    return notes


def shots_text(shots: int) -> str:
    """Return a number of training cases for reading."""
    return f"{shots} shot{'s' * (shots != 1)}"


def unequal_notes(table: str, cells: Sequence[Cell]) -> list[str]:
    """Say what is not equal in a table of equal conditions; each note ends a paragraph."""
    unequal = settings.unequal(cells) if table == "equal" else []
    return (
        [f"Not equal in these trainings: {', '.join(unequal)}. Read the differences with care.", ""] if unequal else []
    )


def protocol_notes(cells: Sequence[Cell]) -> list[str]:
    """Return what the metric protocols of the results mean."""
    protocols = sorted({result["metric_protocol"] for result in statistics.results(cells)})
    return [PROTOCOL_NOTES.get(name, f"Protocol {name}.") for name in protocols] or ["Nothing was scored."]


def write_csv(labels: Sequence[str], methods: Sequence[str], cells: Sequence[Cell]) -> str:
    """Return one line per cell, with its status; sizes in bytes, empty where nothing is known, seconds last."""
    order = {table: position for position, table in enumerate(TABLES)}
    places = [(order[c["cell"]["table"]], methods.index(c["cell"]["method"]), c) for c in cells]
    places.sort(key=lambda entry: (*entry[:2], entry[2]["cell"]["shots"], entry[2]["cell"]["seed"]))
    lines = [_csv_line(cell, labels) for *_, cell in places]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]) if lines else ["table"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return unicode_text(buffer.getvalue())


def _csv_line(cell: Cell, labels: Sequence[str]) -> dict[str, Any]:
    result: Mapping[str, Any] = cell["result"] or {}
    dice, hd95, memory = (result.get(name) or {} for name in ("dice", "hd95", "memory_breakdown"))
    undefined, scored = statistics.hd95_gaps([result] if result else [], labels)
    return {
        **{name: cell["cell"][name] for name in ("table", "method", "shots", "seed")},
        "status": cell["status"],
        "message": cell.get("message"),
        "dice_mean": result.get("dice_mean"),
        **{f"dice {label}": dice.get(label) for label in labels},
        "hd95_mean": result.get("hd95_mean"),
        **{f"hd95 {label}": hd95.get(label) for label in labels},
        "hd95_unit": result.get("hd95_unit"),
        "hd95_undefined": undefined if result else None,
        "labels_scored": scored if result else None,
        "cases_trained_on": result.get("cases_trained_on"),
        "cases_tested": len({item["case"] for item in result["cases"]}) if result else None,
        "metric_protocol": result.get("metric_protocol"),
        "peak_memory_bytes": result.get("peak_memory_bytes"),
        **{f"{category}_bytes": memory.get(category) for category in settings.CATEGORIES},
        "trainable_parameters": result.get("trainable_parameters"),
        "projected_parameters": result.get("projected_parameters"),
        "steps": result.get("steps"),
        "device": (cell.get("machine") or {}).get("device"),
        "seconds_per_step": result.get("seconds_per_step"),
        "seconds": cell.get("seconds"),
    }


def terminal_table(cells: Sequence[Cell], methods: Sequence[str]) -> Table:
    """Return what a comparison says in a terminal: a row per method and shots, a section per table and shots."""
    grid = Table(title="Comparison: Dice is the mean over seeds, with its 95 % interval")
    for heading in ("shots", "method", "Dice [95 % CI]", "peak memory", "s/step", "status"):
        grid.add_column(Text(heading), justify="left" if heading in ("method", "status") else "right", overflow="fold")
    for table, (heading, _) in TABLES.items():
        chosen = statistics.cells_of(cells, table)
        rows = statistics.rows(chosen, methods, [])
        if rows:
            grid.add_row("", Text(heading, style="bold"))
        for index, row in enumerate(rows):
            last = index + 1 == len(rows) or rows[index + 1].shots != row.shots
            # Text, because a message may look like rich's markup.
            shown = (str(row.shots), row.method, dice_cell(row), peak_cell(row), pace_cell(row), status_text(row))
            grid.add_row(*(Text(unicode_text(cell)) for cell in shown), end_section=last)
    return grid
