"""Label maps that a file stores as floating point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medsaga.data.types import Labels
from medsaga.errors import InputError


def as_integers(path: Path, values: npt.NDArray[np.floating[Any]], tolerance: float = 0.0) -> Labels:
    """Return floating-point labels as int32, ``(*shape)``.

    Args:
        path: the file, for the message.
        values: ``(*shape)``, floating point.
        tolerance: by how much a value may differ from an integer.

    Raises:
        InputError: a value is not finite, not integral or does not fit.
    """
    rounded = np.rint(values)
    with np.errstate(invalid="ignore"):
        unusable = ~(np.abs(values - rounded) <= tolerance) | ~(np.abs(rounded) < 2**31)
    if unusable.any():
        raise InputError(
            path,
            expected="integer labels",
            found=f"the value {values[unusable][0]:g} (and {int(unusable.sum()) - 1} more that are not integers)",
            do="Save the mask with one integer per class; threshold a probability map first.",
        )
    return rounded.astype(np.int32)
