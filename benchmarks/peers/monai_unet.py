"""MONAI's published 2-D U-Net recipe on a raw folder, within a number of CPU seconds.

    python -m benchmarks.peers.monai_unet train RAW MODEL --cpu-seconds N [--seed N]
    python -m benchmarks.peers.monai_unet predict RAW MODEL OUT

Network, loss, optimizer, crops, augmentation and inference are those of MONAI's tutorial ``unet_training_dict`` for 2-D
images. What had to be another way is in the README. The seconds are those of this whole process, imports included.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, Dataset, list_data_collate
from monai.inferers import sliding_window_inference
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    RandCropByPosNegLabeld,
    RandRotate90d,
    ScaleIntensityd,
    SpatialPadd,
)
from monai.utils import set_determinism
from PIL import Image
from torch import Tensor, nn

from benchmarks.peers import costs
from benchmarks.runs import described
from medsaga import files

CROP = (96, 96)
BATCH_SIZE = 2
CROPS_PER_IMAGE = 4
LEARNING_RATE = 1e-3
WINDOWS_AT_A_TIME = 4


def train(raw: Path, model_file: Path, allowed: float, seed: int) -> int:
    """Train until the process has taken so many CPU seconds, and return the number of optimizer steps, at least 1."""
    set_determinism(seed)
    classes, channels = _sizes(raw)
    names = sorted(path.stem for path in (raw / "labelsTr").iterdir())
    pairs = [
        {"img": str(raw / "imagesTr" / f"{name}_0000.png"), "seg": str(raw / "labelsTr" / f"{name}.png")}
        for name in names
    ]
    model = _network(channels, classes)
    loss_function = DiceLoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    dataset = CacheDataset(pairs, _training_transforms(), num_workers=0, progress=False)
    batches, steps = _forever(DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True, collate_fn=list_data_collate)), 0
    model.train()
    while steps == 0 or costs.cpu_seconds() < allowed:
        batch = next(batches)
        optimizer.zero_grad()
        loss_function(model(batch["img"]), batch["seg"]).backward()
        optimizer.step()
        steps += 1
    torch.save(model.state_dict(), model_file)
    return steps


def predict(raw: Path, model_file: Path, out: Path) -> None:
    """Write a label map, ``NAME.png``, of each image for the test."""
    classes, channels = _sizes(raw)
    model = _network(channels, classes)
    model.load_state_dict(torch.load(model_file, weights_only=True))
    model.eval()
    images = [{"img": str(path)} for path in sorted((raw / "imagesTs").iterdir())]
    transforms = Compose([LoadImaged("img"), EnsureChannelFirstd("img"), ScaleIntensityd("img")])
    out.mkdir()
    for entry, loaded in zip(images, Dataset(images, transforms), strict=True):
        with torch.no_grad():
            logits = sliding_window_inference(loaded["img"][None], CROP, WINDOWS_AT_A_TIME, model)
        # MONAI's reader has (width, height); the file has it the other way round.
        labels = torch.as_tensor(logits).argmax(1)[0].numpy().astype(np.uint8).T
        name = Path(entry["img"]).name.removesuffix("_0000.png")
        Image.fromarray(np.ascontiguousarray(labels)).save(out / f"{name}.png")


def _training_transforms() -> Compose:
    both = ["img", "seg"]
    return Compose(
        [
            LoadImaged(both),
            EnsureChannelFirstd(both),
            ScaleIntensityd("img"),
            SpatialPadd(both, CROP),
            RandCropByPosNegLabeld(both, "seg", spatial_size=CROP, pos=1, neg=1, num_samples=CROPS_PER_IMAGE),
            RandRotate90d(both, prob=0.5, spatial_axes=(0, 1)),
        ]
    )


def _network(channels: int, classes: int) -> nn.Module:
    network: nn.Module = UNet(
        spatial_dims=2,
        in_channels=channels,
        out_channels=classes,
        channels=(16, 32, 64, 128, 256),
        strides=(2, 2, 2, 2),
        num_res_units=2,
    )
    return network


def _sizes(raw: Path) -> tuple[int, int]:
    """Return the number of classes and of channels."""
    document = json.loads((raw / "dataset.json").read_text())
    return len(document["labels"]), len(document["channel_names"])


def _forever(loader: Any) -> Iterator[dict[str, Tensor]]:
    while True:
        yield from loader


def main() -> None:
    """Do it."""
    parser = described(__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    training, predicting = verbs.add_parser("train"), verbs.add_parser("predict")
    for each in (training, predicting):
        each.add_argument("raw", type=Path)
        each.add_argument("model", type=Path)
    training.add_argument("--cpu-seconds", type=float, required=True)
    training.add_argument("--seed", type=int, default=0)
    predicting.add_argument("out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.verb == "train":
        steps = train(arguments.raw, arguments.model, arguments.cpu_seconds, arguments.seed)
        files.write_json(arguments.model.with_suffix(".json"), {"steps": steps})
    else:
        predict(arguments.raw, arguments.model, arguments.out)


if __name__ == "__main__":
    main()
