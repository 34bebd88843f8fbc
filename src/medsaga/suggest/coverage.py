"""Choosing the cases that stand best for all others: a few points near which the weight of all points lies.

Greedy facility location (k-medoids): each choice is the one that lowers most the sum over all cases of weight times
distance to the nearest labelled or chosen case. The first n choices of n + 1 are the n choices, and labelled cases take
part as choices that have been made.

Sener and Savarese (CoreSet, arXiv 1708.00489) minimise the largest of these distances (k-centre), which outliers
decide; with few labels typical cases teach more (Hacohen et al., TypiClust, arXiv 2202.02794). Hence the mean, and
distances as they are: squared ones would let a single image that went wrong outweigh a group. ``benchmarks/suggest``
has a comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """A chosen point.

    Attributes:
        index: its row.
        distance: to the nearest point that was labelled, or chosen before it; None where there was none.
        stands_for: the number of candidates that are nearer to it than to any other labelled or chosen point, itself
            included.
    """

    index: int
    distance: float | None
    stands_for: int


def choose(points: Points, *, weights: Points, labelled: npt.NDArray[np.bool_], count: int) -> list[Choice]:
    """Choose points that stand for all.

    Args:
        points: ``(n, d)``; see `standardised`.
        weights: ``(n,)``, 0 or more: how much it matters that something near the point is labelled. Where those of all
            candidates are 0, all count alike.
        labelled: ``(n,)``, what is labelled already: it is not chosen, and needs nothing near it.
        count: how many to choose, at most the points that are not labelled.

    Returns:
        the choices, best first. Equally good ones: the first row.
    """
    candidates = np.flatnonzero(~labelled)
    assert 0 < count <= len(candidates), f"{count} of {len(candidates)}"
    needs = weights[candidates]
    if not needs.any():
        needs = np.ones(len(candidates))
    between = distances_between(points[candidates], points[candidates])
    covered = distances_between(points[candidates], points[labelled]).min(axis=1, initial=np.inf)
    nearest = np.full(len(candidates), -1)
    chosen: list[int] = []
    gaps: list[float | None] = []
    for number in range(count):
        left = needs @ np.minimum(covered[:, None], between)
        left[chosen] = np.inf
        best = int(left.argmin())
        gaps.append(None if np.isinf(covered[best]) else float(covered[best]))
        chosen.append(best)
        nearest[between[:, best] < covered] = number
        nearest[best] = number
        covered = np.minimum(covered, between[:, best])
    sizes = np.bincount(nearest[nearest >= 0], minlength=count)
    return [
        Choice(int(candidates[index]), gap, int(size)) for index, gap, size in zip(chosen, gaps, sizes, strict=True)
    ]


def standardised(points: Points) -> Points:
    """Return points ``(n, d)`` with mean 0 and spread 1 along every dimension, divided by the root of d.

    So the expected squared distance of two points is 2 whatever d is. A dimension without spread becomes 0.
    """
    spread = points.std(axis=0)
    centred = points - points.mean(axis=0)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0) / np.sqrt(points.shape[1])


def distances_between(one: Points, other: Points) -> Points:
    """Return Euclidean distances, ``(n, m)``, of points ``(n, d)`` and ``(m, d)``."""
    squares = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)[None, :] - 2 * one @ other.T
    distances: Points = np.sqrt(np.maximum(squares, 0.0))
    return distances
