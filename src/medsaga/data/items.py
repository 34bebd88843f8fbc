"""Decoding an item: its image from one or several files, and its label map."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medsaga.data.formats import format_of
from medsaga.data.types import Array, Item, Labels
from medsaga.errors import InputError


def read_item(item: Item) -> Array:
    """Return the image, ``(channels, *shape)``, in the units of its files; channels of several files in their order.

    Raises:
        InputError: a file cannot be read, or has another shape than the header that the item was found with.
    """
    images = [format_of(path).read_image(path) for path in item.images]
    image = images[0] if len(images) == 1 else np.concatenate(images)
    _require_shape(item, item.images[0], image.shape, (item.header.channels, *item.header.grid.shape))
    return image


def read_mask(item: Item) -> Labels:
    """Return the label map, ``(*shape)``, in label values as in the file.

    Raises:
        InputError: the item has no mask, it cannot be read, or it has another shape than the image.
    """
    if item.mask is None:
        raise InputError(item.name, expected="a mask", found="none", do="Only images with a mask can be trained on.")
    labels = format_of(item.mask).read_labels(item.mask)
    _require_shape(item, item.mask, labels.shape, item.header.grid.shape)
    return labels


def _require_shape(item: Item, where: Path, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise InputError(
            where,
            expected=f"the shape {expected} of {item.name}",
            found=f"{found}",
            do="Run `medsaga info` on the dataset.",
        )
