"""How a volume becomes 2-D slices that look alike whatever the storage order, and back without loss.

A volume is brought to the closest anatomical axes by transposes and flips only, so nothing is resampled. Its slices
are then shown in the radiological convention: rows run from superior (axial: anterior) downwards, columns run from
the patient's right (sagittal: anterior) to the right of the picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from medsaga.data.types import Grid
from medsaga.errors import InputError

AXES = ("auto", "axial", "coronal", "sagittal", "i", "j", "k")
"""What ``--axis`` accepts: chosen from the spacing, an anatomical plane, or an axis of the stored array."""

_PLANES = ("sagittal", "coronal", "axial")
"""The plane that is perpendicular to each world axis: x (left to right), y (posterior to anterior), z."""
_ROWS_AND_COLUMNS = {"sagittal": (2, 1), "coronal": (2, 0), "axial": (1, 0)}
_TIE = 0.95

Scalar = TypeVar("Scalar", bound=np.generic)
Stored = TypeVar("Stored", bound=np.generic, covariant=True)


class Stack(Protocol[Stored]):
    """The slices of one image, ``(channels, height, width)`` each. An array of them is one, too."""

    def __len__(self) -> int:
        """Return the number of slices."""

    def __getitem__(self, index: int, /) -> npt.NDArray[Stored]:
        """Return a slice."""


@dataclass(frozen=True)
class SliceView:
    """The slices of one grid. Made by `slice_view`.

    Attributes:
        axis: ``axial``, ``coronal`` or ``sagittal``; ``image`` for a 2-D grid, which is its own only slice.
        shape: spatial shape of the grid as stored, ``(height, width)`` or ``(i, j, k)``.
        order: the stored axes in the order slice, row, column; empty for a 2-D grid.
        flips: whether each of those three runs against its stored axis.
        spacing: distance between rows and between columns in mm; None where the file does not say.
    """

    axis: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    flips: tuple[bool, ...]
    spacing: tuple[float, float] | None

    @property
    def slices(self) -> int:
        """The number of slices."""
        return self.shape[self.order[0]] if self.order else 1

    @property
    def slice_shape(self) -> tuple[int, int]:
        """Height and width of a slice in pixels."""
        rows, columns = self.order[1:] if self.order else (0, 1)
        return self.shape[rows], self.shape[columns]

    def view(self, image: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Show an image, ``(channels, *shape)``, as slices, ``(slices, channels, height, width)``, without copying."""
        assert image.shape[1:] == self.shape, f"an image of {image.shape} on a grid of {self.shape}"
        if not self.order:
            return image[np.newaxis]
        slices, rows, columns = (1 + axis for axis in self.order)
        return image.transpose(slices, 0, rows, columns)[self._flipping(1)]

    def of_labels(self, labels: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Show a label map, ``(*shape)``, as slices, ``(slices, height, width)``, without copying."""
        return self.view(labels[np.newaxis])[:, 0]

    def restore(self, stack: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Undo `view`: ``(slices, ..., height, width)`` to ``(..., *shape)``, without copying.

        The axes in the middle, if any, are channels or classes. A label map has none.
        """
        assert stack.shape[:1] + stack.shape[-2:] == (self.slices, *self.slice_shape), f"{stack.shape} for {self}"
        if not self.order:
            return stack[0]
        middle = stack.ndim - 3
        # After the flips the axes are slice, middle..., row, column; the last three of the result are i, j, k.
        place = {stored: 0 if n == 0 else middle + n for n, stored in enumerate(self.order)}
        axes = (*range(1, 1 + middle), place[0], place[1], place[2])
        return stack[self._flipping(middle)].transpose(axes)

    def _flipping(self, middle: int) -> tuple[slice, ...]:
        steps = [slice(None, None, -1) if flip else slice(None) for flip in self.flips]
        return (steps[0], *[slice(None)] * middle, *steps[1:])


def slice_view(grid: Grid, axis: str = "auto") -> SliceView:
    """Choose how a grid is cut into slices.

    Args:
        grid: 2-D, or 3-D; an oblique affine counts as its closest anatomical axes. A 3-D grid without an affine is
            taken to be stored in RAS+ order.
        axis: one of `AXES`. ``auto`` cuts a volume that is one voxel thick along that voxel; else across the axis of
            coarsest spacing, where in-slice resolution is best; else, if no axis is coarsest by 5 %, axially.

    Raises:
        InputError: ``axis`` is not one of `AXES`.
    """
    if axis not in AXES:
        raise InputError("--axis", expected=f"one of {', '.join(AXES)}", found=repr(axis), do="Choose one of them.")
    if len(grid.shape) == 2:
        spacing = None if grid.spacing is None else (grid.spacing[0], grid.spacing[1])
        return SliceView("image", grid.shape, (), (), spacing)
    assert len(grid.shape) == 3, f"a grid of {len(grid.shape)} dimensions"
    world, along = _orientation(grid)
    plane = _plane(grid, world, axis)
    rows, columns = _ROWS_AND_COLUMNS[plane]
    order = tuple(world.index(wanted) for wanted in (_PLANES.index(plane), rows, columns))
    # Slices are counted along their world axis; rows and columns run against theirs (see the module's head).
    flips = tuple(along[stored] != ascending for stored, ascending in zip(order, (True, False, False), strict=True))
    spacing = None if grid.spacing is None else (grid.spacing[order[1]], grid.spacing[order[2]])
    return SliceView(plane, grid.shape, order, flips, spacing)


def common_axis(grids: Iterable[Grid], axis: str = "auto") -> str:
    """Resolve ``auto`` once for many grids, so that a model is trained and used on slices of one plane.

    Returns:
        ``axis`` itself unless it is ``auto``; else the plane that `slice_view` gives for most of the volumes
        (``axial`` before ``coronal`` before ``sagittal`` on a tie); ``auto`` when there are no volumes.
    """
    planes = Counter(view.axis for view in (slice_view(grid, axis) for grid in grids) if view.order)
    if axis != "auto" or not planes:
        return axis
    return max(sorted(planes), key=planes.__getitem__)


def slice_channels(stack: Stack[Scalar], index: int, neighbours: int) -> npt.NDArray[Scalar]:
    """Return one slice with its neighbours as further channels (2.5-D).

    Args:
        stack: of one item.
        index: the slice in the middle.
        neighbours: slices to take on either side; beyond an end of the stack its last slice is repeated.

    Returns:
        ``(channels * (2 * neighbours + 1), height, width)``: all channels of the first slice, then of the next.
    """
    wanted = np.clip(np.arange(index - neighbours, index + neighbours + 1), 0, len(stack) - 1)
    slices = [stack[int(n)] for n in wanted]
    return slices[0] if len(slices) == 1 else np.concatenate(slices)


def most_labelled(stack: npt.NDArray[np.integer]) -> int:
    """Return the slice of a label map, ``(slices, height, width)``, that holds most of anything but background (0)."""
    return int(np.argmax([np.count_nonzero(labels) for labels in stack]))


def _orientation(grid: Grid) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """For each stored axis: the world axis that it is closest to, and whether it runs along it."""
    if grid.affine is None:
        return (0, 1, 2), (True, True, True)
    # A tenth of the time that a command takes to start; pictures have no affine.
    from nibabel.orientations import io_orientation

    orientation = io_orientation(grid.affine)
    assert np.isfinite(orientation).all(), "the readers refuse singular affines"
    return tuple(int(world) for world in orientation[:, 0]), tuple(bool(sign > 0) for sign in orientation[:, 1])


def _plane(grid: Grid, world: tuple[int, ...], axis: str) -> str:
    if axis in _PLANES:
        return axis
    if axis in ("i", "j", "k"):
        return _PLANES[world["ijk".index(axis)]]
    thin = [stored for stored, size in enumerate(grid.shape) if size == 1]
    if len(thin) == 1:
        return _PLANES[world[thin[0]]]
    spacing = grid.spacing or (1.0, 1.0, 1.0)
    coarsest = int(np.argmax(spacing))
    if any(spacing[other] >= _TIE * spacing[coarsest] for other in range(3) if other != coarsest):
        return "axial"
    return _PLANES[world[coarsest]]
