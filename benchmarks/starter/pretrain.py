"""Pre-train the starter checkpoint, a small SAM: weights from which few-shot runs go far.

    python -m benchmarks.starter.pretrain DATA --out FOLDER

DATA is the folder of pre-training images (``manifest.csv``, and ``images/`` and ``masks/`` of each dataset). FOLDER
gets the bank of images, the state of the training, its log and ``starter.safetensors``. Started again, it goes on.

It does what runs do, many times over, and moves the start towards where they end (Reptile, Nichol et al., arXiv
1803.02999). A run here has 12 steps on the labelled images of a task and 6 on the others, which makes the move one
towards weights that generalise (Hendryx et al., arXiv 1912.06290).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.starter.bank import Bank, make_bank
from benchmarks.starter.tasks import MOST_CLASSES, Task, draw_task
from medsaga import files
from medsaga.data.augment import AUGMENTATIONS, augment
from medsaga.models.encoders import ENCODERS
from medsaga.models.sam import KClassSam, build_sam
from medsaga.models.weights.loading import DESCRIPTION, load_pretrained, save_state
from medsaga.models.weights.verification import convert
from medsaga.training.loss import segmentation_loss

State = dict[str, Tensor]
TOKENS = "mask_decoder.mask_tokens.weight"
NETWORKS = "mask_decoder.output_hypernetworks_mlps."
MASKS = 4
"""Mask tokens of the file, as SAM's files have them."""
OWN_SIDE = ENCODERS["tiny"].image_size


@dataclass(frozen=True)
class Plan:
    """Everything that decides what comes out, apart from the images."""

    steps: int
    side: int
    seed: int
    worlds: int
    most_real: int | None
    tasks: int = 2
    support_steps: int = 12
    query_steps: int = 6
    batch: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    move: float = 0.3
    warmup: int = 10


def start_of(side: int, seed: int) -> State:
    """Return the state of a model of random weights, whose classes are alike."""
    torch.manual_seed(seed)
    return _tied(build_sam("tiny", classes=MOST_CLASSES, image_size=side).state_dict())


def _tied(state: State) -> State:
    """Give all classes the token and the hypernetwork of the first."""
    state[TOKENS] = state[TOKENS][:1].expand(MOST_CLASSES, -1).clone()
    for name in [name for name in state if name.startswith(NETWORKS)]:
        number = name.removeprefix(NETWORKS).split(".")[0]
        state[name] = state[name.replace(f"{NETWORKS}{number}.", f"{NETWORKS}0.")].clone()
    return state


class Worker:
    """Does short runs; one in each process."""

    def __init__(self, plan: Plan, bank: Bank) -> None:
        """Build the model; its weights come with every task."""
        self.plan, self.bank = plan, bank
        self.model = build_sam("tiny", classes=MOST_CLASSES, image_size=plan.side)

    def run(self, state: State, number: int) -> tuple[State, dict[str, float]]:
        """Adapt weights to a task, and return how far each has moved, and how well the others were segmented then."""
        plan, model = self.plan, self.model
        task = draw_task(self.bank, side=plan.side, seed=plan.seed, number=number)
        model.load_state_dict(state)
        means = _class_means(model, task)
        with torch.no_grad():
            model.mask_decoder.mask_tokens.weight[: task.classes] += means
        optimizer = _optimizer(model, plan)
        quality = {}
        for step, rows in enumerate(_batches(task, plan, number)):
            if step == plan.support_steps:
                quality = _judged(model, task)
            images, labels = augment(
                task.images[rows], task.labels[rows], seed=number, step=step, strength=AUGMENTATIONS["fewshot"]
            )
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * min(1.0, (step + 1) / 3)
            logits = _logits(model, images, task.classes)
            optimizer.zero_grad()
            segmentation_loss(logits, labels, dice_weight=0.8, resolution="image").sum().backward()
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
            optimizer.step()
        with torch.no_grad():
            model.mask_decoder.mask_tokens.weight[: task.classes] -= means
        moves = {name: tensor - state[name] for name, tensor in model.state_dict().items()}
        return _shared(moves, task.classes), quality


def _class_means(model: KClassSam, task: Task) -> Tensor:
    """Return the mean embedding of each class in the images to learn from, as `medsaga.training.class_tokens` does."""
    images, labels = task.images[: task.support], task.labels[: task.support]
    with torch.no_grad():
        embeddings = model.encode(images.float())[-1]
    inside = (labels[:, None] == torch.arange(task.classes)[:, None, None]).float()
    shares = F.adaptive_avg_pool2d(inside, embeddings.shape[-1])
    return torch.einsum("bkhw,bchw->kc", shares, embeddings) / shares.sum((0, 2, 3))[:, None].clamp(min=1e-6)


def _optimizer(model: KClassSam, plan: Plan) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": plan.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=plan.learning_rate,
        fused=True,
    )


def _batches(task: Task, plan: Plan, number: int) -> Iterator[Tensor]:
    """Yield the rows of each step: first of the images to learn from, then of the others."""
    random = np.random.default_rng([plan.seed, number, 1])
    for step in range(plan.support_steps + plan.query_steps):
        low, high = (0, task.support) if step < plan.support_steps else (task.support, len(task.images))
        yield torch.from_numpy(random.integers(low, high, plan.batch))


def _logits(model: KClassSam, images: Tensor, classes: int) -> Tensor:
    """Segment with the first classes of the model."""
    *skips, embeddings = model.encode(images.float())
    decoder = model.mask_decoder
    tokens, pixels = model.attend(embeddings, decoder.mask_tokens.weight[:classes].expand(len(images), -1, -1))
    upscaled = decoder.upscale(pixels, skips)
    kernels = torch.stack([decoder.output_hypernetworks_mlps[c](tokens[:, c]) for c in range(classes)], dim=1)
    return (kernels @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])


