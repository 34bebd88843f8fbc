"""Volumes in temporary files: the same slices as from memory, in the memory of a few of them."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK
from dicom_phantoms import AFFINES, write_ct_series

from medsaga.data import volumes
from medsaga.data.dicom.series import choose_series, find_series
from medsaga.data.formats import itk, nifti
from medsaga.data.intensity import Intensity
from medsaga.data.items import read_item
from medsaga.data.pictures import read_picture
from medsaga.data.slices import slice_view
from medsaga.data.sources import read_header
from medsaga.data.types import Header, Item, Source
from medsaga.data.volumes import empty_result, read_to_file
from medsaga.errors import InputError

AXES = ("axial", "coronal", "sagittal")
TURNED = np.array([[0, 0, -1.5, 3], [0, -1.25, 0, 8], [2.0, 0, 0, 1], [0, 0, 0, 1]])


def item_of(*sources: Source) -> Item:
    headers = [read_header(source) for source in sources]
    dtype = np.result_type(*(header.dtype for header in headers))
    return Item("a", "a", sources, (), Header(headers[0].grid, sum(each.channels for each in headers), dtype))


def random_volume(shape: tuple[int, ...], dtype: npt.DTypeLike = np.int16) -> npt.NDArray[Any]:
    return np.random.default_rng(0).integers(-1000, 2000, shape).astype(dtype)


def save_nifti(path: Path, volume: npt.NDArray[Any], *, slope: float = 1.0) -> Path:
    image = nib.Nifti1Image(volume, TURNED)
    if slope != 1:
        image.header.set_slope_inter(slope, 10)
    nib.save(image, path)
    return path


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with hardly any memory: no volume fits, and blocks hold two slices of 20 x 14 int16."""
    monkeypatch.setattr(volumes, "LARGEST_IN_MEMORY", 0)
    monkeypatch.setattr(volumes, "_BLOCK_BYTES", 2 * 20 * 14 * 2)


