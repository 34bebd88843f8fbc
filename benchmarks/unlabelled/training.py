"""A training run with the product's pieces, that can be stopped, copied and gone on with in several ways."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.unlabelled.cheap import take_statistics, with_their_greys
from benchmarks.unlabelled.recipes import Pseudo, Recipe, pseudo_labels, unlabelled_loss, weak_views
from benchmarks.unlabelled.scene import Scene
from medsaga.data.augment import AUGMENTATIONS, augment
from medsaga.data.samples import Samples, batch_indices
from medsaga.methods import new_optimizer
from medsaga.models.base import SegmentationModel
from medsaga.settings.options import ResolvedSettings
from medsaga.training.loss import segmentation_loss
from medsaga.training.scaling import LossScale
from medsaga.training.schedule import learning_rate_factor
from medsaga.training.step import update


@dataclass(eq=False)
class Training:
    """A run at some step.

    Attributes:
        scene: what it has.
        steps: of the whole run.
        recipe: None for a supervised run.
        teacher: a trained model, for recipes that ask one.
        step: how many were made.
        seconds: of the processor that these took.
        notes: of each step with pseudo-labels, the Dice of all of them over all foreground pixels, the share that
            counted, and the Dice of these.
        model: the student.
        average: of the student's weights.
    """

    scene: Scene
    steps: int
    recipe: Recipe | None = None
    teacher: SegmentationModel | None = None
    step: int = 0
    seconds: float = 0.0
    notes: dict[str, list[float]] = field(default_factory=lambda: {"right": [], "kept": [], "kept_right": []})

    def __post_init__(self) -> None:
        self.model: SegmentationModel = self.scene.model().train()
        if self.recipe is not None and self.recipe.statistics:
            take_statistics(self.model, [self.scene.labelled, self.scene.unlabelled], share=self.recipe.statistics)
        self.settings: ResolvedSettings = self.scene.config.settings
        self.optimizer = new_optimizer(self.model, self.settings)
        self.average = copy.deepcopy(dict(self.model.state_dict()))
        self._teacher: SegmentationModel | None = None

    def state(self) -> dict[str, Any]:
        """Return all that a copy goes on from."""
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average,
                "step": self.step,
                "seconds": self.seconds,
            }
        )

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        state = copy.deepcopy(state)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step, self.seconds = state["average"], state["step"], state["seconds"]

    def run(self, until: int) -> None:
        """Make the steps up to ``until``."""
        while self.step < until:
            began = time.process_time()
            self._make_step()
            self.step += 1
            self.seconds += time.process_time() - began

    def averaged(self) -> SegmentationModel:
        """Return a model with the averaged weights."""
        if self._teacher is None:
            self._teacher = self.scene.model().eval()
        self._teacher.load_state_dict(self.average)
        return self._teacher

    def _make_step(self) -> None:
        settings, recipe = self.settings, self.recipe
        factor = learning_rate_factor(self.step, steps=self.steps, warmup=max(1, self.steps // 10))
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]
        if self.optimizer.needs_calibration():
            self._backward(None)
            self.optimizer.calibrate()
        begins = recipe is not None and self.step >= recipe.first_step(self.steps)
        self._backward(recipe if begins else None)
        update(self.optimizer, max_gradient_norm=settings.max_gradient_norm, scale=LossScale())
        decay = 0.98 if recipe is None else recipe.decay
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)

    def _backward(self, recipe: Recipe | None) -> None:
        settings, seed, step = self.settings, self.settings.seed, self.step
        images, labels = batch_of(self.scene.labelled, seed, step, settings.batch_size)
        if recipe is not None and recipe.greys:
            pool = self.scene.unlabelled
            others, _ = pool.batch(np.random.default_rng([seed, step, 29]).integers(len(pool), size=len(images)))
            images = with_their_greys(images, others, seed=seed, step=step, chance=recipe.greys)
        images, labels = augment(
            images,
            labels,
            seed=seed,
            step=step,
            strength=AUGMENTATIONS["fewshot"],
            symmetries=self.model.symmetries,
        )
        loss = segmentation_loss(
            self.model(images),
            labels,
            dice_weight=settings.dice_weight,
            resolution="image",
        )
        loss.sum().backward()
        if recipe is None or not recipe.weight:
            return
        pool = self.scene.unlabelled
        drawn = np.random.default_rng([seed, step, 23]).choice(
            len(pool), recipe.images, replace=len(pool) < recipe.images
        )
        views, truth = weak_views(*pool.batch(drawn), seed=seed, step=step, symmetries=self.model.symmetries)
        side = images.shape[-1] // 2
        if recipe.teacher == "truth":
            hot = F.one_hot(_smaller(truth, side).long(), self.model.classes).movedim(-1, 1).float()
            pseudo = Pseudo(hot, torch.ones(len(hot), side, side))
        else:
            teachers = {"ema": self.averaged(), "trained": self.teacher}
            teacher = teachers[recipe.teacher]
            assert teacher is not None, "there for this recipe"
            pseudo = pseudo_labels(teacher, views, recipe, self.model.symmetries)
        self._note(pseudo.probabilities.argmax(1), pseudo.counts, _smaller(truth, pseudo.counts.shape[-1]))
        small = _smaller(labels, pseudo.counts.shape[-1])
        loss = unlabelled_loss(self.model, views, pseudo, recipe, labelled=(images, small), seed=seed, step=step)
        (recipe.weight * loss).backward()

    def _note(self, guess: Tensor, counts: Tensor, truth: Tensor) -> None:
        """Note how right pseudo-labels are: Dice over all foreground pixels, of all and of those that count."""

        def foreground_dice(kept: Tensor) -> float:
            same = ((guess == truth) & (truth > 0) & kept).sum()
            sizes = ((guess > 0) & kept).sum() + ((truth > 0) & kept).sum()
            return float(2 * same / sizes.clamp(min=1))

        self.notes["right"].append(foreground_dice(torch.ones_like(counts, dtype=torch.bool)))
        self.notes["kept_right"].append(foreground_dice(counts > 0))
        self.notes["kept"].append(float(counts.mean()))


def batch_of(samples: Samples, seed: int, step: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the batch of a step, as the product draws it."""
    return samples.batch(batch_indices(samples, seed, step, size))


def _smaller(labels: Tensor, side: int) -> Tensor:
    factor = labels.shape[-1] // side
    return labels[:, factor // 2 :: factor, factor // 2 :: factor]
