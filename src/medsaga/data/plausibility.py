"""Whether the values in masks can be labels, where nothing but the masks says what the labels are.

Masks come smoothed (0/255 with grey edges), compressed, as 0/1 from one annotator and 0/255 from another, with a number
for each cell, or are no masks at all. Each of these would train, on classes that nobody meant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy  # its parts are imported where they are first used

from medsaga.data.labels import HIGHEST_VALUE, MOST_INFERRED_LABELS, listed
from medsaga.data.types import Labels, outer_pieces
from medsaga.errors import InputError

_FLAT = 0.1
"""A value fills areas where this share of its pixels has equal neighbours to the right and below. A square of 2 x 2
has 0.25; the grey of a smoothed edge has next to none, because two neighbours in a row are never both along the edge.
"""
_GREY_FROM = 32
"""Grey edges come with white areas. Below this highest value there are no greys between, and thin labels are common."""
_WHITE_FROM = 200
"""The highest value of a mask that was 0/255: smoothing and compression leave it near 255."""
_NEAR = 40
"""How far from black and from white a compression moves values at most, at the qualities that people use."""
_FEWEST_INSTANCES = 6
"""With fewer values a dataset of labels and one of numbered instances look the same."""
_ONE_PIECE = 0.8
"""Share of the values of instances that are one connected piece each: few are cut by another that lies on top."""
_EXPLAINED = 0.4
"""Share of the variance, of place or of size, that the value explains: an organ has its place and its size in every
image, number 7 of the cells has neither. Of random numbers it is 0 on average, of organs 0.6 and more."""
_ALIKE = 0.2
"""Standard deviation of the logarithm of the sizes below which they tell nothing. No two organs differ by so little."""
_MOST_PIXELS = 2**22
"""Of larger masks, connected pieces are counted in the slice that holds most."""
_MOST_SETS = 32
"""Two ways to save masks make few different sets of values; the slices of an abdomen make many."""
BINARY = "If any value but 0 means the same structure, use --binary"
_NAMED = "if every value is a label of its own, name them in dataset.json"


@dataclass(frozen=True, eq=False)
class MaskFacts:
    """What the values of a label map are like.

    Attributes:
        where: its file.
        counts: value to the number of its pixels, ascending.
        flat: value to the number of its pixels that have equal neighbours along both of the first two axes.
        shapes: value to the number of its connected pieces, the logarithm of its size, and the middle of its bounding
            box as shares of the image; empty where there are fewer values than `_FEWEST_INSTANCES`, too few for
            instances.
    """

    where: Path
    counts: Mapping[int, int]
    flat: Mapping[int, int]
    shapes: Mapping[int, tuple[float, ...]]

    @property
    def foreground(self) -> frozenset[int]:
        """The values other than 0."""
        return frozenset(self.counts) - {0}


def facts_of(where: Path, labels: Labels) -> MaskFacts:
    """Look at a label map, ``(*shape)``, in little memory."""
    counts: Counter[int] = Counter()
    flat: Counter[int] = Counter()
    for place in outer_pieces(labels):
        piece = labels[place]
        corner = piece[:-1, :-1]
        same = (corner == piece[1:, :-1]) & (corner == piece[:-1, 1:])
        for counted, values in ((counts, piece), (flat, corner[same])):
            found, times = np.unique(values, return_counts=True)
            counted.update(dict(zip(found.tolist(), times.tolist(), strict=True)))
    few = len(counts) <= _FEWEST_INSTANCES or max(counts) > HIGHEST_VALUE or min(counts) < 0
    return MaskFacts(where, dict(sorted(counts.items())), flat, {} if few else _shapes(labels))


def foreground_of(labels: Labels) -> npt.NDArray[np.uint8]:
    """Return 1 for foreground and 0 for background, whatever values stand for them.

    Foreground is from half of the maximum upwards where grey values lie between black and white, as smoothing and
    compression leave them, and otherwise all that is not 0.
    """
    facts = facts_of(Path(), labels)
    if facts.foreground and (_has_grey_edges([facts]) or _is_compressed([facts])):
        return (labels >= (max(facts.counts) + 1) // 2).astype(np.uint8)
    return (labels != 0).astype(np.uint8)


def doubts(folder: Path, masks: Sequence[MaskFacts]) -> InputError | None:
    """Return why the values in masks cannot be labels; None if they can.

    Args:
        folder: of the masks.
        masks: all of them.
    """
    values = sorted(frozenset[int]().union(*(mask.foreground for mask in masks)))
    for found, do in (
        (_smoothing(masks), f"Save them without smoothing. {BINARY}; {_NAMED}."),
        (_two_whites(masks), f"Save all of them alike. {BINARY}; {_NAMED}."),
        (
            _instances(masks),
            f"A number per cell is no label. Use --binary to take all of them as one structure; {_NAMED}.",
        ),
    ):
        if found is not None:
            return InputError(folder, expected="masks that hold a value per label", found=found, do=do)
    if len(values) >= MOST_INFERRED_LABELS:
        return InputError(
            folder,
            expected=f"masks with at most {MOST_INFERRED_LABELS} different values, or a dataset.json that names them",
            found=f"{len(values) + 1} values",
            do=f"Save masks without smoothing or compression. {BINARY}; {_NAMED}.",
        )
    outside = [value for value in values if not 0 <= value <= HIGHEST_VALUE]
    if outside:
        return InputError(
            folder,
            expected=f"label values that are integers from 0 to {HIGHEST_VALUE}",
            found=listed(outside),
            do="Give each label the integer that stands for it in the masks, or use --binary.",
        )
    return None


def remarks(masks: Sequence[MaskFacts]) -> list[str]:
    """Return what may be meant, but should be known, of the values in masks."""
    sets = {mask.foreground: mask.where for mask in masks if mask.foreground}
    if len(sets) > _MOST_SETS:
        return []
    for one, where in sets.items():
        for other, elsewhere in sets.items():
            if len(one) == len(other) and one.isdisjoint(other) and not any({*one} & s and {*other} & s for s in sets):
                return [
                    f"{where.name} holds the labels {listed(sorted(one))}, {elsewhere.name} {listed(sorted(other))}, "
                    f"and no mask holds some of both. {BINARY}."
                ]
    return []


def _smoothing(masks: Sequence[MaskFacts]) -> str | None:
    blurred = [mask for mask in masks if _has_grey_edges([mask]) or _is_compressed([mask])]
    if not blurred and not _has_grey_edges(masks):
        return None
    mask = (blurred or masks)[0]
    counted = f"{len(blurred)} of {len(masks)} masks, such as {mask.where.name}" if blurred else "masks"
    return (
        f"grey values between black and white in {counted}: {listed(sorted(mask.foreground))}, as smoothing, lossy "
        "compression and probability maps leave them"
    )


def _has_grey_edges(masks: Sequence[MaskFacts]) -> bool:
    counts, flat = _pooled(masks)
    if not counts or max(counts) < _GREY_FROM:
        return False
    solid = [value for value in counts if flat[value] >= _FLAT * counts[value]]
    thin = [value for value in counts if value not in solid]
    if not solid:
        return len(thin) > 2
    between = [value for value in thin if value < max(solid)]
    # A single thin value may be a contour that somebody drew; between black and white it is an edge.
    if len(between) < len(solid):
        return False  # cells of which little is left, under others
    return len(between) > 1 or (len(between) == 1 and max(counts) >= _WHITE_FROM and len(solid) == 1)


def _is_compressed(masks: Sequence[MaskFacts]) -> bool:
    counts, _ = _pooled(masks)
    highest = max(counts, default=0)
    white = [value for value in counts if value >= highest - _NEAR]
    return _WHITE_FROM <= highest <= 255 and len(white) > 1 and all(v in white or v <= _NEAR for v in counts)


def _pooled(masks: Sequence[MaskFacts]) -> tuple[Counter[int], Counter[int]]:
    """Return counts and flat counts of all values but 0."""
    counts, flat = Counter[int](), Counter[int]()
    for mask in masks:
        counts.update(mask.counts)
        flat.update(mask.flat)
    del counts[0]
    return counts, flat


def _two_whites(masks: Sequence[MaskFacts]) -> str | None:
    """Whether each mask has one value, in some of them 1 and in others 255 (or the white of 16 bits)."""
    sets = {mask.foreground: mask.where for mask in masks if mask.foreground}
    for white in (255, HIGHEST_VALUE):
        if sets.keys() == {frozenset({1}), frozenset({white})}:
            ones = sum(mask.foreground == {1} for mask in masks)
            whites = sum(mask.foreground == {white} for mask in masks)
            return (
                f"0 and 1 in {ones} masks, such as {sets[frozenset({1})].name}, and 0 and {white} in {whites}, such as "
                f"{sets[frozenset({white})].name}"
            )
    return None


def _instances(masks: Sequence[MaskFacts]) -> str | None:
    """Whether the numbers are those of cells: one piece each, and of any place and size in every mask."""
    numbered = [mask for mask in masks if mask.shapes]
    rows = [(value, *shape) for mask in numbered for value, shape in mask.shapes.items()]
    values = {row[0] for row in rows}
    if len(values) < _FEWEST_INSTANCES or len(numbered) < 2:
        return None
    table = np.array(rows)
    # Programs number cells from 1 on, without gaps but for those that were removed.
    if (table[:, 1] == 1).mean() < _ONE_PIECE or any(len(m.shapes) < _ONE_PIECE * max(m.shapes) for m in numbered):
        return None
    size, *middles = (_explained(table[:, 0], column) for column in table[:, 2:].T)
    if table[:, 2].std() < _ALIKE:
        size = 0.0
    # Numbers that follow the rows of the image explain the place along one axis.
    if max(size, min(middles)) > _EXPLAINED:
        return None
    return f"{listed(sorted(values))}: one piece each, at any place, as if cells were numbered (instances)"


def _explained(groups: npt.NDArray[np.float64], column: npt.NDArray[np.float64]) -> float:
    """Return the share of the variance that groups explain, adjusted for their number (adjusted R squared)."""
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    free = len(column) - len(sizes)
    if free < 1:
        return 1.0
    means = np.bincount(index, column) / sizes
    within, total = ((column - means[index]) ** 2).sum() / free, column.var(ddof=1)
    return float(1 - within / total) if total > 0 else 1.0


def _shapes(labels: Labels) -> dict[int, tuple[float, ...]]:
    if labels.size > _MOST_PIXELS and labels.ndim == 3:
        slices = np.moveaxis(labels, int(np.argmin(labels.shape)), 0)
        labels = slices[int(np.argmax([np.count_nonzero(each) for each in slices]))]
    found = {}
    for value, box in enumerate(scipy.ndimage.find_objects(labels.astype(np.uint16, copy=False)), start=1):
        if box is not None:
            inside = labels[box] == value
            middle = ((edge.start + edge.stop) / (2 * side) for edge, side in zip(box, labels.shape, strict=True))
            found[value] = (scipy.ndimage.label(inside)[1], float(np.log(inside.sum())), *middle)
    return found
