"""Looking once at every image and mask of a dataset: all that checks, splits and intensities ask of the voxels.

A large image is decoded in pieces; of a label map there is one copy, in the type of its file.
"""

from __future__ import annotations

import filecmp
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medsaga.data.formats import arrays, raster, suffix_of
from medsaga.data.items import read_mask
from medsaga.data.labels import counts_of, listed, unknown_labels
from medsaga.data.layouts.checks import shown
from medsaga.data.names import is_named_ct
from medsaga.data.outlines import outlines_of
from medsaga.data.plausibility import MaskFacts, doubts, facts_of, remarks
from medsaga.data.sources import place_of, read_header, read_image
from medsaga.data.types import Array, Block, Dataset, Item, Labels, Source, outer_pieces
from medsaga.data.volumes import blocks_of, is_large
from medsaga.errors import InputError, collecting

MOST_FOREGROUND = 100_000
"""Labelled voxels whose values are kept of an item, so that all items stay small and none outweighs the rest."""
_AIR_BELOW = -500
"""HU. A volume with a minimum this low, in whole numbers, holds air; no other modality looks like that."""
_RANGE_SLACK = 1e-3
"""By how much of a fixed range a value may lie outside of it, for rounding."""
_FEW = 0.1
"""Share of the images that may be of one value everywhere. A frame that was lost among many is no reason to refuse all
of them; more than this is a faulty export."""
_SLAB = 2**24


@dataclass(frozen=True, eq=False)
class ChannelFacts:
    """What the voxels of one channel of an image are like.

    Attributes:
        minimum: of all voxels.
        maximum: of all voxels.
        whole: whether all values are whole numbers.
        foreground: values of at most `MOST_FOREGROUND` labelled voxels, drawn at random with a fixed seed; kept only
            where the channel may be CT, whose window they decide.
    """

    minimum: np.generic
    maximum: np.generic
    whole: bool
    foreground: Array

    @property
    def looks_like_ct(self) -> bool:
        """Whether the values can be HU of a scan that holds air."""
        return float(self.minimum) <= _AIR_BELOW and self.whole


@dataclass(frozen=True, eq=False)
class ItemSurvey:
    """What was found in the files of an item.

    Attributes:
        item: the item.
        channels: one each, in the dataset's order; empty where an image cannot be used.
        voxels: label value to the number of its voxels; empty where there is no mask that can be used.
        outlines: label value to the number of voxels along its outline; see `medsaga.data.outlines`.
        mask: what the values of the mask are like, where nothing else tells the labels; else None.
        colours: the files of masks that are stored with a palette, and the colours of their labels.
        constant: the files whose image has one value everywhere, and that value.
        problems: what is wrong.
    """

    item: Item
    channels: tuple[ChannelFacts, ...]
    voxels: dict[int, int]
    outlines: dict[int, tuple[int, ...]]
    mask: MaskFacts | None
    colours: tuple[tuple[Path, dict[int, raster.Colour]], ...]
    constant: tuple[tuple[Path, np.generic], ...]
    problems: tuple[InputError, ...]


@dataclass(frozen=True, eq=False)
class Survey:
    """What was found in all files of a dataset; made by `survey`.

    Attributes:
        items: one each, in the dataset's order.
        problems: what is wrong with the files, besides ``dataset.problems``.
        warnings: what the user should know, besides ``dataset.warnings``.
    """

    items: tuple[ItemSurvey, ...]
    problems: tuple[InputError, ...]
    warnings: tuple[str, ...]

    @property
    def labels_of_cases(self) -> dict[str, frozenset[int]]:
        """The label values that each case with a mask holds."""
        values: dict[str, frozenset[int]] = defaultdict(frozenset)
        for each in self.items:
            if each.voxels:
                values[each.item.case] |= each.voxels.keys()
        return dict(values)

    def of(self, items: Sequence[Item]) -> tuple[ItemSurvey, ...]:
        """Return what was found in some of the items."""
        found = {each.item.name: each for each in self.items}
        return tuple(found[item.name] for item in items)


