"""How a label map is scored against the truth, label by label: the conventions about absent labels and about units.

A protocol is a function; adding one is writing it and naming it in ``PROTOCOLS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medsaga.data.types import Labels, Mask
from medsaga.errors import InputError
from medsaga.evaluation import metrics
from medsaga.evaluation.metrics import Steps

State = Literal["both", "only_truth", "only_prediction", "neither"]
"""Where a label occurs: ``only_truth`` is a complete miss, ``only_prediction`` a false positive."""

Unit = Literal["mm", "px"]


@dataclass(frozen=True)
class LabelScore:
    """The score of one label in one image or volume.

    Attributes:
        dice: from 0 to 1; None where the label is not counted.
        hd95: in ``hd95_unit``; None where undefined.
        state: where the label occurs.
        hd95_unit: mm where the protocol uses the spacing and it is known, else pixels or voxels.
    """

    dice: float | None
    hd95: float | None
    state: State
    hd95_unit: Unit


Protocol = Callable[[Labels, Labels, Sequence[int], Steps | None], dict[int, LabelScore]]
"""``(prediction, truth, label values, steps) -> label value to score``, with label maps of shape ``(*shape)``."""


def mm(prediction: Labels, truth: Labels, label_values: Sequence[int], steps: Steps | None) -> dict[int, LabelScore]:
    """Score in mm. A label absent from both maps is not counted; absent from one, Dice is 0 and HD95 undefined.

    Args:
        prediction: label values, ``(*shape)``.
        truth: label values, ``(*shape)``.
        label_values: the labels to score, without the background.
        steps: from voxel to voxel in mm, `medsaga.data.types.Grid.to_mm`; None makes HD95 one of pixels.
    """
    scores = {}
    unit: Unit = "px" if steps is None else "mm"
    for value in label_values:
        predicted, true = prediction == value, truth == value
        state = _state(predicted, true)
        if state == "both":
            distance = metrics.hd95(predicted, true, steps)
            scores[value] = LabelScore(metrics.dice(predicted, true), distance, state, unit)
        else:
            scores[value] = LabelScore(None if state == "neither" else 0.0, None, state, unit)
    return scores


def transunet(
    prediction: Labels, truth: Labels, label_values: Sequence[int], steps: Steps | None
) -> dict[int, LabelScore]:
    """Score as TransUNet's public evaluation does, which SAMed and DAE-Former share: only to compare with them.

    Its flaws are kept. A false positive scores Dice 1 and HD95 0; a complete miss, and a label absent from both maps,
    score Dice 0 and HD95 0, and all are counted. HD95 is in pixels whatever the spacing, and is the 95th percentile
    of both directions' surface distances taken together, so that the longer surface outvotes the other.

    Args:
        prediction: label values, ``(*shape)``.
        truth: label values, ``(*shape)``.
        label_values: the labels to score, without the background.
        steps: not used.
    """
    scores = {}
    for value in label_values:
        predicted, true = prediction == value, truth == value
        state = _state(predicted, true)
        if state == "both":
            pooled = np.concatenate(metrics.surface_distances(predicted, true))
            scores[value] = LabelScore(metrics.dice(predicted, true), float(np.percentile(pooled, 95)), state, "px")
        else:
            scores[value] = LabelScore(1.0 if state == "only_prediction" else 0.0, 0.0, state, "px")
    return scores


PROTOCOLS: dict[str, Protocol] = {"mm": mm, "transunet": transunet}
PROTOCOL_NOTES = {
    "mm": (
        "Protocol mm. Dice and HD95 per image or volume, on its own grid. A label absent from both truth and "
        "prediction is not counted; one absent from either (missed, false positive) scores Dice 0 and has no HD95. "
        "HD95 is the larger of the two directed 95th percentiles of the surface distances."
    ),
    "transunet": (
        "Protocol transunet, only to compare with papers that used this evaluation: it scores a false positive of "
        "an absent label as Dice 1 and HD95 0, a complete miss as HD95 0, and a label absent from both as Dice 0 and "
        "HD95 0; HD95 ignores the spacing."
    ),
}
"""What people should know of each."""


def protocol_named(name: str) -> Protocol:
    """Return the protocol of that name, or raise InputError with the known names."""
    if name not in PROTOCOLS:
        raise InputError(
            "--protocol", expected=f"one of {', '.join(PROTOCOLS)}", found=repr(name), do="Leave it out for mm."
        )
    return PROTOCOLS[name]


def _state(predicted: Mask, true: Mask) -> State:
    if true.any():
        return "both" if predicted.any() else "only_truth"
    return "only_prediction" if predicted.any() else "neither"
