"""A set with a few labelled cases, a third of the others without labels, and test cases: what a run starts from and
how it is scored. Everything is the product's own but the split.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from medsaga.data.dataset import read_dataset
from medsaga.data.intensity import choose_intensity
from medsaga.data.items import read_mask
from medsaga.data.samples import Samples, build_samples
from medsaga.data.survey import survey
from medsaga.data.symmetries import symmetries_of
from medsaga.data.types import Dataset, Item
from medsaga.evaluation.metrics import dice
from medsaga.evaluation.protocols import LabelScore
from medsaga.evaluation.summary import ItemScores, summarise
from medsaga.methods import method_named
from medsaga.models.base import SegmentationModel
from medsaga.planning.defaults import defaults_for
from medsaga.planning.detail import Outlined
from medsaga.planning.resolve import Facts, resolve
from medsaga.prediction.segmenter import Segmenter
from medsaga.runs.prepare import new_model
from medsaga.settings.options import Settings
from medsaga.settings.run_config import RunConfig
from medsaga.training.class_tokens import start_class_tokens

QUIET = Console(file=io.StringIO())
TESTED = 30
"""At most so many cases."""
UNLABELLED_SHARE = 1 / 3


@dataclass(eq=False)
class Scene:
    """What a run has: see `scene_of`.

    Attributes:
        config: of the run.
        labelled: samples to train on.
        unlabelled: the others' samples. Their labels are there to measure pseudo-labels by, and for nothing else.
        tested: the test cases' images.
        dataset: all of them.
        start: the model before the first step.
    """

    config: RunConfig
    labelled: Samples
    unlabelled: Samples
    tested: tuple[Item, ...]
    dataset: Dataset
    start: SegmentationModel

    def model(self) -> SegmentationModel:
        """Return a copy of the model before the first step."""
        return copy.deepcopy(self.start)

    def score(self, model: SegmentationModel) -> dict[str, Any]:
        """Return the Dice of a model on the test cases' own grids, as ``medsaga evaluate`` computes it."""
        segmenter = Segmenter(copy.deepcopy(model), self.config, torch.device("cpu"))
        names = {value: name for name, value in self.dataset.labels.items() if value != 0}
        scored = []
        for item in self.tested:
            found, truth = segmenter.predict_item(item).labels, read_mask(item)
            scores = {name: _score(found == value, truth == value) for value, name in names.items()}
            scored.append(ItemScores(item.name, item.case, scores))
        return summarise(scored, self.config.settings.protocol, resamples=1)


def scene_of(data: Path, cache: Path, *, shots: int, seed: int, settings: Settings) -> Scene:
    """Draw the cases with the seed and prepare a run on them.

    The test cases and the unlabelled ones are the same for every number of shots: the first are drawn from one end of
    a random order, the labelled ones from the other.
    """
    dataset = read_dataset(data)
    found = survey(dataset)
    order = [dataset.cases[place] for place in np.random.default_rng([seed, 23]).permutation(len(dataset.cases))]
    labelled, others = order[:shots], order[8:] if len(order) > 8 else order[shots:]
    count = round(UNLABELLED_SHARE * len(others))
    unlabelled, tested = others[:count], others[count:][-TESTED:]
    items = dataset.items_of(tuple(labelled))
    device = torch.device("cpu")
    facts = Facts(
        device=defaults_for(device),
        classes=len(dataset.labels),
        channels=len(dataset.channels),
        labelled=[Outlined(each.item.header.grid, each.voxels, each.outlines) for each in found.of(items)],
        memory=None,
        processes=1,
    )
    resolved = replace(resolve(settings, facts), seed=seed)
    intensities = choose_intensity(dataset, found.of(items), resolved.intensity, resolved.window)
    config = RunConfig(
        data=str(dataset.root),
        labels=dataset.labels,
        channels=dataset.channels,
        intensities=intensities,
        settings=resolved,
    )

    def samples(cases: Sequence[str]) -> Samples:
        return build_samples(
            cache,
            dataset,
            dataset.items_of(tuple(cases)),
            view_axis=resolved.axis,
            intensities=intensities,
            image_size=resolved.image_size,
            neighbours=0,
        )

    train = samples(labelled)
    model, info = new_model(config, QUIET)
    assert method_named(resolved.method).trains_sam
    model.symmetries = symmetries_of(train, model.classes)
    if info.get("episodic"):
        start_class_tokens(model, train)
    return Scene(config, train, samples(unlabelled), dataset.items_of(tuple(tested)), dataset, model)


def _score(found: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> LabelScore:
    """Protocol mm's Dice; HD95 is left out, which would take as long as the prediction."""
    if not found.any() and not truth.any():
        return LabelScore(None, None, "neither", "px")
    return LabelScore(dice(found, truth), None, "both", "px")
