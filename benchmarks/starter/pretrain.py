"""Pre-train the starter checkpoint, a small SAM, on episodes of few-shot segmentation.

    python -m benchmarks.starter.pretrain DATA --out FOLDER

DATA is the folder of pre-training images (``manifest.csv``, and ``images/`` and ``masks/`` of each dataset). FOLDER
gets the bank of images, the state of the training, its log and ``starter.safetensors``. Started again, it goes on.

An episode has two images with the same classes. The encoder's embeddings of one, averaged over each of its classes, are
added to the mask token: these are the class tokens with which the decoder segments the other image, and the other way
round. So everything that computes in a run is trained for what it will do there: the class tokens of a run start as the
averages over its labelled images. Beside it, a nearest-prototype classifier (Snell et al., arXiv 1703.05175) on the
decoder's upscaled features, of the other image and of the same one, teaches features that a linear map separates.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.starter.episodes import IGNORED, Bank, draw_episodes, make_bank
from medsaga import files
from medsaga.models.inspection import convert
from medsaga.models.sam import KClassSam, build_sam
from medsaga.models.weights import DESCRIPTION, load_pretrained, save_model, save_state

MASKS = 4
"""Mask tokens of the file, as SAM's files have them."""


@dataclass(frozen=True)
class Stage:
    """A part of the training at one image size.

    Attributes:
        side: of the images in pixels.
        pairs: episodes of a step.
        steps: optimizer steps.
        learning_rate: after the warm-up; in the last stage it falls to 0 in a straight line.
    """

    side: int
    pairs: int
    steps: int
    learning_rate: float


@dataclass(frozen=True)
class Plan:
    """Everything that decides what comes out, apart from the images."""

    architecture: str
    stages: tuple[Stage, ...]
    worlds: int
    most_real: int | None
    most_classes: int
    seed: int
    weight_decay: float = 0.05
    warmup: int = 100
    prototype_weight: float = 0.5
    bfloat16: bool = True


