"""Fitting images of any shape into the model's square and taking its predictions out again.

The image keeps its aspect ratio: its longer side fills the square, the rest is padding at the bottom or the right.
Both ways use pixel areas (half-pixel centres), so that a prediction lies exactly where its image lay.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional as F

Content = tuple[int, int]
"""Height and width that the image itself takes within the square, in pixels of the square."""


def content_size(shape: tuple[int, int], size: int) -> Content:
    """How many pixels of a square of ``size`` an image of ``shape`` (height, width) fills; at least one each way."""
    longer = max(shape)
    return max(1, round(shape[0] * size / longer)), max(1, round(shape[1] * size / longer))


def letterbox(image: npt.NDArray[np.uint8], size: int) -> tuple[npt.NDArray[np.uint8], Content]:
    """Fit an image into a square.

    Args:
        image: ``(channels, height, width)``.
        size: side of the square in pixels.

    Returns:
        ``(channels, size, size)``, the image at the top left and 0 elsewhere, and the content's height and width.
        Bilinear upwards; downwards every pixel is averaged over the area it covers (a triangle filter), without
        which thin structures would come and go with the scale.
    """
    content = content_size((image.shape[1], image.shape[2]), size)
    return _place(image, content, size, Image.Resampling.BILINEAR), content


def letterbox_labels(classes: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Fit a map of class indices, ``(height, width)``, into ``(size, size)``, as `letterbox` but nearest neighbour."""
    content = content_size((classes.shape[0], classes.shape[1]), size)
    return _place(classes[np.newaxis], content, size, Image.Resampling.NEAREST)[0]


def unletterbox(
    maps: torch.Tensor, content: Content, size: int, shape: tuple[int, int], rows: slice = slice(None)
) -> torch.Tensor:
    """Take predictions out of the square, back to the image's own pixels.

    Args:
        maps: ``(n, classes, s, s)`` logits or probabilities, floating point, where ``s`` may be smaller than ``size``
            (SAM's low-resolution logits have a quarter of it).
        content: what `letterbox` returned, in pixels of the square of ``size``.
        size: side of the square that the maps stand for.
        shape: height and width of the image.
        rows: of the image, which are wanted.

    Returns:
        ``(n, classes, height, width)``, or as many rows, bilinear, on the same device and in the same type. No value of
        the padding enters it.
    """
    scale = maps.shape[-1] / size
    # A content edge may fall within a pixel of a smaller map; that pixel still sees the image, the next does not.
    height, width = (math.ceil(extent * scale - 1e-6) for extent in content)
    ys = _coordinates(shape[0], content[0] * scale, height, maps)[rows]
    xs = _coordinates(shape[1], content[1] * scale, width, maps)
    points = torch.stack(torch.broadcast_tensors(xs[None, :], ys[:, None]), dim=-1)
    points = points.expand(len(maps), -1, -1, -1)
    inside = maps[..., :height, :width]
    return F.grid_sample(inside, points, mode="bilinear", padding_mode="zeros", align_corners=False)


def _coordinates(pixels: int, extent: float, cropped: int, like: torch.Tensor) -> torch.Tensor:
    """Centres of ``pixels`` equal parts of ``extent`` map pixels, in grid_sample's units of a ``cropped`` map.

    None lies further out than the centre of the map's first or last pixel, so that nothing from beyond the map enters:
    grid_sample's own border padding does not exist on MPS, nor does float64, so that it is left before the move.
    """
    centres = (np.arange(pixels) + 0.5) * (extent / pixels)
    places = (2 * centres / cropped - 1).clip(1 / cropped - 1, 1 - 1 / cropped)
    return torch.from_numpy(places).to(like.dtype).to(like.device)


def _place(
    image: npt.NDArray[np.uint8], content: Content, size: int, method: Image.Resampling
) -> npt.NDArray[np.uint8]:
    square = np.zeros((len(image), size, size), dtype=np.uint8)
    for channel, target in zip(image, square, strict=True):
        # Pillow wants contiguous rows; a slice of a volume is a strided view.
        picture = Image.fromarray(np.ascontiguousarray(channel))
        if channel.shape != content:
            picture = picture.resize((content[1], content[0]), method)
        target[: content[0], : content[1]] = np.asarray(picture)
    return square
