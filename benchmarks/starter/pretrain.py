"""Pre-train the starter checkpoint: ImageNet's encoder, and a pyramid and decoder taught to segment from few examples.

    python -m benchmarks.starter.pretrain DATA --encoder efficientnet-lite1.pth --out FOLDER

DATA is the folder of pre-training images (``manifest.csv``, and ``images/`` and ``masks/`` of each dataset). FOLDER
gets the bank of images, the state of the training, its log and ``starter.safetensors``. Started again, it goes on.

A step is what a run begins with, many times over: the mean embedding of each class in a few labelled images is added
to the token that all classes share, and the decoder segments these images and others of the same kind. So it learns to
find what looks like the examples, whatever it is. The encoder moves slowly, and what is kept is the mean of the weights
over the last part of the training.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.runs import described
from benchmarks.starter.bank import Bank, make_bank
from benchmarks.starter.tasks import Task, draw_task
from medsaga import files
from medsaga.data.augment import AUGMENTATIONS, augment
from medsaga.models.encoders import ENCODERS
from medsaga.models.sam import KClassSam, build_sam
from medsaga.models.weights.loading import DESCRIPTION, load_pretrained, save_state
from medsaga.models.weights.verification import convert
from medsaga.training.loss import segmentation_loss

ARCHITECTURE = "lite"
MASKS = 4
"""Mask tokens of the file, as SAM's files have them; all start alike."""
HELD_BACK = ("usgra_nerve_us", "pfc_neurons", "glomeruli_histology", "cerebrum7t_brain_mr")
"""Kinds of images that are never taught, so that few-shot runs on them judge."""
SIDES = (128, 160, 192, 224)
"""Of a task's images, in pixels; drawn anew for each."""
SAVE_SECONDS = 600


@dataclass(frozen=True)
class Plan:
    """Everything that decides what comes out, apart from the images and the encoder's file."""

    steps: int
    seed: int
    worlds: int
    most_real: int | None
    tasks: int = 2
    encoder_lr: float = 5e-5
    decoder_lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 100
    average: float = 0.998


