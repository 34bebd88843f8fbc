"""Tasks to adapt to: a few labelled images, and others of the same kind to be judged by.

A task is what a run has: some classes, background for all the rest, one to four images to learn from. It is of a
made-up world or of a real dataset with its mask, all of its images recoloured, turned and zoomed alike, so that real
images of four kinds become many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.starter.bank import IGNORED, IMAGES_PER_WORLD, Bank, centre_of, moved, recoloured

WORLDS_SHARE = 0.65
"""How often a task is of a made-up world."""
REAL_IMAGES = 8
MOST_SUPPORT = {"worlds": 3, "masks": 4}
MOST_CLASSES = 6
"""Background included."""
LEAST_PIXELS = 40
"""Of a class, both in the images to learn from and in the others."""
TRIES = 20


@dataclass(frozen=True, eq=False)
class Task:
    """A small dataset.

    Attributes:
        images: ``(n, 3, side, side)`` uint8.
        labels: ``(n, side, side)`` uint8, below ``classes``.
        support: the first so many images are there to learn from.
        classes: background included.
    """

    images: Tensor
    labels: Tensor
    support: int
    classes: int


def draw_task(bank: Bank, *, side: int, seed: int, number: int) -> Task:
    """Draw a task, a pure function of seed and number."""
    random = np.random.default_rng([seed, number])
    for _ in range(TRIES):
        task = _try(bank, side, random)
        if task is not None:
            return task
    raise AssertionError("a bank in which hardly any image has a class of some size")


def _try(bank: Bank, side: int, random: np.random.Generator) -> Task | None:
    kind = "worlds" if random.random() < WORLDS_SHARE else "masks"
    group = bank.groups[kind][random.integers(len(bank.groups[kind]))]
    count = min(len(group), IMAGES_PER_WORLD if kind == "worlds" else REAL_IMAGES)
    rows = random.choice(group, count, replace=False).tolist()
    support = int(random.integers(1, MOST_SUPPORT[kind] + 1))
    images = torch.from_numpy(bank.images[rows]).permute(0, 3, 1, 2).float()
    labels = torch.from_numpy(bank.labels[rows])
    images = recoloured(images, random, together=count)
    centres = np.stack([centre_of(bank.labels[row], random) for row in rows])
    images, labels = moved(images, labels, centres, side, random, together=count)
    foreground = _foreground(labels, support, random)
    if support >= count or not foreground:
        return None
    classes = torch.zeros_like(labels)
    for number, value in enumerate(foreground, start=1):
        classes[labels == value] = number
    return Task(images.clamp(0, 255).to(torch.uint8), classes, support, 1 + len(foreground))


def _foreground(labels: Tensor, support: int, random: np.random.Generator) -> list[int]:
    """Choose some of the values that occur on both sides; of a mask of 0 and 1 it is the 1."""
    values = np.setdiff1d(labels.numpy(), [IGNORED])
    known = [
        v for v in values.tolist() if min((labels[:support] == v).sum(), (labels[support:] == v).sum()) >= LEAST_PIXELS
    ]
    if values.max(initial=0) <= 1:
        return [v for v in known if v == 1]
    most = min(int(random.integers(1, MOST_CLASSES)), len(values) - 1)
    chosen: list[int] = random.permutation(known)[:most].tolist()
    return chosen
