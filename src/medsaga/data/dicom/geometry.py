"""Where the slices of a series lie in space.

Slices are ordered by their position along their common normal, never by their numbers or file names. The grid of a
series that was scanned with a tilted gantry is sheared, and stays so: each slice of it is one that the scanner made,
so nothing is resampled, labels belong to the slices that they were drawn on, and the affine still puts every voxel
at its place. Its spacing along k is the distance between the planes, so that the product of the spacings is the
volume of a voxel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medsaga.data.bounds import MOST_MM, SPACING_LIMITS_MM
from medsaga.data.dicom import decoding
from medsaga.data.dicom.frames import DISTINCTIONS, Frame, Instance, flat_spacing, frames_of
from medsaga.data.types import Grid, Series
from medsaga.errors import InputError

__all__ = ["Geometry", "Instance", "geometry_of"]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_DIRECTION_TOLERANCE = 1e-3
_SPACING_TOLERANCE = 1e-3
_STEP_TOLERANCE = 0.1
"""How far a slice may lie from its place, as a part of the distance between slices: scanners round to 0.1 mm."""
_SHIFT_TOLERANCE = 0.1
"""How far a slice may lie sideways of its place, as a part of a pixel."""
_SAME_PLACE = 0.01
_LEAST_TILT_DEGREES, _MOST_TILT_DEGREES = 0.1, 60.0
_APART = "Put the images that belong together, without localisers, in a folder of their own."
_AGAIN = "Export the whole series again, or choose a reconstruction whose slices lie evenly."


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a series are.

    Attributes:
        grid: ``(i, j, k)`` = (column, row, slice) with an affine to RAS+ mm, sheared where the gantry was tilted;
            ``(height, width)`` without an affine for an image that has no position in space.
        instances: the slice of each k; one for a 2-D image.
        frame_of_reference: UID of the coordinate system, empty where there is none; never shown.
        warnings: what the user should know, one sentence each.
    """

    grid: Grid
    instances: tuple[Instance, ...]
    frame_of_reference: str = field(repr=False)
    warnings: tuple[str, ...] = ()


def geometry_of(series: Series) -> Geometry:
    """Put the slices of a series in space; headers are read, and pixels only of slices at the same place.

    Raises:
        InputError: a header is damaged, the slices differ in size or orientation, some are missing or lie unevenly,
            several are at one place, or several have no position.
    """
    frames = [frame for file in series.files for frame in frames_of(file)]
    placed = [frame for frame in frames if frame.position and frame.orientation]
    if not placed:
        return _flat(series, frames)
    if len(placed) < len(frames):
        other = next(frame for frame in frames if frame not in placed)
        raise _mixed(
            series,
            f"{len(frames) - len(placed)} of {len(frames)} images without a position, such as {{}}",
            other,
        )
    _require_alike(series, placed)
    return _stacked(series, placed)


def _flat(series: Series, frames: list[Frame]) -> Geometry:
    """Return the geometry of the one image of a series without positions."""
    if len(frames) != 1:
        raise InputError(
            series.root,
            expected="one image, or images that say where they lie",
            found=f"{len(frames)} images without positions in space ({series.label()})",
            do="Name one of the files.",
        )
    frame = frames[0]
    spacing, warnings = flat_spacing(frame)
    rows, columns, _ = frame.size
    return Geometry(Grid((rows, columns), spacing), (frame.instance,), frame.frame_of_reference, warnings)


def _require_alike(series: Series, frames: list[Frame]) -> None:
    """Raise an `InputError` that says in what the slices of a series differ, if they do."""
    first = frames[0]
    without = next((frame for frame in frames if not frame.spacing), None)
    if without is not None:
        raise _mixed(series, "no PixelSpacing in {}", without)
    differences: dict[str, Callable[[Frame], bool]] = {
        "size": lambda frame: frame.size != first.size,
        "orientation": lambda frame: not np.allclose(frame.orientation, first.orientation, atol=_DIRECTION_TOLERANCE),
        "pixel spacing": lambda frame: not np.allclose(frame.spacing, first.spacing, rtol=_SPACING_TOLERANCE, atol=0),
        # Slopes may differ from slice to slice (PET), but one slice without is one in other units than the rest.
        "set of rescaling values": lambda frame: frame.rescaled != first.rescaled,
        "frame of reference": lambda frame: frame.frame_of_reference != first.frame_of_reference,
    }
    for name, differs in differences.items():
        others = [frame for frame in frames if differs(frame)]
        if others:
            raise _mixed(
                series,
                f"{len(others)} of {len(frames)} images of another {name} than {{}}, such as {{}}",
                first,
                others[0],
            )


def _mixed(series: Series, found: str, *frames: Frame, do: str = _APART) -> InputError:
    """Return the error of images that are no volume; ``{}`` in ``found`` stand for the names of ``frames``."""
    return InputError(
        series.root,
        expected=f"slices of one volume in the series {series.label()}",
        found=found.format(*(frame.instance.label(series.root) for frame in frames)),
        do=do,
    )


