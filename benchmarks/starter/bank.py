"""The images for pre-training, and how a task changes all of its images alike.

The bank holds, as 8-bit arrays on disk, images with label maps and the group that each belongs to: a made-up world, or
a real dataset with its mask.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.starter.procedural import SIDE, draw_image, draw_world
from medsaga import files

IGNORED = 255
"""Label of what lies beyond an image."""
IMAGES_PER_WORLD = 4
KINDS = ("worlds", "masks")
LUT_KNOTS = 6


@dataclass(frozen=True, eq=False)
class Bank:
    """Images to draw tasks from.

    Attributes:
        images: ``(n, 256, 256, 3)`` uint8.
        labels: ``(n, 256, 256)`` uint8.
        groups: of each kind, the rows of each group.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    groups: dict[str, list[npt.NDArray[np.int64]]]


def make_bank(
    data: Path, folder: Path, *, worlds: int, most_real: int | None, without: Sequence[str], processes: int
) -> Bank:
    """Open the bank in a folder, or make it there; a bank of other images is an error.

    Args:
        data: the folder of pre-training images, with ``manifest.csv`` (columns dataset and name).
        folder: where the bank is kept.
        worlds: number of made-up worlds.
        most_real: use so many of the real images only.
        without: datasets that are left out.
        processes: that work side by side; their number changes nothing.
    """
    made_of = {"worlds": worlds, "most_real": most_real, "without": list(without)}
    record = folder / "bank.json"
    if not record.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write_bank(data, folder, worlds=worlds, most_real=most_real, without=without, processes=processes)
        files.write_json(record, made_of)
    if (there := json.loads(record.read_text())) != made_of:
        raise SystemExit(f"{folder}: expected a bank of {made_of}, found one of {there}. Give another --bank.")
    with np.load(folder / "groups.npz") as stored:
        kinds, numbers = stored["kinds"], stored["numbers"]
    groups = {}
    for kind, name in enumerate(KINDS):
        rows = np.flatnonzero(kinds == kind)
        groups[name] = [rows[numbers[rows] == number] for number in np.unique(numbers[rows])]
    return Bank(np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy", mmap_mode="r"), groups)


def _write_bank(
    data: Path, folder: Path, *, worlds: int, most_real: int | None, without: Sequence[str], processes: int
) -> None:
    with (data / "manifest.csv").open(newline="") as file:
        rows = [(row["dataset"], row["name"]) for row in csv.DictReader(file) if row["dataset"] not in without]
    if most_real is not None:
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, most_real).astype(int)]
    datasets = sorted({dataset for dataset, _ in rows})
    total = worlds * IMAGES_PER_WORLD + len(rows)
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (total, SIDE, SIDE, 3))
    labels = np.lib.format.open_memmap(folder / "labels.npy", "w+", np.uint8, (total, SIDE, SIDE))
    kinds, numbers = np.zeros((2, total), np.int64)
    at = 0

    def add(image: npt.NDArray[np.uint8], label: npt.NDArray[np.uint8], kind: str, number: int) -> None:
        nonlocal at
        images[at], labels[at], kinds[at], numbers[at] = image, label, KINDS.index(kind), number
        at += 1

    with get_context("spawn").Pool(processes) as pool:
        for number, drawn in enumerate(pool.imap(_draw, range(worlds), chunksize=8)):
            for image, label in drawn:
                add(image, label, "worlds", number)
        for number, (image, mask) in enumerate(pool.imap(partial(_read, data), rows, chunksize=8)):
            add(image, mask, "masks", datasets.index(rows[number][0]))
    images.flush()
    labels.flush()
    np.savez(folder / "groups.npz", kinds=kinds, numbers=numbers)


def _draw(seed: int) -> list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    world = draw_world(seed)
    return [draw_image(world, number) for number in range(IMAGES_PER_WORLD)]


