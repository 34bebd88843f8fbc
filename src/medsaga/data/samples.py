"""Training samples: every slice of every item once as the model will see it, in memory-mapped files.

The arrays lie on disk, so that a thousand volumes need no more memory than a batch. Which samples make up a batch is a
pure function of seed and step, so that a resumed run sees the batches that it would have seen.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from medsaga import files
from medsaga.data.intensity import Intensity
from medsaga.data.items import read_mask
from medsaga.data.letterbox import content_size, letterbox, letterbox_labels
from medsaga.data.pictures import read_picture
from medsaga.data.slices import SliceView, slice_view
from medsaga.data.sources import files_of
from medsaga.data.tiles import shares_of_tile, tile_corners, tile_shape
from medsaga.data.types import Dataset, Item, Labels, to_class_indices
from medsaga.errors import InputError

_LAYOUT = 2
"""Goes up when the content of the files changes its meaning, so that older caches are built again."""
_READ_AHEAD = 2

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(eq=False)
class Samples:
    """Slices, letterboxed to the model's square, with their labels.

    A slice that is cut into tiles is as many samples; those of one tile are stored like those of an item. The files are
    in use until `close`.

    Attributes:
        images: ``(n, channels, size, size)`` uint8, memory-mapped.
        labels: ``(n, size, size)`` uint8 class indices, memory-mapped.
        item_names: n names of items.
        slice_indices: ``(n,)``, the place of each slice in its item, which are stored one after the other.
        content: ``(n, 2)``, height and width that the slice takes in the square; the rest is padding.
        windows: ``(n, 4)``, top, left, height and width of what is seen, as shares of the slice's own height and width;
            0, 0, 1, 1 where it is not cut into tiles.
        foreground: ``(n,)``, whether anything is labelled.
        neighbours: slices on either side that `batch` adds as channels.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    item_names: tuple[str, ...]
    slice_indices: npt.NDArray[np.int64]
    content: npt.NDArray[np.int64]
    windows: npt.NDArray[np.float64]
    foreground: npt.NDArray[np.bool_]
    neighbours: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def close(self) -> None:
        """Let go of the files, so that they can be removed: Windows keeps what is mapped. Nothing can be loaded then.

        A mapping ends with the last array that looks into it, so nobody keeps parts of ``images`` and ``labels``.
        """
        self.images, self.labels = self.images[:0].copy(), self.labels[:0].copy()

    def batch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Batch:
        """Load samples.

        Returns:
            images ``(b, channels * (2 * neighbours + 1), size, size)`` and labels ``(b, size, size)``, both uint8; the
            channels are those of the first neighbour, then of the next, as `medsaga.data.slices.slice_channels` has
            them.
        """
        chosen = np.asarray(indices)
        first = chosen - self.slice_indices[chosen]
        last = first + self._slices_of_item[chosen] - 1
        around = np.arange(-self.neighbours, self.neighbours + 1)
        wanted = np.clip(chosen[:, None] + around, first[:, None], last[:, None])
        images = self.images[wanted].reshape(len(chosen), -1, *self.images.shape[2:])
        return torch.from_numpy(images), torch.from_numpy(self.labels[chosen])

    def check_labelled(self) -> None:
        """Make sure that there is something to train on.

        Raises:
            InputError: nothing is labelled in any sample.
        """
        if not self.foreground.any():
            raise InputError(
                "training masks",
                expected="labelled pixels in at least one slice",
                found=f"background only in {len(self)} slices",
                do="Choose other training cases, or a larger --image-size if the labelled parts are tiny.",
            )

    @property
    def epoch_length(self) -> int:
        """Samples per epoch: all with foreground, and at most as many without; see `check_labelled`."""
        self.check_labelled()
        with_foreground = int(self.foreground.sum())
        return with_foreground + min(with_foreground, len(self) - with_foreground)

    @property
    def _slices_of_item(self) -> npt.NDArray[np.int64]:
        starts = np.flatnonzero(self.slice_indices == 0)
        counts = np.diff([*starts, len(self)])
        return np.repeat(counts, counts)


def batch_indices(samples: Samples, seed: int, step: int, batch_size: int) -> npt.NDArray[np.int64]:
    """Choose the samples of a step: ``(batch_size,)`` indices, a pure function of its arguments.

    An epoch is a random order of all samples with foreground and of at most as many without, drawn anew for every
    epoch; batches run on over the end of an epoch.
    """
    length = samples.epoch_length
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // length
    orders = {int(epoch): _order(samples, seed, int(epoch)) for epoch in np.unique(epochs)}
    return np.array([orders[int(e)][p % length] for e, p in zip(epochs, positions, strict=True)], dtype=np.int64)


