"""How much of a gradient do the bases of GaLoreAdamW's sketches capture, beside those of an exact SVD?

Trains a k-class SAM from random weights on phantom CT slices with GaLoreAdamW, stops before some refreshes, and
measures the captured energy ||P^T G|| / ||G|| of several bases: on the gradient G they were made from, and on the
gradient of another batch, which is what the basis is for. Run from the repository's root:

    python -m benchmarks.galore.sketch_quality --out benchmarks/galore/sketch_quality_lite.json
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.machine import machine
from benchmarks.runs import described
from medsaga.data.phantom import phantom_ct
from medsaga.files import write_json
from medsaga.models.linear import give_factors, taker_of
from medsaga.models.sam import KClassSam, build_sam
from medsaga.optim import GaLoreAdamW
from medsaga.optim.projection import as_matrix, exact_bases, sketch_basis, sketch_matrix, sketch_width
from medsaga.training.loss import segmentation_loss

Basis = Callable[[Tensor, Tensor], Tensor]  # (gradient (m, n), guess (n, r)) -> basis (m, r)


def gaussian(columns: int, rank: int, generator: torch.Generator) -> Basis:
    """A one-pass sketch with Gaussian columns only (Halko, Martinsson and Tropp, 2011)."""
    return lambda gradient, guess: sketch_basis(
        gradient @ torch.randn(gradient.shape[1], min(columns, gradient.shape[1]), generator=generator), rank
    )


def guided(columns: int, weight: str, rank: int, generator: torch.Generator) -> Basis:
    """A one-pass sketch along the first moment's row space and Gaussian columns of two possible sizes."""

    def basis(gradient: Tensor, guess: Tensor) -> Tensor:
        known = torch.linalg.qr(guess)[0]
        fresh = torch.randn(gradient.shape[1], columns - rank, generator=generator)
        fresh = fresh - known @ (known.T @ fresh)
        fresh = fresh / (columns - rank if weight == "unbiased" else gradient.shape[1]) ** 0.5
        return sketch_basis(gradient @ torch.cat([known, fresh], dim=1), rank)

    return basis


def randomised_svd(rank: int, generator: torch.Generator) -> Basis:
    """Two passes over the gradient: a sketch of twice the rank, then one power iteration; needs the full gradient."""

    def basis(gradient: Tensor, guess: Tensor) -> Tensor:
        wide = min(2 * rank, *gradient.shape)
        q = torch.linalg.qr(gradient @ torch.randn(gradient.shape[1], wide, generator=generator))[0]
        q = torch.linalg.qr(gradient @ (gradient.T @ q))[0]
        return q @ torch.linalg.svd(q.T @ gradient, full_matrices=False)[0][:, :rank]

    return basis


def library(rank: int, generator: torch.Generator) -> Basis:
    """What GaLoreAdamW does at a refresh."""

    def basis(gradient: Tensor, guess: Tensor) -> Tensor:
        size = gradient.shape[1]
        return sketch_basis(gradient @ sketch_matrix(size, sketch_width(rank, size), generator, gradient), rank)

    return basis


def exact(rank: int) -> Basis:
    """The best basis there is for the gradient that it is made from."""

    def basis(gradient: Tensor, guess: Tensor) -> Tensor:
        left, _ = exact_bases(gradient, rank, (True, False))
        assert left is not None
        return left

    return basis


def bases_of(rank: int, generator: torch.Generator) -> dict[str, Basis]:
    """Every way to a basis that is compared."""
    return {
        "exact SVD": exact(rank),
        "randomised SVD, power 1 (2 passes)": randomised_svd(rank, generator),
        "Gaussian sketch, l = r + 8": gaussian(rank + 8, rank, generator),
        "Gaussian sketch, l = 2r": gaussian(2 * rank, rank, generator),
        "Gaussian sketch, l = 4r": gaussian(4 * rank, rank, generator),
        "moment only, l = r": guided(rank, "unit", rank, generator),
        "moment + unbiased Gaussian, l = 2r": guided(2 * rank, "unbiased", rank, generator),
        "moment + unit Gaussian, l = r + 8": guided(rank + 8, "unit", rank, generator),
        "moment + unit Gaussian, l = 2r": guided(2 * rank, "unit", rank, generator),
        "GaLoreAdamW: Gaussian sketch, l = 2r + 8": library(rank, generator),
    }


