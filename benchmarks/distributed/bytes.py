"""What a process sends in a step, counted by a wrapper around the sums, beside what DistributedDataParallel would send.

    python -m benchmarks.distributed.bytes --out benchmarks/distributed/bytes.json

The real training step runs on tensors that have sizes but no values. Counted is the payload: an all-reduce over n
processes sends and receives 2 (n - 1) / n times as much, whatever it carries. DistributedDataParallel's payload is
every gradient of the same model with all parameters trained, in the type of its weights. Refreshing the subspace adds
its sketches in one step of every twelve, as in a run of 250 steps; the table has the mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.runs import described
from medsaga import files
from medsaga.data.augment import AUGMENTATIONS
from medsaga.distributed.group import Group, packed
from medsaga.memory.meta import on_meta
from medsaga.methods import build_model, new_optimizer
from medsaga.models.precision import set_precision
from medsaga.planning.defaults import DeviceDefaults
from medsaga.planning.estimate import META
from medsaga.planning.resolve import Facts, resolve
from medsaga.planning.shapes import OncePerShape
from medsaga.settings.options import Precision, Settings
from medsaga.training.agreement import Agreement, travelling_type
from medsaga.training.loss import Objective
from medsaga.training.scaling import LossScale
from medsaga.training.step import Batch, accumulate, update

MODELS, RANKS, SIDES = ("vit_b", "vit_h"), (4, 16, 64), (224, 1024)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
CLASSES, REFRESH_EVERY = 9, 12
MESSAGES = 2 * 8 * (1 + 3 * CLASSES)
"""Bytes of the two small messages of a step: the sums of Dice and the loss, each with its flag."""


class Counting(Group):
    """A group of one that counts what would travel if there were others."""

    def __init__(self) -> None:
        self.payload = 0

    def add(self, tensors: Iterable[Tensor], narrow: torch.dtype | None = None) -> None:
        """Count, and leave the tensors as they are."""
        self.payload += sum(sent.nbytes for sent, _ in packed(list(tensors), narrow))


def payloads(model: str, rank: int, side: int, precision: Precision) -> dict[str, Any]:
    """Return the bytes of a step without and with sketches, of their mean, and of DistributedDataParallel's step."""
    asked = Settings(model=model, image_size=side, batch_size=1, rank=rank, refresh_every=2, random_weights=True)
    settings = resolve(asked, Facts(device=DeviceDefaults(precision, 32), classes=CLASSES, channels=3))
    counting = Counting()
    agreement = Agreement(counting, CLASSES, travelling_type(precision))
    steps: list[int] = []
    with META, on_meta(), OncePerShape():
        network = build_model(settings, classes=CLASSES, in_channels=3).train()
        set_precision(network, precision)
        optimizer = new_optimizer(network, settings)
        for step in range(3):  # the first also makes the bases
            counting.payload = 0
            images = torch.empty(1, 3, side, side, dtype=torch.uint8)
            labels = torch.empty(1, side, side, dtype=torch.uint8)
            accumulate(
                network,
                optimizer,
                Batch(images, labels, seed=0, step=step, strength=AUGMENTATIONS["none"]),
                micro_batch_size=1,
                objective=Objective.of(settings),
                scale=LossScale(),
                agreement=agreement,
            )
            update(optimizer, max_gradient_norm=1.0, scale=LossScale())
            steps.append(counting.payload + MESSAGES)
        # Every parameter has a gradient in the type of its weights; that of int8 weights is bfloat16.
        ddp = sum(weight.numel() * max(weight.itemsize, 2) for weight in network.parameters())
    sketched, plain = steps[1], steps[2]
    mean = round(plain + (sketched - plain) / REFRESH_EVERY)
    return {"plain": plain, "sketched": sketched, "mean": mean, "ddp": ddp, "times": round(ddp / mean, 2)}


def table(rows: list[dict[str, Any]]) -> str:
    """Lay the rows out as Markdown."""
    lines = [
        "| model | side | weights | rank | a step, MB | with sketches, MB | DDP, MB | times fewer |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        megabytes = " | ".join(f"{row[name] / 1e6:,.1f}" for name in ("mean", "sketched", "ddp"))
        where = f"{row['model']} | {row['side']} | {row['precision']} | {row['rank']}"
        lines.append(f"| {where} | {megabytes} | {row['times']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Count, print the table, and write the numbers."""
    parser = described(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    rows = [
        {"model": model, "side": side, "precision": precision, "rank": rank, **payloads(model, rank, side, precision)}
        for model in MODELS
        for side in SIDES
        for precision in PRECISIONS
        for rank in RANKS
    ]
    files.write_json(out, {"classes": CLASSES, "refresh_every": REFRESH_EVERY, "rows": rows})
    print(table(json.loads(out.read_text())["rows"]))


if __name__ == "__main__":
    main()
