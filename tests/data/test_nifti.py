"""NIfTI volumes, with nibabel and SimpleITK as oracles for reading and writing."""

from __future__ import annotations

import gzip
import hashlib
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medsaga.data.formats import format_of, nifti
from medsaga.data.reorientation import reorientation
from medsaga.errors import InputError

OBLIQUE = np.array([[-0.9, 0.1, 0.2, 30.0], [0.1, 1.2, -0.3, -20.5], [0.05, 0.2, 4.0, 7.25], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)


def save(
    path: Path, voxels: np.ndarray, affine: np.ndarray | None = OBLIQUE, kind: Any = nib.Nifti1Image, **fields: Any
) -> Path:
    """Write ``voxels`` as they are, then overwrite header fields."""
    image = kind(voxels, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)
    return with_fields(path, **fields)


def with_fields(path: Path, **fields: Any) -> Path:
    """Overwrite header fields in the file, without nibabel's checks."""
    is_gzip = path.name.endswith(".gz")
    content = gzip.decompress(path.read_bytes()) if is_gzip else path.read_bytes()
    kind = nib.Nifti1Header if content[:4] == (348).to_bytes(4, "little") else nib.Nifti2Header
    size = kind.template_dtype.itemsize
    header = kind(content[:size], check=False)
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock + content[size:]
    path.write_bytes(gzip.compress(content) if is_gzip else content)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_volumes_agree_with_nibabel(tmp_path: Path, suffix: str, kind: Any, dtype: str) -> None:
    path = save(tmp_path / f"a{suffix}", np.abs(VOXELS % 200).astype(dtype), kind=kind)
    image, header = nifti.read_image(path), nifti.read_header(path)
    oracle = nib.load(path)
    assert np.array_equal(image, np.asarray(oracle.dataobj)[None])
    assert image.dtype == header.dtype == ("f4" if dtype == "f8" else dtype)
    assert header.channels == 1
    assert header.grid.shape == VOXELS.shape
    assert header.grid.affine is not None
    assert header.grid.spacing is not None
    assert np.allclose(header.grid.affine, oracle.affine, atol=1e-6)
    assert np.allclose(header.grid.spacing, np.linalg.norm(OBLIQUE[:3, :3], axis=0))


def test_big_endian_files_become_native(tmp_path: Path) -> None:
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nib.Nifti1Image(VOXELS, OBLIQUE, header).to_filename(tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes()[:4] == (348).to_bytes(4, "big")
    image = nifti.read_image(tmp_path / "a.nii")
    assert np.array_equal(image[0], VOXELS)
    assert image.dtype == np.dtype("=i2")
    assert image.dtype.isnative
    labels = np.abs(VOXELS) % 3
    nifti.write_labels(tmp_path / "out.nii", labels, tmp_path / "a.nii")
    assert np.array_equal(nib.load(tmp_path / "out.nii").get_fdata(), labels)
    assert np.allclose(nib.load(tmp_path / "out.nii").affine, OBLIQUE)


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", VOXELS, scl_slope=0.5, scl_inter=-10)
    image = nifti.read_image(path)
    assert image.dtype == nifti.read_header(path).dtype == np.float32
    assert np.array_equal(image[0], VOXELS * 0.5 - 10)


@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0, 5), (np.nan, np.nan)])
def test_no_scaling_keeps_the_stored_type(tmp_path: Path, slope: float, intercept: float) -> None:
    path = save(tmp_path / "a.nii", VOXELS, scl_slope=slope, scl_inter=intercept)
    assert nifti.read_image(path).dtype == np.int16


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 6), (1, 5, 6, 1)),
        ((5, 6, 1), (1, 5, 6, 1)),
        ((5, 6, 7, 3), (3, 5, 6, 7)),
        ((5, 6, 7, 1), (1, 5, 6, 7)),
        ((5, 6, 7, 1, 3), (3, 5, 6, 7)),
    ],
)
def test_channels_come_first_whatever_dimension_holds_them(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    voxels = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    path = save(tmp_path / "a.nii.gz", voxels)
    image = nifti.read_image(path)
    assert image.shape == expected
    header = nifti.read_header(path)
    assert (header.channels, *header.grid.shape) == expected
    assert np.array_equal(np.moveaxis(image, 0, -1).ravel(), voxels.ravel())


def test_rgb_voxels_are_three_channels(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    rgb = colours.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    path = save(tmp_path / "a.nii", rgb)
    assert np.array_equal(nifti.read_image(path), np.moveaxis(colours, -1, 0))
    assert nifti.read_header(path).channels == 3


@pytest.mark.parametrize(("unit", "scale"), [("mm", 1.0), ("micron", 1e-3), ("meter", 1e3), ("unknown", 1.0)])
def test_spacing_is_in_mm_whatever_the_unit_of_the_file(tmp_path: Path, unit: str, scale: float) -> None:
    image = nib.Nifti1Image(VOXELS, np.diag([2.0, 3, 4, 1]))
    image.header.set_xyzt_units(unit)
    image.to_filename(tmp_path / "a.nii")
    assert nifti.read_header(tmp_path / "a.nii").grid.spacing == pytest.approx((2 * scale, 3 * scale, 4 * scale))


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 2), (3, 1)])
def test_the_affine_is_nibabels_for_all_qform_and_sform_codes(tmp_path: Path, codes: tuple[int, int]) -> None:
    path = save(tmp_path / "a.nii", VOXELS, np.diag([-2.0, 3, 4, 1]), qform_code=codes[0], sform_code=codes[1])
    grid = nifti.read_header(path).grid
    assert grid.affine is not None
    assert np.array_equal(grid.affine, nib.load(path).affine)