def survey(
    dataset: Dataset, progress: Callable[[int, int], None] | None = None, *, images: int | None = None
) -> Survey:
    """Decode every image and mask, one at a time, and say what is in them and what is wrong with them.

    Files that ``dataset.problems`` already name are passed over.

    Args:
        dataset: from `medsaga.data.dataset.read_dataset`.
        progress: called with the number of items done and the number of items.
        images: of the whole, of which these are a part: a few without content are an accident; None for these.
    """
    reported = {problem.where for problem in dataset.problems}
    found = []
    for done, item in enumerate(dataset.items, start=1):
        found.append(_survey_item(item, dataset, reported))
        # A file that holds image and label map is damaged only once.
        reported.update(problem.where for problem in found[-1].problems)
        if progress is not None:
            progress(done, len(dataset.items))
    problems = [problem for each in found for problem in each.problems]
    masks = [each.mask for each in found if each.mask is not None]
    doubt = doubts(dataset.root / "masks", masks) if masks else None
    if doubt is not None:
        problems.insert(0, doubt)
    different = raster.palettes_that_differ([mask for each in found for mask in each.colours])
    if different is not None:
        problems.insert(0, different)
    warnings = [*_labels_not_seen(found, dataset), *(remarks(masks) if doubt is None else ())]
    images = images or sum(len(item.images) for item in dataset.items)
    constant = [(each, path, value) for each in found for path, value in each.constant]
    for each, path, value in constant:
        if len(constant) <= _FEW * images or (each.voxels.keys() == {0} and len(constant) < images):
            warnings.append(
                f"{path}: the value {value} everywhere; it is used as it is. Export it again, or remove it."
            )
        else:
            problems.append(_nothing_to_see(path, value))
    return Survey(tuple(found), tuple(problems), (*warnings, *_mixed_depths(dataset.items)))


def _survey_item(item: Item, dataset: Dataset, passed_over: set[str]) -> ItemSurvey:
    problems: list[InputError] = []
    constant: list[tuple[Path, np.generic]] = []
    labels: Labels | None = None
    voxels: dict[int, int] = {}
    outlines: dict[int, tuple[int, ...]] = {}
    mask: MaskFacts | None = None
    colours: list[tuple[Path, dict[int, raster.Colour]]] = []
    mask_problems: list[InputError] = []
    if item.masks and passed_over.isdisjoint(map(str, item.masks)):
        with collecting(mask_problems):
            labels = read_mask(item)
            voxels, outlines = counts_of(labels), outlines_of(labels)
            colours += _colours(item)
            if dataset.inferred:
                mask = facts_of(item.masks[0], labels)
            if voxels.keys() != {0}:  # a black image and its empty mask are equal, too
                _require_another_file(item)
            # Labels that could not be read have been reported; every value would be unknown now.
            if len(dataset.labels) > 1 and not item.structures and not item.names and not item.binary:
                problem = unknown_labels(item.masks[0], frozenset(voxels), dataset.labels)
                if problem is not None:
                    raise problem
    chosen = None if labels is None else _chosen(labels)
    del labels
    channels: list[ChannelFacts] = []
    for source in item.images:
        if str(place_of(source)) not in passed_over:
            with collecting(problems):
                facts = _facts(source, item, chosen)
                if all(each.minimum == each.maximum == facts[0].minimum for each in facts):
                    constant.append((place_of(source), facts[0].minimum))
                elif dataset.value_range is not None:
                    _check_range(place_of(source), facts, *dataset.value_range)
                channels += facts
    whole = len(channels) == len(dataset.channels) and not problems
    named = [is_named_ct(name) for name in dataset.channels]
    kept = (
        tuple(
            each if name or each.looks_like_ct else ChannelFacts(each.minimum, each.maximum, each.whole, np.empty(0))
            for each, name in zip(channels, named, strict=True)
        )
        if whole
        else ()
    )
    # A file that holds image and label map is damaged only once.
    wrong = {problem.where for problem in problems}
    problems += [problem for problem in mask_problems if problem.where not in wrong]
    return ItemSurvey(item, kept, voxels, outlines, mask, tuple(colours), tuple(constant), tuple(problems))


