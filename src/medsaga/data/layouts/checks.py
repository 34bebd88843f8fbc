"""Comparing the items of a dataset: grids, channel counts, and masks against their images."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from medsaga.data.dicom import masks as dicom_masks
from medsaga.data.dicom.documents import as_key
from medsaga.data.formats import format_of, nifti
from medsaga.data.formats.nifti_header import value_names
from medsaga.data.items import as_grey, in_colour
from medsaga.data.labels import listed
from medsaga.data.layouts.finding import is_lossy_mask
from medsaga.data.layouts.labelling import DESCRIPTION
from medsaga.data.named_masks import require_some
from medsaga.data.reorientation import reorientation
from medsaga.data.sources import place_of, read_header
from medsaga.data.types import Dataset, Header, Item, Source
from medsaga.errors import InputError, collecting


def joint_header(sources: Sequence[Source]) -> Header:
    """Return the header of an image whose channels may be spread over several files or series.

    Raises:
        InputError: a file cannot be read, or they do not share one grid.
    """
    headers = [read_header(source) for source in sources]
    for source, header in zip(sources, headers, strict=True):
        if not header.grid.same_space(headers[0].grid):
            raise InputError(
                place_of(source),
                expected=f"the grid of {place_of(sources[0]).name} ({shown(headers[0].grid.shape)})",
                found=f"another one ({shown(header.grid.shape)})",
                do="Resample the channels of a case onto one grid.",
            )
    dtype = max((header.dtype for header in headers), key=lambda each: (each.kind == "f", each.itemsize))
    return Header(headers[0].grid, sum(header.channels for header in headers), dtype)


def shown(shape: Sequence[int]) -> str:
    """Return a shape as text."""
    return " x ".join(map(str, shape))


def with_mismatches(dataset: Dataset) -> Dataset:
    """Add what shows only when items are compared: channel counts, and masks against images."""
    problems, dataset = list(dataset.problems), replace(dataset, items=_alike_in_colour(dataset))
    counts = Counter(item.header.channels for item in dataset.items)
    count = len(dataset.channels) or (counts.most_common(1)[0][0] if counts else 0)
    for item in dataset.items:
        if item.header.channels != count:
            found = f"{item.header.channels} in {listed(place_of(source).name for source in item.images)}"
            problems.append(
                InputError(
                    place_of(item.images[0]),
                    expected=f"{count} channel{'s' if count != 1 else ''}, as the dataset has",
                    found=found,
                    do="Give all images the same channels: add missing files, or convert between grey and RGB.",
                )
            )
        for mask in item.masks:
            # Where one file holds both, there is one header.
            if not is_lossy_mask(mask) and mask not in item.images:
                with collecting(problems):
                    _check_mask_header(item, mask)
    channels = dataset.channels or tuple(f"channel_{index}" for index in range(count))
    warnings = (*dataset.warnings, *_other_names(dataset))
    return replace(dataset, channels=channels, problems=tuple(problems), warnings=warnings)


def _other_names(dataset: Dataset) -> Iterator[str]:
    """Yield a warning where label tables in the headers of masks name values otherwise than the dataset, or each other.

    The values count: a table stays in the header when somebody renumbers the voxels.
    """
    called: dict[int, tuple[str, str]] = {
        value: (name, DESCRIPTION) for name, value in dataset.labels.items() if name != f"label_{value}"
    }
    for item in dataset.items:
        for mask in item.masks if not item.names and not item.structures else ():
            names: dict[int, str] = {}
            with contextlib.suppress(InputError):
                names = value_names(mask) if format_of(mask) is nifti else {}
            for value, name in names.items():
                known, where = called.setdefault(value, (name, mask.name))
                if value in dataset.label_values and as_key(known) != as_key(name):
                    yield (
                        f"{value} is called {name!r} in the header of {mask.name} and {known!r} in {where}: "
                        "the values count, so make sure that they mean the same in all masks"
                    )
                    return


def _alike_in_colour(dataset: Dataset) -> tuple[Item, ...]:
    """Return the items, grey pictures and coloured ones as one kind.

    Pictures of three equal colours count as grey where ``dataset.json`` names one channel, and where all that is stored
    in colour turns out to be grey; where anything is coloured, grey pictures count as coloured.
    """
    counts = {item.header.channels for item in dataset.items}
    if counts != {1, 3} and not (counts == {3} and len(dataset.channels) == 1):
        return dataset.items
    coloured = tuple(in_colour(item) for item in dataset.items)
    if len(dataset.channels) > 1:
        return coloured
    items = []
    for item in dataset.items:
        # What cannot be read is reported where everything is read.
        with contextlib.suppress(InputError):
            item = as_grey(item)
        if item.header.channels != 1 and not dataset.channels:
            return coloured
        items.append(item)
    return tuple(items)


def _check_mask_header(item: Item, mask: Path) -> None:
    if item.names:
        # Without labels, what is wrong with them has been reported.
        if len(item.names) > 1:
            require_some(mask, dict(item.names))
        if dicom_masks.is_mask(mask):
            return
    grid, mask_grid = item.header.grid, format_of(mask).read_header(mask).grid
    if reorientation(mask_grid, grid, is_part=bool(item.names)) is not None:
        return
    if grid.shape != mask_grid.shape:
        raise InputError(
            mask,
            expected=f"the size of its image, {shown(grid.shape)}",
            found=shown(mask_grid.shape),
            do="Export the mask on the grid of its image.",
        )
    assert grid.affine is not None
    assert mask_grid.affine is not None
    raise InputError(
        mask,
        expected=f"the affine of its image, {grid.affine[:3].round(4).tolist()}",
        found=str(mask_grid.affine[:3].round(4).tolist()),
        do="Resample the mask onto its image, or copy the image's affine if only the mask's header is wrong.",
    )
