"""The page of a federation: one experiment, or all of a simulation side by side, in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsaga import files, run_folder
from medsaga.evaluation.summary import dice_text
from medsaga.federated import figures
from medsaga.reports.environment import Content, Span, Table, TableRow, bytes_text, duration_text, flat, render

PAGE = "index.html"
DICE_NOTE = (
    "Of a site: the mean over labels of each label's mean over the site's own held-out images, the same in every "
    "row. Mean and worst are over the sites, each of which counts alike. alone: each site trained on its own cases, "
    "as many steps as in all rounds; pooled: one model trained on the cases of all sites, as many steps as one site "
    "makes."
)
COST_NOTE = (
    "Travels in a round: all messages in both directions and of all sites, counted as they were made; the mean over "
    "the rounds after the first. The first round has the common start, too. Peak memory: of one training step at one "
    "site."
)


@dataclass(frozen=True)
class Shown:
    """An experiment for the page.

    Attributes:
        name: of its folder.
        result: content of ``result.json``.
        manifest: content of ``manifest.json``.
    """

    name: str
    result: Mapping[str, Any]
    manifest: Mapping[str, Any]

    @property
    def travels(self) -> bool:
        """Whether anything is exchanged."""
        return bool(self.result["bytes_first_round"])


def experiments_in(out: Path) -> list[Path]:
    """Return the folders of all experiments of a simulation that are complete."""
    return [path.parent for path in sorted(out.glob(f"*/{run_folder.RESULT}")) if "sites" in files.read_json(path)]


def write_page(out: Path, experiments: Sequence[Path], *, title: str) -> None:
    """Write ``index.html`` of experiments that are complete; those with the highest Dice come first.

    Args:
        out: folder of the page.
        experiments: folders, at least one.
        title: of the page.
    """
    shown = [
        Shown(
            folder.resolve().name,
            files.read_json(folder / run_folder.RESULT),
            files.read_json(folder / run_folder.MANIFEST),
        )
        for folder in experiments
    ]
    shown.sort(key=lambda each: -(each.result["dice_mean"] or 0.0))
    names = [each.name for each in shown]
    first = shown[0]
    page = render(
        "federated.html",
        title=title,
        subtitle=_subtitle(shown),
        cards=_cards(shown),
        dice=_dice_table(shown),
        dice_note=DICE_NOTE,
        dice_against_bytes=figures.dice_against_bytes(
            {each.name: each.result for each in shown if each.travels}, names
        ),
        losses=figures.losses({each.name: each.result["history"] for each in shown if each.travels}, names),
        cost=_cost_table(shown),
        cost_note=COST_NOTE,
        troubles=_troubles(shown),
        sites=_site_table(first),
        experiments=[{"name": each.name, "settings": _settings(each)} for each in shown],
        machine=flat({name: first.manifest[name] for name in ("versions", "platform", "device", "seed")}),
        version=first.manifest["versions"].get("medsaga", ""),
    )
    files.write_text(out / PAGE, page)


def _subtitle(shown: Sequence[Shown]) -> str:
    result = shown[0].result
    rounds, steps = (result["federation"][name] for name in ("rounds", "local_steps"))
    sites, experiments = len(result["sites"]), _counted(len(shown), "experiment")
    return f"{sites} sites that share no images: {rounds} rounds of {steps} steps, {experiments}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _cards(shown: Sequence[Shown]) -> list[tuple[str, str, str]]:
    together = [each for each in shown if each.travels]
    best = (together or list(shown))[0]
    cards = [("Highest mean Dice" if together else "Mean Dice", dice_text(best.result["dice_mean"]), best.name)]
    worst = max(together or shown, key=lambda each: each.result["dice_worst"] or 0.0)
    cards.append(("Worst site at its best", dice_text(worst.result["dice_worst"]), worst.name))
    if together:
        least = min(together, key=lambda each: each.result["bytes_per_round"])
        cards.append(("Least travels in a round", bytes_text(least.result["bytes_per_round"]), least.name))
    leanest = min(shown, key=lambda each: each.result["peak_memory_bytes"])
    cards.append(("Least memory", bytes_text(leanest.result["peak_memory_bytes"]), leanest.name))
    return cards


def _dice_table(shown: Sequence[Shown]) -> Table:
    sites = [site["name"] for site in shown[0].result["sites"]]
    best = {site: _best(shown, site) for site in sites}
    lines = []
    for each in shown:
        by_site = {site["name"]: site["dice_mean"] for site in each.result["sites"]}
        cells: list[Content] = [_named(each, shown), Span(dice_text(each.result["dice_mean"]), strong=True)]
        cells.append(dice_text(each.result["dice_worst"]))
        cells += [
            Span(dice_text(by_site.get(site)), strong=by_site.get(site) is not None and by_site[site] == best[site])
            for site in sites
        ]
        lines.append(TableRow(cells))
    return Table(["experiment", "mean", "worst site", *sites], lines)


def _best(shown: Sequence[Shown], name: str) -> float | None:
    values = [site["dice_mean"] for each in shown for site in each.result["sites"] if site["name"] == name]
    return max((value for value in values if value is not None), default=None)


def _cost_table(shown: Sequence[Shown]) -> Table:
    lines = []
    for each in shown:
        result = each.result
        cells: list[Content] = [
            _named(each, shown),
            bytes_text(result["bytes_per_round"]) if each.travels else "nothing",
            bytes_text(result["bytes_first_round"]) if each.travels else "nothing",
            bytes_text(result["peak_memory_bytes"]),
            f"{result['epsilon']:.2f}" if "epsilon" in result else "-",
            duration_text(result["seconds"]),
        ]
        lines.append(TableRow(cells))
    head = ["experiment", "travels in a round", "in the first round", "peak memory", "epsilon", "time"]
    return Table(head, lines, timed=True)


def _site_table(first: Shown) -> Table:
    lines = [
        TableRow([site["name"], str(site["cases_trained_on"]), str(site["cases"])]) for site in first.result["sites"]
    ]
    return Table(["site", "cases trained on", "cases tested on"], lines)


def _troubles(shown: Sequence[Shown]) -> list[str]:
    lines = []
    for each in shown:
        lines += [f"{each.name}: {site} was not tested: {why}" for site, why in each.result.get("untested", {}).items()]
        for entry in each.result["history"]:
            lines += [f"{each.name}, round {entry['round']}: {site} was missing" for site in entry["missing"]]
            lines += [
                f"{each.name}, round {entry['round']}: {site} was refused: {why}"
                for site, why in entry["refused"].items()
            ]
    return lines


def _settings(each: Shown) -> list[tuple[str, Any]]:
    requested = each.manifest["requested"]
    return flat({"federation": requested["federation"], "settings": requested["settings"]})


def _named(each: Shown, shown: Sequence[Shown]) -> Span:
    return Span(each.name, colour=figures.styles([one.name for one in shown])[each.name].colour)