def test_nan_stays_for_the_checks_of_the_dataset(tmp_path: Path) -> None:
    voxels = VOXELS.astype(np.float32)
    voxels[1, 2, 3] = np.nan
    assert np.isnan(nifti.read_image(save(tmp_path / "a.nii", voxels))[0, 1, 2, 3])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": [3, 5, 0, 7, 1, 1, 1, 1]}, "5 x 0 x 7"),
        ({"dim": [3, 5, -6, 7, 1, 1, 1, 1]}, "5 x -6 x 7"),
        ({"dim": [1, 210, 1, 1, 1, 1, 1, 1]}, "1 dimensions"),
        ({"dim": [5, 1, 1, 7, 5, 6, 1, 1]}, "5 dimensions"),
        ({"dim": [6, 5, 6, 1, 1, 1, 7, 1]}, "6 dimensions"),
        ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "cannot hold them"),
        ({"datatype": 32}, "complex64"),
        ({"datatype": 2304}, "data type 2304"),
        ({"datatype": 1536}, "data type 1536"),
        ({"datatype": 77}, "data type 77"),
        ({"vox_offset": np.nan}, "vox_offset nan"),
        ({"vox_offset": 0}, "vox_offset 0"),
        ({"vox_offset": 1e12}, "cannot hold them"),
        ({"srow_x": [0, 0, 0, 0]}, "lie in one plane"),
        ({"srow_x": [np.nan, 0, 0, 0]}, "not finite"),
        ({"srow_x": [np.inf, 0, 0, 0]}, "not finite"),
        ({"srow_z": [1e-9, 2e-9, 1e30, 0]}, "a spacing of"),
        ({"srow_x": [1, 1, 0, 0], "srow_y": [1, 1, 0, 0]}, "lie in one plane"),
        ({"sform_code": 0, "pixdim": [1, 0, 1, 1, 1, 1, 1, 1]}, "a spacing of 0"),
        ({"sform_code": 0, "qform_code": 1, "quatern_b": 5}, "unreadable"),
        ({"magic": b"ni1"}, "another kind of file"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_unusable_headers_are_refused_before_anything_is_allocated(
    tmp_path: Path, suffix: str, fields: dict[str, Any], message: str
) -> None:
    path = save(tmp_path / f"a{suffix}", VOXELS, **fields)
    tracemalloc.start()
    try:
        for read in (nifti.read_header, nifti.read_image, nifti.read_labels):
            with pytest.raises(InputError, match=message):
                read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_truncated_and_corrupt_files_are_refused(tmp_path: Path) -> None:
    content = save(tmp_path / "whole.nii.gz", VOXELS).read_bytes()
    wrong_crc = bytearray(content)
    wrong_crc[-8] ^= 1
    for name, damaged, message in (
        ("cut.nii.gz", content[: len(content) * 2 // 3], "damaged data"),
        ("crc.nii.gz", bytes(wrong_crc), "damaged data.*CRC"),
        ("twice.nii", gzip.compress(content), "gzip-compressed data"),
        ("empty.nii", b"", "an empty file"),
        ("empty.nii.gz", b"", "an empty file"),
        ("short.nii", gzip.decompress(content)[:100], "100 bytes"),
        ("cut.nii", gzip.decompress(content)[:-1], "cannot hold them"),
    ):
        path = tmp_path / name
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=message) as caught:
            nifti.read_image(path)
        assert caught.value.where == str(path)
    with pytest.raises(InputError, match="no such file"):
        nifti.read_header(tmp_path / "none.nii")


def test_the_content_says_whether_a_file_is_compressed(tmp_path: Path) -> None:
    packed = save(tmp_path / "whole.nii.gz", VOXELS).read_bytes()
    plain = gzip.decompress(packed)
    halves = gzip.compress(plain[:300]) + gzip.compress(plain[300:])
    contents = {
        **{"plain.nii.gz": plain, "packed.nii": packed, "zeros behind.nii.gz": packed + bytes(600)},
        **{"two members.nii.gz": halves, "two members.nii": halves},
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert np.array_equal(nifti.read_image(tmp_path / name)[0], VOXELS)
        blocks = list(nifti.read_blocks(tmp_path / name, 100))
        assert np.array_equal(np.concatenate([voxels for _, _, voxels in blocks], axis=-1)[0], VOXELS)
        grid = nifti.read_header(tmp_path / name).grid
        assert grid.affine is not None
        assert np.allclose(grid.affine, OBLIQUE)
        nifti.write_labels(tmp_path / "out.nii.gz", VOXELS % 2, tmp_path / name)
        assert np.array_equal(nib.load(tmp_path / "out.nii.gz").dataobj, VOXELS % 2)
        nifti.write_labels(tmp_path / "out.nii", VOXELS % 2, tmp_path / name)
        assert (tmp_path / "out.nii").read_bytes() == gzip.decompress((tmp_path / "out.nii.gz").read_bytes())


@pytest.mark.parametrize("codes", [(4, 1), (2, 1), (1, 2), (0, 0), (1, 1)])
def test_a_mask_that_itk_placed_by_the_other_affine(tmp_path: Path, codes: tuple[int, int]) -> None:
    """Images whose sform is a mirrored template, so that only the identity is right; SimpleITK copies the place."""
    image = nib.Nifti1Image(VOXELS, None)
    image.set_sform(np.diag([-1.5, 2, 3, 1]) + np.array([[0, 0, 0, 6.0], [0] * 4, [0] * 4, [0] * 4]), codes[0])
    image.set_qform(np.diag([1.5, 2, 3, 1]), codes[1])
    image.header["sform_code"], image.header["qform_code"] = codes
    image.to_filename(tmp_path / "a.nii")
    labels = np.abs(VOXELS) % 3
    mask = SimpleITK.GetImageFromArray(labels.T)
    mask.CopyInformation(SimpleITK.ReadImage(tmp_path / "a.nii"))
    image_grid = nifti.read_header(tmp_path / "a.nii").grid
    for name in ("mask.nii.gz", "mask.nrrd", "mask.mha"):
        SimpleITK.WriteImage(mask, tmp_path / name)
        form = format_of(tmp_path / name)
        onto = reorientation(form.read_header(tmp_path / name).grid, image_grid)
        assert onto is not None
        placed = onto(form.read_labels(tmp_path / name))
        assert placed is not None
        assert np.array_equal(placed, labels)
    mask.SetOrigin(np.add(mask.GetOrigin(), (0.3, 0, 0)).tolist())
    SimpleITK.WriteImage(mask, tmp_path / "moved.nii")
    assert reorientation(nifti.read_header(tmp_path / "moved.nii").grid, image_grid) is None


def test_labels_stored_as_floats_are_integers_again(tmp_path: Path) -> None:
    labels = np.abs(VOXELS) % 4
    for stored in (labels.astype(np.float32), labels.astype(np.float64), labels[..., None].astype(np.uint8)):
        read = nifti.read_labels(save(tmp_path / "a.nii.gz", stored))
        assert read.dtype.kind in "iu"
        assert np.array_equal(read, labels)


def test_labels_that_nibabel_stored_with_a_slope_are_read(tmp_path: Path) -> None:
    labels = (np.abs(VOXELS) % 4).astype(np.float64)
    image = nib.Nifti1Image(labels, OBLIQUE)
    image.set_data_dtype(np.int16)
    image.to_filename(tmp_path / "a.nii")
    assert nib.load(tmp_path / "a.nii").dataobj.slope != 1
    assert np.array_equal(nifti.read_labels(tmp_path / "a.nii"), labels)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("towards", [-np.inf, np.inf])
@pytest.mark.parametrize("highest", [1, 5, 255, 65535])
def test_labels_one_rounding_step_off_are_integers(tmp_path: Path, dtype: Any, towards: float, highest: int) -> None:
    labels = np.abs(VOXELS.astype(np.int32)) % 2 * highest
    off = np.nextafter(labels.astype(dtype), dtype(towards))
    assert not np.array_equal(off, labels)
    assert np.array_equal(nifti.read_labels(save(tmp_path / "a.nii", off)), labels)


@pytest.mark.parametrize("wrong", [0.5, 0.99, 1.002, np.nan, np.inf, 3e9])
def test_masks_that_are_not_integers_are_refused(tmp_path: Path, wrong: float) -> None:
    labels = np.zeros((5, 6, 7), dtype=np.float32)
    labels[4, 5, 6] = wrong
    with pytest.raises(InputError, match="expected integer labels"):
        nifti.read_labels(save(tmp_path / "a.nii", labels))


def test_masks_with_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found 3 channels"):
        nifti.read_labels(save(tmp_path / "a.nii", np.zeros((5, 6, 7, 3), dtype=np.uint8)))


def grid_of(path: Path) -> dict[str, Any]:
    header = nib.load(path).header
    names = ["qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"]
    names += ["sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"]
    return {**{name: header[name].tolist() for name in names}, "pixdim": header["pixdim"][:4].tolist()}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    codes=st.sampled_from([(1, 1), (0, 2), (4, 0), (2, 3), (0, 0)]),
    shape=st.sampled_from([(4, 5), (4, 5, 6), (1, 5, 1), (4, 5, 6, 2), (4, 5, 6, 1, 2)]),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
    kind=st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]),
)
def test_written_labels_have_exactly_the_grid_of_their_image(
    tmp_path: Path, seed: int, codes: tuple[int, int], shape: tuple[int, ...], suffix: str, kind: Any
) -> None:
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = rotation * rng.uniform(0.2, 6, 3)
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    like = save(tmp_path / f"like{suffix}", rng.integers(0, 99, shape).astype(np.int16), affine, kind)
    with_fields(like, qform_code=codes[0], sform_code=codes[1])
    spatial = (*shape, 1)[:3]
    labels = rng.integers(0, 5, spatial)
    out = tmp_path / f"out{suffix}"
    nifti.write_labels(out, labels, like)
    assert np.array_equal(nifti.read_labels(out), labels)
    written, original = nib.load(out), nib.load(like)
    assert isinstance(written, kind)
    assert written.shape == shape[:3]
    assert written.get_data_dtype() == np.uint8
    assert grid_of(out) == grid_of(like)
    assert np.array_equal(written.affine, original.affine)
    probabilities = rng.random((3, *spatial), dtype=np.float32)
    nifti.write_probabilities(out, probabilities, like)
    assert np.array_equal(np.asarray(nib.load(out).dataobj), np.moveaxis(probabilities, 0, -1))
    assert grid_of(out) == grid_of(like)


