"""The size of a voxel that a TIFF file tells, as OME or as ImageJ writes it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from medsaga.data.bounds import SPACING_LIMITS_MM
from medsaga.data.formats.arrays import AS_STORED
from medsaga.data.types import Grid

_MM_PER_UNIT = {
    **dict.fromkeys(("µm", "μm", "um", "micron", "microns", "micrometer", "\\u00b5m"), 1e-3),
    **{"mm": 1.0, "cm": 10.0, "m": 1e3, "nm": 1e-6, "inch": 25.4},
}


def grid_of(file: Any, shape: tuple[int, ...]) -> Grid:
    """Return the grid of an image of a shape, with its spacing where the file tells one that can be."""
    if len(shape) == 2:
        return Grid(shape)
    spacing = _spacing_of_ome(file.ome_metadata) if file.is_ome else _spacing_of_imagej(file)
    least, most = SPACING_LIMITS_MM
    if spacing is None or not all(least <= size <= most for size in spacing):
        return Grid(shape, None, AS_STORED.copy())
    return Grid(shape, spacing, AS_STORED @ np.diag([*spacing, 1.0]))


def _spacing_of_ome(text: str | None) -> tuple[float, ...] | None:
    """Return the sizes of a voxel along z, y and x in mm."""
    pixels = re.search(r"<(?:\w+:)?Pixels\b([^<>]*)>", text or "")
    if pixels is None:
        return None
    words = dict(re.findall(r'(\w+)\s*=\s*"([^"]*)"', pixels[1]))
    try:
        return tuple(
            float(words[f"PhysicalSize{axis}"]) * _MM_PER_UNIT[words.get(f"PhysicalSize{axis}Unit", "µm")]
            for axis in "ZYX"
        )
    except (KeyError, ValueError):
        return None


def _spacing_of_imagej(file: Any) -> tuple[float, ...] | None:
    about = file.imagej_metadata or {} if file.is_imagej else {}
    scale = _MM_PER_UNIT.get(str(about.get("unit", "")).lower())
    try:
        rates = [file.pages[0].tags[name].value for name in ("YResolution", "XResolution")]
        steps = [float(about["spacing"]), *(below / above for above, below in rates)]
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return None if scale is None else tuple(step * scale for step in steps)
