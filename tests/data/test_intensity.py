"""Images become uint8 by rules that are settled once."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from medsaga.data import volumes
from medsaga.data.formats import format_of
from medsaga.data.intensity import Intensity, apply, choose_intensity
from medsaga.data.survey import survey
from medsaga.data.types import Dataset, Item
from medsaga.errors import InputError


def dataset_of(root: Path, images: list[npt.NDArray], masks: list[npt.NDArray], channel: str = "channel_0") -> Dataset:
    """Write volumes as NIfTI, or uint8 images as PNG, each with its mask."""
    items = []
    for n, (image, mask) in enumerate(zip(images, masks, strict=True)):
        suffix = ".png" if image.ndim == 2 else ".nii.gz"
        paths = [root / f"{kind}{n}{suffix}" for kind in ("image", "mask")]
        for path, array in zip(paths, (image, mask), strict=True):
            if image.ndim == 2:
                Image.fromarray(array).save(path)
            else:
                nib.save(nib.Nifti1Image(array, np.eye(4)), path)
        items.append(Item(f"image{n}", f"case{n}", (paths[0],), (paths[1],), format_of(paths[0]).read_header(paths[0])))
    return Dataset(root, "folder", {"background": 0, "organ": 1}, (channel,), tuple(items))


def ct(seed: int, low: int = 40, high: int = 160) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Air around a body, with a labelled block of values from ``low`` to ``high``."""
    random = np.random.default_rng(seed)
    volume = random.integers(-1024, -900, (20, 20, 6)).astype(np.int16)
    volume[4:16, 4:16] = random.integers(-120, 80, (12, 12, 6))
    mask = np.zeros(volume.shape, np.uint8)
    mask[6:12, 6:12] = 1
    volume[mask > 0] = random.integers(low, high + 1, int(mask.sum()))
    return volume, mask


def test_window_of_ct_covers_the_labelled_voxels_and_is_at_least_400_hu_wide(tmp_path: Path) -> None:
    pairs = [ct(0), ct(1)]
    dataset = dataset_of(tmp_path, [v for v, _ in pairs], [m for _, m in pairs])
    (found,) = choose_intensity(dataset, survey(dataset).items, "auto", None)
    values = np.concatenate([v[m > 0] for v, m in pairs])
    low, high = np.percentile(values, (0.5, 99.5))
    assert found.kind == "window"
    assert found.high - found.low == 400
    assert (found.low + found.high) / 2 == pytest.approx((low + high) / 2, abs=1)
    assert found.low == round(found.low)
    assert found.high == round(found.high)


def test_a_wide_range_of_labelled_values_is_not_widened(tmp_path: Path) -> None:
    volume, mask = ct(0, -500, 1500)
    dataset = dataset_of(tmp_path, [volume], [mask])
    (found,) = choose_intensity(dataset, survey(dataset).items, "auto", None)
    low, high = np.percentile(volume[mask > 0], (0.5, 99.5))
    assert found.low == pytest.approx(low, abs=1)
    assert found.high == pytest.approx(high, abs=1)


def test_ct_by_name_needs_no_air(tmp_path: Path) -> None:
    volume, mask = ct(0)
    cropped = np.maximum(volume, -200).astype(np.float32) + np.float32(0.25)
    named = dataset_of(tmp_path, [cropped], [mask], "CT")
    assert choose_intensity(named, survey(named).items, "auto", None)[0].kind == "window"
    other = dataset_of(tmp_path, [cropped], [mask], "structural")
    assert choose_intensity(other, survey(other).items, "auto", None)[0].kind == "percentile"


def test_one_volume_without_air_makes_it_no_ct(tmp_path: Path) -> None:
    volume, mask = ct(0)
    dataset = dataset_of(tmp_path, [volume, np.abs(volume)], [mask, mask])
    assert choose_intensity(dataset, survey(dataset).items, "auto", None) == (Intensity("percentile", 0.5, 99.5),)