def sources(folder: Path, kind: str) -> tuple[Source, ...]:
    volume = random_volume((20, 14, 11))
    if kind == "dicom":
        write_ct_series(folder / "series", volume, AFFINES["oblique"])
        return (choose_series(find_series(folder / "series")),)
    if kind == "beyond int16":
        volume[3, 4, 7] = 32000
        write_ct_series(folder / "series", volume.astype(np.int32), AFFINES["feet first"], intercept=2000)
        return (choose_series(find_series(folder / "series")),)
    if kind == "two files":
        paths = [folder / f"a_{n}.nii" for n in range(2)]
        return save_nifti(paths[0], volume), save_nifti(paths[1], -volume.astype(np.float32) / 3)
    if kind == "colour":
        stored = random_volume((20, 14, 11, 3), np.uint8).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
        return (save_nifti(folder / "a.nii", stored),)
    if kind.endswith(("mha", "nrrd")):
        stored = np.moveaxis(random_volume((20, 14, 11, 3)), -1, 0) if kind.startswith("vector") else volume[None]
        image = SimpleITK.GetImageFromArray(stored.transpose(3, 2, 1, 0).squeeze(), isVector=len(stored) > 1)
        image.SetSpacing((0.5, 2, 3))
        path = folder / f"a.{kind.split()[-1]}"
        SimpleITK.WriteImage(image, str(path), useCompression="raw" not in kind)
        return (path,)
    shape = (20, 14, 11, 3) if kind == "channels.nii.gz" else (20, 14, 11)
    return (
        save_nifti(folder / f"a.{kind.split('.', 1)[1]}", random_volume(shape), slope=0.5 if "scaled" in kind else 1),
    )


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize(
    "kind",
    [
        *("plain.nii", "plain.nii.gz", "scaled.nii.gz", "channels.nii.gz", "colour", "two files"),
        *("raw nrrd", "nrrd", "vector nrrd", "vector raw mha", "dicom", "beyond int16"),
    ],
)
def test_slices_from_a_file_are_those_from_memory(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    item = item_of(*sources(tmp_path, kind))
    image = read_item(item)
    # All of these are read in pieces.
    monkeypatch.delattr(volumes, "read_image")
    for axis in AXES:
        view = slice_view(item.header.grid, axis)
        slices = read_to_file(item, view)
        assert slices.dtype == image.dtype
        assert len(slices) == view.slices
        expected = view.view(image)
        for index in (*range(view.slices), 3, 0):
            np.testing.assert_array_equal(slices[index], expected[index])
    if kind == "beyond int16":
        assert image.dtype == np.float32


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize("name", ["time.nrrd", "time.nii"])
def test_channels_that_are_volumes_one_after_another(tmp_path: Path, name: str) -> None:
    stored = random_volume((9, 8, 7, 4))
    path = tmp_path / name
    if name.endswith("nii"):
        save_nifti(path, stored)
    else:
        header = "NRRD0004\ntype: short\ndimension: 4\nsizes: 9 8 7 4\nkinds: domain domain domain list\nendian: little"
        place = "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,2) none\nspace origin: (0,0,0)"
        path.write_bytes(f"{header}\nencoding: raw\n{place}\n\n".encode() + stored.tobytes(order="F"))
    item = item_of(path)
    for axis in AXES:
        view = slice_view(item.header.grid, axis)
        slices = read_to_file(item, view)
        np.testing.assert_array_equal(
            np.stack([*map(slices.__getitem__, range(len(slices)))]), view.view(read_item(item))
        )
        np.testing.assert_array_equal(read_item(item), np.moveaxis(stored, -1, 0))


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint8])
@pytest.mark.parametrize("axis", AXES)
def test_pictures_of_a_large_volume_are_those_of_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axis: str, dtype: npt.DTypeLike
) -> None:
    paths = [save_nifti(tmp_path / f"{n}.nii", random_volume((20, 14, 11), dtype) // (n + 1)) for n in range(3)]
    item = item_of(*paths)
    kinds = [Intensity("percentile", 2, 90), Intensity("window", -300, 400), Intensity("percentile")]
    if dtype is np.uint8:
        kinds[2] = Intensity("identity", 0, 255)
    view = slice_view(item.header.grid, axis)
    small = read_picture(item, view, kinds)
    monkeypatch.setattr(volumes, "LARGEST_IN_MEMORY", 0)
    large = read_picture(item, view, kinds)
    assert isinstance(small, np.ndarray)
    assert not isinstance(large, np.ndarray)
    for index in range(view.slices):
        np.testing.assert_array_equal(large[index], small[index])


def test_a_sample_decides_on_the_percentiles_of_a_volume_of_more_than_a_million_voxels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = np.random.default_rng(0).gamma(2, 100, (120, 110, 90)).astype(np.float32)
    item = item_of(save_nifti(tmp_path / "a.nii", volume))
    view = slice_view(item.header.grid, "coronal")
    small = read_picture(item, view, [Intensity("percentile")])
    monkeypatch.setattr(volumes, "LARGEST_IN_MEMORY", 0)
    large = read_picture(item, view, [Intensity("percentile")])
    for index in range(view.slices):
        np.testing.assert_array_equal(large[index], small[index])


@pytest.mark.usefixtures("all_large")
def test_what_cannot_be_mapped_is_said_before_the_first_slice(tmp_path: Path) -> None:
    volume = random_volume((20, 14, 11), np.float32)
    volume[0, 0, 9] = np.nan
    item = item_of(save_nifti(tmp_path / "a.nii", volume))
    view = slice_view(item.header.grid, "axial")
    for kind in ("window", "percentile"):
        with pytest.raises(InputError, match=r"a\.nii.*NaN"):
            read_picture(item, view, [Intensity(kind, 0, 1)])
    with pytest.raises(InputError, match=r"a\.nii.*float32"):
        read_picture(item, view, [Intensity("identity", 0, 255)])


@pytest.mark.usefixtures("all_large")
def test_a_file_that_has_changed_or_is_damaged_is_named(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii.gz", random_volume((20, 14, 11)))
    item = item_of(path)
    view = slice_view(item.header.grid)
    content = path.read_bytes()
    path.write_bytes(content[:-6] + bytes([content[-6] ^ 1]) + content[-5:])
    with pytest.raises(InputError, match=r"a\.nii\.gz.*damaged data \(CRC"):
        read_to_file(item, view)
    save_nifti(path, random_volume((14, 20, 11)))
    with pytest.raises(InputError, match=r"a\.nii\.gz.*\(14, 20, 11\)"):
        read_to_file(item, view)


@pytest.mark.usefixtures("all_large")
def test_no_room_for_the_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = item_of(save_nifti(tmp_path / "a.nii", random_volume((20, 14, 11))))
    view = slice_view(item.header.grid)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 20 * 14 * 11 * 2 - 1})())
        with pytest.raises(InputError, match=r"free disk for a large volume.*TMPDIR"):
            read_to_file(item, view)
    if Path("/dev/full").exists():
        monkeypatch.setattr("tempfile.TemporaryFile", lambda buffering: Path("/dev/full").open("r+b", buffering))  # noqa: SIM115 - its user closes it
        with pytest.raises(InputError, match=r"No space left.*TMPDIR"):
            read_to_file(item, view)
        with pytest.raises(InputError, match=r"No space left.*TMPDIR"):
            empty_result((2, 3), (0, 1), np.uint8)


