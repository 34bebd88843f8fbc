"""Few labelled cases of five kinds of images: the starter, by several methods, random weights, U-Net from scratch.

    python -m benchmarks.starter.judge FOLDER_OF_DATASETS --runs RUNS

All settings are the defaults. The runs are those of ``benchmarks.compare.run``, with the same RUNS: what is there is
not repeated, and several can work side by side on other ``--sets``. What the last record has of the same version, and
this command has not made, stays in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.compare.run import RANDOM, SHOTS, arguments_for, measure
from benchmarks.machine import machine
from medsaga import files

CONTENDERS = {
    "medsaga": "starter",
    RANDOM: "random",
    "samed": "samed",
    "full": "full",
    "frozen": "frozen",
    "unet": "U-Net",
    "daeformer": "daeformer",
}
"""What the methods of a comparison are called here. All but `random`, U-Net and DAE-Former begin with the starter."""
JUDGED = ("medsaga", RANDOM, "unet")
"""Those that are run unless ``--methods`` says otherwise."""
METHODS_FROM_STARTER = ("starter", "samed", "full", "frozen")
ASKED = tuple(str(shots) for shots in next(iter(SHOTS.values())))
"""Numbers of cases, as keys; of the axons 8 stands for 6."""
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
    """Lay out the mean Dice over seeds, with the spread between them, then means over datasets, as Markdown.

    A dagger stands where a run of it has another number of steps than the starter.
    """
    contenders = [CONTENDERS[name] for name in JUDGED if any(r["contender"] == CONTENDERS[name] for r in records)]
    lines = [f"| dataset | shots | {' | '.join(contenders)} |", f"|---|---|{'---:|' * len(contenders)}"]
    found, dagger = dice(records), daggers(records)
    for dataset in (name for name in SHOTS if name in found):
        for asked in ASKED:
            of = found[dataset].get(asked, {})
            cells = (_spread(list(of.get(name, {}).values())) + dagger(name, (dataset,), asked) for name in contenders)
            lines.append(f"| {dataset} | {SHOTS[dataset][ASKED.index(asked)]} | {' | '.join(cells)} |")
    for heading, chosen in (("mean of all", tuple(SHOTS)), ("mean of kinds never taught", UNSEEN)):
        for seed, in_the_mean in means(records, chosen).items():
            for asked, of_seed in in_the_mean.items():
                cells = (
                    f"{of_seed[name]:.3f}{dagger(name, chosen, asked, seed)}" if name in of_seed else "not measured"
                    for name in contenders
                )
                lines.append(f"| {heading}, seed {seed} | {asked} | {' | '.join(cells)} |")
    for asked, ahead in leads(records).items():
        cells = (
            f"{ahead[name]:+.3f}{dagger(name, tuple(SHOTS), asked)}" if name in ahead else "" for name in contenders
        )
        lines.append(f"| starter against it, same seeds, mean of all | {asked} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def table_of_methods(records: Sequence[Record]) -> str:
    """Lay out the Dice of seed 0 of the methods that begin with the starter, where there is another than the default.

    The means are those of the rows with the most cases that have all methods. Daggers are those of `table`.
    """
    found = dice(records)
    names = [name for name in METHODS_FROM_STARTER if any(record["contender"] == name for record in records)]
    dagger = daggers(records)
    places = [
        (dataset, asked)
        for dataset in (name for name in SHOTS if name in found)
        for asked, of in found[dataset].items()
        if any("0" in of.get(name, {}) for name in names[1:])
    ]
    scores = {place: [found[place[0]][place[1]].get(name, {}).get("0") for name in names] for place in places}
    lines = [f"| dataset, seed 0 | shots | {' | '.join(names)} |", f"|---|---|{'---:|' * len(names)}"]
    for (dataset, asked), of in scores.items():
        cells = [
            "not measured" if score is None else f"{score:.3f}{dagger(name, (dataset,), asked, '0')}"
            for name, score in zip(names, of, strict=True)
        ]
        lines.append(f"| {dataset} | {SHOTS[dataset][ASKED.index(asked)]} | {' | '.join(cells)} |")
    complete = [place for place, of in scores.items() if place[1] == ASKED[-1] and None not in of]
    cells = [
        f"{mean(column):.3f}{'†' * any(dagger(name, (dataset,), asked, '0') for dataset, asked in complete)}"
        for name, column in zip(names, zip(*(scores[place] for place in complete), strict=True), strict=True)
    ]
    lines.append(f"| mean of {len(complete)} | {ASKED[-1]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def daggers(records: Sequence[Record]) -> Callable[..., str]:
    """Return what says whether some runs of a contender are marked: of datasets, a number of cases, and a seed or all.

    Marked are runs of other steps than the starter's.
    """
    uneven = of_other_steps(records)

    def dagger(contender: str, sets: Sequence[str], asked: str, seed: str | None = None) -> str:
        places = ((of, of_seed) for name, of, who, of_seed in uneven if name in sets and who == contender)
        return "†" * any(of == asked and seed in (None, of_seed) for of, of_seed in places)

    return dagger


def dice(records: Iterable[Record]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Return the mean Dice of runs by dataset, number of cases asked for, contender and seed."""
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for record in records:
        dataset, asked, contender, seed = _place_in_words(record)
        found.setdefault(dataset, {}).setdefault(asked, {}).setdefault(contender, {})[seed] = record["dice_mean"]
    return found


