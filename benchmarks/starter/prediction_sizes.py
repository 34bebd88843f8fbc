"""What it is worth to show a model its test images larger or smaller than those that it was trained on.

    python -m benchmarks.starter.prediction_sizes FOLDER_OF_DATASETS --runs RUNS

RUNS has the folders of finished runs of ``lite``, as ``medsaga compare --keep-runs`` leaves them. ``lite`` takes images
of any size; probabilities are averaged over the mirror images that the run has chosen, and over the sizes of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.machine import machine
from benchmarks.runs import parser_for
from medsaga import Segmenter, files, run_folder
from medsaga.data.dataset import read_dataset
from medsaga.data.items import for_channels, read_mask
from medsaga.data.letterbox import content_size, letterbox, unletterbox
from medsaga.data.pictures import read_picture
from medsaga.data.slices import slice_channels, slice_view
from medsaga.data.symmetries import flips
from medsaga.data.types import Item, to_label_values
from medsaga.evaluation.protocols import mm
from medsaga.models.sam import build_sam

FACTORS = (0.67, 0.83, 1.0, 1.17, 1.33)
ROWS: tuple[tuple[float, ...], ...] = ((0.83,), (1.0,), (1.17,), (1.33,), (1.0, 1.33), (0.83, 1.0, 1.33), FACTORS)
STEP = 32
"""Pixels: sizes are multiples of it."""


def probabilities(segmenter: Segmenter, item: Item) -> dict[float, torch.Tensor]:
    """Return (classes, height, width) of an image of one slice, by how much larger it was shown."""
    settings, trained = segmenter.config.settings, segmenter.model
    item = for_channels(item, len(segmenter.config.channels))
    picture = read_picture(item, slice_view(item.header.grid, settings.axis), segmenter.config.intensities)
    assert len(picture) == 1, f"{item.name} has {len(picture)} slices"
    channels = slice_channels(picture, 0, settings.neighbours)
    shape = channels.shape[1], channels.shape[2]
    found = {}
    for factor in FACTORS:
        size = round(settings.image_size * factor / STEP) * STEP
        model = build_sam(
            trained.architecture, classes=trained.classes, image_size=size, in_channels=trained.in_channels
        )
        model.load_state_dict(trained.state_dict())
        model.eval()
        passes = [(flip, letterbox(np.flip(channels, flip), size)[0]) for flip in flips(trained.symmetries)]
        with torch.inference_mode():
            seen = [(flip, model(torch.from_numpy(square)[None])) for flip, square in passes]
            maps = [unletterbox(one, content_size(shape, size), size, shape)[0].softmax(0).flip(f) for f, one in seen]
        found[factor] = torch.stack(maps).mean(0)
    return found


def scores(segmenter: Segmenter, items: Sequence[Item]) -> Iterator[dict[str, Any]]:
    """Yield the mean Dice over labels and images for each of ``ROWS``."""
    values = [value for value in segmenter.config.labels.values() if value != 0]
    dice: dict[tuple[float, ...], dict[int, list[float]]] = {row: {} for row in ROWS}
    for item in items:
        found, truth = probabilities(segmenter, item), read_mask(item)
        truth = slice_view(item.header.grid, segmenter.config.settings.axis).of_labels(truth)[0]
        for row in ROWS:
            classes: npt.NDArray[np.uint8] = sum(found[factor] for factor in row).argmax(0).to(torch.uint8).numpy()  # type: ignore[union-attr]
            for value, score in mm(to_label_values(classes, segmenter.label_values), truth, values, None).items():
                if score.dice is not None:
                    dice[row].setdefault(value, []).append(score.dice)
    for row, of_labels in dice.items():
        yield {"sizes": list(row), "dice_mean": mean(mean(each) for each in of_labels.values())}


def main() -> None:
    """Do it."""
    given = parser_for(__doc__, Path(__file__).parent).parse_args()
    found = []
    for folder in sorted(given.runs.glob("*/runs/equal-medsaga-*")):
        if not (folder / run_folder.RESULT).exists():
            continue
        name, segmenter = folder.parent.parent.name, Segmenter.load(folder, "cpu")
        test = set(files.read_json(folder / run_folder.SPLIT)["test"])
        items = [item for item in read_dataset(given.datasets / name).items if item.case in test]
        for row in scores(segmenter, items):
            found.append({"dataset": name, "run": folder.name, "images": len(items), **row})
            print(found[-1], flush=True)
    files.write_json(given.out / "prediction_sizes.json", {"machine": machine(), "rows": found})


if __name__ == "__main__":
    main()
