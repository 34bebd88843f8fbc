"""Decoding an item: its image from one or several files, and its label map."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medsaga.data.dicom import masks
from medsaga.data.formats import NamedFormat, format_of
from medsaga.data.formats.raster import equal_channels
from medsaga.data.labels import listed, values_in
from medsaga.data.plausibility import foreground_of
from medsaga.data.reorientation import reorientation
from medsaga.data.sources import geometry_of, place_of, read_image
from medsaga.data.types import Array, Item, Labels, Series
from medsaga.errors import InputError


def read_item(item: Item) -> Array:
    """Return the image, ``(channels, *shape)``, in the units of its files; channels of several files in their order.

    Raises:
        InputError: a file cannot be read, or has another shape than the header that the item was found with.
    """
    images = [read_image(source) for source in item.images]
    image = images[0] if len(images) == 1 else np.concatenate(images)
    if item.header.channels == 1 and (grey := equal_channels(image)) is not None:
        image = grey
    if _is_picture(item, channels=3) and len(image) == 1:
        image = np.repeat(image, 3, axis=0)
    _require_shape(item, place_of(item.images[0]), image.shape, (item.header.channels, *item.header.grid.shape))
    return image


def as_grey(item: Item) -> Item:
    """Return a picture whose three colours are equal everywhere as one of one channel; any other item as it is.

    Raises:
        InputError: the picture, which is decoded for it, cannot be read.
    """
    if not _is_picture(item, channels=3):
        return item
    is_grey = equal_channels(read_item(item)) is not None
    return replace(item, header=replace(item.header, channels=1)) if is_grey else item


def in_colour(item: Item) -> Item:
    """Return a grey picture as one of three equal colours; any other item as it is. Nothing is decoded."""
    return replace(item, header=replace(item.header, channels=3)) if _is_picture(item, channels=1) else item


def for_channels(item: Item, channels: int) -> Item:
    """Return a picture in grey or in colour, whichever a model of so many channels takes."""
    return as_grey(item) if channels == 1 else in_colour(item) if channels == 3 else item


def read_mask(item: Item) -> Labels:
    """Return the label map, ``(*shape)``, in label values; of an item that is read as binary, in 0 and 1.

    Where binary masks of several structures overlap, the highest label value wins.

    Raises:
        InputError: the item has no mask, a file cannot be read, has another shape than the image, or is no binary
            mask though it is that of a structure.
    """
    if not item.masks:
        raise InputError(item.name, expected="a mask", found="none", do="Only images with a mask can be trained on.")
    if item.binary and not item.structures:
        return foreground_of(read_mask(replace(item, binary=False)))
    if item.names:
        return _read_named(item)[0]
    if not item.structures:
        return _read_labels(item, item.masks[0])
    labels = np.zeros(item.header.grid.shape, np.min_scalar_type(max(item.structures)))
    for value, inside in _structures(item):
        labels[inside] = 1 if item.binary else value
    return labels


def warnings_of(item: Item) -> tuple[str, ...]:
    """Return what the user should know of an item though it can be used; the mask is decoded for it.

    Raises:
        InputError: as `read_mask`.
    """
    said = [text for source in item.images if isinstance(source, Series) for text in geometry_of(source).warnings]
    if item.masks and item.names:
        said += _read_named(item)[1]
    return tuple(dict.fromkeys(said))


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
        if item.binary:
            yield value, foreground_of(stored) > 0
            continue
        found = sorted(values_in(stored))
        if len([each for each in found if each != 0]) > 1:
            raise InputError(
                path,
                expected="the mask of one structure: 0 outside of it and one other value inside",
                found=f"the values {listed(found)}",
                do="Save it again without smoothing, put masks of all structures in one file into masks/ itself, or "
                "use --binary to take all structures as one.",
            )
        yield value, stored != 0


def _read_named(item: Item) -> tuple[Labels, tuple[str, ...]]:
    """Return the label map of a mask that names its structures, and warnings."""
    path = item.masks[0]
    if masks.is_mask(path):
        return _read_dicom(item, path)
    form = format_of(path)
    assert isinstance(form, NamedFormat), "names are of a format that knows names"
    labels, warnings = form.read_segments(path, dict(item.names))
    onto = reorientation(form.read_header(path).grid, item.header.grid, is_part=True)
    placed = None if onto is None else onto(labels)
    if placed is None:
        raise InputError(
            path,
            expected=f"segments within its image, {item.name}",
            found="some that reach out of it" if onto is not None else "a segmentation of other voxels",
            do="Export the segmentation on the grid of its image.",
        )
    return placed, warnings


def _read_dicom(item: Item, path: Path) -> tuple[Labels, tuple[str, ...]]:
    first = None
    # It may have been drawn on any of the channels.
    for image in item.images:
        if isinstance(image, Series):
            try:
                return masks.read_mask(path, geometry_of(image), dict(item.names))
            except InputError as error:
                first = first or error
    raise first or InputError(
        path,
        expected="a mask in the format of its image",
        found="a DICOM mask, which belongs to DICOM images",
        do="Give the DICOM series that it was drawn on, or convert the mask.",
    )


def _read_labels(item: Item, path: Path) -> Labels:
    """Return a label map, its axes in the order of the image's."""
    chosen = format_of(path)
    labels, grid = chosen.read_labels(path), chosen.read_header(path).grid
    # A header may speak of the image, where both lie in one file.
    onto = reorientation(grid, item.header.grid) if labels.shape == grid.shape else None
    turned = None if onto is None else onto(labels)
    labels = labels if turned is None else turned
    _require_shape(item, path, labels.shape, item.header.grid.shape)
    return labels


def _is_picture(item: Item, *, channels: int) -> bool:
    return (item.header.channels, len(item.images), len(item.header.grid.shape)) == (channels, 1, 2)


def _require_shape(item: Item, where: Path, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise InputError(
            where,
            expected=f"the shape {expected} of {item.name}",
            found=f"{found}",
            do="Export the file again, on the grid of its image.",
        )