def _order(samples: Samples, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    random = np.random.default_rng([seed, epoch])
    with_foreground = np.flatnonzero(samples.foreground)
    empty = np.flatnonzero(~samples.foreground)
    drawn = random.permutation(empty)[: len(with_foreground)]
    return random.permutation(np.concatenate([with_foreground, drawn]))


class Prefetcher:
    """Batches of the steps ``start`` to ``stop`` (excluded), loaded by one thread while the model computes.

    A context manager; iterating gives ``(step, images, labels)``. What goes wrong while loading is raised where the
    batch is asked for. Of each batch only the places of ``share`` are loaded. Leaving the context waits for the batch
    under way and starts no other.
    """

    def __init__(
        self, samples: Samples, *, seed: int, batch_size: int, start: int, stop: int, share: range | None = None
    ) -> None:
        self._samples = samples
        self._seed = seed
        self._batch_size = batch_size
        self._places = list(range(batch_size) if share is None else share)
        self._steps = range(start, stop)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        waiting: deque[tuple[int, Future[Batch]]] = deque()
        for ahead in self._steps[:_READ_AHEAD]:
            waiting.append((ahead, self._thread.submit(self._load, ahead)))
        while waiting:
            step, loading = waiting.popleft()
            images, labels = loading.result()
            if step + _READ_AHEAD in self._steps:
                waiting.append((step + _READ_AHEAD, self._thread.submit(self._load, step + _READ_AHEAD)))
            yield step, images, labels

    def _load(self, step: int) -> Batch:
        indices = batch_indices(self._samples, self._seed, step, self._batch_size)
        return self._samples.batch(indices[self._places])


def build_samples(
    folder: Path,
    dataset: Dataset,
    items: Sequence[Item],
    *,
    view_axis: str,
    intensities: Sequence[Intensity],
    image_size: int,
    neighbours: int,
    tile: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """Prepare all slices of some items in ``folder``, or take what lies there if it was made of the same.

    Items are decoded one at a time: label maps and 2-D images whole, large volumes slice by slice. A build that is
    interrupted leaves nothing that a later one would use.

    Args:
        folder: for the cache; each combination of data and settings gets a folder of its own in it.
        dataset: gives the labels.
        items: with masks.
        view_axis: see `medsaga.data.slices.slice_view`.
        intensities: one per channel.
        image_size: side of the square in pixels.
        neighbours: see `Samples`; it does not change what is stored.
        tile: side in pixels of the tiles that larger slices are cut into, each of them a sample; None for none.
        progress: called with the items done and the items in all.

    Raises:
        InputError: an item has no mask, a label that the dataset does not know, or other dimensions than its header
            says; or there is no room on the disk.
    """
    key = _key(dataset, items, view_axis, intensities, image_size, tile)
    place = folder / key[:16]
    if not (place / "index.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        building = folder / f".{secrets.token_hex(4)}.building"
        building.mkdir()
        try:
            _build(building, key, dataset, items, view_axis, intensities, image_size, tile, progress)
            _take_place(building, place)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return _open(place, neighbours)


def _build(
    folder: Path,
    key: str,
    dataset: Dataset,
    items: Sequence[Item],
    view_axis: str,
    intensities: Sequence[Intensity],
    image_size: int,
    tile: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    views = [slice_view(item.header.grid, view_axis) for item in items]
    tiles = [tile_corners(view.slice_shape, tile) for view in views]
    counts = [view.slices * len(corners) for view, corners in zip(views, tiles, strict=True)]
    square = (image_size, image_size)
    require_room(folder, sum(counts) * image_size**2 * (len(intensities) + 1))
    foreground = np.zeros(sum(counts), np.bool_)
    # Plain writes rather than a memory map: a full disk is then an error and not a SIGBUS.
    with (folder / "images.npy").open("wb") as images, (folder / "labels.npy").open("wb") as labels:
        for handle, shape in ((images, (sum(counts), len(intensities), *square)), (labels, (sum(counts), *square))):
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(handle, header)
        starts = images.tell(), labels.tell()
        first = 0
        for done, (item, view, corners) in enumerate(zip(items, views, tiles, strict=True), 1):
            for place, image, classes in _squares(item, view, corners, intensities, dataset.label_values, square, tile):
                for handle, start, values in zip((images, labels), starts, (image, classes), strict=True):
                    handle.seek(start + (first + place) * values.nbytes)
                    handle.write(values.tobytes())
                foreground[first + place] = classes.any()
            first += counts[done - 1]
            if progress is not None:
                progress(done, len(items))
    index = {
        "key": key,
        "item": [item.name for item, count in zip(items, counts, strict=True) for _ in range(count)],
        "slice": [n for view, corners in zip(views, tiles, strict=True) for _ in corners for n in range(view.slices)],
        "content": [
            content_size(tile_shape(view.slice_shape, tile), image_size)
            for view, count in zip(views, counts, strict=True)
            for _ in range(count)
        ],
        "window": [
            shares_of_tile(corner, view.slice_shape, tile)
            for view, corners in zip(views, tiles, strict=True)
            for corner in corners
            for _ in range(view.slices)
        ],
        "foreground": foreground.tolist(),
    }
    files.write_json(folder / "index.json", index)


def _squares(
    item: Item,
    view: SliceView,
    corners: Sequence[tuple[int, int]],
    intensities: Sequence[Intensity],
    values: npt.NDArray[np.int64],
    square: tuple[int, int],
    tile: int | None,
) -> Iterator[tuple[int, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    """Decode one item, slice by slice.

    Yields:
        the place of a sample among those of the item, where all slices of the first tile come first, so that
        neighbouring slices are neighbours; its image, ``(channels, size, size)``; its class indices, ``(size, size)``.
    """
    picture = read_picture(item, view, intensities)
    mask = view.of_labels(read_mask(item))
    height, width = tile_shape(view.slice_shape, tile)
    for n in range(view.slices):
        channels, labels = picture[n], mask[n]
        for place, (top, left) in enumerate(corners):
            part = slice(top, top + height), slice(left, left + width)
            image, _ = letterbox(channels[:, *part], square[0])
            yield place * view.slices + n, image, letterbox_labels(_classes(item, labels[part], values), square[0])


def _classes(item: Item, labels: Labels, values: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    known = np.isin(labels, values)
    if not known.all():
        raise InputError(
            item.masks[0] if item.masks else item.name,
            expected=f"the labels {', '.join(map(str, values))}",
            found=f"also {', '.join(map(str, np.unique(labels[~known])[:10]))}",
            do="Correct the mask, or name the label in dataset.json.",
        )
    return to_class_indices(labels, values)


def _key(
    dataset: Dataset,
    items: Sequence[Item],
    view_axis: str,
    intensities: Sequence[Intensity],
    image_size: int,
    tile: int | None,
) -> str:
    """SHA-256 of everything that the stored bytes depend on; files count by name, size and time of change."""

    def stamp(path: Path) -> list[Any]:
        status = path.stat()
        return [str(path.resolve()), status.st_size, status.st_mtime_ns]

    document = {
        "layout": _LAYOUT,
        "labels": dataset.label_values.tolist(),
        "axis": view_axis,
        "intensities": [dataclasses.asdict(intensity) for intensity in intensities],
        "size": image_size,
        "tile": tile,
        "items": [
            [
                item.name,
                [[stamp(path) for path in files_of(source)] for source in (*item.images, *item.masks)],
                list(item.structures),
                list(item.names),
                item.binary,
            ]
            for item in items
        ],
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _open(place: Path, neighbours: int) -> Samples:
    index = files.read_json(place / "index.json")
    return Samples(
        images=np.load(place / "images.npy", mmap_mode="r"),
        labels=np.load(place / "labels.npy", mmap_mode="r"),
        item_names=tuple(index["item"]),
        slice_indices=np.array(index["slice"], dtype=np.int64),
        content=np.array(index["content"], dtype=np.int64).reshape(-1, 2),
        windows=np.array(index["window"], dtype=np.float64).reshape(-1, 4),
        foreground=np.array(index["foreground"], dtype=bool),
        neighbours=neighbours,
    )


def _take_place(building: Path, place: Path) -> None:
    try:
        building.rename(place)
    except OSError:
        # Another process was faster; what it built under the same key is the same.
        if not (place / "index.json").is_file():
            raise


def require_room(folder: Path, needed: int) -> None:
    """Raise InputError unless so many bytes fit on the disk: a memory map on a full one ends the process."""
    do = "Make room, write the run elsewhere, or choose a smaller --image-size."
    files.require_room(folder, needed, "the prepared images", do)
