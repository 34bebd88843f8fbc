"""Few labelled cases of five kinds of images: starter, random weights, U-Net from scratch.

    python -m benchmarks.starter.judge FOLDER_OF_DATASETS --runs RUNS

All settings are the defaults. The runs are those of ``benchmarks.compare.run``, with the same RUNS: what is there is
not repeated, and several can work side by side on other ``--sets``. What the last record has of the same version, and
this command has not made, stays in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.compare.run import RANDOM, SHOTS, arguments_for, measure
from benchmarks.machine import machine
from medsaga import files

CONTENDERS = {"medsaga": "starter", RANDOM: "random", "unet": "U-Net"}
UNSEEN = ("spider_lumbar_mr", "axondeepseg_sem")
"""Kinds of images that no pre-training here has ever seen."""
KEPT = ("dice_mean", "dice", "steps", "seconds_per_step", "peak_memory_bytes", "trainable_parameters")

Record = Mapping[str, Any]


def record_of(dataset: str, cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of a cell of a comparison."""
    place = cell["cell"]
    return {
        "dataset": dataset,
        "contender": CONTENDERS[place["method"]],
        "shots": place["shots"],
        "seed": place["seed"],
        "settings": {name: value for name, value in cell["settings"].items() if value is not None},
        **{name: cell["result"][name] for name in KEPT},
    }


def with_earlier(records: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Return records and those of a file of the same version that are of other runs, by dataset and contender."""
    earlier = files.read_json(path) if path.exists() else {"machine": {}, "runs": []}
    kept = earlier["runs"] if earlier["machine"].get("medsaga") == machine()["medsaga"] else []
    by_place = {_place(record): record for record in (*kept, *records)}
    return [by_place[place] for place in sorted(by_place)]


def _place(record: Record) -> tuple[int, ...]:
    which = (list(SHOTS).index(record["dataset"]), list(CONTENDERS.values()).index(record["contender"]))
    return (*which, record["shots"], record["seed"])


def table(records: Sequence[Record]) -> str:
    """Lay out the mean Dice over seeds, with the spread between them, then the means over datasets, as Markdown."""
    contenders = [name for name in CONTENDERS.values() if any(r["contender"] == name for r in records)]
    lines = [f"| dataset | shots | {' | '.join(contenders)} |", f"|---|---|{'---:|' * len(contenders)}"]
    sets = [name for name in SHOTS if any(r["dataset"] == name for r in records)]
    for dataset in sets:
        for shots in SHOTS[dataset]:
            found = [_scores(records, [(dataset, shots)], contender) for contender in contenders]
            lines.append(f"| {dataset} | {shots} | {' | '.join(map(_spread, found))} |")
    for heading, chosen in (("mean of all", tuple(SHOTS)), ("mean of kinds never taught", UNSEEN)):
        in_the_mean = means(records, chosen)
        for asked in map(str, next(iter(SHOTS.values()))):
            of = in_the_mean.get(asked, {})
            cells = (f"{of[name]:.3f}" if name in of else "not measured" for name in contenders)
            lines.append(f"| {heading} | {asked} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def means(records: Sequence[Record], sets: Sequence[str] = tuple(SHOTS)) -> dict[str, dict[str, float]]:
    """Return means over datasets of means over seeds, by the number of cases asked for and by contender.

    A contender that lacks a dataset has none.
    """
    found: dict[str, dict[str, float]] = {}
    for n, asked in enumerate(next(iter(SHOTS.values()))):
        for contender in CONTENDERS.values():
            of_sets = [_scores(records, [(name, SHOTS[name][n])], contender) for name in sets]
            if all(of_sets):
                found.setdefault(str(asked), {})[contender] = mean(map(mean, of_sets))
    return found


def _scores(records: Iterable[Record], places: Sequence[tuple[str, int]], contender: str) -> list[float]:
    return [r["dice_mean"] for r in records if (r["dataset"], r["shots"]) in places and r["contender"] == contender]


def _spread(scores: Sequence[float]) -> str:
    if not scores:
        return "not measured"
    spread = f" ± {stdev(scores):.3f}" if len(scores) > 1 else ""
    return f"{mean(scores):.3f}{spread} ({len(scores)})"


def main() -> None:
    """Do it."""
    given = arguments_for(__doc__, Path(__file__).parent, list(CONTENDERS))
    cells = measure(given)
    records = [record_of(name, cell) for name, of_set in cells.items() for cell in of_set if cell["status"] == "done"]
    records = with_earlier(records, given.out / "judgement.json")
    document = {"machine": machine(), "means": means(records), "runs": records}
    files.write_json(given.out / "judgement.json", document)
    files.write_text(given.out / "judgement.md", table(records))


if __name__ == "__main__":
    main()
