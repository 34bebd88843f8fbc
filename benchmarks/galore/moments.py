"""What should become of Adam's moments when the basis changes? Kept, rotated as LDAdam does, or rotated as here.

Trains the same k-class SAM from random weights on the same phantom CT batches, with nothing but the moments'
treatment changed, and compares training losses. Run from the repository's root:

    python -m benchmarks.galore.moments --out benchmarks/galore/moments.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks.galore.sketch_quality import batches
from benchmarks.machine import machine
from benchmarks.runs import described
from medsaga.files import write_json
from medsaga.models.sam import build_sam
from medsaga.optim import GaLoreAdamW
from medsaga.optim.projection import project_back, rotate_moments
from medsaga.training.loss import segmentation_loss


def ldadam(
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    step: int,
    betas: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """The estimate of LDAdam (arXiv 2410.16103) as published, with its absolute value, for a seldom changed basis."""
    one, two = 1 - betas[0] ** step, 1 - betas[1] ** step
    moved = project_back(exp_avg, left, right)
    squares = [None if change is None else change.square() for change in (left, right)]
    variance = project_back(exp_avg_sq / two - (exp_avg / one).square(), *squares)
    return moved, two * (variance + (moved / one).square()).abs()


TREATMENTS = {"keep": rotate_moments, "LDAdam": ldadam, "rotate": rotate_moments}


def losses(args: argparse.Namespace, treatment: str, rank: int, seed: int) -> list[float]:
    """Train once; return the loss of every step."""
    torch.manual_seed(seed)
    stream = batches(args.side, args.batch, seed)
    model = build_sam(args.model, classes=14, image_size=args.side)
    matrices, _ = model.image_encoder.weight_matrices()
    inside = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in inside]
    optimizer = GaLoreAdamW(
        [{"params": matrices, "rank": rank, "lr": args.lr}, {"params": others, "lr": 1e-3}],
        refresh_every=args.every,
        moments="keep" if treatment == "keep" else "rotate",
    )
    path = []
    with mock.patch("medsaga.optim.galore.rotate_moments", TREATMENTS[treatment]):
        for _ in range(args.steps):
            images, labels = next(stream)
            if optimizer.needs_calibration():
                segmentation_loss(model(images), labels, dice_weight=0.8, resolution="logits").sum().backward()
                optimizer.calibrate()
            loss = segmentation_loss(model(images), labels, dice_weight=0.8, resolution="logits").sum()
            loss.backward()
            optimizer.clip_gradients(1.0)
            optimizer.step()
            optimizer.zero_grad()
            path.append(float(loss.detach()))
    return path


def main() -> None:
    """Train with every treatment, rank and seed, and write one JSON file."""
    parser = described(__doc__)
    parser.add_argument("--model", default="lite")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--every", type=int, default=15)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 32])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = []
    for rank in args.ranks:
        for treatment in TREATMENTS:
            paths = np.array([losses(args, treatment, rank, seed) for seed in range(args.seeds)])
            row = {
                "rank": rank,
                "moments": treatment,
                "loss_whole_run": [round(float(v), 4) for v in paths.mean(1)],
                "loss_last_quarter": [round(float(v), 4) for v in paths[:, -args.steps // 4 :].mean(1)],
            }
            print(row, flush=True)
            rows.append(row)
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    write_json(args.out, {"settings": settings, "machine": machine(), "results": rows})


if __name__ == "__main__":
    main()
