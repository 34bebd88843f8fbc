"""Arrays in .npz and HDF5: seen as they are stored, and what cannot be read says so."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsaga.data.formats import arrays, format_of, stem
from medsaga.data.slices import slice_view
from medsaga.errors import InputError

RNG = np.random.default_rng(0)
SLICE, VOLUME = RNG.random((12, 10), np.float32), RNG.random((4, 12, 10), np.float32)


def save(path: Path, **content: np.ndarray) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **content)  # type: ignore[arg-type]  # its stub wants allow_pickle here
    else:
        with h5py.File(path, "w") as file:
            for name, values in content.items():
                file[name] = values
    return path


@pytest.fixture(params=["case0005_slice000.npz", "case0001.npy.h5"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


@pytest.mark.parametrize("image", [SLICE, VOLUME], ids=["slice", "volume"])
@pytest.mark.parametrize("label_type", [np.uint8, np.float32, np.float64, ">i2"])
def test_what_is_stored_is_read(path: Path, image: np.ndarray, label_type: str) -> None:
    labels = RNG.integers(0, 9, image.shape).astype(label_type)
    save(path, image=image.astype(np.float64), label=labels)
    assert format_of(path) is arrays
    assert stem(path) in ("case0005_slice000", "case0001")
    header = arrays.read_header(path)
    assert (header.grid.shape, header.grid.spacing, header.channels) == (image.shape, None, 1)
    read = arrays.read_image(path)
    assert read.dtype == header.dtype == np.float32
    np.testing.assert_array_equal(read[0], image)
    np.testing.assert_array_equal(arrays.read_labels(path), labels)
    assert arrays.read_labels(path).dtype.kind in "iu"


def test_columns_first_and_integers_are_kept(tmp_path: Path) -> None:
    values = np.asfortranarray(RNG.integers(-1000, 1000, (4, 12, 10)).astype(np.int16))
    path = save(tmp_path / "a.npz", image=values)
    assert arrays.read_header(path).dtype == np.int16
    np.testing.assert_array_equal(arrays.read_image(path)[0], values)


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 7)] * 3))
def test_the_slices_of_a_volume_are_seen_as_they_are_stored(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int, int]
) -> None:
    volume = RNG.random(shape, np.float32)
    path = save(tmp_path_factory.mktemp("volume") / "a.npz", image=volume)
    for axis in ("axial", "i", "auto") if shape[1] > 1 and shape[2] > 1 else ("axial", "i"):
        view = slice_view(arrays.read_header(path).grid, axis)
        assert (view.axis, view.spacing) == ("axial", None)
        np.testing.assert_array_equal(view.view(arrays.read_image(path))[:, 0], volume)


@pytest.mark.parametrize("suffix", [".npz", ".npy.h5"])
@pytest.mark.parametrize("image", [SLICE, VOLUME], ids=["slice", "volume"])
def test_predictions_are_written_in_the_same_order(path: Path, suffix: str, image: np.ndarray) -> None:
    save(path, image=image)
    labels = RNG.integers(0, 9, image.shape)
    soft = RNG.random((3, *image.shape), np.float32)
    first, again = (path.with_name(f"{name}{suffix}") for name in ("first", "again"))
    for out in (first, again):
        arrays.write_labels(out, labels, path)
        arrays.write_probabilities(out.with_name(f"soft{suffix}"), soft, path)
    assert arrays.read_labels(first).dtype == np.uint8
    np.testing.assert_array_equal(arrays.read_labels(first), labels)
    assert first.read_bytes() == again.read_bytes()
    if suffix == ".npz":
        np.testing.assert_array_equal(np.load(path.with_name("soft.npz"))["probabilities"], soft)


def test_arrays_of_other_names_are_named(path: Path) -> None:
    save(path, img=SLICE, label=SLICE)
    with pytest.raises(InputError, match=r"expected an array named 'image'; found the arrays img, label"):
        arrays.read_header(path)
    save(path, image=SLICE)
    with pytest.raises(InputError, match=r"expected an array named 'label'; found the arrays image"):
        arrays.read_labels(path)


def test_labels_that_are_no_integers_are_refused(path: Path) -> None:
    save(path, image=SLICE, label=SLICE)
    with pytest.raises(InputError, match="expected integer labels"):
        arrays.read_labels(path)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("a pickle was opened",)

    path = tmp_path / "a.npz"
    np.savez(path, image=np.array([[Trap()]], dtype=object))
    with pytest.raises(InputError, match="found pickled Python objects"):
        arrays.read_header(path)
    with pytest.raises(InputError, match="found pickled Python objects"):
        arrays.read_image(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (np.float32(3), "a single number"),
        (np.zeros(5), "found 5"),
        (np.zeros((1, 2, 3, 4)), "1 x 2 x 3 x 4"),
        (np.zeros((0, 4)), "0 x 4"),
        (np.zeros((3, 4), complex), "complex128"),
    ],
)
def test_what_is_no_image_is_refused(path: Path, content: np.ndarray, found: str) -> None:
    save(path, image=content)
    with pytest.raises(InputError, match=found):
        arrays.read_header(path)


def test_a_claim_that_the_file_cannot_hold_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.npy.h5", "w") as file:
        file.create_dataset("image", (4000, 4000, 4000), "f4", chunks=(1, 64, 64))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("image.npy", "w") as member:
        header = {"descr": "<f4", "fortran_order": False, "shape": (4000, 4000, 4000)}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(bytes(100))
    for path in (tmp_path / "a.npy.h5", tmp_path / "a.npz"):
        for read in (arrays.read_header, arrays.read_image):
            with pytest.raises(InputError, match="which cannot hold them"):
                read(path)


def test_a_member_that_ends_too_early_is_damaged(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("image.npy", "w") as member:
        header = {"descr": "<f4", "fortran_order": False, "shape": (5, 5)}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(bytes(99))
    with pytest.raises(InputError, match="damaged data"):
        arrays.read_image(tmp_path / "a.npz")


def test_links_to_other_files_are_not_followed(tmp_path: Path) -> None:
    save(tmp_path / "secret.npy.h5", image=SLICE)
    with h5py.File(tmp_path / "a.npy.h5", "w") as file:
        file["image"] = h5py.ExternalLink("secret.npy.h5", "image")
    with pytest.raises(InputError, match="an array named 'image'"):
        arrays.read_image(tmp_path / "a.npy.h5")


@pytest.mark.parametrize(
    ("content", "found"), [(None, "no such file"), (b"", "an empty file"), (b"PK nothing", "damaged data")]
)
def test_other_files_say_what_is_wrong(path: Path, content: bytes | None, found: str) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=found):
        arrays.read_header(path)


def test_without_h5py_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.npy.h5", image=SLICE)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"pip install \"medsaga\[papers\]\""):
        arrays.read_header(path)
    assert arrays.read_header(save(tmp_path / "a.npz", image=SLICE)).grid.shape == (12, 10)
