"""The cache of training samples, the order in which they are seen, and their loading ahead of time."""

from __future__ import annotations

import dataclasses
import json
import threading
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from medsaga.data import samples as module
from medsaga.data import volumes
from medsaga.data.formats import format_of
from medsaga.data.intensity import Intensity
from medsaga.data.letterbox import letterbox, letterbox_labels
from medsaga.data.samples import Prefetcher, Samples, batch_indices, build_samples
from medsaga.data.slices import slice_channels, slice_view
from medsaga.data.types import Dataset, Item
from medsaga.errors import InputError

SIZE = 32


def item_of(path: Path, mask: Path) -> Item:
    return Item(path.name, path.name, (path,), (mask,), format_of(path).read_header(path))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two volumes of different orientation and size, with the label values 0, 2 and 5; the last slice is empty."""
    random = np.random.default_rng(0)
    items = []
    for name, shape, affine in (
        ("a", (20, 30, 5), np.diag([1.0, 1.0, 4.0, 1.0])),
        ("b", (4, 40, 24), np.array([[0, 0, -1.0, 0], [0, -1, 0, 0], [5, 0, 0, 0], [0, 0, 0, 1]])),
    ):
        grid_mask = random.choice(np.array([0, 2, 5], np.uint8), shape)
        grid_mask[(..., -1) if name == "a" else (-1, ...)] = 0
        paths = tmp_path / f"{name}.nii.gz", tmp_path / f"{name}_mask.nii.gz"
        nib.save(nib.Nifti1Image(random.integers(-1000, 1000, shape).astype(np.int16), affine), paths[0])
        nib.save(nib.Nifti1Image(grid_mask, affine), paths[1])
        items.append(item_of(*paths))
    return Dataset(tmp_path, "folder", {"background": 0, "liver": 2, "spleen": 5}, ("CT",), tuple(items))


def build(dataset: Dataset, folder: Path, *, neighbours: int = 0, size: int = SIZE, tile: int | None = None) -> Samples:
    return build_samples(
        folder,
        dataset,
        dataset.items,
        view_axis="axial",
        intensities=(Intensity("window", -160, 240),),
        image_size=size,
        neighbours=neighbours,
        tile=tile,
    )


def plain_samples(foreground: list[bool], neighbours: int = 0) -> Samples:
    n = len(foreground)
    return Samples(
        images=np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 4, 4), np.uint8),
        labels=np.zeros((n, 4, 4), np.uint8),
        item_names=("x",) * n,
        slice_indices=np.arange(n),
        content=np.full((n, 2), 4),
        windows=np.tile([0.0, 0.0, 1.0, 1.0], (n, 1)),
        foreground=np.array(foreground),
        neighbours=neighbours,
    )


def test_every_slice_is_what_inference_would_see(dataset: Dataset, tmp_path: Path) -> None:
    samples = build(dataset, tmp_path / "cache", neighbours=1)
    assert len(samples) == 5 + 4
    assert samples.images.shape == (9, 1, SIZE, SIZE)
    images, labels = samples.batch(range(9))
    assert images.dtype == labels.dtype == torch.uint8
    assert images.shape == (9, 3, SIZE, SIZE)
    n = 0
    for item in dataset.items:
        view = slice_view(item.header.grid, "axial")
        volume = nib.load(item.images[0]).get_fdata()
        picture = view.view(np.rint(np.clip((volume + 160) / 400, 0, 1) * 255).astype(np.uint8)[None])
        mask = view.view(np.searchsorted([0, 2, 5], nib.load(item.masks[0]).get_fdata()).astype(np.uint8)[None])[:, 0]
        for index in range(view.slices):
            square, content = letterbox(slice_channels(picture, index, 1), SIZE)
            difference = images[n].numpy().astype(int) - square
            assert np.abs(difference).max() <= 1, "only halves may round another way"
            np.testing.assert_array_equal(labels[n], letterbox_labels(mask[index], SIZE))
            assert tuple(samples.content[n]) == content
            assert (samples.item_names[n], samples.slice_indices[n]) == (item.name, index)
            assert samples.foreground[n] == mask[index].any()
            n += 1
    assert samples.foreground.sum() == 4 + 3


def test_tiles_of_large_slices_are_samples_of_their_own(dataset: Dataset, tmp_path: Path) -> None:
    tile = 16
    samples = build(dataset, tmp_path / "tiles", neighbours=1, tile=tile)
    whole = build(dataset, tmp_path / "whole", neighbours=1, size=48)
    # 20 x 30 and 24 x 40 pixels: as many tiles as cover them, the last ones moved inwards.
    corners = [(y, x) for y in (0, 14) for x in (0, 4)], [(y, x) for y in (0, 16, 24) for x in (0, 8)]
    n = 0
    for item, places in zip(dataset.items, corners, strict=True):
        view = slice_view(item.header.grid, "axial")
        assert view.slice_shape == ((30, 20) if item.name.startswith("a") else (40, 24))
        volume = nib.load(item.images[0]).get_fdata()
        picture = view.view(np.rint(np.clip((volume + 160) / 400, 0, 1) * 255).astype(np.uint8)[None])
        mask = view.view(np.searchsorted([0, 2, 5], nib.load(item.masks[0]).get_fdata()).astype(np.uint8)[None])[:, 0]
        for y, x in places:
            for index in range(view.slices):
                image, labels = samples.batch([n])
                around = slice_channels(picture, index, 1)[:, y : y + tile, x : x + tile]
                assert np.abs(image[0].numpy().astype(int) - letterbox(around, SIZE)[0]).max() <= 1
                expected = letterbox_labels(mask[index, y : y + tile, x : x + tile], SIZE)
                np.testing.assert_array_equal(labels[0], expected)
                assert samples.foreground[n] == expected.any()
                assert (samples.item_names[n], samples.slice_indices[n]) == (item.name, index)
                assert tuple(samples.content[n]) == (SIZE, SIZE)
                sides = np.array([*view.slice_shape, *view.slice_shape])
                np.testing.assert_allclose(samples.windows[n] * sides, [y, x, tile, tile])
                n += 1
    assert n == len(samples) == 4 * 5 + 6 * 4
    assert len(whole) == 5 + 4
    assert len(build(dataset, tmp_path / "larger", tile=40)) == 5 + 4


def test_large_volumes_give_the_same_samples(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = build(dataset, tmp_path / "small", tile=16)
    monkeypatch.setattr(volumes, "LARGEST_IN_MEMORY", 0)
    large = build(dataset, tmp_path / "large", tile=16)
    np.testing.assert_array_equal(large.images, small.images)
    np.testing.assert_array_equal(large.labels, small.labels)


def test_a_large_volume_takes_the_memory_of_its_label_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "LARGEST_IN_MEMORY", 0)
    monkeypatch.setattr(volumes, "_BLOCK_BYTES", 2**16)
    peaks = []
    for slices in (16, 96):
        random = np.random.default_rng(0)
        paths = tmp_path / f"{slices}.nii", tmp_path / f"{slices}_mask.nii"
        shape = (96, 64, slices)
        nib.save(nib.Nifti1Image(random.integers(-1000, 1000, shape).astype(np.int16), np.eye(4)), paths[0])
        nib.save(nib.Nifti1Image(random.choice(np.array([0, 2, 5], np.uint8), shape), np.eye(4)), paths[1])
        item = item_of(*paths)
        labels = {"background": 0, "liver": 2, "spleen": 5}
        tracemalloc.start()
        build(Dataset(tmp_path, "folder", labels, ("CT",), (item,)), tmp_path / f"cache{slices}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # One byte per voxel of the label map, and none of the two of the image.
    assert (peaks[1] - peaks[0]) / 80 < 96 * 64 * 1.5


def test_pictures_of_several_channels_and_files(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    paths = [tmp_path / f"x_{n}.png" for n in range(2)]
    pixels = random.integers(0, 256, (2, SIZE, SIZE), dtype=np.uint8)
    for path, channel in zip(paths, pixels, strict=True):
        Image.fromarray(channel).save(path)
    Image.fromarray((pixels[0] > 9).astype(np.uint8)).save(tmp_path / "mask.png")
    header = dataclasses.replace(format_of(paths[0]).read_header(paths[0]), channels=2)
    item = Item("x", "x", tuple(paths), (tmp_path / "mask.png",), header)
    dataset = Dataset(tmp_path, "folder", {"background": 0, "a": 1}, ("0", "1"), (item,))
    identity = Intensity("identity", 0, 255)
    samples = build_samples(
        tmp_path / "cache",
        dataset,
        dataset.items,
        view_axis="auto",
        intensities=(identity, identity),
        image_size=SIZE,
        neighbours=0,
    )
    np.testing.assert_array_equal(samples.images[0], pixels)


def test_a_cache_is_used_again_until_something_changes(dataset: Dataset, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    done: list[int] = []

    def rebuilt(**changes: int) -> bool:
        done.clear()
        build_samples(
            cache,
            dataset,
            dataset.items,
            view_axis="axial",
            intensities=(Intensity("window", changes.get("low", -160), 240),),
            image_size=changes.get("size", SIZE),
            neighbours=changes.get("neighbours", 0),
            tile=changes.get("tile"),
            progress=lambda n, total: done.append(n),
        )
        assert done in ([], [1, 2])
        return bool(done)

    assert rebuilt()
    assert not rebuilt()
    assert not rebuilt(neighbours=2)
    assert rebuilt(low=-150)
    assert rebuilt(size=16)
    assert rebuilt(tile=16)
    mask = dataset.items[0].masks[0]
    image = nib.load(mask)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), mask)
    assert rebuilt()


def test_a_broken_build_leaves_nothing_and_is_not_used(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    second = dataset.items[1].images[0]
    assert isinstance(second, Path)
    content = second.read_bytes()
    header = dataset.items[1]
    second.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"b\.nii\.gz"):
        build(dataset, cache)
    assert list(cache.iterdir()) == []
    second.write_bytes(content)
    with monkeypatch.context() as patch:
        patch.setattr(module, "read_mask", lambda item: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            build(dataset, cache)
    assert list(cache.iterdir()) == []
    assert len(build(dataset, cache)) == 9
    assert header == dataset.items[1]
    (folder,) = cache.iterdir()
    assert json.loads((folder / "index.json").read_text())["key"].startswith(folder.name)


def test_bad_items_are_named(dataset: Dataset, tmp_path: Path) -> None:
    few = dataclasses.replace(dataset, labels={"background": 0, "liver": 2})
    with pytest.raises(InputError, match=r"a_mask\.nii\.gz.*also 5"):
        build(few, tmp_path / "cache")
    item = dataclasses.replace(dataset.items[0], masks=())
    with pytest.raises(InputError, match="expected a mask"):
        build(dataclasses.replace(dataset, items=(item,)), tmp_path / "cache")
    swapped = dataclasses.replace(dataset.items[0], masks=dataset.items[1].masks)
    with pytest.raises(InputError, match=r"b_mask\.nii\.gz.*\(4, 40, 24\)"):
        build(dataclasses.replace(dataset, items=(swapped,)), tmp_path / "cache")


def test_no_room_on_the_disk(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    with pytest.raises(InputError, match="free disk"):
        build(dataset, tmp_path / "cache")


def test_neighbours_stay_within_their_item() -> None:
    samples = dataclasses.replace(
        plain_samples([True] * 7, neighbours=2), slice_indices=np.array([0, 1, 2, 3, 0, 1, 2])
    )
    images, _ = samples.batch([0, 3, 4, 5])
    assert images[:, :, 0, 0].tolist() == [[0, 0, 0, 1, 2], [1, 2, 3, 3, 3], [4, 4, 4, 5, 6], [4, 4, 5, 6, 6]]


def test_an_epoch_is_all_of_the_foreground_and_as_many_empty_slices() -> None:
    samples = plain_samples([True, False, False, False, True, False, False])
    assert samples.epoch_length == 4
    epochs = [batch_indices(samples, 3, step, 4) for step in range(40)]
    for epoch in epochs:
        assert len(set(epoch)) == 4
        assert {0, 4} < set(epoch.tolist())
    assert {int(index) for epoch in epochs for index in epoch} == set(range(7)), "other empty slices in each epoch"
    assert len({tuple(epoch) for epoch in epochs}) > 10
    assert plain_samples([True, True, False]).epoch_length == 3


def test_batches_depend_on_seed_and_step_only_and_run_on_over_epochs() -> None:
    samples = plain_samples([n % 3 > 0 for n in range(17)])
    one_by_one = [int(batch_indices(samples, 7, step, 1)[0]) for step in range(60)]
    in_fives = [int(index) for step in range(12) for index in batch_indices(samples, 7, step, 5)]
    assert one_by_one == in_fives
    assert one_by_one != [int(batch_indices(samples, 8, step, 1)[0]) for step in range(60)]
    # A batch may be larger than an epoch.
    assert batch_indices(samples, 7, 0, 60).tolist() == one_by_one


def test_nothing_labelled_is_an_error() -> None:
    with pytest.raises(InputError, match="background only in 2 slices"):
        batch_indices(plain_samples([False, False]), 0, 0, 2)


def test_prefetcher_gives_the_batches_of_the_steps() -> None:
    samples = plain_samples([True] * 9)
    with Prefetcher(samples, seed=1, batch_size=3, start=5, stop=11) as batches:
        seen = list(batches)
    assert [step for step, _, _ in seen] == [5, 6, 7, 8, 9, 10]
    for step, images, labels in seen:
        assert images[:, 0, 0, 0].tolist() == batch_indices(samples, 1, step, 3).tolist()
        assert labels.shape == (3, 4, 4)
    with Prefetcher(samples, seed=1, batch_size=3, start=4, stop=4) as batches:
        assert list(batches) == []


def test_prefetcher_raises_what_went_wrong_and_ends_its_thread() -> None:
    before = threading.active_count()
    with (
        pytest.raises(InputError, match="background only"),
        Prefetcher(plain_samples([False]), seed=0, batch_size=1, start=0, stop=9) as batches,
    ):
        next(iter(batches))
    with Prefetcher(plain_samples([True] * 4), seed=0, batch_size=1, start=0, stop=1000) as batches:
        for step, _, _ in batches:
            if step == 3:
                break
    assert threading.active_count() == before
