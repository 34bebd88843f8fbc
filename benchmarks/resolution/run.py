"""The best that low-resolution logits can do: fitted to the labels themselves, without any model.

    python -m benchmarks.resolution.run FOLDER_OF_DATASETS

The logits of an image have a quarter or a half of its side. They are free numbers that gradient descent fits to the
label map, once with the loss at their own resolution, as SAMed's recipe has it, and once upsampled to the image's. Then
they are upsampled as in prediction. What is missing to a Dice of 1 is the price of the resolution alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.machine import machine
from benchmarks.runs import described
from medsaga import files

DATASETS = ("spider_lumbar_mr", "axondeepseg_sem")
IMAGES = 4
SIDE = 256
STEPS = 150
LEARNING_RATE = 0.3


def fitted(mask: torch.Tensor, classes: int, shrink: int, *, at_image: bool) -> torch.Tensor:
    """Fit logits of a ``shrink``-th of the image's side to a mask, ``(side, side)``, and return the label map."""
    side = mask.shape[-1]
    low = side // shrink
    logits = torch.zeros(1, classes, low, low, requires_grad=True)
    target = mask[None] if at_image else _resized(mask, low)[None]
    optimizer = torch.optim.Adam([logits], lr=LEARNING_RATE)
    for _ in range(STEPS):
        seen = _upsampled(logits, side) if at_image else logits
        loss = F.cross_entropy(seen, target) + 1e-3 * logits.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return _upsampled(logits.detach(), side).argmax(1)[0]


def dice(prediction: torch.Tensor, mask: torch.Tensor, classes: int) -> list[float | None]:
    """Return the Dice of each class but the background, None where the mask has none of it."""
    scores: list[float | None] = []
    for c in range(1, classes):
        ours, theirs = prediction == c, mask == c
        total = int(ours.sum() + theirs.sum())
        scores.append(2 * int((ours & theirs).sum()) / total if theirs.any() else None)
    return scores


def measure(data: Path) -> list[dict[str, Any]]:
    """Fit the first images of a dataset in every way."""
    labels = json.loads((data / "dataset.json").read_text())["labels"]
    names = [name for name, value in labels.items() if value != 0]
    masks = []
    for path in sorted((data / "masks").glob("*.png"))[:IMAGES]:
        masks.append(_letterboxed(np.asarray(Image.open(path))))
    rows = []
    for shrink in (4, 2):
        for at_image in (False, True):
            scores = [dice(fitted(mask, len(labels), shrink, at_image=at_image), mask, len(labels)) for mask in masks]
            means = {}
            for c, name in enumerate(names):
                means[name] = mean(value for score in scores if (value := score[c]) is not None)
            rows.append({"dataset": data.name, "logits": f"1/{shrink}", "loss_at_image": at_image, "dice": means})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Lay the numbers out as Markdown."""
    lines = ["| dataset | side of the logits | loss at the resolution of | Dice |", "|---|---|---|---|"]
    for row in rows:
        scores = ", ".join(f"{name} {score:.2f}" for name, score in row["dice"].items())
        where = "the image" if row["loss_at_image"] else "the logits"
        lines.append(f"| {row['dataset']} | {row['logits']} | {where} | {scores} |")
    return "\n".join(lines) + "\n"


def _letterboxed(mask: npt.NDArray[np.uint8]) -> torch.Tensor:
    height, width = mask.shape
    scale = SIDE / max(height, width)
    small = Image.fromarray(mask).resize((round(width * scale), round(height * scale)), Image.Resampling.NEAREST)
    square = np.zeros((SIDE, SIDE), np.int64)
    square[: small.height, : small.width] = np.asarray(small)
    return torch.from_numpy(square)


def _upsampled(logits: torch.Tensor, side: int) -> torch.Tensor:
    return F.interpolate(logits, (side, side), mode="bilinear")


def _resized(mask: torch.Tensor, side: int) -> torch.Tensor:
    return F.interpolate(mask[None, None].float(), (side, side), mode="nearest-exact")[0, 0].long()


def main() -> None:
    """Do it."""
    parser = described(__doc__)
    parser.add_argument("datasets", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    rows = [row for name in DATASETS for row in measure(arguments.datasets / name)]
    files.write_json(
        arguments.out / "results.json", {"machine": machine(), "side": SIDE, "images": IMAGES, "rows": rows}
    )
    files.write_text(arguments.out / "results.md", table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