def test_fractions_make_it_no_ct(tmp_path: Path) -> None:
    volume, mask = ct(0)
    dataset = dataset_of(tmp_path, [volume.astype(np.float32) + np.float32(0.5)], [mask])
    assert choose_intensity(dataset, survey(dataset).items, "auto", None)[0].kind == "percentile"


def test_8_bit_images_stay_as_they_are(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 8), dtype=np.uint8)
    dataset = dataset_of(tmp_path, [image], [(image > 9).astype(np.uint8)])
    (found,) = choose_intensity(dataset, survey(dataset).items, "auto", None)
    assert found.kind == "identity"
    np.testing.assert_array_equal(apply(found, image), image)
    assert choose_intensity(dataset, survey(dataset).items, "percentile", None)[0].kind == "percentile"


def test_a_given_window_wins(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, [ct(0)[0]], [ct(0)[1]])
    assert choose_intensity(dataset, survey(dataset).items, "auto", (-160, 240)) == (Intensity("window", -160, 240),)


@pytest.mark.parametrize(
    ("requested", "window", "message"),
    [
        ("auto", (240, -160), "the lower first"),
        ("auto", (float("nan"), 1), "finite"),
        ("percentile", (0, 1), "--window"),
        ("identity", None, "uint8"),
        ("wndow", None, "one of auto, identity"),
    ],
)
def test_contradictions(tmp_path: Path, requested: str, window: tuple[float, float] | None, message: str) -> None:
    dataset = dataset_of(tmp_path, [ct(0)[0]], [ct(0)[1]])
    with pytest.raises(InputError, match=message):
        choose_intensity(dataset, survey(dataset).items, requested, window)


def test_no_window_can_be_found_for_what_is_no_ct_or_not_labelled(tmp_path: Path) -> None:
    volume, mask = ct(0)
    mr = dataset_of(tmp_path, [np.abs(volume)], [mask])
    with pytest.raises(InputError, match="does not look like CT"):
        choose_intensity(mr, survey(mr).items, "window", None)
    unlabelled = dataset_of(tmp_path, [volume], [np.zeros_like(mask)])
    with pytest.raises(InputError, match="background only"):
        choose_intensity(unlabelled, survey(unlabelled).items, "auto", None)


def test_window_by_hand() -> None:
    values = np.array([-2000, -160, -159, 0, 40, 239, 240, 3000], np.int16)
    np.testing.assert_array_equal(apply(Intensity("window", -160, 240), values), [0, 0, 1, 102, 128, 254, 255, 255])


def test_percentiles_ignore_the_background() -> None:
    image = np.zeros((100, 100), np.float32)
    image[40:60, 40:60] = np.linspace(100, 300, 400).reshape(20, 20)
    result = apply(Intensity("percentile", 0.5, 99.5), image)
    low, high = np.percentile(image[image > 0], (0.5, 99.5))
    np.testing.assert_array_equal(result, np.rint(255 * np.clip((image - low) / (high - low), 0, 1)))
    assert len(np.unique(result)) > 200


def test_a_binary_image_keeps_its_contrast() -> None:
    assert apply(Intensity("percentile"), np.array([[0, 1], [1, 1]], np.int32)).tolist() == [[0, 255], [255, 255]]


@pytest.mark.parametrize("value", [0, -7, 1e30, 65535])
@pytest.mark.parametrize("kind", ["window", "percentile"])
def test_a_constant_image_gives_one_value_and_no_warning(kind: str, value: float) -> None:
    result = apply(Intensity(kind, 0, 100), np.full((4, 4), value, np.float32))
    assert np.unique(result).size == 1
    if kind == "percentile":
        assert not result.any()


@settings(deadline=None, max_examples=150)
@given(
    image=st.sampled_from(
        [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.float32, np.float64]
    ).flatmap(
        lambda dtype: hnp.arrays(
            dtype,
            hnp.array_shapes(min_dims=2, max_dims=3, max_side=6),
            elements={"allow_nan": False, "allow_infinity": False} if np.dtype(dtype).kind == "f" else None,
        )
    ),
    kind=st.sampled_from(["window", "percentile"]),
)
def test_order_is_kept_and_nothing_wraps(image: npt.NDArray, kind: str) -> None:
    if image.dtype.kind == "f":
        image = np.clip(image, -1e30, 1e30)
    result = apply(Intensity(kind, 1, 99), image)
    assert result.dtype == np.uint8
    assert result.shape == image.shape
    order = np.argsort(image, axis=None, kind="stable")
    assert (np.diff(result.ravel()[order].astype(int)) >= 0).all()