def of_other_steps(records: Iterable[Record]) -> set[tuple[str, str, str, str]]:
    """Return dataset, number of cases asked for, contender and seed of runs with other steps than the starter's."""
    starter = next(iter(CONTENDERS.values()))
    steps = {_place_in_words(record): record["steps"] for record in records}
    return {place for place, own in steps.items() if own != steps.get((*place[:2], starter, place[3]), own)}


def _place_in_words(record: Record) -> tuple[str, str, str, str]:
    asked = ASKED[SHOTS[record["dataset"]].index(record["shots"])]
    return record["dataset"], asked, record["contender"], str(record["seed"])


def means(records: Sequence[Record], sets: Sequence[str] = tuple(SHOTS)) -> dict[str, dict[str, dict[str, float]]]:
    """Return means over datasets, by seed, number of cases asked for and contender, which has none if it lacks one."""
    found = dice(records)
    result: dict[str, dict[str, dict[str, float]]] = {}
    for seed in sorted({str(record["seed"]) for record in records}):
        for asked in ASKED:
            for contender in CONTENDERS.values():
                of = [found.get(name, {}).get(asked, {}).get(contender, {}).get(seed) for name in sets]
                present = [each for each in of if each is not None]
                if len(present) == len(sets):
                    result.setdefault(seed, {}).setdefault(asked, {})[contender] = mean(present)
    return result


def leads(records: Sequence[Record], sets: Sequence[str] = tuple(SHOTS)) -> dict[str, dict[str, float]]:
    """Return by how much the starter is ahead, by the number of cases asked for and by contender.

    Seeds choose the test cases, too, so that runs are compared seed by seed: the mean over datasets of the mean over
    the seeds that both have. A contender that shares none of a dataset has no number.
    """
    starter, *others = CONTENDERS.values()
    found = dice(records)
    result: dict[str, dict[str, float]] = {}
    for asked in ASKED:
        for other in others:
            of_sets = []
            for name in sets:
                of = found.get(name, {}).get(asked, {})
                ours, theirs = of.get(starter, {}), of.get(other, {})
                of_sets.append([ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()])
            if all(of_sets):
                result.setdefault(asked, {})[other] = mean(map(mean, of_sets))
    return result


def _spread(scores: Sequence[float]) -> str:
    if not scores:
        return "not measured"
    spread = f" ± {stdev(scores):.3f}" if len(scores) > 1 else ""
    return f"{mean(scores):.3f}{spread} ({len(scores)})"


def document_of(records: Sequence[Record]) -> dict[str, Any]:
    """Return what is written: the runs, and what comes of them."""
    sums = {"dice": dice(records), "means": means(records), "leads": leads(records)}
    return {"machine": machine(), **sums, "runs": records}


def main() -> None:
    """Do it."""
    given = arguments_for(__doc__, Path(__file__).parent, JUDGED)
    cells = measure(given)
    records = [record_of(name, cell) for name, of_set in cells.items() for cell in of_set if cell["status"] == "done"]
    records = with_earlier(records, given.out / "judgement.json")
    files.write_json(given.out / "judgement.json", document_of(records))
    files.write_text(given.out / "judgement.md", table(records) + "\n" + table_of_methods(records))


if __name__ == "__main__":
    main()
