"""What a model makes of a case that nobody has labelled: where it lies among the others, and how sure the model is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medsaga.data.intensity import Intensity
from medsaga.data.letterbox import Content, letterbox
from medsaga.data.pictures import read_picture
from medsaga.data.slices import slice_channels, slice_view
from medsaga.data.tiles import tile_corners, tile_shape
from medsaga.data.types import Item
from medsaga.models.base import SegmentationModel
from medsaga.prediction.confidence import Confidence

MOST_PARTS = 32
"""Slices of a volume, or tiles of slices, that are looked at, evenly spaced: a mean over more is nearly the same."""


@dataclass(frozen=True, eq=False)
class CaseEmbedding:
    """What a model makes of one case, or one image.

    Attributes:
        embedding: ``(d,)`` float64, mean over slices, or tiles of slices, and positions of what the encoder returns.
        confidence: mean over the classes, from 0 to 1, see `medsaga.prediction.confidence`; None where it was not asked
            for.
    """

    embedding: npt.NDArray[np.float64]
    confidence: float | None


@dataclass(frozen=True)
class CaseEmbedder:
    """A model and how it wants to see images.

    Attributes:
        model: in evaluation mode, on its device, with float32 weights where that is the CPU.
        intensities: one per channel.
        axis: along which volumes are cut; see `medsaga.data.slices.slice_view`.
        neighbours: slices on either side that it sees as channels.
        tile: side in pixels of the tiles that it sees larger slices in; None for whole slices.
        batch_size: slices or tiles at a time.
        classes: whether its classes mean something, so that there is a confidence.
    """

    model: SegmentationModel
    intensities: tuple[Intensity, ...]
    axis: str
    neighbours: int
    tile: int | None
    batch_size: int
    classes: bool

    def embed(self, items: Sequence[Item]) -> CaseEmbedding:
        """Embed the images of a case; each counts alike, however many slices it has.

        Raises:
            InputError: an image cannot be read.
        """
        parts = [self._embed(item) for item in items]
        sure = [part.confidence for part in parts if part.confidence is not None]
        embedding = np.mean([part.embedding for part in parts], axis=0)
        return CaseEmbedding(embedding, sum(sure) / len(sure) if sure else None)

    @torch.inference_mode()
    def _embed(self, item: Item) -> CaseEmbedding:
        sums: npt.NDArray[np.float64] | None = None
        parts = 0
        sure = Confidence(self.model.classes)
        for images, content in self._batches(item):
            encoded, logits = self.model.encoded_and_logits(images.float(), decode=self.classes)
            means = _inside(encoded, content, self.model.image_size).cpu().double().mean(dim=(2, 3)).numpy()
            sums = means.sum(axis=0) if sums is None else sums + means.sum(axis=0)
            parts += len(means)
            if logits is not None:
                for one in _inside(logits, content, self.model.image_size):
                    sure.add(one.float().softmax(0))
        assert sums is not None, "an image without slices"
        return CaseEmbedding(sums / parts, sure.result()["mean"] if self.classes else None)

    def _batches(self, item: Item) -> Iterator[tuple[Tensor, Content]]:
        """Yield slices or tiles, ``(b, channels, size, size)`` uint8 on the model's device, and what each fills."""
        view = slice_view(item.header.grid, self.axis)
        picture = read_picture(item, view, self.intensities)
        corners = tile_corners(view.slice_shape, self.tile)
        height, width = tile_shape(view.slice_shape, self.tile)
        chosen = np.unique(np.linspace(0, view.slices * len(corners) - 1, MOST_PARTS).round().astype(int))
        for first in range(0, len(chosen), self.batch_size):
            boxed = []
            for part in chosen[first : first + self.batch_size]:
                index, (top, left) = int(part) // len(corners), corners[part % len(corners)]
                seen = slice_channels(picture, index, self.neighbours)[:, top : top + height, left : left + width]
                boxed.append(letterbox(seen, self.model.image_size))
            images = torch.from_numpy(np.stack([square for square, _ in boxed]))
            yield images.to(self.model.device), boxed[0][1]


def _inside(maps: Tensor, content: Content, size: int) -> Tensor:
    """Cut the padding of a square of ``size`` off maps, ``(b, n, s, s)``, of which each pixel stands for several."""
    rows, columns = (max(1, round(extent * maps.shape[-1] / size)) for extent in content)
    return maps[..., :rows, :columns]