@pytest.mark.usefixtures("all_large")
def test_results_lie_in_a_file_in_the_order_asked_for() -> None:
    result = empty_result((3, 4, 5), (2, 0, 1), np.uint16)
    assert isinstance(result, np.memmap)
    assert result.shape == (3, 4, 5)
    assert result[..., 2].flags.c_contiguous
    values = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)
    result[:] = values
    np.testing.assert_array_equal(result, values)


def test_small_results_lie_in_memory() -> None:
    result = empty_result((3, 4, 5), (2, 0, 1), np.uint16)
    assert not isinstance(result, np.memmap)
    assert result[..., 2].flags.c_contiguous


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files where Linux lists them")
@pytest.mark.usefixtures("all_large")
def test_temporary_files_go_with_their_objects(tmp_path: Path) -> None:
    item = item_of(save_nifti(tmp_path / "a.nii", random_volume((20, 14, 11))))

    def temporary() -> int:
        gc.collect()
        links = [entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        return sum(str(link.readlink()).endswith("(deleted)") for link in links if link.is_symlink())

    before = temporary()
    slices = read_to_file(item, slice_view(item.header.grid))
    assert temporary() == before + 1
    del slices
    assert temporary() == before


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize("kind", ["plain.nii.gz", "nrrd", "dicom"])
@pytest.mark.parametrize("axis", ["axial", "sagittal"])
def test_memory_does_not_grow_with_the_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, axis: str
) -> None:
    monkeypatch.setattr(volumes, "_BLOCK_BYTES", 2**16)
    monkeypatch.setattr(nifti, "CHUNK_BYTES", 2**14)
    monkeypatch.setattr(itk, "CHUNK_BYTES", 2**14)
    peaks = []
    for slices in (20, 120):
        volume = random_volume((96, 64, slices))
        folder = tmp_path / str(slices)
        folder.mkdir()
        if kind == "dicom":
            write_ct_series(folder / "series", volume, AFFINES["axial"])
            source: Source = choose_series(find_series(folder / "series"))
        elif kind == "nrrd":
            source = folder / "a.nrrd"
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(volume.T), str(source), useCompression=True)
        else:
            source = save_nifti(folder / "a.nii.gz", volume)
        item = item_of(source)
        view = slice_view(item.header.grid, axis)
        tracemalloc.start()
        picture = read_picture(item, view, [Intensity("window", -100, 100)])
        for index in range(len(picture)):
            assert picture[index].any()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Of the 100 slices more, 1.2 MB, nothing stays: the headers of a series do.
    assert peaks[1] - peaks[0] < 100 * 96 * 64 * 2 * 0.25
