"""The figures of a simulation's page: Dice against what travels, and the loss over the rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medsaga.compare.figures import Style, method_styles
from medsaga.reports.environment import MIB
from medsaga.reports.figures import INK, PAPER, drawing, svg

if TYPE_CHECKING:
    from markupsafe import Markup


def styles(names: Sequence[str]) -> dict[str, Style]:
    """Return how each experiment is drawn, in every figure and table."""
    return method_styles(names)


def dice_against_bytes(results: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Markup | None:
    """Draw the mean Dice over the sites, and that of the worst one, against the bytes of a round.

    Args:
        results: ``result.json`` by the name of the experiment, of those in which something travels.
        names: all experiments; their order gives the colours.
    """
    points = [
        (name, result["bytes_per_round"] / MIB, result["dice_worst"], result["dice_mean"])
        for name, result in results.items()
        if result["dice_mean"] is not None
    ]
    if len(points) < 2:
        return None
    style = styles(names)
    with drawing():
        axes = _axes()
        for name, size, worst, mean in points:
            colour = style[name].hex
            axes.plot([size, size], [worst, mean], color=colour, linewidth=1.6, alpha=0.6)
            how: dict[str, Any] = {"marker": style[name].marker, "markersize": 7, "markeredgecolor": PAPER}
            axes.plot([size], [mean], color=colour, linestyle="none", label=name, **how)
        axes.set_xscale("log")
        smallest, largest = min(size for _, size, _, _ in points), max(size for _, size, _, _ in points)
        axes.set_xlim(smallest / 1.6, largest * 1.6)
        ticks = [2.0**power for power in range(math.floor(math.log2(smallest)), math.ceil(math.log2(largest)) + 1)]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel="MiB in a round, both directions, all sites", ylabel="Dice: mean, and down to the worst site")
        axes.legend(frameon=False, fontsize=9)
        return svg(axes.figure, "bytes")


def losses(histories: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str]) -> Markup | None:
    """Draw the mean training loss of the sites over the rounds.

    Args:
        histories: of ``result.json``, by the name of the experiment, of those in which something travels.
        names: all experiments; their order gives the colours.
    """
    if not any(len(history) > 1 for history in histories.values()):
        return None
    style = styles(names)
    with drawing():
        axes = _axes()
        for name, history in histories.items():
            rounds = [entry["round"] for entry in history]
            means = [_mean_loss(entry) for entry in history]
            axes.plot(rounds, means, color=style[name].hex, linestyle=style[name].dash, linewidth=1.8, label=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="round", ylabel="training loss")
        axes.legend(frameon=False, fontsize=9)
        return svg(axes.figure, "loss")


def _mean_loss(entry: Mapping[str, Any]) -> float:
    """Return the mean over the sites that have one; NaN, which leaves a gap, where none has."""
    known = [site["loss"] for site in entry["sites"].values() if site["loss"] is not None]
    return math.fsum(known) / len(known) if known else math.nan


def _axes() -> Any:
    from matplotlib.figure import Figure

    axes = Figure(figsize=(5.6, 4.0), layout="constrained").subplots()
    axes.grid(visible=True, color=INK, alpha=0.12)
    axes.set_axisbelow(True)
    return axes
