"""A run's own split as files for others, in nnU-Net's raw format, and the scoring of the label maps that come back.

    raw/dataset.json
    raw/imagesTr/NAME_0000.png   raw/labelsTr/NAME.png    the cases to train on
    raw/imagesTs/NAME_0000.png                            the cases to predict; their masks are not there

Images are PNGs of 8 bits, grey or in colour, in their own size. Label maps are PNGs of class indices, so that they have
no gaps, which nnU-Net requires; `score` turns predictions back into label values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from medsaga import files
from medsaga.data.dataset import raise_problems, read_dataset
from medsaga.data.items import for_channels, read_item, read_mask
from medsaga.data.types import Dataset, Item, to_class_indices
from medsaga.evaluation.protocols import PROTOCOLS
from medsaga.evaluation.summary import ItemScores, summarise

CHANNEL_NAMES = {1: ("grey",), 3: ("R", "G", "B")}
"""Names that make nnU-Net normalise each channel to mean 0 and deviation 1, as in its own example with photographs."""
PROTOCOL = "mm"


@dataclass(frozen=True)
class Task:
    """Images to train on and images to be tested on.

    Attributes:
        dataset: that all of them are of.
        train: to train on, with masks.
        test: to predict.
    """

    dataset: Dataset
    train: tuple[Item, ...]
    test: tuple[Item, ...]

    @property
    def classes(self) -> int:
        """Number of labels, with the background."""
        return len(self.dataset.labels)


def task_of(data: Path, split: Mapping[str, Sequence[str]]) -> Task:
    """Return the images of a run's split.

    Args:
        data: a folder of 2-D images of 8 bits.
        split: names of cases in ``train``, ``validation`` and ``test``, as a run folder's ``split.json`` has them.
            Peers are trained on the cases for validation too, because they too are labelled cases that a user has.
    """
    dataset = read_dataset(data)
    raise_problems(dataset.problems)
    labelled = (*split["train"], *split["validation"])
    return Task(dataset, dataset.items_of(labelled), dataset.items_of(tuple(split["test"])))


def write_raw(task: Task, raw: Path) -> None:
    """Write the images and the masks of the training images into the new folder ``raw``."""
    channels = len(task.dataset.channels)
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (raw / folder).mkdir(parents=True)
    for folder, items in (("imagesTr", task.train), ("imagesTs", task.test)):
        for item in items:
            _save(raw / folder / f"{item.name}_0000.png", _picture(read_item(for_channels(item, channels))))
    for item in task.train:
        _save(raw / "labelsTr" / f"{item.name}.png", to_class_indices(read_mask(item), task.dataset.label_values))
    document = {
        "channel_names": {str(place): name for place, name in enumerate(CHANNEL_NAMES[channels])},
        "labels": {name: place for place, name in enumerate(task.dataset.labels)},
        "numTraining": len(task.train),
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
    }
    files.write_json(raw / "dataset.json", document)


def score(task: Task, predictions: Path) -> dict[str, Any]:
    """Score ``NAME.png``, class indices in the size of the image, of every test image, by medsaga's own protocol.

    Returns:
        as `medsaga.evaluation.summary.summarise`.

    Raises:
        FileNotFoundError: a prediction is missing.
    """
    values, dataset = task.dataset.label_values, task.dataset
    names = {value: name for name, value in dataset.labels.items() if value != 0}
    scored = []
    for item in task.test:
        with Image.open(predictions / f"{item.name}.png") as image:
            found = values[np.asarray(image)]
        truth = read_mask(item)
        assert found.shape == truth.shape, f"{item.name}: {found.shape} for {truth.shape}"
        scores = PROTOCOLS[PROTOCOL](found, truth, list(names), item.header.grid.to_mm)
        scored.append(ItemScores(item.name, item.case, {names[value]: each for value, each in scores.items()}))
    return summarise(scored, PROTOCOL)


def _picture(image: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Return (height, width) or (height, width, 3) of an image of one or three channels, channels first."""
    assert image.dtype == np.uint8, f"images of 8 bits, not {image.dtype}"
    pixels = image.astype(np.uint8, copy=False)
    return pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)


def _save(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