def slices(side: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(count, 3, side, side) float32 in 0..255, and (count, side, side) uint8, of phantom patients."""
    images, labels = [], []
    for case in range((count + 3) // 4):
        hu, truth = phantom_ct(np.random.default_rng([seed, case]), (side, side, 6))
        for k in range(1, 5):
            images.append(np.clip((hu[..., k].astype(np.float32) + 160) / 400, 0, 1) * 255)
            labels.append(truth[..., k])
    pictures = torch.from_numpy(np.stack(images[:count])).float()
    return pictures[:, None].expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(
        np.stack(labels[:count]).astype("uint8")
    )


def batches(side: int, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches without end."""
    images, labels = slices(side, 32, seed)
    order = torch.Generator().manual_seed(seed)
    while True:
        chosen = torch.randint(len(images), (size,), generator=order)
        yield images[chosen], labels[chosen]


def gradients(model: KClassSam, weights: list[nn.Parameter], batch: tuple[Tensor, Tensor]) -> list[Tensor]:
    """The full gradients of some weights, (shorter side, longer side), past the optimizer's hooks."""
    takers = [taker_of(weight) for weight in weights]
    for weight in weights:
        give_factors(weight, None)
    loss = segmentation_loss(model(batch[0]), batch[1], dice_weight=0.8, resolution="logits").sum()
    found = [as_matrix(gradient) for gradient in torch.autograd.grad(loss, weights)]
    for weight, taker in zip(weights, takers, strict=True):
        give_factors(weight, taker)
    return [gradient if gradient.shape[0] < gradient.shape[1] else gradient.T for gradient in found]


def measure(args: argparse.Namespace, rank: int) -> dict[str, object]:
    """Train, and measure before each of the wanted refreshes."""
    torch.manual_seed(args.seed)
    stream = batches(args.side, args.batch, args.seed)
    images, labels = next(stream)
    model = build_sam(args.model, classes=14, image_size=args.side)
    matrices, _ = model.image_encoder.weight_matrices()
    inside = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in inside]
    optimizer = GaLoreAdamW(
        [{"params": matrices, "rank": rank, "lr": 3e-4}, {"params": others, "lr": 1e-3}], refresh_every=args.every
    )
    chosen = [weight for weight in matrices if min(as_matrix(weight).shape) >= 2 * rank][:: args.stride]
    ways = bases_of(rank, torch.Generator().manual_seed(1))
    shares: dict[str, list[list[float]]] = defaultdict(list)
    losses = []
    for step in range(args.steps + 1):
        if step in args.measure:
            here, there = gradients(model, chosen, next(stream)), gradients(model, chosen, next(stream))
            for weight, mine, other in zip(chosen, here, there, strict=True):
                state = optimizer.state[weight]
                moment = state["exp_avg"]
                guess = moment.T if "basis_left" in state else moment
                old = state["basis_left"] if "basis_left" in state else state["basis_right"]
                made = {name: way(mine, guess) for name, way in ways.items()}
                made[f"the old basis, {args.every} updates old"] = old
                made["random basis"] = torch.linalg.qr(torch.randn(old.shape))[0]
                for name, basis in made.items():
                    shares[name].append([float((basis.T @ g).norm() / g.norm()) for g in (mine, other)])
        if optimizer.needs_calibration():
            segmentation_loss(model(images), labels, dice_weight=0.8, resolution="logits").sum().backward()
            optimizer.calibrate()
        images, labels = next(stream)
        loss = segmentation_loss(model(images), labels, dice_weight=0.8, resolution="logits").sum()
        loss.backward()
        optimizer.clip_gradients(1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    summary = {name: [round(float(v), 4) for v in np.mean(values, axis=0)] for name, values in shares.items()}
    return {"rank": rank, "matrices": len(chosen), "loss_first_last": [losses[0], losses[-1]], "captured": summary}


def main() -> None:
    """Measure every rank and write one JSON file."""
    parser = described(__doc__)
    parser.add_argument("--model", default="lite")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--measure", type=int, nargs="+", default=[20, 40, 60])
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--stride", type=int, default=1, help="measure every so-many-th matrix")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    began = time.perf_counter()
    results = [measure(args, rank) for rank in args.ranks]
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    seconds = round(time.perf_counter() - began)
    write_json(args.out, {"settings": settings, "machine": machine(), "seconds": seconds, "results": results})
    for result in results:
        print(f"\nrank {result['rank']}, {result['matrices']} matrices, loss {result['loss_first_last']}")
        captured = result["captured"]
        assert isinstance(captured, dict)
        print("| basis | same batch | another batch |\n|---|---|---|")
        for name, (mine, other) in captured.items():
            print(f"| {name} | {mine:.3f} | {other:.3f} |")


if __name__ == "__main__":
    main()
