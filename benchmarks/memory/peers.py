"""What a training step of the peers takes, by their own recipes: the peak of all tensors, float32, on any machine.

The steps run on fake tensors, which have sizes but no values, so that 18 GiB are counted in seconds without a GPU.
Two steps are followed, because the optimizer's state and the previous step's outputs exist only in the second. What
kernels take and give back inside themselves, and what an allocator rounds up, is not in the numbers. Gradients are
cleared before the forward pass. The trainers of SAMed and DAE-Former clear them after it, which costs them up to 18 and
72 MiB more, and would cost up to 350 with all weights of ViT-B: the numbers are kind to the peers.

python -m benchmarks.memory.peers [--samed CLONE] [--daeformer CLONE] [--out FILE.json]

With a clone of github.com/hitachinsk/SAMed or github.com/mindflow-institue/DAEFormer its own model code is followed
(and what it imports must be installed); without one, an equal of it that is built here.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.optim import SGD, AdamW, Optimizer

from benchmarks.runs import described
from medsaga import files
from medsaga.memory.tracker import TensorTracker
from medsaga.models import decoder
from medsaga.models.daeformer import DAEFormer
from medsaga.models.lora import LoraQkv
from medsaga.models.sam import build_sam

CLASSES = 9
"""Eight organs of Synapse and background."""
RANK = 4
BUILT_HERE = "equal built here"
MIB = 2**20


@dataclass(frozen=True)
class Recipe:
    """A peer's training step.

    Attributes:
        setting: what the row is called.
        source: whose code runs.
        batch_size: images in a step.
        image_size: side of the square images in pixels; they have one channel.
        logit_size: side of the logits that the loss sees.
        dice_weight: share of Dice in the loss; the rest is cross-entropy.
        build: returns the model, which gives a tuple with the logits first.
        optimizer: takes the trainable parameters.
    """

    setting: str
    source: str
    batch_size: int
    image_size: int
    logit_size: int
    dice_weight: float
    build: Callable[[], nn.Module]
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]


def measure(recipe: Recipe) -> dict[str, Any]:
    """Follow two steps on fake tensors and return the row of the table, memory in MiB."""
    with FakeTensorMode():
        model = recipe.build().train()
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = recipe.optimizer(trainable)
        tracker = TensorTracker()
        tracker.assign([*model.parameters(), *model.buffers()], "weights")
        for parameter in trainable:
            parameter.register_post_accumulate_grad_hook(lambda p: tracker.assign([p.grad], "gradients"))
        with tracker:
            follow_two_steps(recipe, model, optimizer, tracker)
    return {
        "setting": recipe.setting,
        "source": recipe.source,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trainable_parameters": sum(parameter.numel() for parameter in trainable),
        "peak_mib": round(tracker.peak_bytes / MIB, 1),
        "breakdown_mib": {name: round(size / MIB, 1) for name, size in tracker.breakdown.items()},
    }


def follow_two_steps(recipe: Recipe, model: nn.Module, optimizer: Optimizer, tracker: TensorTracker) -> None:
    """Train; outputs and loss of a step live until the next one's replace them, as in both peers' trainers."""
    tracker.phase = "activations"
    images = torch.zeros(recipe.batch_size, 1, recipe.image_size, recipe.image_size)
    labels = torch.zeros(recipe.batch_size, recipe.logit_size, recipe.logit_size, dtype=torch.int64)
    for _ in range(2):
        tracker.phase = "activations"
        optimizer.zero_grad()
        outputs = model(images)
        loss = peers_loss(outputs[0], labels, recipe.dice_weight)
        tracker.phase = "temporary"
        loss.backward()
        tracker.phase = "optimizer"
        optimizer.step()


def peers_loss(logits: Tensor, labels: Tensor, dice_weight: float) -> Tensor:
    """Return cross-entropy + Dice as in TransUNet, SAMed and DAE-Former: Dice per class with squares below.

    Args:
        logits: ``(batch, classes, height, width)``.
        labels: ``(batch, height, width)`` int64.
        dice_weight: between 0 and 1; cross-entropy has the rest.
    """
    cross_entropy = functional.cross_entropy(logits, labels)
    probabilities = logits.softmax(1)
    truth = torch.stack([labels == label for label in range(logits.shape[1])], dim=1).float()
    dice = torch.zeros(())
    for label in range(logits.shape[1]):
        predicted, true = probabilities[:, label], truth[:, label]
        overlap = (predicted * true).sum()
        dice = dice + (2 * overlap + 1e-5) / ((predicted * predicted).sum() + (true * true).sum() + 1e-5)
    return (1 - dice_weight) * cross_entropy + dice_weight * (1 - dice / logits.shape[1])


class PlainSam(nn.Module):
    """SAM as released: attention stores the matrix of all token pairs. With LoRA, SAMed (arXiv 2304.13785)."""

    def __init__(self, image_size: int, *, lora: bool) -> None:
        super().__init__()
        self.sam = build_sam("vit_b", classes=CLASSES, image_size=image_size, in_channels=1)
        self.sam.image_encoder.requires_grad_(not lora)
        blocks: Any = self.sam.image_encoder.blocks
        for block in blocks:
            block.attn = PlainVisionAttention(block.attn)
            if lora:
                block.attn.qkv = LoraQkv(block.attn.qkv, RANK)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the low-resolution logits, and those of the image's size that SAMed's trainer keeps for pictures."""
        with patch.object(decoder, "attend_plainly", attend_by_the_book):
            low_res_logits = self.sam(images)
        return low_res_logits, functional.interpolate(low_res_logits, images.shape[-2:], mode="bilinear")


