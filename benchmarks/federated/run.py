"""Does GaLore at each site with a mean of weights beat the mean of LoRA factors (arXiv 2410.23111)? On real images.

    python -m benchmarks.federated.run FOLDER_OF_DATASETS --runs RUNS --out benchmarks/federated

Every contender is simulated on every dataset with every seed: ``lite``, 4 sites, 10 rounds of 5 steps, 96 px. What
differential privacy costs is measured with the first seed alone. Rows are written as they are made, to ``rows.jsonl``
in RUNS; a row that is there is not made again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from benchmarks.machine import machine
from benchmarks.runs import parser_for
from medsaga import files
from medsaga.federated.options import Federation
from medsaga.federated.simulate import simulate
from medsaga.settings.options import Settings

DATASETS = {"hc18_fetal_us": 12, "kvasir_seg_polyp": 12, "spider_lumbar_mr": 5}
"""Dataset to the cases that a site tests on."""
SITES = 4
PAPERS_WAY = "medsaga, weights (the paper's way)"
CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    PAPERS_WAY: ("medsaga", {"exchange": "weights"}),
    "medsaga, shared basis": ("medsaga", {"exchange": "shared-basis"}),
    "samed, FedIT": ("samed", {"exchange": "weights"}),
    "samed, FFA-LoRA": ("samed", {"exchange": "ffa"}),
    "full, weights": ("full", {"exchange": "weights"}),
    "frozen, weights": ("frozen", {"exchange": "weights"}),
    "medsaga, each site alone": ("medsaga", {"exchange": "alone"}),
    "medsaga, all pooled": ("medsaga", {"exchange": "pooled"}),
}
"""Name to the method and what differs from the federation's defaults."""
PRIVATE: dict[str, tuple[str, dict[str, Any]]] = {
    "medsaga, weights, changes clipped to 1": ("medsaga", {"exchange": "weights", "clip": 1.0}),
    "medsaga, weights, clipped, noise 0.001": ("medsaga", {"exchange": "weights", "clip": 1.0, "noise": 0.001}),
    "medsaga, weights, clipped, noise 0.01": ("medsaga", {"exchange": "weights", "clip": 1.0, "noise": 0.01}),
}
"""The same for differential privacy."""
KEPT = ("dice_mean", "dice_worst", "bytes_per_round", "bytes_first_round", "peak_memory_bytes", "seconds")


def measure(data: Path, out: Path, contender: str, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """Simulate one contender on one dataset with one seed; the folder goes again."""
    method, way = (CONTENDERS | PRIVATE)[contender]
    settings = Settings(
        method=method,
        seed=seed,
        shots=options["shots"],
        test_cases=DATASETS[data.name],
        model=options["model"],
        random_weights=options["model"] == "tiny",
        image_size=options["image_size"],
    )
    federation = Federation(rounds=options["rounds"], local_steps=options["local_steps"], **way)
    shutil.rmtree(out, ignore_errors=True)
    result = simulate(data, out, settings, federation, sites=SITES, console=Console(quiet=True))
    shutil.rmtree(out)
    sites = {site["name"]: site["dice_mean"] for site in result["sites"]}
    return {**{name: result[name] for name in KEPT}, "dice_of_sites": sites}


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows that are there; a last one that a killed run left half-written does not count."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def table(rows: Sequence[dict[str, Any]], contenders: Iterable[str]) -> str:
    """Lay the means over the seeds out as Markdown: for each dataset Dice, mean over the sites / worst site."""
    datasets = sorted({row["dataset"] for row in rows})
    lines = ["| contender | " + " | ".join(datasets) + " | mean | MiB a round | peak MiB |"]
    lines.append("|---" * (len(datasets) + 4) + "|")
    for contender in contenders:
        own = [row for row in rows if row["contender"] == contender]
        of_datasets = [[row for row in own if row["dataset"] == dataset] for dataset in datasets]
        if not all(of_datasets):
            continue
        means = [
            [fmean(100 * row[f"dice_{kind}"] for row in of_one) for kind in ("mean", "worst")] for of_one in of_datasets
        ]
        means.append([fmean(values) for values in zip(*means, strict=True)])
        cells = [" / ".join(f"{value:.1f}" for value in values) for values in means]
        cells += [f"{fmean(row[name] for row in own) / 2**20:.1f}" for name in ("bytes_per_round", "peak_memory_bytes")]
        lines.append("| " + " | ".join([contender, *cells]) + " |")
    seeds = len({row["seed"] for row in rows})
    return (
        "\n".join(lines)
        + f"\n\nDice in points, mean over the {SITES} sites / worst site; {len(rows)} runs, {seeds} seed(s).\n"
    )


def both_tables(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out who is compared, and what privacy costs with the seed of which there is all."""
    compared = [row for row in rows if row["contender"] in CONTENDERS]
    private = [row for row in rows if row["contender"] in (PAPERS_WAY, *PRIVATE) and row["seed"] == 0]
    return table(compared, CONTENDERS) + "\n" + table(private, (PAPERS_WAY, *PRIVATE))


def main() -> None:
    """Do it."""
    parser = parser_for(__doc__, Path(__file__).parent)
    for name, default in (("seeds", 3), ("rounds", 10), ("local-steps", 5), ("shots", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", default=None)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--only", nargs="*", default=list(DATASETS), help="datasets")
    arguments = parser.parse_args()
    names = ("rounds", "local_steps", "shots", "model", "image_size")
    options = {name: getattr(arguments, name) for name in names}
    path = arguments.runs / "rows.jsonl"
    arguments.runs.mkdir(parents=True, exist_ok=True)
    rows = rows_of(path)
    files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    there = {(row["dataset"], row["contender"], row["seed"], json.dumps(row["options"])) for row in rows}
    for seed in range(arguments.seeds):
        for dataset in arguments.only:
            for contender in (*CONTENDERS, *(PRIVATE if seed == 0 else ())):
                if (dataset, contender, seed, json.dumps(options)) in there:
                    continue
                measured = measure(arguments.datasets / dataset, arguments.runs / "now", contender, seed, options)
                row = {"dataset": dataset, "contender": contender, "seed": seed, "options": options, **measured}
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                rows.append(row)
                print(f"{dataset}, {contender}, seed {seed}: {row['dice_mean']:.3f}, worst {row['dice_worst']:.3f}")
    wanted = [row for row in rows if row["options"] == options]
    files.write_json(arguments.out / "results.json", {"machine": machine(), "options": options, "runs": wanted})
    files.write_text(arguments.out / "results.md", both_tables(wanted))


if __name__ == "__main__":
    main()
