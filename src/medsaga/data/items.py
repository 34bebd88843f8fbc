"""Decoding an item: its image from one or several files, and its label map."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medsaga.data.formats import format_of
from medsaga.data.labels import listed, values_in
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
    """Return the label map, ``(*shape)``, in label values.

    Where binary masks of several structures overlap, the highest label value wins.

    Raises:
        InputError: the item has no mask, a file cannot be read, has another shape than the image, or is no binary
            mask though it is that of a structure.
    """
    if not item.masks:
        raise InputError(item.name, expected="a mask", found="none", do="Only images with a mask can be trained on.")
    if not item.structures:
        return _read_labels(item, item.masks[0])
    labels = np.zeros(item.header.grid.shape, np.min_scalar_type(max(item.structures)))
    for value, inside in _structures(item):
        labels[inside] = value
    return labels


def overlap(item: Item) -> int:
    """Return how many pixels lie in more than one structure of an item; see `read_mask`, which also raises the same."""
    times = np.zeros(item.header.grid.shape, np.uint8)
    for _, inside in _structures(item):
        times += inside
    return int((times > 1).sum())


def _structures(item: Item) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    """Yield label value and pixels, ``(*shape)``, of each structure, in ascending order of the values."""
    for value, path in zip(item.structures, item.masks, strict=True):
        stored = _read_labels(item, path)
        found = sorted(values_in(stored))
        if len([each for each in found if each != 0]) > 1:
            raise InputError(
                path,
                expected="the mask of one structure: 0 outside of it and one other value inside",
                found=f"the values {listed(found)}",
                do="Save it again without smoothing, or put masks of all structures in one file into masks/ itself.",
            )
        yield value, stored != 0


def _read_labels(item: Item, path: Path) -> Labels:
    labels = format_of(path).read_labels(path)
    _require_shape(item, path, labels.shape, item.header.grid.shape)
    return labels


def _require_shape(item: Item, where: Path, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise InputError(
            where,
            expected=f"the shape {expected} of {item.name}",
            found=f"{found}",
            do="Export the file again, on the grid of its image.",
        )