@pytest.mark.parametrize("order", ["C", "F"])
def test_blocks_of_a_large_volume_agree_with_the_whole(order: str) -> None:
    volume = np.random.default_rng(0).integers(-1000, 1000, (150, 130, 70)).astype(np.int16)
    stored = np.array(volume, order="F" if order == "F" else "C")
    result = apply(Intensity("window", -160, 240), stored)
    expected = np.rint(np.clip((volume + 160) / 400, 0, 1) * 255)
    assert np.abs(result - expected).max() <= 1  # halves may round either way in float32
    assert (result != expected).mean() < 1e-3
    assert result.flags.f_contiguous == (order == "F")


def test_percentiles_of_a_large_volume_do_not_depend_on_the_memory_order() -> None:
    volume = np.random.default_rng(0).gamma(2, 100, (120, 110, 90)).astype(np.float32)
    how = Intensity("percentile")
    result = apply(how, volume)
    np.testing.assert_array_equal(result, apply(how, np.asfortranarray(volume)))
    low, high = np.percentile(volume, (0.5, 99.5))
    exact = np.rint(np.clip((volume - low) / (high - low), 0, 1) * 255)
    assert np.abs(result - exact).max() <= 4


def test_what_cannot_be_mapped() -> None:
    with pytest.raises(InputError, match=r"scan\.png.*uint16"):
        apply(Intensity("identity", 0, 255), np.zeros((2, 2), np.uint16), "scan.png")
    with pytest.raises(InputError, match="NaN"):
        apply(Intensity("window", 0, 1), np.array([[0, np.nan]], np.float32))
    with pytest.raises(InputError, match="between 0 and 100"):
        Intensity("percentile", -1, 101)
    with pytest.raises(InputError, match="one of identity"):
        Intensity("log")


@pytest.mark.parametrize("large", [False, True])
def test_the_window_is_that_of_100_000_voxels_drawn_from_the_whole_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    """However the volume is decoded: trained weights depend on the last digit of a window."""
    random = np.random.default_rng(5)
    volume = random.integers(-1024, 3000, (90, 70, 41)).astype(np.int16)
    mask = (random.random(volume.shape) < 0.6).astype(np.uint8)
    assert np.count_nonzero(mask) > 150_000
    drawn = np.random.default_rng(0).choice(volume[mask > 0], 100_000, replace=False)
    dataset = dataset_of(tmp_path, [volume], [mask])
    if large:
        monkeypatch.setattr(volumes, "LARGEST_IN_MEMORY", 1000)
        monkeypatch.setattr(volumes, "_BLOCK_BYTES", 50_000)
    ((item,), problems, warnings) = vars(survey(dataset)).values()
    assert problems == warnings == ()
    assert item.voxels == {0: int((mask == 0).sum()), 1: int((mask == 1).sum())}
    np.testing.assert_array_equal(np.sort(item.channels[0].foreground), np.sort(drawn))
    assert item.channels[0].foreground.dtype == np.int16
    assert (item.channels[0].minimum, item.channels[0].maximum) == (volume.min(), volume.max())


def test_an_8_bit_volume_among_ct_is_named_though_it_is_not_trained_on(tmp_path: Path) -> None:
    (volume, mask), grey = ct(0), np.random.default_rng(0).integers(0, 255, (20, 20, 6), dtype=np.uint8)
    dataset = dataset_of(tmp_path, [volume, grey], [mask, mask])
    training = survey(dataset).of(dataset.items[:1])
    with pytest.raises(InputError, match=r"image1\.nii\.gz: expected HU"):
        choose_intensity(dataset, training, "auto", None)
    assert choose_intensity(dataset, training, "percentile", None)[0].kind == "percentile"
