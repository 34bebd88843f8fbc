"""What the parts of a training step cost, as ratios within one process: loading, augmentation, micro-batches.

python -m benchmarks.step.run DATASET --out benchmarks/step
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

import medsaga
from benchmarks.runs import described
from medsaga import files
from medsaga.data.augment import AUGMENTATIONS
from medsaga.data.samples import batch_indices
from medsaga.methods import new_optimizer
from medsaga.runs.prepare import new_run
from medsaga.training.loss import Objective
from medsaga.training.scaling import LossScale
from medsaga.training.step import Batch, backward, update

ROUNDS = 12
MICRO_BATCHES = (4, 2, 1)


def seconds(work: Callable[[], Any]) -> float:
    """Time one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(data: Path, folder: Path) -> dict[str, Any]:
    """Time the parts in turn, round after round, and return medians and ratios to a step with the whole batch."""
    run = new_run(data, folder / "run", medsaga.Settings(shots=8), Console(quiet=True))
    settings = run.config.settings
    optimizer = new_optimizer(run.model.train(), settings)
    times: dict[str, list[float]] = {name: [] for name in ("load", "augment", *(f"step_{n}" for n in MICRO_BATCHES))}
    strength = AUGMENTATIONS[settings.augmentation]

    scale = LossScale()

    def one_step(batch: Batch, size: int) -> None:
        backward(
            run.model,
            batch,
            micro_batch_size=size,
            objective=Objective.of(settings),
            scale=scale,
        )
        update(optimizer, max_gradient_norm=settings.max_gradient_norm, scale=scale)

    for step in range(ROUNDS):
        indices = batch_indices(run.train, settings.seed, step, settings.batch_size)
        images, labels = run.train.batch(indices)
        batch = Batch(images, labels, settings.seed, step, strength)
        times["load"].append(seconds(partial(run.train.batch, indices)))
        times["augment"].append(seconds(partial(batch.part, slice(0, len(batch)), run.device)))
        for size in MICRO_BATCHES:
            times[f"step_{size}"].append(seconds(partial(one_step, batch, size)))
    optimizer.close()
    medians = {name: median(values[2:]) for name, values in times.items()}
    whole = medians[f"step_{settings.batch_size}"]
    return {
        "dataset": data.name,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rounds": ROUNDS - 2,
        "median_seconds": medians,
        "ratio_to_whole_step": {name: value / whole for name, value in medians.items()},
    }


def main() -> None:
    """Do it."""
    parser = described(__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments.dataset, Path(folder))
    files.write_json(arguments.out / "results.json", result)
    for name, ratio in result["ratio_to_whole_step"].items():
        print(f"{name}: {result['median_seconds'][name]:.3f} s, {ratio:.2f}")


if __name__ == "__main__":
    main()
