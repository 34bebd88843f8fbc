"""Small pictures: the slice of an image that holds most of the labels, with these on it."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from medsaga.app.slices import OpenImage
from medsaga.data.slices import most_labelled
from medsaga.prediction.overlay import overlay


def picture_of(image: OpenImage, classes: npt.NDArray[np.uint8], size: int) -> bytes:
    """Return a PNG in the colours of the reports.

    Args:
        image: of which three channels or more are shown as colours.
        classes: (*shape) class indices.
        size: pixels of the longer side.
    """
    plane = next(iter(image.views))
    view = image.views[plane]
    stack = view.of_labels(classes)
    index = most_labelled(stack) if classes.any() else view.slices // 2
    shown = np.stack([_grey(image, plane, index, channel) for channel in range(min(3, len(image.voxels)))])
    drawn = Image.fromarray(overlay(shown if len(shown) == 3 else shown[:1], stack[index]))
    spacing = view.spacing or (1.0, 1.0)
    height, width = (pixels * step for pixels, step in zip(stack.shape[1:], spacing, strict=True))
    scale = size / max(height, width)
    buffer = io.BytesIO()
    drawn.resize((max(1, round(width * scale)), max(1, round(height * scale)))).save(buffer, "PNG")
    return buffer.getvalue()


def _grey(image: OpenImage, plane: str, index: int, channel: int) -> npt.NDArray[np.uint8]:
    offset, step = image.scales[channel]
    low, high = image.windows[channel]
    values = image.slice(plane, index, channel).astype(np.float32) * step + offset
    shown: npt.NDArray[np.uint8] = np.clip((values - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    return shown