def _read(data: Path, row: tuple[str, str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    dataset, name = row
    image = np.asarray(Image.open(data / dataset / "images" / f"{name}.jpg").convert("RGB"))
    mask = np.asarray(Image.open(data / dataset / "masks" / f"{name}.png"))
    height, width = mask.shape
    padding = ((0, SIDE - height), (0, SIDE - width))
    return np.pad(image, (*padding, (0, 0))), np.pad(mask, padding, constant_values=IGNORED)


def centre_of(labels: npt.NDArray[np.uint8], random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw a place to look at, (x, y) from -1 to 1: on any class with the same chance, however small it is."""
    coarse = labels[::4, ::4]
    value = random.choice(np.setdiff1d(coarse, [IGNORED]))
    y, x = random.permutation(np.argwhere(coarse == value))[0]
    centre: npt.NDArray[np.float64] = 8 * np.array([x, y]) / SIDE - 1
    return centre


def recoloured(images: Tensor, random: np.random.Generator, *, together: int) -> Tensor:
    """Change the colours of so many images after each other alike, as if another machine had taken them."""
    mixed = torch.empty_like(images)
    for i in range(0, len(images), together):
        alike = images[i : i + together] / 255
        alike = (
            alike.mean(1, keepdim=True).expand(-1, 3, -1, -1)
            if random.random() < 0.4
            else alike[:, random.permutation(3)]
        )
        if random.random() < 0.3:
            alike = 1 - alike
        if random.random() < 0.25:
            knots = torch.from_numpy(np.sort(random.random(LUT_KNOTS)) + random.normal(0, 0.2, LUT_KNOTS)).float()
            place = alike.clamp(0, 1) * (LUT_KNOTS - 1)
            low = place.floor().clamp(max=LUT_KNOTS - 2)
            alike = torch.lerp(knots[low.long()], knots[low.long() + 1], place - low)
        alike = alike.clamp(0, 1) ** math.exp(random.normal(0, 0.35))
        mixed[i : i + together] = 255 * alike
    return mixed


def moved(
    images: Tensor,
    labels: Tensor,
    centres: npt.NDArray[np.float64],
    side: int,
    random: np.random.Generator,
    *,
    together: int,
) -> tuple[Tensor, Tensor]:
    """Turn, flip and zoom so many images after each other alike, then each a little by itself, and cut out a square.

    The place to look at lies anywhere in the inner half of the square.
    """
    count = len(images)

    def alike(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.repeat(values[: count // together], together, axis=0)

    angle = alike(random.uniform(-math.pi, math.pi, count) * (random.random(count) < 0.6))
    angle = angle + random.normal(0, 0.15, count)
    reach = (0.35, 0.9) if side < SIDE else (0.6, 1.1)
    extent = alike(np.exp(random.uniform(np.log(reach[0]), np.log(reach[1]), count)))
    extent = extent * np.exp(random.normal(0, 0.1, count))
    flip = alike(random.choice([-1.0, 1.0], count))
    room = np.maximum(0.1, 1 - extent)[:, None]
    centre = np.clip(centres, -room, room) + random.uniform(-0.3, 0.3, (count, 2)) * extent[:, None]
    cosine, sine = np.cos(angle) * extent, np.sin(angle) * extent
    place = np.stack([cosine * flip, -sine, centre[:, 0], sine * flip, cosine, centre[:, 1]], axis=1).reshape(-1, 2, 3)
    points = F.affine_grid(torch.from_numpy(place).float(), [count, 1, side, side], align_corners=False)
    bend = torch.from_numpy(random.normal(0, 0.03, (count, 2, 5, 5)) * (random.random((count, 1, 1, 1)) < 0.5)).float()
    points = points + F.interpolate(bend, (side, side), mode="bicubic", align_corners=True).movedim(1, -1)
    images = F.grid_sample(images, points, mode="bilinear", padding_mode="zeros", align_corners=False)
    shifted = F.grid_sample((IGNORED - labels.float())[:, None], points, mode="nearest", align_corners=False)
    return images, (IGNORED - shifted[:, 0]).to(torch.uint8)