@torch.no_grad()
def _judged(model: KClassSam, task: Task) -> dict[str, float]:
    """Return loss and mean Dice on the images that were not learned from."""
    images, labels = task.images[task.support :], task.labels[task.support :]
    logits = _logits(model, images, task.classes)
    loss = segmentation_loss(logits, labels, dice_weight=0.8, resolution="image").sum()
    found = F.interpolate(logits, labels.shape[1:], mode="bilinear").argmax(1)
    dice = [
        2 * ((found == c) & (labels == c)).sum() / ((found == c).sum() + (labels == c).sum())
        for c in range(1, task.classes)
    ]
    return {"loss": float(loss), "dice": float(torch.stack(dice).mean())}


def _shared(moves: State, classes: int) -> State:
    """Give the first class the mean of what the classes of the task have moved by."""
    moves[TOKENS][0] = moves[TOKENS][:classes].mean(0)
    for name in [name for name in moves if name.startswith(f"{NETWORKS}0.")]:
        of_all = [moves[name.replace(f"{NETWORKS}0.", f"{NETWORKS}{c}.")] for c in range(classes)]
        moves[name] = torch.stack(of_all).mean(0)
    return moves


def move_at(plan: Plan, step: int) -> float:
    """Return which share of a run's way the start goes: warm-up, then constant, then to 0 over the second half."""
    left = min(1.0, 2 * (1 - step / plan.steps))
    return plan.move * min(1.0, (step + 1) / plan.warmup) * left


_worker: Worker


def _begin(plan: Plan, data: Path, bank: Path) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = Worker(plan, make_bank(data, bank, worlds=plan.worlds, most_real=plan.most_real, processes=1))


def _run(job: tuple[dict[str, Any], int]) -> tuple[dict[str, Any], dict[str, float]]:
    arrays, number = job
    moves, quality = _worker.run({name: torch.from_numpy(array) for name, array in arrays.items()}, number)
    return {name: move.numpy() for name, move in moves.items()}, quality


def export(state: State, side: int, path: Path) -> None:
    """Write the start as weights with SAM's number of masks, for images of the architecture's own side."""
    trained, model = (build_sam("tiny", classes=MASKS, image_size=size) for size in (side, OWN_SIDE))
    trained.load_state_dict({name: state[name][: len(tensor)] for name, tensor in trained.state_dict().items()})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trained.safetensors"
        _save(trained, file)
        load_pretrained(model, str(file))
    _save(model, path)


def _save(model: KClassSam, path: Path) -> None:
    save_state(path, model.state_dict(), episodic=True, **{name: getattr(model, name) for name in DESCRIPTION})


def main() -> None:
    """Do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bank", type=Path, help="folder of the bank; default OUT/bank")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--worlds", type=int, default=1500)
    parser.add_argument("--most-real", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="their number changes nothing")
    parser.add_argument("--save-every", type=int, default=20)
    arguments = parser.parse_args()
    plan = Plan(arguments.steps, arguments.side, arguments.seed, arguments.worlds, arguments.most_real)
    out: Path = arguments.out
    bank = arguments.bank or out / "bank"
    make_bank(arguments.data, bank, worlds=plan.worlds, most_real=plan.most_real, processes=arguments.processes)
    out.mkdir(parents=True, exist_ok=True)
    stored, record = out / "state.pt", out / "plan.json"
    if record.exists() and files.read_json(record) != asdict(plan):
        raise SystemExit(f"{record}: expected the plan that was begun with; found another. Give another --out.")
    files.write_json(record, asdict(plan))
    step, state = 0, start_of(plan.side, plan.seed)
    if stored.exists():
        saved = torch.load(stored, weights_only=True)
        step, state = saved["step"], saved["state"]
    qualities: list[dict[str, float]] = []
    began = time.perf_counter()
    pool = get_context("spawn").Pool(arguments.processes, _begin, (plan, arguments.data, bank))
    with pool, (out / "log.jsonl").open("a") as log:
        while step < plan.steps:
            arrays = {name: tensor.numpy() for name, tensor in state.items()}
            jobs = [(arrays, plan.tasks * step + i) for i in range(plan.tasks)]
            results = pool.map(_run, jobs, chunksize=1)
            for name, tensor in state.items():
                mean = torch.from_numpy(np.mean([moves[name] for moves, _ in results], axis=0, dtype=np.float32))
                state[name] = tensor + move_at(plan, step) * mean
            state = _tied(state)
            qualities += [quality for _, quality in results]
            step += 1
            if step % arguments.save_every == 0 or step == plan.steps:
                line = {"step": step, "seconds": round((time.perf_counter() - began) * plan.tasks / len(qualities), 2)}
                line |= {key: round(float(np.mean([q[key] for q in qualities])), 4) for key in ("loss", "dice")}
                print(json.dumps(line), file=log, flush=True)
                print(line, flush=True)
                with files.replacing(stored) as temporary:
                    torch.save({"step": step, "state": state}, temporary)
                export(state, plan.side, out / "full.safetensors")
                qualities, began = [], time.perf_counter()
    (out / "starter.safetensors").unlink(missing_ok=True)
    convert(out / "full.safetensors", out / "starter.safetensors", half=True)
    print(out / "starter.safetensors", files.sha256(out / "starter.safetensors"))


if __name__ == "__main__":
    main()
