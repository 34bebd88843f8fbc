"""From a file's own intensities (grey values, HU, arbitrary MR units) to the 8 bits per channel that SAM expects.

The mapping is chosen once, on the training items, and is plain data, so that a saved model treats new images as it
treated those it was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medsaga.data.names import is_named_ct
from medsaga.data.sources import place_of
from medsaga.data.types import Array, Dataset, Item, outer_pieces
from medsaga.errors import InputError

if TYPE_CHECKING:
    # What reads the settings of a run needs no decoders.
    from medsaga.data.survey import ItemSurvey

REQUESTS = ("auto", "identity", "window", "percentile")
"""What ``--intensity`` accepts."""

_PERCENTILES = (0.5, 99.5)
_NARROWEST_CT_WINDOW = 400
"""HU. Narrower than the usual soft-tissue window, the noise of a scan would fill the range."""
_SAMPLE = 1_000_000


@dataclass(frozen=True)
class Intensity:
    """How one channel becomes uint8.

    Attributes:
        kind: ``identity`` (is uint8 already), ``window`` (clip to ``low`` to ``high`` in the file's units), or
            ``percentile`` (clip to those percentiles of the image itself, of its voxels above its minimum).
        low: becomes 0.
        high: becomes 255.
    """

    kind: str
    low: float = _PERCENTILES[0]
    high: float = _PERCENTILES[1]

    def __post_init__(self) -> None:
        if self.kind not in REQUESTS[1:]:
            choices = ", ".join(REQUESTS[1:])
            raise InputError("intensity", expected=f"one of {choices}", found=repr(self.kind), do="Choose one.")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InputError(
                f"intensity {self.kind}",
                expected="two finite numbers, the lower first",
                found=f"{self.low:g} and {self.high:g}",
                do="Give the lower and then the upper end, for example --window -160 240.",
            )
        if self.kind == "percentile" and not 0 <= self.low < self.high <= 100:
            raise InputError(
                "intensity percentile",
                expected="percentiles between 0 and 100",
                found=f"{self.low:g} and {self.high:g}",
                do="The usual choice is 0.5 and 99.5.",
            )


def choose_intensity(
    dataset: Dataset, found: Sequence[ItemSurvey], requested: str, window: tuple[float, float] | None
) -> tuple[Intensity, ...]:
    """Choose the mapping of every channel on the training items.

    Args:
        dataset: gives the channels' names, and all items, which must be mappable, too.
        found: what was found in the training items.
        requested: one of `REQUESTS`. ``auto`` keeps uint8 images as they are if all of the dataset are, gives CT a
            window, and everything else percentiles of each image. CT is a channel of that name, or whole numbers that
            reach -500 in every item; its window is the 0.5 to 99.5 percentile of the labelled voxels, at least 400 HU
            wide. Where the dataset fixes the range of its values, that is the window, for ``auto`` and for ``window``.
        window: lower and upper end in the file's units, for all channels; None to find it.

    Raises:
        InputError: unknown or contradictory requests, ``identity`` for images that are not uint8, or a window that
            cannot be found because the channel is no CT or nothing is labelled, or that does not suit an 8-bit image.
    """
    assert found, "no items to choose the intensities on"
    if requested not in REQUESTS:
        choices = ", ".join(REQUESTS)
        raise InputError("--intensity", expected=f"one of {choices}", found=repr(requested), do="Choose one of them.")
    channels = len(dataset.channels)
    if window is not None:
        if requested not in ("auto", "window"):
            raise InputError(
                "--window",
                expected="no window beside --intensity " + requested,
                found=f"{window[0]:g} {window[1]:g}",
                do="Leave one of the two out.",
            )
        return (Intensity("window", *window),) * channels
    if dataset.value_range is not None and requested in ("auto", "window"):
        return (Intensity("window", *dataset.value_range),) * channels
    chosen = (Intensity("identity", 0.0, 255.0),) * channels
    if requested == "identity":
        require_mappable(chosen, dataset.items)
        return chosen
    deep = any(item.header.dtype != np.uint8 for item in dataset.items)
    if requested == "auto" and not deep:
        return chosen
    if requested == "percentile":
        return (Intensity("percentile"),) * channels
    chosen = _windows_of_ct(dataset, found, requested)
    grey = next((item for item in dataset.items if item.header.dtype == np.uint8), None)
    if requested == "auto" and deep and grey is not None and any(each.kind == "window" for each in chosen):
        raise InputError(
            place_of(grey.images[0]),
            expected="HU, as the training images hold, for which a window was found",
            found="an image of 8 bits",
            do="Export it as the others, or train with --intensity percentile.",
        )
    return chosen


def require_mappable(intensities: Sequence[Intensity], items: Sequence[Item]) -> None:
    """Raise an InputError that names the first of some images which the mapping cannot take, by their headers."""
    if any(each.kind == "identity" for each in intensities):
        for item in items:
            require_uint8(item.header.dtype, place_of(item.images[0]))
    if any(each.kind == "window" and (each.low < 0 or each.high > np.iinfo(np.uint8).max) for each in intensities):
        for item in items:
            if item.header.dtype == np.uint8:
                raise InputError(
                    place_of(item.images[0]),
                    expected="HU, as the training images hold, for which the run has a window",
                    found="an image of 8 bits",
                    do="Export it as the training images.",
                )


def apply(intensity: Intensity, channel: Array, where: str | Path = "image") -> npt.NDArray[np.uint8]:
    """Map one channel of a whole image or volume, ``(*shape)``, to uint8 of the same shape and memory order.

    Values are rounded to the nearest of the 256 and never wrap; a constant image becomes zeros. Works in blocks, so
    that no floating point copy of a volume exists.

    Args:
        intensity: the mapping.
        channel: as read from the file; ``percentile`` looks at all of it, so never pass a single slice of a volume.
        where: the file, for the message of an error.

    Raises:
        InputError: ``identity`` for values that are not uint8, or values that are not finite.
    """
    if intensity.kind == "identity":
        require_uint8(channel.dtype, where)
        return channel.astype(np.uint8, copy=False)
    for piece in outer_pieces(channel):
        require_finite(channel[piece], where)
    if intensity.kind == "window":
        low, high = intensity.low, intensity.high
    else:
        low, high = _percentiles(channel, intensity)
    result = np.empty_like(channel, dtype=np.uint8)
    for piece in outer_pieces(channel):
        result[piece] = rescaled(channel[piece], low, high)
    return result


def rescaled(values: Array, low: float, high: float) -> npt.NDArray[np.uint8]:
    """Map finite values, of any shape, to uint8 of the same shape: ``low`` to 0 and ``high`` to 255."""
    # float32 holds 16-bit integers exactly; wider types need float64 or the window's ends would move.
    real = np.result_type(values.dtype, np.float32).type
    span = real(high) - real(low)
    if not span > 0:
        return np.zeros(values.shape, dtype=np.uint8)
    scaled = np.clip(values.astype(real), real(low), real(high))
    scaled -= real(low)
    scaled /= span
    scaled *= 255
    return np.rint(scaled, out=scaled).astype(np.uint8)


def _percentiles(channel: Array, intensity: Intensity) -> tuple[float, float]:
    values = channel
    if channel.size > _SAMPLE:
        values = channel[np.unravel_index(sampled_places(channel.size), channel.shape)]
    return percentile_range(intensity, values, channel.min(), channel.max())


def sampled_places(size: int) -> npt.NDArray[np.int64]:
    """Return the places, in an image of so many voxels, of the values that percentiles are taken of; at most a million.

    They are random (seeded): every n-th voxel could fall on one column of every slice.
    """
    if size <= _SAMPLE:
        return np.arange(size)
    return np.random.default_rng(0).integers(0, size, _SAMPLE)


def percentile_range(
    intensity: Intensity, sample: npt.NDArray[Any], minimum: np.generic, maximum: np.generic
) -> tuple[float, float]:
    """Return the ends of the range: percentiles over the voxels above the image's minimum, which is its background.

    Args:
        intensity: of the kind ``percentile``.
        sample: the image's values at `sampled_places`.
        minimum: of the whole image.
        maximum: of the whole image.
    """
    values = sample[sample > minimum]
    if values.size == 0:
        return float(minimum), float(maximum)
    low, high = (float(end) for end in np.percentile(values, (intensity.low, intensity.high)))
    # Where all of the foreground has one value, as in a binary image, the background is the other end.
    return (low, high) if low < high else (float(minimum), high)


def require_finite(values: Array, where: str | Path) -> None:
    """Raise an InputError if a value is NaN or infinite."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(where, expected="finite values", found="NaN or infinity", do="Replace them in the file.")


def require_uint8(dtype: np.dtype, where: str | Path) -> None:
    """Raise an InputError if values are not those that ``identity`` keeps."""
    if dtype != np.uint8:
        raise _not_uint8(where, dtype)


def _windows_of_ct(dataset: Dataset, found: Sequence[ItemSurvey], requested: str) -> tuple[Intensity, ...]:
    """Windows for the channels that are CT, percentiles for the others (an error if windows were requested)."""
    is_ct = [
        is_named_ct(name) or all(each.channels[n].looks_like_ct for each in found)
        for n, name in enumerate(dataset.channels)
    ]
    if requested == "window" and not all(is_ct):
        raise InputError(
            "--intensity window",
            expected="CT, for which a window can be found, or the window itself",
            found=f"channel {dataset.channels[is_ct.index(False)]!r}, which does not look like CT",
            do="Give the window with --window LOW HIGH, or use --intensity percentile.",
        )
    return tuple(
        _ct_window(np.concatenate([each.channels[n].foreground for each in found])) if ct else Intensity("percentile")
        for n, ct in enumerate(is_ct)
    )


def _ct_window(foreground: Array) -> Intensity:
    if foreground.size == 0:
        raise InputError(
            "training masks",
            expected="labelled voxels, on which the CT window is found",
            found="background only",
            do="Choose other training cases, or give the window with --window LOW HIGH.",
        )
    low, high = (float(end) for end in np.percentile(foreground.astype(np.float64), _PERCENTILES))
    centre, half = round((low + high) / 2), math.ceil(max(high - low, _NARROWEST_CT_WINDOW) / 2)
    return Intensity("window", float(centre - half), float(centre + half))


def _not_uint8(where: str | Path, dtype: np.dtype) -> InputError:
    return InputError(
        where,
        expected="8-bit values (uint8), which identity keeps as they are",
        found=str(dtype),
        do="Convert it to 8 bits, or train with --intensity percentile or window.",
    )
