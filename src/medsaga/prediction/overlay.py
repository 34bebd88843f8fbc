"""Pictures that people judge a segmentation by: label colours over the image, truth and prediction side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy  # its parts are imported where they are first used
from PIL import Image

from medsaga import files
from medsaga.colours import label_colours

Rgb = npt.NDArray[np.uint8]
"""``(height, width, 3)``."""
Classes = npt.NDArray[np.integer]
"""Class indices, ``(height, width)``; 0 is background."""

SMALLEST_PANEL = 320
"""Pixels: a triptych enlarges what is narrower, so that outlines stay thin against the anatomy."""
GAP = 4


def overlay(image: npt.NDArray[np.uint8], labels: Classes, *, alpha: float = 0.45, contour: bool = True) -> Rgb:
    """Paint label colours over an image.

    Args:
        image: uint8, ``(height, width)`` or ``(channels, height, width)``: three channels are RGB, of any other
            number the first is shown in grey.
        labels: class indices, ``(height, width)``.
        alpha: opacity of the areas, 0 to 1.
        contour: whether to outline each label in its full colour, one pixel wide and inside the label.

    Returns:
        uint8, ``(height, width, 3)``.
    """
    picture = _as_rgb(image)
    assert picture.shape[:2] == labels.shape, f"image {picture.shape[:2]}, labels {labels.shape}"
    inside = labels > 0
    colours = label_colours(int(labels.max(initial=0)))[labels[inside] - 1]
    opacity = np.full((len(colours), 1), alpha)
    if contour:
        opacity[_outlines(labels)[inside]] = 1.0
    picture[inside] = np.rint(opacity * colours + (1 - opacity) * picture[inside]).astype(np.uint8)
    return picture


def triptych(
    image: npt.NDArray[np.uint8],
    truth: Classes,
    prediction: Classes,
    *,
    spacing: tuple[float, float] | None = None,
) -> Rgb:
    """Draw the image, the truth on it and the prediction on it, side by side with a thin gap.

    Args:
        image: as for `overlay`.
        truth: class indices, ``(height, width)``.
        prediction: class indices, ``(height, width)``.
        spacing: height and width of a pixel in mm; when they differ, the picture is stretched to true proportions.

    Returns:
        uint8, ``(panel height, 3 * panel width + 2 * GAP, 3)``: three panels of the same size.
    """
    size = _panel_size(truth.shape[0], truth.shape[1], spacing)
    enlarged = _resized(_as_rgb(image), size, Image.Resampling.BICUBIC)
    panels = [enlarged]
    for labels in (truth, prediction):
        assert labels.shape == truth.shape == image.shape[-2:], f"{image.shape}, {truth.shape}, {prediction.shape}"
        drawn = _resized(labels.astype(np.uint8), size, Image.Resampling.NEAREST)
        panels.append(overlay(np.moveaxis(enlarged, -1, 0), drawn))
    gap = np.full((size[0], GAP, 3), 255, dtype=np.uint8)
    return np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)


def save_png(path: Path, rgb: Rgb) -> None:
    """Write a picture, ``(height, width, 3)`` uint8, as PNG, whole or not at all."""
    with files.replacing(path) as temporary:
        Image.fromarray(rgb).save(temporary, format="PNG")


def _as_rgb(image: npt.NDArray[np.uint8]) -> Rgb:
    """Return a copy of the image as ``(height, width, 3)``."""
    if image.ndim == 3 and len(image) == 3:
        return np.moveaxis(image, 0, -1).copy()
    grey = image[0] if image.ndim == 3 else image
    return np.repeat(grey[..., np.newaxis], 3, axis=-1)


def _outlines(labels: Classes) -> npt.NDArray[np.bool_]:
    """Return the pixels with a neighbour, above, below or beside, of another label."""
    cross = scipy.ndimage.generate_binary_structure(2, 1)
    lowest = scipy.ndimage.grey_erosion(labels, footprint=cross, mode="nearest")
    highest = scipy.ndimage.grey_dilation(labels, footprint=cross, mode="nearest")
    return lowest != highest


def _panel_size(height: int, width: int, spacing: tuple[float, float] | None) -> tuple[int, int]:
    finest = min(spacing) if spacing else 1.0
    tall, wide = (n * step / finest for n, step in zip((height, width), spacing or (1.0, 1.0), strict=True))
    enlargement = max(1, -(-SMALLEST_PANEL // round(max(tall, wide))))
    return max(1, round(enlargement * tall)), max(1, round(enlargement * wide))


def _resized(picture: npt.NDArray[np.uint8], size: tuple[int, int], resampling: Image.Resampling) -> Rgb:
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), resampling))