def few_shot_logits(model: KClassSam, images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Segment every image with the class tokens that the other image of its pair gives.

    Args:
        model: its first mask token and first hypernetwork serve all classes.
        images: ``(b, 3, side, side)``, two after each other belong together.
        labels: ``(b, side, side)`` int64, `IGNORED` where there is none.
        classes: more than the highest label.

    Returns:
        logits ``(b, classes, s, s)``; features ``(b, decoder_size / 8, s, s)`` that a hypernetwork's kernel is
        multiplied with, where ``s`` is 4 times the tokens; and which classes an image has, ``(b, classes)`` bool.
    """
    embeddings, details = model.split(model.encode(images))
    weights, there = class_weights(labels, classes, embeddings.shape[-1])
    means = torch.einsum("bkhw,bchw->bkc", weights, embeddings.float())
    decoder = model.mask_decoder
    tokens = decoder.mask_tokens.weight[:1] + _partner(means)
    tokens, pixels = model.attend(embeddings, tokens.to(embeddings.dtype))
    upscaled = model.upscale(pixels, details)
    kernels = decoder.output_hypernetworks_mlps[0](tokens)
    logits = (kernels @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
    return logits.float(), upscaled.float(), there


def class_weights(labels: Tensor, classes: int, side: int) -> tuple[Tensor, Tensor]:
    """Return the share of each cell in each class, ``(b, classes, side, side)``, adding up to 1 over an image."""
    shares = F.adaptive_avg_pool2d(_one_hot(labels, classes), side)
    totals = shares.sum((2, 3), keepdim=True)
    return shares / totals.clamp(min=1e-6), totals[:, :, 0, 0] > 0


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    return (labels[:, None] == torch.arange(classes, device=labels.device)[:, None, None]).float()


def _partner(values: Tensor) -> Tensor:
    """Swap the two images of every pair."""
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def prototype_logits(features: Tensor, labels: Tensor, classes: int, *, partner: bool) -> Tensor:
    """Score each pixel by minus half its squared distance from each class's mean feature, up to a constant."""
    weights, _ = class_weights(labels, classes, features.shape[-1])
    means = torch.einsum("bkhw,bchw->bkc", weights, features)
    if partner:
        means = _partner(means)
    return torch.einsum("bkc,bchw->bkhw", means, features) - means.square().sum(2)[..., None, None] / 2


def loss_of(logits: Tensor, labels: Tensor, there: Tensor) -> Tensor:
    """Half cross-entropy, half Dice over the classes that an episode has, at half the images' side."""
    side = labels.shape[-1] // 2
    target = F.interpolate(labels[:, None].float(), (side, side), mode="nearest-exact")[:, 0].long()
    logits = logits.masked_fill(~there[..., None, None], -1e4)
    logits = F.interpolate(logits, (side, side), mode="bilinear")
    cross_entropy = F.cross_entropy(logits, target, ignore_index=IGNORED)
    seen = (target != IGNORED)[:, None]
    probabilities, truth = logits.softmax(1) * seen, _one_hot(target, logits.shape[1])
    overlap, sizes = (probabilities * truth).sum((2, 3)), (probabilities + truth).sum((2, 3))
    present = there & (truth.sum((2, 3)) > 0)
    dice = ((2 * overlap + 1) / (sizes + 1))[present].mean()
    return (cross_entropy + 1 - dice) / 2


def _optimizers(model: KClassSam, scale: nn.Parameter, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., https://kellerjordan.github.io/posts/muon) for matrices inside layers, AdamW for the rest.

    AdamW alone at 1e-3 stood still at a loss that this passed after 100 to 200 steps (README; one run each).
    """
    inside = [
        module.weight
        for part in (model.vision_encoder.layers, model.mask_decoder)
        for module in part.modules()
        if isinstance(module, nn.Linear)
    ]
    known = {id(weight) for weight in inside}
    others = [weight for weight in model.parameters() if id(weight) not in known]
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in others if weight.dim() > 1], "weight_decay": weight_decay},
        {"params": [*(weight for weight in others if weight.dim() <= 1), scale], "weight_decay": 0.0},
    ]
    # The learning rate is set at every step.
    muon = torch.optim.Muon(inside, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)]


class Trainer:
    """A pre-training that can stop after any step and go on to the same bits."""

    def __init__(self, plan: Plan, bank: Bank, folder: Path, device: torch.device) -> None:
        """Begin, or take up what is in the folder."""
        self.plan, self.bank, self.folder, self.device = plan, bank, folder, device
        self.stage, self.step = 0, 0
        self._drawing = ThreadPoolExecutor(1)
        self._ahead: Future[tuple[Tensor, Tensor]] | None = None
        self._new_stage(None)
        state = folder / "state.pt"
        if state.exists():
            stored = torch.load(state, weights_only=True, map_location=device)
            self.stage, self.step = stored["stage"], stored["step"]
            self._new_stage(None)
            self.model.load_state_dict(stored["model"])
            self.prototype_scale.data.copy_(stored["prototype_scale"])
            for optimizer, saved in zip(self.optimizers, stored["optimizers"], strict=True):
                optimizer.load_state_dict(saved)

    def _new_stage(self, previous: KClassSam | None) -> None:
        """Make the model of a stage, from that of the one before it where there is one."""
        plan, stage = self.plan, self.plan.stages[self.stage]
        torch.manual_seed(plan.seed)
        model = build_sam(plan.architecture, classes=MASKS, image_size=stage.side)
        if previous is not None:
            between = self.folder / "between.safetensors"
            save_model(between, previous)
            load_pretrained(model, between)
        self.model = model.to(self.device).train()
        if previous is None:
            self.prototype_scale = nn.Parameter(torch.tensor(0.0, device=self.device))
        self.optimizers = _optimizers(self.model, self.prototype_scale, plan.weight_decay)

    def train_step(self) -> dict[str, float]:
        """Make a step; at the end of a stage, begin the next one."""
        plan, stage = self.plan, self.plan.stages[self.stage]
        images, labels = self._episodes()
        images, labels = images.to(self.device), labels.to(self.device)
        rate = stage.learning_rate * min(1.0, (self.step + 1) / plan.warmup)
        if self.stage == len(plan.stages) - 1:
            rate *= 1 - self.step / stage.steps
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=plan.bfloat16):
            logits, features, there = few_shot_logits(self.model, images, labels, plan.most_classes)
        by_token = loss_of(logits, labels, there)
        scale = self.prototype_scale.exp()
        by_prototype = torch.stack(
            [
                loss_of(scale * prototype_logits(features, labels, plan.most_classes, partner=partner), labels, there)
                for partner in (True, False)
            ]
        ).mean()
        loss = by_token + plan.prototype_weight * by_prototype
        self.model.zero_grad()
        self.prototype_scale.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.grad is not None], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        if self.step >= stage.steps and self.stage + 1 < len(plan.stages):
            self.stage, self.step = self.stage + 1, 0
            self._new_stage(self.model)
        return {"by_token": by_token.item(), "by_prototype": by_prototype.item()}

    def _episodes(self) -> tuple[Tensor, Tensor]:
        """Return the episodes of this step, and begin to draw those of the next."""
        stage = self.plan.stages[self.stage]

        def draw(step: int) -> Future[tuple[Tensor, Tensor]]:
            return self._drawing.submit(
                draw_episodes,
                self.bank,
                pairs=stage.pairs,
                side=stage.side,
                most_classes=self.plan.most_classes,
                seed=self.plan.seed + self.stage,
                step=step,
            )

        now = (self._ahead or draw(self.step)).result()
        self._ahead = draw(self.step + 1) if self.step + 1 < stage.steps else None
        return now

    @property
    def done(self) -> bool:
        """Whether the last stage is over."""
        return self.stage == len(self.plan.stages) - 1 and self.step >= self.plan.stages[-1].steps

    def save(self) -> None:
        """Write the state, whole or not at all."""
        with files.replacing(self.folder / "state.pt") as temporary:
            torch.save(
                {
                    "stage": self.stage,
                    "step": self.step,
                    "model": self.model.state_dict(),
                    "prototype_scale": self.prototype_scale.detach(),
                    "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                },
                temporary,
            )

    @torch.no_grad()
    def export(self, path: Path) -> None:
        """Write the weights in full precision, with the one mask token and hypernetwork in all four places."""
        size = self.model.image_size
        model = build_sam(self.plan.architecture, classes=MASKS, image_size=size)
        model.load_state_dict(self.model.state_dict())
        decoder = model.mask_decoder
        for mask in range(1, MASKS):
            decoder.mask_tokens.weight[mask] = decoder.mask_tokens.weight[0]
            decoder.output_hypernetworks_mlps[mask].load_state_dict(decoder.output_hypernetworks_mlps[0].state_dict())
        save_state(path, model.state_dict(), episodic=True, **{name: getattr(model, name) for name in DESCRIPTION})


def main() -> None:
    """Do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bank", type=Path, help="folder of the bank; default OUT/bank")
    parser.add_argument("--architecture", default="tiny")
    parser.add_argument("--stage", nargs=4, action="append", metavar=("SIDE", "PAIRS", "STEPS", "RATE"))
    parser.add_argument("--worlds", type=int, default=1500)
    parser.add_argument("--most-real", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save-every", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    stages = arguments.stage or [("128", "12", "6000", "3e-3"), ("256", "4", "2000", "2e-3")]
    plan = Plan(
        architecture=arguments.architecture,
        stages=tuple(Stage(int(side), int(pairs), int(steps), float(rate)) for side, pairs, steps, rate in stages),
        worlds=arguments.worlds,
        most_real=arguments.most_real,
        most_classes=8,
        seed=arguments.seed,
    )
    out: Path = arguments.out
    bank = make_bank(
        arguments.data,
        arguments.bank or out / "bank",
        worlds=plan.worlds,
        most_real=plan.most_real,
        processes=arguments.threads,
    )
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(plan, bank, out, torch.device(arguments.device))
    files.write_json(out / "plan.json", asdict(plan))
    totals: dict[str, Any] = {}
    began, since = time.perf_counter(), 0
    with (out / "log.jsonl").open("a") as log:
        while not trainer.done:
            for name, value in trainer.train_step().items():
                totals[name] = totals.get(name, 0.0) + value
            since += 1
            if since == arguments.save_every or trainer.done:
                seconds = (time.perf_counter() - began) / since
                line = {"stage": trainer.stage, "step": trainer.step, "seconds": round(seconds, 4)}
                line |= {name: round(total / since, 4) for name, total in totals.items()}
                print(json.dumps(line), file=log, flush=True)
                print(line, flush=True)
                trainer.save()
                trainer.export(out / "full.safetensors")
                totals, began, since = {}, time.perf_counter(), 0
    (out / "starter.safetensors").unlink(missing_ok=True)
    convert(out / "full.safetensors", out / "starter.safetensors", half=True)
    print(out / "starter.safetensors", files.sha256(out / "starter.safetensors"))


if __name__ == "__main__":
    main()
