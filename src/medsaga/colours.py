"""The colours of labels, the same in pictures, pages and DICOM."""

from __future__ import annotations

import colorsys

import numpy as np
import numpy.typing as npt

# Okabe and Ito's colours, which people with any colour vision tell apart, without black and in an order that keeps
# the first few far from each other and from grey images; then darker ones after Paul Tol.
PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (213, 94, 0),
    (240, 228, 66),
    (0, 114, 178),
    (204, 121, 167),
    (51, 34, 136),
    (136, 34, 85),
    (153, 153, 51),
)
GOLDEN_ANGLE = 0.381966


def label_colours(n: int) -> npt.NDArray[np.uint8]:
    """Return the colours of classes 1 to n, ``(n, 3)`` uint8 RGB: row c - 1 is class c.

    The first ten are told apart with any colour vision; beyond them hues repeat in other shades.
    """
    colours = list(PALETTE[:n])
    for index in range(len(PALETTE), n):
        hue = (index * GOLDEN_ANGLE) % 1.0
        red, green, blue = colorsys.hls_to_rgb(hue, (0.45, 0.65, 0.3)[index % 3], 0.75)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return np.array(colours, dtype=np.uint8).reshape(n, 3)
