"""Segmenting new images and volumes with a trained model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from medsaga import run_folder
from medsaga.config import RunConfig, read_config
from medsaga.data.dataset import find_inputs
from medsaga.data.intensity import apply
from medsaga.data.items import read_item
from medsaga.data.letterbox import letterbox, unletterbox
from medsaga.data.slices import SliceView, slice_channels, slice_view
from medsaga.data.types import Array, Grid, Item, Labels, to_label_values
from medsaga.device import choose_device
from medsaga.errors import InputError, OutOfMemoryError
from medsaga.memory.tracker import is_out_of_memory
from medsaga.methods import loading
from medsaga.models.base import SegmentationModel
from medsaga.models.precision import cast_parameters
from medsaga.models.weights import load_model

# A slice is mapped back to its own size one at a time: the probabilities of a large slice outweigh the model.
BATCH_SIZE = 8
"""Slices that go through the model at a time, unless the run was trained with fewer at a time."""


@dataclass(frozen=True)
class Prediction:
    """The segmentation of one image or volume, on its own grid.

    Attributes:
        labels: (*shape) label values, as ``dataset.json`` names them; unsigned integers.
        probabilities: (classes, *shape) float32, summing to 1 over the classes; None unless asked for.
        picture: (slices, channels, height, width) uint8, what the model looked at, slice by slice.
        view: how ``picture`` and the grid belong together.
    """

    labels: Labels
    probabilities: npt.NDArray[np.float32] | None
    picture: npt.NDArray[np.uint8]
    view: SliceView


class Segmenter:
    """A trained model, ready to segment.

    Attributes:
        config: the run's configuration: labels, channels, intensities, settings.
        model: in evaluation mode, on ``device``.
        device: where it runs.
    """

    def __init__(self, model: SegmentationModel, config: RunConfig, device: torch.device) -> None:
        self.model = model.to(device).eval()
        if device.type == "cpu":
            # A file may hold half precision: CPUs compute it slowly, or at least not as exactly.
            cast_parameters(self.model, torch.float32)
        self._batch_size = min(BATCH_SIZE, config.settings.micro_batch_size)
        self.config = config
        self.device = device

    @property
    def label_values(self) -> npt.NDArray[np.int64]:
        """(classes,) the label value of each class index."""
        return np.array(list(self.config.labels.values()), dtype=np.int64)

    @classmethod
    def load(cls, run: str | Path, device: str = "auto") -> Self:
        """Load the model of a run folder.

        Raises:
            InputError: the folder is no run, or its model does not fit its configuration.
        """
        folder = Path(run)
        config = read_config(folder / run_folder.CONFIG)
        model = load_model(folder / run_folder.MODEL, loading(config.settings))
        made = (model.architecture, model.classes, model.image_size, model.in_channels)
        wanted = (config.settings.model, len(config.labels), config.settings.image_size, config.in_channels)
        if made != wanted:
            raise InputError(
                folder / run_folder.MODEL,
                expected="a {} for {} classes, {} px and {} channels, as config.toml says".format(*wanted),
                found="a {} for {} classes, {} px and {} channels".format(*made),
                do="Restore the file that belongs to this run.",
            )
        return cls(model, config, choose_device(device))

    def predict(
        self,
        image: Array | str | Path,
        *,
        spacing: Sequence[float] | None = None,
        affine: npt.NDArray[np.float64] | None = None,
        probabilities: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Prediction:
        """Segment an image or a volume.

        Args:
            image: a file, or an array: (height, width), (height, width, channels) for as many channels as the model
                was trained on, (i, j, k), or (channels, i, j, k).
            spacing: of an array's voxels in mm; it decides along which axis a volume is cut.
            affine: (4, 4) voxel index to RAS+ mm of an array that is a volume; without it i, j, k are taken to point
                right, anterior and superior.
            probabilities: whether to return them too; they take 4 bytes per class and voxel.
            progress: called with the slices done and the slices in all.

        Raises:
            InputError: the image cannot be used with this model.
        """
        if isinstance(image, str | Path):
            items = find_inputs(Path(image), channels=len(self.config.channels))
            if len(items) != 1:
                raise InputError(
                    image, expected="one image", found=f"{len(items)}", do="Predict a folder with `medsaga predict`."
                )
            return self.predict_item(items[0], probabilities=probabilities, progress=progress)
        array = self._channels_first(np.asarray(image))
        if spacing is None and affine is not None:
            spacing = [float(size) for size in np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)]
        grid = Grid(array.shape[1:], None if spacing is None else tuple(spacing), affine)
        return self._predict(array, grid, "array", probabilities, progress)

    def predict_item(
        self, item: Item, *, probabilities: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> Prediction:
        """Segment an image or volume from its file or files; see `predict`."""
        return self._predict(read_item(item), item.header.grid, str(item.images[0]), probabilities, progress)

    def _channels_first(self, array: Array) -> Array:
        channels = len(self.config.channels)
        if array.ndim == 3 and channels > 1 and array.shape[-1] == channels:
            return np.moveaxis(array, -1, 0)
        return array if array.ndim == 4 else array[np.newaxis]

    def _predict(
        self,
        image: Array,
        grid: Grid,
        where: str,
        probabilities: bool,
        progress: Callable[[int, int], None] | None,
    ) -> Prediction:
        channels = len(self.config.channels)
        if image.ndim not in (3, 4) or len(image) != channels:
            raise InputError(
                where,
                expected=f"{channels} channel(s), as the model was trained on: {', '.join(self.config.channels)}",
                found=f"{len(image)}" if image.ndim in (3, 4) else f"an array of {image.ndim} axes",
                do="Give the same channels in the same order.",
            )
        view = slice_view(grid, self.config.settings.axis)
        picture = view.view(
            np.stack([apply(i, channel, where) for i, channel in zip(self.config.intensities, image, strict=True)])
        )
        classes = np.empty((view.slices, *view.slice_shape), dtype=np.uint8)
        soft = np.empty((view.slices, self.model.classes, *view.slice_shape), np.float32) if probabilities else None
        for index, probability in enumerate(self._probabilities(picture, view.slice_shape)):
            classes[index] = probability.argmax(0).to("cpu", torch.uint8).numpy()
            if soft is not None:
                soft[index] = probability.cpu().numpy()
            if progress:
                progress(index + 1, view.slices)
        labels = to_label_values(view.restore(classes), self.label_values)
        return Prediction(labels, None if soft is None else view.restore(soft), picture, view)

    @torch.inference_mode()
    def _probabilities(self, picture: npt.NDArray[np.uint8], shape: tuple[int, int]) -> Iterator[torch.Tensor]:
        """Yield (classes, height, width) float32 per slice; the model sees ``BATCH_SIZE`` slices at a time."""
        size = self.model.image_size
        for start in range(0, len(picture), BATCH_SIZE):
            indices = range(start, min(start + BATCH_SIZE, len(picture)))
            boxed = [
                letterbox(slice_channels(picture, index, self.config.settings.neighbours), size) for index in indices
            ]
            images = torch.from_numpy(np.stack([square for square, _ in boxed])).to(self.device)
            for one, (_, content) in zip(self._logits(images), boxed, strict=True):
                yield unletterbox(one[None], content, size, shape)[0].softmax(0)

    def _logits(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield (classes, size / 4, size / 4) float32 per image, as many images at a time as memory holds."""
        done = 0
        while done < len(images):
            try:
                logits = self.model(images[done : done + self._batch_size]).float()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self._batch_size == 1:
                    raise OutOfMemoryError(f"{error}\nTry --device cpu.") from None
                logits = None
            if logits is None:
                self._batch_size = self._batch_size // 2
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            yield from logits
            done += len(logits)
