"""The figures of a comparison, as SVG for a page: Dice against shots and memory, and what the memory is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medsaga.colours import PALETTE
from medsaga.compare.settings import CATEGORIES
from medsaga.compare.statistics import Estimate, Row
from medsaga.reports.environment import MIB, NOT_MEASURED, bytes_text
from medsaga.reports.figures import INK, PAPER, drawing, svg

if TYPE_CHECKING:
    from markupsafe import Markup

# Yellow is missing: as a line on white paper it cannot be seen.
LINES = tuple(PALETTE[index] for index in (5, 3, 2, 0, 6, 1, 9, 8, 7))
MARKERS = "osD^vp<>h"
DASHES = ("-", "--", ":")
# Light fills after Paul Tol, unlike any method's colour: they stand for kinds of memory.
FILLS = ((119, 170, 221), (238, 136, 102), (68, 187, 153), (238, 221, 136), (255, 170, 187))
LABEL_HEIGHT = 0.062
"""Of a label of the figures, as a share of the axes' height."""
LETTER_WIDTH = 6.2
"""Of a name beside a point, in typographic points."""
LABEL_PLACES = {
    (9, 0): "left",
    (-9, 0): "right",
    (8, 10): "left",
    (8, -10): "left",
    (-8, 10): "right",
    (-8, -10): "right",
    (0, 14): "center",
    (0, -14): "center",
}
"""Where a name may stand, in typographic points from its point, and how it is aligned there; the first is preferred."""
WIDE_RANGE = 12.0
"""From this ratio of the largest to the smallest on, memory is drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Style:
    """How a method is drawn, in every figure: distinct with any colour vision and in grey."""

    colour: tuple[int, int, int]
    marker: str
    dash: str

    @property
    def hex(self) -> str:
        """The colour for matplotlib."""
        return "#{:02x}{:02x}{:02x}".format(*self.colour)


def method_styles(methods: Sequence[str]) -> dict[str, Style]:
    """Return the style of each method, from its place in the list."""
    return {
        method: Style(
            LINES[index % len(LINES)], MARKERS[index % len(MARKERS)], DASHES[index // len(LINES) % len(DASHES)]
        )
        for index, method in enumerate(methods)
    }


def dice_against_shots(rows: Sequence[Row], methods: Sequence[str], name: str) -> Markup | None:
    """Draw the mean Dice of each method against the number of training cases, with the intervals over seeds.

    With one number of shots there is nothing to draw.

    Args:
        rows: of one table.
        methods: all methods of the comparison; their order gives the colours.
        name: of the figure in the page.
    """
    styles = method_styles(methods)
    shots = sorted({row.shots for row in rows})
    if len(shots) < 2 or not any(row.dice for row in rows):
        return None
    with drawing():
        axes = _axes()
        ends = []
        for index, method in enumerate(methods):
            scored = [(row.shots, row.dice) for row in rows if row.method == method and row.dice]
            if not scored:
                continue
            # Side by side, or the intervals of methods that do alike would cover each other.
            places = [shot * 2 ** (0.035 * (index - (len(methods) - 1) / 2)) for shot, _ in scored]
            _draw(axes, places, [dice for _, dice in scored], styles[method])
            if scored[-1][0] == shots[-1]:
                ends.append((method, scored[-1][1].mean, places[-1]))
            else:
                # A line from here to the margin would look like data.
                end = (places[-1], scored[-1][1].mean)
                axes.annotate(method, end, (9, 0), textcoords="offset points", va="center", color=INK)
        axes.set_xscale("log", base=2)
        axes.set_xticks(shots, [str(shot) for shot in shots])
        axes.minorticks_off()
        low, high = _range(rows)
        axes.set(xlabel="training cases (shots)", ylabel="mean Dice", ylim=(low, high))
        axes.set_xlim(shots[0] * 2**-0.35, shots[-1] * 2**0.35)
        heights = spread([(mean - low) / (high - low) for _, mean, _ in ends], LABEL_HEIGHT)
        for (method, mean, place), height in zip(ends, heights, strict=True):
            axes.annotate(
                method,
                (place, mean),
                xytext=(1.03, height),
                textcoords="axes fraction",
                color=INK,
                va="center",
                arrowprops={"arrowstyle": "-", "color": styles[method].hex, "linewidth": 1, "shrinkA": 1, "shrinkB": 4},
            )
        return svg(axes.figure, name)


def dice_against_memory(rows: Sequence[Row], methods: Sequence[str], name: str) -> Markup | None:
    """Draw the mean Dice of each method against its peak memory, at one number of shots.

    Args:
        rows: of one table and one number of shots.
        methods: all methods of the comparison; their order gives the colours.
        name: of the figure in the page.
    """
    styles = method_styles(methods)
    points = [(row.method, row.peak_bytes / MIB, row.dice) for row in rows if row.dice and row.peak_bytes]
    if not points:
        return None
    sizes = [size for _, size, _ in points]
    with drawing():
        axes = _axes()
        for method, size, dice in points:
            _draw(axes, [size], [dice], styles[method])
        if max(sizes) > WIDE_RANGE * min(sizes):
            axes.set_xscale("log", base=2)
            ticks = 2.0 ** np.arange(math.floor(math.log2(min(sizes))), math.ceil(math.log2(max(sizes))) + 1)
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.set_xlim(min(sizes) / 1.4, max(sizes) * 1.4)
        else:
            axes.set_xlim(0, 1.12 * max(sizes))
        axes.set(xlabel="peak memory of a training step [MiB]", ylabel="mean Dice", ylim=_range(rows))
        _label_points(axes, points)
        return svg(axes.figure, name)


def memory_bars(rows: Sequence[Row], methods: Sequence[str], name: str) -> Markup | None:
    """Draw the parts of each method's peak memory as a bar, at one number of shots.

    Args:
        rows: of one table and one number of shots.
        methods: in the order of the bars.
        name: of the figure in the page.
    """
    by_method = {row.method: row for row in rows}
    shown = [method for method in methods if method in by_method]
    if not any(by_method[method].memory for method in shown):
        return None
    with drawing():
        axes = _axes((10, 0.9 + 0.42 * len(shown)))
        longest = max(row.peak_bytes or 0 for row in rows) / MIB
        for position, method in enumerate(shown):
            row, left = by_method[method], 0.0
            for category, fill in zip(CATEGORIES, FILLS, strict=True):
                width = row.memory.get(category, 0) / MIB
                axes.barh(position, width, 0.68, left, color=[c / 255 for c in fill], edgecolor=INK, linewidth=0.4)
                left += width
            said = bytes_text(row.peak_bytes) if row.peak_bytes else _reason(row)
            axes.text(left + 0.008 * longest, position, said, va="center", color=INK)
        axes.set_yticks(range(len(shown)), shown)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.12 * longest)
        axes.set_xlabel("MiB at the peak of a training step")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        return svg(axes.figure, name)


def memory_legend() -> list[tuple[str, tuple[int, int, int]]]:
    """Return the kinds of memory and their colours in `memory_bars`."""
    return list(zip(CATEGORIES, FILLS, strict=True))


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights apart, as little as a greedy pass can, until no two are closer than ``gap``; order is kept."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    moved = [heights[index] for index in order]
    for _ in range(200):
        for lower in range(len(moved) - 1):
            lack = gap - (moved[lower + 1] - moved[lower])
            if lack > 0:
                moved[lower] -= lack / 2
                moved[lower + 1] += lack / 2
    placed = [0.0] * len(heights)
    for index, height in zip(order, moved, strict=True):
        placed[index] = height
    return placed


def _axes(size: tuple[float, float] = (5.6, 4.0)) -> Any:
    from matplotlib.figure import Figure

    axes = Figure(figsize=size, layout="constrained").subplots()
    axes.grid(visible=True, color=INK, alpha=0.12)
    axes.set_axisbelow(True)
    return axes


def _draw(axes: Any, places: Sequence[float], estimates: Sequence[Estimate], style: Style) -> None:
    """Draw means with their intervals; a mean without interval is a point alone."""
    colour = style.hex
    for place, estimate in zip(places, estimates, strict=True):
        if estimate.interval:
            axes.plot([place, place], estimate.interval, color=colour, linewidth=1.6, alpha=0.6, solid_capstyle="butt")
    axes.plot(
        places,
        [estimate.mean for estimate in estimates],
        color=colour,
        marker=style.marker,
        markersize=7,
        markeredgecolor=PAPER,
        linestyle=style.dash,
        linewidth=1.8,
    )


def _range(rows: Sequence[Row]) -> tuple[float, float]:
    """Return the part of the Dice axis that holds every mean and interval, within 0 to 1."""
    values: list[float] = []
    for estimate in (row.dice for row in rows if row.dice):
        values += [estimate.mean, *(estimate.interval or ())]
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = max(0.02, 0.06 * (high - low))
    return max(0.0, low - margin), min(1.0, high + margin)


def _label_points(axes: Any, points: Sequence[tuple[str, float, Estimate]]) -> None:
    """Write each name beside its point, on the side where it covers the least of other names, points and intervals."""
    width, height = axes.figure.get_size_inches() * 72 * 0.85
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    log = axes.get_xscale() == "log"

    def across(size: float) -> float:
        share = math.log(size / left) / math.log(right / left) if log else (size - left) / (right - left)
        return share * width

    def up(dice: float) -> float:
        return (dice - low) / (high - low) * height

    taken: list[npt.NDArray[np.float64]] = []
    for _, size, dice in points:
        x, y = across(size), up(dice.mean)
        bottom, top = dice.interval or (dice.mean, dice.mean)
        taken += [np.array([x - 5, y - 5, x + 5, y + 5]), np.array([x - 2, up(bottom), x + 2, up(top)])]
    inside = np.array([0, 0, width, height])
    for name, size, dice in points:
        boxes = {}
        for (right_by, up_by), align in LABEL_PLACES.items():
            length = LETTER_WIDTH * len(name)
            start = across(size) + right_by - {"left": 0.0, "right": length, "center": length / 2}[align]
            middle = up(dice.mean) + up_by
            boxes[right_by, up_by] = np.array([start, middle - 6, start + length, middle + 6])
        cost = {
            place: sum(_overlap(box, other) for other in taken) - _overlap(box, inside) for place, box in boxes.items()
        }
        best = min(cost, key=lambda place: cost[place])
        taken.append(boxes[best])
        align = LABEL_PLACES[best]
        axes.annotate(name, (size, dice.mean), best, textcoords="offset points", ha=align, va="center", color=INK)


def _overlap(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Return the area that two boxes, ``(left, bottom, right, top)``, share."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    return float(np.prod(np.maximum(sides, 0)))


def _reason(row: Row) -> str:
    return row.problems[0].partition(":")[0] if row.problems else NOT_MEASURED
