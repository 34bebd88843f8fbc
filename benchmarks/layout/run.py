"""Draw the rooms of the package and what imports what, from the code's own imports.

    PYTHONPATH=tests python -m benchmarks.layout.run

Writes ``docs/images/layout.png``: the lowest room at the bottom, an arrow from each room to those that it imports from.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch
from test_layout import GROUND, ROOMS, SOURCE, imports

from benchmarks.runs import described

OUT = Path(__file__).parents[2] / "docs" / "images" / "layout.png"
WHAT = {
    "memory": "counting the bytes of all tensors",
    "data": "formats, DICOM, layouts, splits, slices, samples",
    "settings": "what a user may choose; config.toml",
    "models": "encoders, decoder, k-class model, weights",
    "optim": "GaLore, AdamW, SGD",
    "distributed": "processes that train together",
    "methods": "which parameters train, and how",
    "deltas": "what a run has changed, as a small file",
    "training": "Trainer, step, loss, out-of-memory retry",
    "evaluation": "metrics, protocols, summary",
    "prediction": "Segmenter, files, postprocessing, measures",
    "planning": "memory estimate, budget, resolve",
    "reports": "pages and figures",
    "runs": "prepare, train, evaluate, continue",
    "compare": "grid of runs, statistics, page",
    "suggest": "which cases to annotate",
    "federated": "hospitals that train together, over Flower",
    "app": "the page in the browser",
    "cli": "one dataclass a verb",
}


def lines_of(room: str) -> int:
    """Return the lines of Python in a room."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (SOURCE / room).rglob("*.py"))


def main() -> None:
    """Do it."""
    described(__doc__).parse_args()
    figure, axes = plt.subplots(figsize=(9, 9.5))
    places = {room: number for number, room in enumerate(ROOMS)}
    for room, height in places.items():
        axes.text(0, height, f"{room}/", weight="bold", va="center", ha="right", fontsize=11)
        axes.text(0.15, height, f"{WHAT[room]} ({lines_of(room):,} lines)", va="center", fontsize=9)
    for (importer, imported), modules in imports().items():
        if importer not in places or imported not in places:
            continue
        high, low = places[importer], places[imported]
        axes.add_patch(
            FancyArrowPatch(
                (-1.6, high),
                (-1.6, low),
                connectionstyle=f"arc3,rad={0.25 + 0.02 * (high - low)}",
                arrowstyle="-|>",
                mutation_scale=8,
                linewidth=0.4 + 0.15 * len(modules),
                color="#4477aa" if high > low else "#cc3311",
                alpha=0.65,
            )
        )
    ground = ", ".join(GROUND)
    axes.text(0.15, -1, f"{ground}: used by all", va="center", fontsize=9, style="italic")
    axes.set(xlim=(-6.5, 4.2), ylim=(-1.6, len(ROOMS) - 0.4))
    axes.axis("off")
    figure.savefig(OUT, dpi=110, bbox_inches="tight")
    print(OUT)


if __name__ == "__main__":
    main()
