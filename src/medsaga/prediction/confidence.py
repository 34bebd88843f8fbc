"""How sure a model is of its own segmentation, and therefore which cases to look at first.

The score of a class is the Dice that its prediction can expect if the model's probabilities are right: the Soft Dice
Confidence of Borges, Machado Pacheco and Silva (arXiv 2402.10665, 2024), ``2 sum(p in mask) / (sum(p) + size of
mask)``, which they prove to be close to the expected Dice where voxels are independent given the image.

The probabilities of a network are seldom right, mostly too sure of themselves, and wrong without knowing it on images
unlike those it was trained on. The score orders cases by how much they need a look. It promises no Dice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt


class ConfidenceScores(TypedDict):
    """The confidence in one label map, ready for JSON."""

    mean: float
    """Mean over the classes but the background, from 0 to 1."""
    classes: list[float]
    """Of each class index from 1 on, from 0 to 1."""


class Confidence:
    """The confidence in one image or volume, from its slices one after another; it keeps four numbers per class.

    A class of which nothing is predicted has no mask to expect a Dice of. Its score is 1 - max(p): the most that the
    probability of its true absence can be, whatever the voxels have to do with one another (Fréchet's bound), and the
    expected Dice if two empty masks agree fully and voxels go together. Independent voxels would make it the product
    of 1 - p, which the tails of a softmax drive to 0 in every volume.

    Args:
        classes: number of classes, background (index 0) included.
    """

    def __init__(self, classes: int) -> None:
        assert classes >= 2, "a background and at least one class"
        self._classes = classes
        self._inside = [0.0] * classes
        self._everywhere = [0.0] * classes
        self._voxels = [0] * classes
        self._highest = [0.0] * classes

    def add(self, probabilities: Any) -> None:
        """Count a slice, or any other part of the voxels.

        Args:
            probabilities: ``(classes, *shape)`` floating point, summing to 1 over the classes: an array, or a tensor
                on any device. The prediction is the class of the highest probability.
        """
        assert probabilities.shape[0] == self._classes, f"{probabilities.shape} for {self._classes} classes"
        for index, (inside, everywhere, voxels, highest) in enumerate(sums_of(probabilities), 1):
            self._inside[index] += float(inside)
            self._everywhere[index] += float(everywhere)
            self._voxels[index] += int(voxels)
            self._highest[index] = max(self._highest[index], float(highest))

    def result(self) -> ConfidenceScores:
        """Return the confidence in what was added. Probabilities that are not finite deserve none: they count as 0."""
        scores = [self._score(index) for index in range(1, self._classes)]
        return {"mean": sum(scores) / len(scores), "classes": scores}

    def _score(self, index: int) -> float:
        if not math.isfinite(self._everywhere[index]):
            return 0.0
        if self._voxels[index] == 0:
            return min(1.0, max(0.0, 1.0 - self._highest[index]))
        return min(1.0, 2 * self._inside[index] / (self._everywhere[index] + self._voxels[index]))


def sums_of(probabilities: Any) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Yield what `Confidence` keeps of each class but the background.

    Args:
        probabilities: as for `Confidence.add`.

    Yields:
        the sum of the class's probabilities where it is predicted, that of all, the number of voxels where it is
        predicted, and the highest probability.
    """
    flat = probabilities.reshape(probabilities.shape[0], -1)
    # Of a tensor, argmax takes ten times as long, on a CPU.
    predicted = flat.argmax(0) if isinstance(flat, np.ndarray) else flat.max(0).indices
    for index in range(1, len(flat)):
        mask, likely = predicted == index, flat[index]
        yield (likely * mask).sum(), likely.sum(), mask.sum(), likely.max()


def confidence(probabilities: npt.NDArray[np.float32]) -> ConfidenceScores:
    """Return the confidence in the segmentation of one image or volume; see `Confidence`.

    Args:
        probabilities: ``(classes, *shape)`` float32, summing to 1 over the classes.
    """
    whole = Confidence(len(probabilities))
    whole.add(probabilities)
    return whole.result()


def look_first(scores: Mapping[str, float]) -> list[str]:
    """Return the names of cases, the least confident first; equal ones by name.

    Args:
        scores: name of a case to the mean of its `ConfidenceScores`.
    """
    return sorted(scores, key=lambda name: (scores[name], name))