class PlainVisionAttention(nn.Module):
    """Attention with decomposed relative positions (arXiv 2112.01526, equation 4) by the book, as SAM's release."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        source: Any = attention
        self.heads: int = source.heads
        self.scale: float = source.scale
        self.qkv: nn.Module = source.qkv
        self.proj: nn.Linear = source.proj
        self.rel_pos_h: nn.Parameter = source.rel_pos_h
        self.rel_pos_w: nn.Parameter = source.rel_pos_w

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(batch, height, width, channels)`` to the same."""
        batch, height, width, channels = hidden_states.shape
        tokens = height * width
        qkv = self.qkv(hidden_states).reshape(batch, tokens, 3, self.heads, channels // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).reshape(3, batch * self.heads, tokens, -1).unbind(0)
        scores = (query * self.scale) @ key.mT
        on_grid = query.unflatten(1, (height, width))
        rows = torch.einsum("bhwc,hkc->bhwk", on_grid, _distances(self.rel_pos_h, height))
        columns = torch.einsum("bhwc,wkc->bhwk", on_grid, _distances(self.rel_pos_w, width))
        scores = scores.view(-1, height, width, height, width) + rows[..., None] + columns[..., None, :]
        attended = scores.view(-1, tokens, tokens).softmax(-1) @ value
        attended = attended.unflatten(0, (batch, self.heads)).transpose(1, 2)
        return self.proj(attended.reshape(batch, height, width, channels))


def attend_by_the_book(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Like `medsaga.models.attention.attend_plainly`, with the matrix of all token pairs."""
    scores = query @ key.mT * query.shape[-1] ** -0.5
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous()


class Logits(nn.Module):
    """A model that returns logits, as one that returns a tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return ``(batch, classes, image_size, image_size)`` alone in a tuple."""
        return (self.model(images),)


class PublicSam(nn.Module):
    """SAMed's own model code, fed as its trainer feeds it."""

    def __init__(self, image_size: int, *, lora: bool) -> None:
        super().__init__()
        # Its train.py shifts and scales nothing; the checkpoint it loads next has no part in the memory.
        registry = importlib.import_module("segment_anything").sam_model_registry
        sam, _ = registry["vit_b"](image_size, CLASSES - 1, pixel_mean=[0, 0, 0], pixel_std=[1, 1, 1])
        self.image_size = image_size
        self.model: nn.Module = importlib.import_module("sam_lora_image_encoder").LoRA_Sam(sam, RANK) if lora else sam

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return all that the model returns, the low-resolution logits first."""
        outputs = self.model(images, True, self.image_size)
        return outputs["low_res_logits"], outputs["masks"], outputs["iou_predictions"]


def public_daeformer() -> nn.Module:
    """Build DAE-Former from its own model code."""
    return Logits(importlib.import_module("networks.DAEFormer").DAEFormer(num_classes=CLASSES))


def recipes(samed: Path | None, daeformer: Path | None) -> list[Recipe]:
    """List the rows; a clone that is named takes the place of what is built here."""
    sam_model = PublicSam if samed else PlainSam
    rows = [
        Recipe(
            f"{name}, ViT-B, {size} px, batch {batch}, AdamW",
            _source(samed),
            batch,
            size,
            size // 4,
            dice_weight=0.8,
            build=partial(sam_model, size, lora=lora),
            optimizer=partial(AdamW, lr=0.005, betas=(0.9, 0.999), weight_decay=0.1),
        )
        for name, lora in (("SAMed", True), ("SAM, all weights", False))
        for size, batch in ((512, 12), (1024, 1))
    ]
    return [
        *rows,
        Recipe(
            "DAE-Former, 224 px, batch 24, SGD with momentum",
            _source(daeformer),
            24,
            224,
            224,
            dice_weight=0.6,
            build=public_daeformer if daeformer else lambda: Logits(DAEFormer(classes=CLASSES, in_channels=1)),
            optimizer=partial(SGD, lr=0.05, momentum=0.9, weight_decay=1e-4),
        ),
    ]


def _distances(table: Tensor, size: int) -> Tensor:
    """``(size, size, head size)``: entry (i, j) is the table's row for a query at i and a key at j."""
    places = torch.arange(size)
    return table[places[:, None] - places + size - 1]


def _source(clone: Path | None) -> str:
    if clone is None:
        return BUILT_HERE
    asked = subprocess.run(["git", "-C", str(clone), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return f"public code at commit {asked.stdout.strip()}" if asked.returncode == 0 else "public code, commit unknown"


def main() -> None:
    """Print a table, and write the same as JSON when asked."""
    parser = described(__doc__)
    parser.add_argument("--samed", type=Path, help="a clone of SAMed")
    parser.add_argument("--daeformer", type=Path, help="a clone of DAEFormer")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    arguments = parser.parse_args()
    clones = [path for path in (arguments.samed, arguments.daeformer) if path]
    for clone in clones:
        if not clone.is_dir():
            parser.error(f"{clone} is no folder")
    sys.path[:0] = [str(clone) for clone in clones]
    rows = []
    for recipe in recipes(arguments.samed, arguments.daeformer):
        row = measure(recipe)
        rows.append(row)
        parts = ", ".join(f"{name} {size:,.0f}" for name, size in row["breakdown_mib"].items())
        print(f"{row['setting']:50} {row['peak_mib']:>9,.0f} MiB  ({parts})  {row['source']}", flush=True)
    if arguments.out:
        files.write_json(arguments.out, {"torch": torch.__version__, "dtype": "float32", "rows": rows})


if __name__ == "__main__":
    main()