def _stacked(series: Series, frames: list[Frame]) -> Geometry:
    """Return the geometry of slices that are alike."""
    across, down = np.array(frames[0].orientation).reshape(2, 3)
    between_rows, between_columns = frames[0].spacing
    normal = np.cross(across, down)
    normal /= np.linalg.norm(normal)
    positions = np.array([frame.position for frame in frames])
    if np.abs(positions).max() > MOST_MM:
        far = int(np.abs(positions).max(axis=1).argmax())
        raise _mixed(series, "a position more than a kilometre away in {}", frames[far])
    order = np.argsort(positions @ normal, kind="stable")
    kept, warnings = _without_duplicates(series, [frames[n] for n in order], normal)
    positions = np.array([frame.position for frame in kept])
    pixel = min(between_rows, between_columns)
    if len(kept) == 1:
        step, more = _single_step(kept[0], normal)
    else:
        step, more = _step(series, kept, positions, normal, pixel)
    # Positions are decimals: their differences shall not show how floating point rounds.
    step = np.round(step, 9)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([across * between_columns, down * between_rows, step], axis=1)
    affine[:3, 3] = positions[0]
    rows, columns, _ = kept[0].size
    spacing = (between_columns, between_rows, round(float(step @ normal), 9))
    grid = Grid((columns, rows, len(kept)), spacing, _LPS_TO_RAS @ affine)
    instances = tuple(frame.instance for frame in kept)
    return Geometry(grid, instances, kept[0].frame_of_reference, (*warnings, *more))


def _without_duplicates(
    series: Series, frames: list[Frame], normal: npt.NDArray[np.float64]
) -> tuple[list[Frame], tuple[str, ...]]:
    """Keep one slice of each place. ``frames`` are in order along the normal."""
    kept: list[Frame] = []
    dropped = 0
    for frame in frames:
        offset = np.subtract(frame.position, kept[-1].position) if kept else normal
        if kept and offset @ normal < _SAME_PLACE * min(1.0, *frame.spacing):
            _require_same(series, kept[-1], frame, float(np.linalg.norm(offset)) / min(frame.spacing))
            dropped += 1
        else:
            kept.append(frame)
    words = f"{dropped} of {len(frames)} slices are there twice, with the same pixels: one of each was taken."
    return kept, (words,) if dropped else ()


def _require_same(series: Series, one: Frame, other: Frame, pixels_apart: float) -> None:
    """Raise an `InputError` unless two slices at one place are the same image."""
    if pixels_apart > _SHIFT_TOLERANCE:
        raise _mixed(
            series,
            "{} and {} side by side in one plane",
            one,
            other,
        )
    names = [name for name, a, b in zip(DISTINCTIONS, one.distinctions, other.distinctions, strict=True) if a != b]
    scaling = [(frame.instance.slope, frame.instance.intercept) for frame in (one, other)]
    if scaling[0] == scaling[1] and np.array_equal(_pixels(one), _pixels(other)):
        return
    differ = f" ({', '.join(names)} differ)" if names else ""
    raise _mixed(
        series,
        f"different images at the same place: {{}} and {{}}{differ}",
        one,
        other,
    )


def _pixels(frame: Frame) -> npt.NDArray[Any]:
    instance = frame.instance
    return next(decoding.stored_frames(instance.file, [(instance.frame or 1) - 1]))


def _single_step(frame: Frame, normal: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    """Return the step of a volume with one slice: its thickness."""
    least, most = SPACING_LIMITS_MM
    if frame.thickness is not None and least <= frame.thickness <= most:
        return normal * frame.thickness, ()
    return normal, ("The one slice does not say how thick it is: 1 mm is assumed.",)


def _step(
    series: Series,
    frames: list[Frame],
    positions: npt.NDArray[np.float64],
    normal: npt.NDArray[np.float64],
    pixel: float,
) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    """Return the vector from slice to slice, LPS mm, and what to say of it.

    Raises:
        InputError: slices are missing, or they do not lie evenly.
    """
    along = positions @ normal
    steps = np.diff(along)
    usual = float(np.median(steps))
    widest = int(steps.argmax())
    if steps[widest] > 1.5 * usual:
        gaps = int((steps > 1.5 * usual).sum())
        raise _mixed(
            series,
            f"a gap of {steps[widest]:.4g} mm between {{}} and {{}}, where "
            f"slices are {usual:.4g} mm apart" + (f", and {gaps - 1} more" if gaps > 1 else ""),
            frames[widest],
            frames[widest + 1],
            do=_AGAIN,
        )
    count = len(frames) - 1
    step = (positions[-1] - positions[0]) / count
    sideways = step - (step @ normal) * normal
    off = positions - (positions[0] + np.arange(count + 1)[:, np.newaxis] * step)
    uneven = np.abs(off @ normal) / float(step @ normal)
    if uneven.max() > _STEP_TOLERANCE:
        raise _mixed(
            series,
            f"slices that lie unevenly: {steps.min():.4g} to {steps.max():.4g} mm apart, worst at {{}}",
            frames[int(uneven.argmax())],
            do=_AGAIN,
        )
    shifts = np.linalg.norm(off - np.outer(off @ normal, normal), axis=1) / pixel
    if shifts.max() > _SHIFT_TOLERANCE:
        raise _mixed(
            series,
            "slices that are shifted sideways, worst at {}",
            frames[int(shifts.argmax())],
            do=_AGAIN,
        )
    if np.linalg.norm(sideways) * count <= _SHIFT_TOLERANCE * pixel:
        return step - sideways, ()
    tilt = math.degrees(math.atan2(float(np.linalg.norm(sideways)), float(step @ normal)))
    if tilt > _MOST_TILT_DEGREES:
        raise _mixed(series, f"slices that lie beside each other rather than one upon the other ({tilt:.0f} degrees)")
    # Orientations that are rounded to few digits look like a tilt; the positions are right all the same.
    words = f"The gantry was tilted by {tilt:.1f} degrees: the grid is sheared, and nothing was resampled."
    return step, (words,) if tilt >= _LEAST_TILT_DEGREES else ()