def test_simpleitk_sees_labels_on_the_image(tmp_path: Path) -> None:
    like = save(tmp_path / "like.nii.gz", VOXELS, np.diag([-2.0, -3, 4, 1]))
    labels = np.abs(VOXELS) % 4
    nifti.write_labels(tmp_path / "out.nii.gz", labels, like)
    image, mask = (SimpleITK.ReadImage(str(tmp_path / name)) for name in ("like.nii.gz", "out.nii.gz"))
    assert np.array_equal(SimpleITK.GetArrayFromImage(mask), labels.transpose(2, 1, 0))
    assert image.GetSpacing() == mask.GetSpacing()
    assert image.GetOrigin() == mask.GetOrigin()
    assert image.GetDirection() == mask.GetDirection()


@pytest.mark.parametrize(("highest", "dtype"), [(1, "u1"), (255, "u1"), (256, "u2"), (70000, "u4")])
def test_labels_are_written_in_the_smallest_type(tmp_path: Path, highest: int, dtype: str) -> None:
    like = save(tmp_path / "like.nii", VOXELS, scl_slope=2, scl_inter=1)
    nifti.write_labels(tmp_path / "out.nii", np.full((5, 6, 7), highest), like)
    written = nib.load(tmp_path / "out.nii")
    assert written.get_data_dtype() == dtype
    assert (written.dataobj.slope, written.dataobj.inter) == (1, 0)
    assert np.unique(written.dataobj).tolist() == [highest]


