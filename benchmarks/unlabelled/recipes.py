"""Ways to learn from images without labels, each as a loss that is added to the supervised one.

They are those of FixMatch (arXiv 2001.07685), UniMatch (2208.09910), BCP (2305.00673), CutMix (1905.04899 and, for
segmentation, 1906.01916) and of the mean teacher (1703.01780), in the few parts that fit a run of minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medsaga.data.augment import AUGMENTATIONS, Augmentation, augment
from medsaga.data.symmetries import SYMMETRIES

_FEWSHOT = AUGMENTATIONS["fewshot"]
GEOMETRY = Augmentation(
    rotate=_FEWSHOT.rotate,
    degrees=_FEWSHOT.degrees,
    scale=_FEWSHOT.scale,
    scale_range=_FEWSHOT.scale_range,
    shift=_FEWSHOT.shift,
    shift_limit=_FEWSHOT.shift_limit,
    elastic=_FEWSHOT.elastic,
    elastic_limit=_FEWSHOT.elastic_limit,
    mirror=_FEWSHOT.mirror,
)
"""The weak view: where things are, as in the labelled images, and the intensities as they are."""
INTENSITY = Augmentation(
    tone=1.0,
    brightness=0.35,
    contrast=0.5,
    gamma=1.0,
    colour=0.8,
    noise=0.5,
    noise_limit=0.08,
    blur=0.5,
    blur_limit=1.5,
)
"""What the strong view adds."""
SURE = 0.95


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the unlabelled images teach, and how.

    Attributes:
        weight: of their loss, beside 1 of the supervised one.
        start: share of the run after which they come in.
        teacher: the averaged student; a supervised run that has come to its end; or, to know how
            much there is to win, the true masks.
        decay: of the average.
        flipped: whether the teacher's probabilities are the mean over the mirror images that the masks allow.
        keep: share of the pixels of each predicted class, the surest ones, that count, beside all those above `SURE`.
            0 leaves only the latter.
        loss: cross-entropy with the likeliest class, that and Dice, or cross-entropy with the teacher's probabilities.
        mix: boxes between unlabelled images (cutmix), between labelled and unlabelled ones (bcp), or nothing.
        images: unlabelled ones per step.
        greys: chance of a labelled image to get the grey values of an unlabelled one; see `cheap`.
        statistics: share of the images' own statistics in the frozen norms; see `cheap`.
    """

    weight: float = 0.3
    start: float = 0.4
    teacher: Literal["ema", "trained", "truth"] = "ema"
    decay: float = 0.98
    flipped: bool = False
    keep: float = 0.8
    loss: Literal["ce", "ce_dice", "soft"] = "ce"
    mix: Literal["none", "cutmix", "bcp"] = "cutmix"
    images: int = 4
    greys: float = 0.0
    statistics: float = 0.0

    def first_step(self, steps: int) -> int:
        """Return the step of a run from which on it is another one than a supervised run."""
        return round(self.start * steps)


@dataclass(frozen=True, eq=False)
class Pseudo:
    """What a teacher says of weak views: probabilities at the logits' resolution, and which pixels count.

    Attributes:
        probabilities: ``(images, classes, s, s)``.
        counts: ``(images, s, s)`` float32, 1 where a pixel counts.
    """

    probabilities: Tensor
    counts: Tensor


def weak_views(
    images: Tensor, truth: Tensor, *, seed: int, step: int, symmetries: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    """Move and bend images and their hidden truth, which is only measured with."""
    return augment(images, truth, seed=seed + 1_000_003, step=step, strength=GEOMETRY, symmetries=symmetries)


@torch.no_grad()
def pseudo_labels(teacher: torch.nn.Module, views: Tensor, recipe: Recipe, symmetries: tuple[str, ...]) -> Pseudo:
    """Ask the teacher."""
    found = teacher(views).softmax(1)
    if recipe.flipped and symmetries:
        for name in symmetries:
            found = found + SYMMETRIES[name](teacher(SYMMETRIES[name](views)).softmax(1))
        found = found / (1 + len(symmetries))
    sure, label = found.max(1)
    counts = (sure >= SURE).float()
    if recipe.keep:
        for index in range(found.shape[1]):
            here = label == index
            if here.any():
                counts[here & (sure >= sure[here].quantile(1 - recipe.keep))] = 1
    return Pseudo(found, counts)


def _boxes(count: int, side: int, random: np.random.Generator, chance: float) -> Tensor:
    """Draw ``(count, side, side)`` masks, each with a box of a tenth to half of the area or none."""
    masks = torch.zeros(count, side, side, dtype=torch.bool)
    for mask in masks:
        if random.random() < chance:
            area, ratio = random.uniform(0.1, 0.5), np.exp(random.uniform(-0.7, 0.7))
            height, width = (min(side, max(1, round(side * (area * r) ** 0.5))) for r in (ratio, 1 / ratio))
            top, left = random.integers(side - height + 1), random.integers(side - width + 1)
            mask[top : top + height, left : left + width] = True
    return masks


def _finer(masks: Tensor, side: int) -> Tensor:
    return masks.repeat_interleave(side // masks.shape[-1], -1).repeat_interleave(side // masks.shape[-1], -2)


def unlabelled_loss(
    student: torch.nn.Module,
    views: Tensor,
    pseudo: Pseudo,
    recipe: Recipe,
    *,
    labelled: tuple[Tensor, Tensor],
    seed: int,
    step: int,
) -> Tensor:
    """Return what the student pays where it differs from the teacher.

    Args:
        student: in training mode.
        views: ``(images, channels, side, side)``, those that the teacher saw.
        pseudo: what it said.
        recipe: how.
        labelled: views of labelled images and their labels at the logits' resolution, for ``bcp``.
        seed: of the run.
        step: of the run.
    """
    random = np.random.default_rng([seed, step, 77])
    targets, counts = pseudo.probabilities, pseudo.counts
    blank = torch.zeros(len(views), *views.shape[2:], dtype=torch.uint8)
    images, _ = augment(views, blank, seed=seed + 2_000_003, step=step, strength=INTENSITY)
    if recipe.mix != "none":
        if recipe.mix == "cutmix":
            order = torch.from_numpy(random.permutation(len(images)))
            others = images[order], targets[order], counts[order]
            small = _boxes(len(images), targets.shape[-1], random, 0.5)
        else:
            one_hot = F.one_hot(labelled[1].long(), targets.shape[1]).movedim(-1, 1).float()
            others = labelled[0], one_hot, torch.ones_like(counts)
            small = _boxes(len(images), targets.shape[-1], random, 1.0)
            # Half of the images are unlabelled with a labelled box, the other half the other way round.
            small[1::2] = ~small[1::2]
        large = _finer(small, images.shape[-1])
        images = torch.where(large[:, None], others[0], images)
        targets = torch.where(small[:, None], others[1], targets)
        counts = torch.where(small, others[2], counts)
    logs = student(images).log_softmax(1)
    if recipe.loss == "soft":
        return -((targets * logs).sum(1) * counts).mean()
    label = targets.argmax(1)
    loss = (F.nll_loss(logs, label, reduction="none") * counts).mean()
    if recipe.loss == "ce_dice":
        hot = F.one_hot(label, targets.shape[1]).movedim(-1, 1).float() * counts[:, None]
        probabilities = logs.exp() * counts[:, None]
        sizes = hot.sum((0, 2, 3))
        dice = (2 * (hot * probabilities).sum((0, 2, 3)) + 1) / (sizes + probabilities.sum((0, 2, 3)) + 1)
        loss = 0.2 * loss + 0.8 * (1 - dice[sizes > 0].mean())
    return loss