class Pretraining:
    """The state of a pre-training: model, optimizer, averaged weights and the number of the next step."""

    def __init__(self, plan: Plan, encoder: Path, bank: Bank) -> None:
        """Start from ImageNet's encoder, and a pyramid and decoder drawn from the plan's seed."""
        torch.manual_seed(plan.seed)
        self.plan, self.bank, self.step = plan, bank, 0
        self.model = build_sam(ARCHITECTURE, classes=MASKS, image_size=max(SIDES))
        load_pretrained(self.model, encoder)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = _optimizer(self.model, plan)

    def advance(self) -> dict[str, float]:
        """Make a step, and return its loss, and its Dice on the images that gave no examples."""
        plan, step = self.plan, self.step
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate_at(plan, step)
        found = []
        for number in range(plan.tasks * step, plan.tasks * (step + 1)):
            task = _augmented(self._draw(number), plan.seed, number)
            logits = few_shot_logits(self.model, task)
            loss = segmentation_loss(logits, task.labels, dice_weight=0.8, resolution="image").sum()
            (loss / plan.tasks).backward()
            found.append({"loss": float(loss.detach()), "dice": _dice(logits.detach(), task)})
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        share = min(plan.average, self.step / (self.step + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - share)
        return {key: float(np.mean([one[key] for one in found])) for key in ("loss", "dice")}

    def _draw(self, number: int) -> Task:
        side = int(np.random.default_rng([self.plan.seed, number, 2]).choice(SIDES))
        return draw_task(self.bank, side=side, seed=self.plan.seed, number=number)

    def state(self) -> dict[str, Any]:
        """Return everything that going on needs."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])

    def export(self, path: Path) -> None:
        """Write the averaged weights, with SAM's number of masks, for images of the architecture's own side."""
        averaged = build_sam(ARCHITECTURE, classes=MASKS, image_size=ENCODERS[ARCHITECTURE].image_size)
        averaged.load_state_dict(self.model.state_dict())
        with torch.no_grad():
            for parameter, mean in zip(averaged.parameters(), self.average, strict=True):
                parameter.copy_(mean)
        _tie(averaged)
        state = averaged.state_dict()
        save_state(path, state, episodic=True, **{name: getattr(averaged, name) for name in DESCRIPTION})


def few_shot_logits(model: KClassSam, task: Task) -> Tensor:
    """Segment all images of a task, with the mean embeddings of its classes in the examples as class tokens."""
    images = task.images.float()
    model.image_size = images.shape[-1]
    *skips, embeddings = model.encode(images)
    inside = (task.labels[: task.support, None] == torch.arange(task.classes)[:, None, None]).float()
    shares = F.adaptive_avg_pool2d(inside, embeddings.shape[-1])
    sums = torch.einsum("bkhw,bchw->kc", shares, embeddings[: task.support])
    means = sums / shares.sum((0, 2, 3))[:, None].clamp(min=1e-6)
    decoder = model.mask_decoder
    tokens = (decoder.mask_tokens.weight[:1] + means).expand(len(images), -1, -1)
    tokens, pixels = model.attend(embeddings, tokens)
    kernels = decoder.output_hypernetworks_mlps[0](tokens)
    upscaled = decoder.upscale(pixels, skips)
    return (kernels @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])


def rate_at(plan: Plan, step: int) -> float:
    """Return the share of the peak learning rates: a linear warm-up, then half a cosine."""
    return min(1.0, (step + 1) / plan.warmup) * 0.5 * (1 + math.cos(math.pi * step / plan.steps))


def _augmented(task: Task, seed: int, number: int) -> Task:
    images, labels = augment(task.images, task.labels, seed=seed, step=number, strength=AUGMENTATIONS["fewshot"])
    return Task(images, labels, task.support, task.classes)


def _dice(logits: Tensor, task: Task) -> float:
    """Return the mean Dice of the foreground on the images that gave no examples."""
    labels = task.labels[task.support :]
    found = F.interpolate(logits[task.support :], labels.shape[1:], mode="bilinear").argmax(1)
    sizes = [(found == c).sum() + (labels == c).sum() for c in range(1, task.classes)]
    both = [((found == c) & (labels == c)).sum() for c in range(1, task.classes)]
    return float(np.mean([2 * float(b) / float(s) for b, s in zip(both, sizes, strict=True) if s > 0] or [0.0]))


def _optimizer(model: KClassSam, plan: Plan) -> torch.optim.Optimizer:
    network = [p for name, p in model.image_encoder.named_parameters() if not name.startswith("pyramid.")]
    slow = {id(p) for p in network}
    groups = [
        {"params": [p], "peak_lr": lr, "lr": lr, "weight_decay": plan.weight_decay if p.dim() > 1 else 0.0}
        for p in model.parameters()
        for lr in [plan.encoder_lr if id(p) in slow else plan.decoder_lr]
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.99))


@torch.no_grad()
def _tie(model: KClassSam) -> None:
    """Give all masks the token and the hypernetwork of the first, the only ones that were taught."""
    decoder = model.mask_decoder
    decoder.mask_tokens.weight.copy_(decoder.mask_tokens.weight[:1].expand(MASKS, -1))
    for network in decoder.output_hypernetworks_mlps[1:]:
        network.load_state_dict(decoder.output_hypernetworks_mlps[0].state_dict())


def main() -> None:
    """Do it."""
    parser = described(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", type=Path, required=True, help="the published file of EfficientNet-Lite1")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bank", type=Path, help="folder of the bank; default OUT/bank")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--worlds", type=int, default=600)
    parser.add_argument("--most-real", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="another number gives other bits")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out: Path = arguments.out
    plan = Plan(arguments.steps, arguments.seed, arguments.worlds, arguments.most_real)
    bank = make_bank(
        arguments.data,
        arguments.bank or out / "bank",
        worlds=plan.worlds,
        most_real=plan.most_real,
        without=HELD_BACK,
        processes=2,
    )
    out.mkdir(parents=True, exist_ok=True)
    stored, record = out / "state.pt", out / "plan.json"
    if record.exists() and files.read_json(record) != asdict(plan):
        raise SystemExit(f"{record}: expected the plan that was begun with; found another. Give another --out.")
    files.write_json(record, asdict(plan))
    pretraining = Pretraining(plan, arguments.encoder, bank)
    if stored.exists():
        pretraining.load(torch.load(stored, weights_only=True))
    began = saved = time.perf_counter()
    window: list[dict[str, float]] = []
    with (out / "log.jsonl").open("a") as log:
        while pretraining.step < plan.steps:
            window.append(pretraining.advance())
            now = time.perf_counter()
            if pretraining.step % 100 == 0 or pretraining.step == plan.steps:
                means = {key: round(float(np.mean([one[key] for one in window])), 4) for key in window[0]}
                line = {"step": pretraining.step, "seconds": round((now - began) / len(window), 3), **means}
                print(json.dumps(line), file=log, flush=True)
                print(line, flush=True)
                window, began = [], now
            if now - saved > SAVE_SECONDS or pretraining.step == plan.steps:
                saved = now
                with files.replacing(stored) as temporary:
                    torch.save(pretraining.state(), temporary)
                pretraining.export(out / "full.safetensors")
    (out / "starter.safetensors").unlink(missing_ok=True)
    convert(out / "full.safetensors", out / "starter.safetensors", half=True)
    print(out / "starter.safetensors", files.sha256(out / "starter.safetensors"))


if __name__ == "__main__":
    main()
