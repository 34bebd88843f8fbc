"""Train with and without unlabelled images, in several ways, on the same cases, and write a table of what came out.

    python -m benchmarks.unlabelled.run FOLDER_OF_DATASETS --runs RUNS --out benchmarks/unlabelled

All recipes of a screen share the steps before they begin: these are made once, and each goes on from there. Runs that
are in RUNS/rows.jsonl are not repeated.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.runs import parser_for
from benchmarks.unlabelled.recipes import Recipe
from benchmarks.unlabelled.scene import Scene, scene_of
from benchmarks.unlabelled.training import Training
from medsaga import files
from medsaga.models.base import SegmentationModel
from medsaga.settings.options import Settings

Row = dict[str, Any]
Case = tuple[str, int, int]
"""A dataset, the number of labelled cases, and the seed."""
CASES: tuple[Case, ...] = (
    ("kvasir_seg_polyp", 8, 0),
    ("dsb2018_nuclei", 4, 0),
    ("spider_lumbar_mr", 8, 0),
    ("hc18_fetal_us", 4, 0),
)
OF_THREE_SEEDS = tuple((dataset, shots, seed) for seed in range(3) for dataset, shots, _ in CASES)
SUPERVISED = "supervised"


@dataclass(frozen=True, kw_only=True)
class Screen:
    """Recipes that are compared with a supervised run of as many steps.

    Attributes:
        steps: of each run.
        longer: steps of supervised runs that are compared with it, too.
        cases: what is trained on.
        recipes: by name.
    """

    steps: int
    cases: Sequence[Case]
    recipes: Mapping[str, Recipe]
    longer: Sequence[int] = ()
    image_size: int = 96


SCREENS = (
    Screen(
        steps=120,
        cases=CASES,
        recipes={
            "FixMatch and CutMix": Recipe(weight=0.5),
            "mean teacher": Recipe(loss="soft", mix="none", keep=1.0, weight=0.5),
            "BCP": Recipe(mix="bcp", loss="ce_dice", weight=0.5),
            "two stages": Recipe(teacher="trained", loss="ce_dice", weight=0.5, flipped=True),
            "grey values": Recipe(greys=0.5, weight=0.0, start=0.0),
            "own statistics": Recipe(statistics=0.5, weight=0.0, start=0.0),
            "the true masks": Recipe(teacher="truth", loss="ce_dice", weight=1.0),
        },
    ),
    Screen(
        steps=240,
        cases=OF_THREE_SEEDS,
        recipes={"two stages": Recipe(teacher="trained", loss="ce_dice", weight=1.0, flipped=True, start=0.2)},
        longer=(720,),
    ),
)


def measure(screen: Screen, case: Case, data: Path, runs: Path, known: list[Row]) -> None:
    """Make the runs of a screen on one case that are not known yet, and write their rows."""
    dataset, shots, seed = case
    there = {row["recipe"] for row in known if is_of(row, screen, case)}
    missing = {name: recipe for name, recipe in screen.recipes.items() if name not in there}
    if not missing and SUPERVISED in there:
        return
    settings = Settings(
        model="lite", image_size=screen.image_size, steps=screen.steps, validation_cases=0, device="cpu"
    )
    scene = scene_of(data / dataset, runs / "cache", shots=shots, seed=seed, settings=settings)

    def note(name: str, run: Training) -> None:
        row = {
            **{"dataset": dataset, "shots": shots, "seed": seed, "steps": screen.steps, "recipe": name},
            **{"image_size": screen.image_size, **row_of(scene, run)},
        }
        with (runs / "rows.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")
        known.append(row)
        print(*case, screen.steps, name, row["dice"], flush=True)

    supervised, states = Training(scene, screen.steps), dict[int, Any]()
    for first in sorted({recipe.first_step(screen.steps) for recipe in missing.values()}):
        supervised.run(first)
        states[first] = supervised.state()
    supervised.run(screen.steps)
    if SUPERVISED not in there:
        note(SUPERVISED, supervised)
    teacher: SegmentationModel = supervised.model.eval()
    for name, recipe in missing.items():
        run = Training(scene, screen.steps, recipe, teacher)
        if first := recipe.first_step(screen.steps):
            run.load(states[first])
        run.run(screen.steps)
        note(name, run)
        run.optimizer.close()
    supervised.optimizer.close()


def row_of(scene: Scene, run: Training) -> Row:
    """Return what came out of a run; of pseudo-labels, in the first, the middle and the last 20 steps with them."""

    def shortened(values: list[float]) -> list[float]:
        middle = len(values) // 2
        return [round(fmean(part), 4) for part in (values[:20], values[middle - 10 : middle + 10], values[-20:])]

    return {
        "dice": round(scene.score(run.model)["dice_mean"], 4),
        "dice_of_averaged_weights": round(scene.score(run.averaged())["dice_mean"], 4),
        "cpu_seconds": round(run.seconds, 1),
        "unlabelled_images": len(scene.unlabelled),
        "tested_images": len(scene.tested),
        "settings": None if run.recipe is None else dataclasses.asdict(run.recipe),
        "pseudo_labels": {name: shortened(values) for name, values in run.notes.items() if values},
    }


def is_of(row: Row, screen: Screen, case: Case) -> bool:
    """Whether a row is of a screen and a case."""
    found = (row["dataset"], row["shots"], row["seed"], row["steps"], row["image_size"])
    return found == (*case, screen.steps, screen.image_size)


def table(screen: Screen, rows: list[Row]) -> str:
    """Lay a screen out as Markdown: Dice of the supervised runs, and what the recipes differ from it, in points.

    A cell is the mean over the seeds, with the lowest and the highest where there are several.
    """
    found = {(row["recipe"], case): row["dice"] for case in screen.cases for row in rows if is_of(row, screen, case)}
    for steps in screen.longer:
        found |= {
            (f"{SUPERVISED}, {steps} steps", case): row["dice"]
            for case in screen.cases
            for row in rows
            if is_of(row, supervised_of(screen, steps), case) and row["recipe"] == SUPERVISED
        }
    places = list(dict.fromkeys((dataset, shots) for dataset, shots, _ in screen.cases))
    lines = [
        "| " + " | ".join(["recipe", *(f"{name}, {shots}" for name, shots in places), "mean"]) + " |",
        "|---" * (len(places) + 2) + "|",
    ]
    for name in dict.fromkeys(recipe for recipe, _ in found):
        first = name == SUPERVISED
        cells = []
        for place in places:
            seeds = [case for case in screen.cases if case[:2] == place and (name, case) in found]
            cells.append([found[name, case] - (0 if first else found[SUPERVISED, case]) for case in seeds])
        shown = [_text(values, first) for values in cells]
        mean = _text([fmean(values) for values in cells], first, spread=False) if all(cells) else ""
        lines.append("| " + " | ".join([name, *shown, mean]) + " |")
    return "\n".join(lines) + "\n"


def _text(values: Sequence[float], is_dice: bool, spread: bool = True) -> str:
    if not values:
        return ""
    mean, low, high = (f"{v:.3f}" if is_dice else f"{100 * v:+.1f}" for v in (fmean(values), min(values), max(values)))
    return f"{mean} ({low} to {high})" if spread and len(values) > 1 else mean


def supervised_of(screen: Screen, steps: int) -> Screen:
    """Return the supervised runs of another number of steps on the cases of a screen."""
    return dataclasses.replace(screen, steps=steps, recipes={}, longer=())


def main() -> None:
    """Do it."""
    arguments = parser_for(__doc__, Path(__file__).parent).parse_args()
    torch.set_num_threads(1)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    record = arguments.runs / "rows.jsonl"
    rows = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    for screen in (each for one in SCREENS for each in (one, *(supervised_of(one, steps) for steps in one.longer))):
        for case in screen.cases:
            measure(screen, case, arguments.datasets, arguments.runs, rows)
    files.write_json(arguments.out / "results.json", {"machine": machine(), "runs": rows})
    done = [screen for screen in SCREENS if any(row["steps"] == screen.steps for row in rows)]
    tables = [f"{screen.steps} steps\n\n{table(screen, rows)}" for screen in done]
    files.write_text(arguments.out / "results.md", "\n".join(tables))
    print("\n".join(tables))


if __name__ == "__main__":
    main()
