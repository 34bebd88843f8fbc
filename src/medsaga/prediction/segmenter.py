"""Segmenting new images and volumes with a trained model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch

from medsaga import run_folder
from medsaga.data.inputs import find_inputs
from medsaga.data.intensity import require_mappable
from medsaga.data.items import for_channels
from medsaga.data.letterbox import letterbox
from medsaga.data.pictures import picture_of, read_picture
from medsaga.data.slices import SliceView, Stack, slice_channels, slice_view
from medsaga.data.sources import place_of
from medsaga.data.symmetries import SYMMETRIES, flips
from medsaga.data.tiles import blended, overlapping, tile_shape
from medsaga.data.types import Array, Grid, Item, Labels, to_label_values
from medsaga.data.volumes import empty_result
from medsaga.deltas.applying import load_delta
from medsaga.device import choose_device, release_cached_memory
from medsaga.errors import InputError, OutOfMemoryError
from medsaga.memory.tracker import is_out_of_memory
from medsaga.methods import loading
from medsaga.models.base import SegmentationModel
from medsaga.models.precision import WEIGHT_TYPES, cast_parameters
from medsaga.models.weights.loading import load_model
from medsaga.prediction.confidence import Confidence, ConfidenceScores
from medsaga.prediction.mirrored import mean_probabilities
from medsaga.settings.run_config import RunConfig, read_config

# A slice is mapped back to its own size one at a time: the probabilities of a large slice outweigh the model.
BATCH_SIZE = 8
"""Slices or tiles that go through the model at a time, unless the run was trained with fewer at a time."""
LARGEST_STRIP = 2**23
"""Probabilities that are made at a time, of all pixels and classes: those of a large picture outweigh the model."""
Augmented = Literal["auto", "all", "none"]
"""Which mirror images are looked at too, when an image is segmented."""


@dataclass(frozen=True)
class Prediction:
    """The segmentation of one image or volume, on its own grid.

    What is larger than `medsaga.data.volumes.LARGEST_IN_MEMORY` lies in temporary files, which go with this object:
    arrays are memory maps then, and the voxels of the image are read slice by slice.

    Attributes:
        labels: (*shape) label values, as ``dataset.json`` names them; unsigned integers.
        probabilities: (classes, *shape) float32, summing to 1 over the classes; None unless asked for.
        confidence: how sure the model is of ``labels``, which is no promise that it is right.
        picture: slice by slice, (channels, height, width) uint8: what the model looked at.
        view: how ``picture`` and the grid belong together.
    """

    labels: Labels
    probabilities: npt.NDArray[np.float32] | None
    confidence: ConfidenceScores
    picture: Stack[np.uint8]
    view: SliceView


class Segmenter:
    """A trained model, ready to segment.

    Attributes:
        config: the run's configuration: labels, channels, intensities, settings.
        model: in evaluation mode, on ``device``.
        device: where it runs.
    """

    def __init__(self, model: SegmentationModel, config: RunConfig, device: torch.device) -> None:
        # A file may hold half precision: CPUs compute it slowly, or at least not as exactly.
        if device.type == "cpu":
            cast_parameters(model, torch.float32)
        self.model = model.to(device).eval()
        self._batch_size = min(BATCH_SIZE, config.settings.micro_batch_size)
        self.config = config
        self.device = device

    @property
    def label_values(self) -> npt.NDArray[np.int64]:
        """(classes,) the label value of each class index."""
        return np.array(list(self.config.labels.values()), dtype=np.int64)

    @classmethod
    def load(cls, run: str | Path, device: str = "auto", base: str | None = None) -> Self:
        """Load the model of a run folder, or of a delta file that was exported from one.

        Args:
            run: the folder, or the file.
            device: see `medsaga.device.choose_device`.
            base: the weights that a delta file belongs to, as ``--model`` takes them, where they are not found by
                their SHA-256: see `medsaga.deltas.base.state_of`.

        Raises:
            InputError: it is neither, its model does not fit its configuration, or the base is not there.
        """
        folder, place = Path(run), choose_device(device)
        if folder.is_file():
            model, config = load_delta(folder, base)
            if place.type != "cpu":
                cast_parameters(model, WEIGHT_TYPES[config.settings.precision])
            return cls(model, config, place)
        if base is not None:
            raise InputError("--base", expected="a delta file to put onto it", found=str(run), do="Leave it out.")
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
        return cls(model, config, place)

    def predict(
        self,
        image: Array | str | Path,
        *,
        spacing: Sequence[float] | None = None,
        affine: npt.NDArray[np.float64] | None = None,
        probabilities: bool = False,
        tta: Augmented = "auto",
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
            tta: test-time augmentation, the mean of the probabilities of every slice and of its mirror images: ``auto``
                mirrors as the masks of the training allow, ``all`` along one axis, the other, and both, which takes
                four times as long, ``none`` not at all.
            progress: called with what is done and what there is in all: slices, or tiles of slices.

        Raises:
            InputError: the image cannot be used with this model.
        """
        if isinstance(image, str | Path):
            items = find_inputs(Path(image), channels=self.config.channels)
            if len(items) != 1:
                raise InputError(
                    image, expected="one image", found=f"{len(items)}", do="Predict a folder with `medsaga predict`."
                )
            return self.predict_item(items[0], probabilities=probabilities, tta=tta, progress=progress)
        array = self._channels_first(np.asarray(image))
        if spacing is None and affine is not None:
            spacing = [float(size) for size in np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)]
        found = f"{len(array)}" if array.ndim in (3, 4) else f"an array of {array.ndim} axes"
        self._check_channels(found, "array")
        grid = Grid(array.shape[1:], None if spacing is None else tuple(spacing), affine)
        view = slice_view(grid, self.config.settings.axis)
        picture = picture_of(array, view, self.config.intensities, "array")
        return self._predict(picture, view, probabilities, tta, progress)

    def predict_item(
        self,
        item: Item,
        *,
        probabilities: bool = False,
        tta: Augmented = "auto",
        progress: Callable[[int, int], None] | None = None,
    ) -> Prediction:
        """Segment an image or volume from its file or files; see `predict`."""
        item = for_channels(item, len(self.config.channels))
        self._check_channels(f"{item.header.channels}", place_of(item.images[0]))
        require_mappable(self.config.intensities, (item,))
        view = slice_view(item.header.grid, self.config.settings.axis)
        picture = read_picture(item, view, self.config.intensities)
        return self._predict(picture, view, probabilities, tta, progress)

    def _channels_first(self, array: Array) -> Array:
        channels = len(self.config.channels)
        if array.ndim == 3 and channels > 1 and array.shape[-1] == channels:
            return np.moveaxis(array, -1, 0)
        return array if array.ndim == 4 else array[np.newaxis]

    def _check_channels(self, found: str, where: str | Path) -> None:
        names = self.config.channels
        if found != f"{len(names)}":
            raise InputError(
                where,
                expected=f"{len(names)} channel(s), as the model was trained on: {', '.join(names)}",
                found=found,
                do="Give the same channels in the same order; of several time points or b-values give one.",
            )

    # Not on the generator below: its wrapper would keep each strip until the next.
    @torch.inference_mode()
    def _predict(
        self,
        picture: Stack[np.uint8],
        view: SliceView,
        probabilities: bool,
        tta: Augmented,
        progress: Callable[[int, int], None] | None,
    ) -> Prediction:
        order = view.order or (0, 1)
        labels = empty_result(view.shape, order, np.min_scalar_type(int(self.label_values.max())))
        soft = None
        if probabilities:
            stored = (order[0] + 1, 0, *(axis + 1 for axis in order[1:])) if view.order else (0, 1, 2)
            soft = empty_result((self.model.classes, *view.shape), stored, np.float32)
        confidence = Confidence(self.model.classes)
        labels_of = view.of_labels(labels)
        soft_of = None if soft is None else view.view(soft)
        for index, top, strip in self._strips(picture, view.slice_shape, tta, progress):
            rows = slice(top, top + strip.shape[1])
            confidence.add(strip)
            # argmax takes ten times as long, on a CPU.
            classes = strip.max(0).indices.to("cpu", torch.uint8).numpy()
            labels_of[index, rows] = to_label_values(classes, self.label_values)
            if soft_of is not None:
                soft_of[index, :, rows] = strip.cpu().numpy()
            del strip  # it would lie beside the activations of the next slice
        return Prediction(labels, soft, confidence.result(), picture, view)

    def _strips(
        self,
        picture: Stack[np.uint8],
        shape: tuple[int, int],
        tta: Augmented,
        progress: Callable[[int, int], None] | None,
    ) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Yield slice, first row and (classes, rows, width) float32 probabilities, in that order: all of a slice, or,
        where it is cut into tiles, strips of it.
        """
        size = self.model.image_size
        height, width = tile_shape(shape, self.config.settings.tile)
        tops, lefts = overlapping(shape[0], height), overlapping(shape[1], width)
        total = len(picture) * len(tops) * len(lefts)

        names = {"auto": self.model.symmetries, "all": tuple(SYMMETRIES), "none": ()}[tta]
        passes = flips(names)

        def windows() -> Iterator[npt.NDArray[np.uint8]]:
            for index in range(len(picture)):
                channels = slice_channels(picture, index, self.config.settings.neighbours)
                for top in tops:
                    for left in lefts:
                        yield channels[:, top : top + height, left : left + width]

        done = count(1)

        def counted(logits: list[torch.Tensor]) -> list[torch.Tensor]:
            if progress:
                progress(next(done), total)
            return logits

        # Nothing below holds the logits of a window while the model looks at the next.
        seen = map(counted, self._logits_of_passes(windows(), passes))
        if len(tops) == len(lefts) == 1:
            for index in range(len(picture)):
                logits = next(seen)
                for rows in strips(shape, self.model.classes):
                    yield index, rows.start, mean_probabilities(logits, passes, size, shape, rows)
                del logits
            return
        whole = slice(0, height)
        mean = partial(mean_probabilities, passes=passes, size=size, shape=(height, width), rows=whole)
        probabilities = map(mean, seen)
        for index in range(len(picture)):
            for top, strip in blended(probabilities, tops, lefts, shape):
                yield index, top, strip

    def _logits_of_passes(
        self, windows: Iterator[npt.NDArray[np.uint8]], passes: Sequence[tuple[int, ...]]
    ) -> Iterator[list[torch.Tensor]]:
        """Yield, for each (channels, height, width), the logits of its mirror images."""
        size = self.model.image_size
        while batch := [*islice(windows, BATCH_SIZE // len(passes))]:
            boxed = [letterbox(np.flip(window, flip), size) for window in batch for flip in passes]
            logits = self._logits(torch.from_numpy(np.stack([square for square, _ in boxed])).to(self.device))
            for _ in batch:
                yield [*islice(logits, len(passes))]

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
                release_cached_memory()
                continue
            done += len(logits)
            yield from logits
            # What is held here would lie beside the activations of the next pass.
            logits = None


def strips(shape: tuple[int, int], classes: int) -> Iterator[slice]:
    """Yield the rows of a slice that are mapped back to its own size at a time: as many as `LARGEST_STRIP` allows."""
    rows = max(1, LARGEST_STRIP // (shape[1] * classes))
    for top in range(0, shape[0], rows):
        yield slice(top, min(top + rows, shape[0]))