def _chosen(labels: Labels) -> npt.NDArray[np.intp]:
    """Draw at most `MOST_FOREGROUND` labelled voxels.

    They are those that ``default_rng(0).choice(image[labels > 0], MOST_FOREGROUND, replace=False)`` would draw, found
    without an index of all labelled voxels.

    Returns:
        ``(voxels, 3)``: their places; a 2-D label map counts as one of a single k.
    """
    volume = labels if labels.ndim == 3 else labels[..., np.newaxis]
    step = max(1, _SLAB * len(volume) // max(1, volume.size))
    starts = range(0, len(volume), step)
    counts = [int(np.count_nonzero(volume[start : start + step] > 0)) for start in starts]
    total = sum(counts)
    ranks: npt.NDArray[Any] = np.arange(total)
    if total > MOST_FOREGROUND:
        ranks = np.sort(np.random.default_rng(0).choice(total, MOST_FOREGROUND, replace=False))
    firsts = np.cumsum([0, *counts])
    places = [np.empty((0, 3), np.intp)]
    for start, first, end in zip(starts, firsts[:-1], firsts[1:], strict=True):
        within = ranks[np.searchsorted(ranks, first) : np.searchsorted(ranks, end)] - first
        if within.size:
            piece = np.ascontiguousarray(volume[start : start + step])
            flat = np.flatnonzero(piece > 0)[within]
            places.append(np.stack(np.unravel_index(flat, piece.shape), axis=-1) + np.array([start, 0, 0]))
    return np.concatenate(places)


def _facts(source: Source, item: Item, chosen: npt.NDArray[np.intp] | None) -> list[ChannelFacts]:
    """Decode an image, in pieces if it is large.

    Raises:
        InputError: it cannot be read, has another shape than its header says, or values that are not finite.
    """
    path = place_of(source)
    gathered: dict[int, _Gathered] = defaultdict(_Gathered)
    unusable = size = 0
    for first_channel, first_k, voxels in _pieces(source, item):
        size += voxels.size
        if voxels.dtype.kind == "f":
            unusable += voxels.size - int(np.isfinite(voxels).sum())
        if unusable:
            continue
        here = None
        if chosen is not None:
            k = chosen[:, 2] - first_k
            here = np.column_stack((chosen[:, :2], k))[(k >= 0) & (k < voxels.shape[-1])]
        for channel, values in enumerate(voxels, first_channel):
            gathered[channel].add(values, here)
    if unusable:
        raise InputError(
            path,
            expected="finite values",
            found=f"NaN or infinity in {unusable:,} of {size:,} places",
            do="Replace them, for example by the value of the background.",
        )
    return [gathered[channel].facts() for channel in sorted(gathered)]


class _Gathered:
    """What has been seen of a channel so far."""

    def __init__(self) -> None:
        self._lowest: list[np.generic] = []
        self._highest: list[np.generic] = []
        self._whole = True
        self._foreground: list[Array] = []

    def add(self, values: Array, chosen: npt.NDArray[np.intp] | None) -> None:
        """Look at ``(i, j, k)`` finite values, of which those at ``chosen``, ``(voxels, 3)``, are kept."""
        self._lowest.append(values.min())
        self._highest.append(values.max())
        if values.dtype.kind == "f" and self._whole:
            self._whole = all(bool((values[p] == np.rint(values[p])).all()) for p in outer_pieces(values))
        if chosen is not None:
            self._foreground.append(values[tuple(chosen.T)])

    def facts(self) -> ChannelFacts:
        """Return what was seen of all of it."""
        foreground = np.concatenate(self._foreground) if self._foreground else np.empty(0)
        return ChannelFacts(np.min(self._lowest), np.max(self._highest), self._whole, foreground)


def _pieces(source: Source, item: Item) -> Iterator[Block]:
    """Yield an image as blocks of a volume; a 2-D image is one of a single k."""
    if is_large(item):
        _require_shape(source, read_header(source).grid.shape, item)
        yield from blocks_of(source)
        return
    image = read_image(source)
    _require_shape(source, image.shape[1:], item)
    yield 0, 0, image if image.ndim == 4 else image[..., np.newaxis]


def _require_shape(source: Source, found: tuple[int, ...], item: Item) -> None:
    if found != item.header.grid.shape:
        raise InputError(
            place_of(source),
            expected=f"the size {shown(item.header.grid.shape)}",
            found=shown(found),
            do="Export the file again.",
        )


def _check_range(path: Path, channels: Sequence[ChannelFacts], low: float, high: float) -> None:
    lowest, highest = min(float(each.minimum) for each in channels), max(float(each.maximum) for each in channels)
    slack = _RANGE_SLACK * (high - low)
    if lowest < low - slack or highest > high + slack:
        raise InputError(
            path,
            expected=f"values from {low:g} to {high:g}, as all images of this layout have",
            found=f"values from {lowest:g} to {highest:g}",
            do="Preprocess the images as the others were, or save them in another layout, such as images/ and masks/.",
        )


def _labels_not_seen(found: Sequence[ItemSurvey], dataset: Dataset) -> list[str]:
    seen = frozenset[int]().union(*(each.voxels for each in found))
    if not seen:
        return []
    said = []
    if 0 not in seen:
        covers = sum((Counter(each.voxels) for each in found), Counter[int]()).most_common(1)[0][0]
        said.append(
            f"no mask holds background (0), and {covers} covers most: if {covers} stands for the background, write 0 "
            "instead, or the model learns it as a label"
        )
    missing = [name for name, value in dataset.labels.items() if value not in seen and value != 0]
    if missing and seen != {0}:
        said.append(f"no mask holds {listed(missing)}")
    return [*said, *(["all masks hold background only"] if seen == {0} else [])]


def _colours(item: Item) -> Iterator[tuple[Path, dict[int, raster.Colour]]]:
    for path in item.masks:
        if suffix_of(path) in raster.SUFFIXES:
            colours = raster.colours_of_labels(path)
            # Where any other value means the same, only the background must look alike.
            is_binary = item.binary or item.structures
            yield path, {value: colour for value, colour in colours.items() if value == 0 or not is_binary}


def _require_another_file(item: Item) -> None:
    """Raise an InputError if the mask is a copy of the image."""
    mask, image = item.masks[0], item.images[0]
    if suffix_of(mask) in arrays.SUFFIXES:
        return  # holds an image and a label map
    if not isinstance(image, Path) or mask == image or mask.stat().st_size != image.stat().st_size:
        return
    if filecmp.cmp(mask, image, shallow=False):
        raise InputError(
            mask, expected="a mask", found=f"a copy of the image {image.name}", do="Put the mask there, or remove both."
        )


def _nothing_to_see(path: Path, value: np.generic) -> InputError:
    return InputError(
        path,
        expected="an image",
        found=f"the value {value} everywhere",
        do="Export the image again, or remove it and its mask.",
    )


def _mixed_depths(items: Sequence[Item]) -> list[str]:
    """Say which images have another type than most, of those that are stored as integers of 8 bits and as others."""
    kinds = Counter(str(item.header.dtype) for item in items)
    if "uint8" not in kinds or len(kinds) == 1:
        return []
    (usual, _), *_ = kinds.most_common(1)
    others = [item for item in items if str(item.header.dtype) != usual]
    names = listed((f"{place_of(item.images[0])} ({item.header.dtype})" for item in others), 4)
    return [
        f"images of different depth: {usual}, but {names}. Each image is scaled by its own percentiles then; convert "
        "them to one type if their values mean the same."
    ]