def test_nothing_but_the_grid_leaves_the_input(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOXELS, OBLIQUE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"PatientName=Doe^Jane"))
    image.header["descrip"] = b"Doe^Jane"
    image.header["aux_file"] = b"Doe^Jane"
    image.header["db_name"] = b"Doe^Jane"
    image.header.set_intent("z score", (), "Doe^Jane")
    image.header["cal_max"] = 5
    image.to_filename(tmp_path / "like.nii")
    assert b"Doe^Jane" in (tmp_path / "like.nii").read_bytes()
    nifti.write_labels(tmp_path / "out.nii", np.abs(VOXELS) % 3, tmp_path / "like.nii")
    written = nib.load(tmp_path / "out.nii")
    assert b"Doe" not in (tmp_path / "out.nii").read_bytes()
    assert written.header.get_intent() == ("none", (), "")
    assert len(written.header.extensions) == 0
    assert float(written.header["cal_max"]) == 0
    assert np.array_equal(nifti.read_image(tmp_path / "like.nii")[0], VOXELS)


def test_equal_predictions_are_equal_files(tmp_path: Path) -> None:
    like = save(tmp_path / "like.nii.gz", VOXELS)
    digests = set()
    for name in ("a.nii.gz", "b.nii.gz"):
        nifti.write_labels(tmp_path / name, np.abs(VOXELS) % 3, like)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).digest())
    assert len(digests) == 1
