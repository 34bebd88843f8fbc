"""Label maps that a file stores as floating point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medsaga.data.types import Labels
from medsaga.errors import InputError

_TOLERANCE = 1e-3
"""Resamplers, slopes in headers and short decimals leave labels a hair off their integers: 0.9999999, 2.0004."""
_MOST_TOLERANCE = 0.25
"""A step of half precision at labels of some hundred is larger than `_TOLERANCE`; this is no rounding any more."""


def as_integers(path: Path, values: npt.NDArray[np.floating[Any]]) -> Labels:
    """Return floating-point labels as int32, ``(*shape)``.

    Args:
        path: the file, for the message.
        values: ``(*shape)``, floating point, each within a rounding error of an integer.

    Raises:
        InputError: a value is not finite, lies between integers, or does not fit.
    """
    rounded = np.rint(values)
    with np.errstate(invalid="ignore", over="ignore"):
        tolerance = np.clip(np.spacing(np.abs(rounded)), _TOLERANCE, _MOST_TOLERANCE, dtype=np.float64)
        unusable = ~(np.abs(values - rounded) <= tolerance) | ~(np.abs(rounded) < 2**31)
    if unusable.any():
        raise InputError(
            path,
            expected="integer labels",
            found=f"the value {values[unusable][0]:.9g} (and {int(unusable.sum()) - 1} more that are not integers)",
            do="Save the mask with one integer per class; threshold a probability map first.",
        )
    return rounded.astype(np.int32)
