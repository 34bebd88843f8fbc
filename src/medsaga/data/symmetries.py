"""Mirrorings of images and labels, under which the labels of some data keep their meaning.

A polyp upside down is a polyp; a left kidney in the mirror is a right one. Which data are which is not asked of the
user: the model is, see `medsaga.training.symmetries`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

LEFT_RIGHT, UP_DOWN, TRANSPOSED = "left-right", "up-down", "transposed"
SYMMETRIES: dict[str, Callable[[Tensor], Tensor]] = {
    LEFT_RIGHT: lambda maps: maps.flip(-1),
    UP_DOWN: lambda maps: maps.flip(-2),
    TRANSPOSED: lambda maps: maps.transpose(-1, -2),
}
"""What each does to maps, ``(..., side, side)``; done twice, it does nothing."""
_AXES = {UP_DOWN: 1, LEFT_RIGHT: 2}
"""The axis of ``(channels, height, width)`` that a mirroring turns round."""


def flips(names: Iterable[str]) -> list[tuple[int, ...]]:
    """Return the axes of ``(channels, height, width)`` to turn round in each pass of test-time augmentation.

    The first pass turns none. Transposing is left out: with it there would be eight passes in place of four.
    """
    passes: list[tuple[int, ...]] = [()]
    for axis in sorted(_AXES[name] for name in names if name in _AXES):
        passes += [(*axes, axis) for axes in passes]
    return passes
