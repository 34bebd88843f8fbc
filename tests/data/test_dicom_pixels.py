"""Voxels of DICOM files: slopes, signs, colours, every compression, and damage."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_phantoms import (
    AFFINES,
    lossless_jpeg,
    new_image,
    secrets_of,
    set_pixels,
    write_ct_series,
    write_enhanced,
    write_flat,
)
from PIL import Image
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    JPEG2000,
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medsaga.data.dicom import reading
from medsaga.data.dicom.geometry import geometry_of
from medsaga.data.dicom.pixels import header_of, read_slices, read_volume
from medsaga.data.dicom.series import find_series
from medsaga.data.types import Array
from medsaga.errors import InputError

RNG = np.random.default_rng(0)
VOLUME = RNG.integers(-1000, 900, (40, 48, 4))
"""Large enough for JPEG 2000, whose encoders fail at images of a few pixels."""
AXIAL = AFFINES["axial"]
# Smooth, so that lossy compression changes little.
RAMP = (np.add.outer(np.arange(48) * 3, np.arange(64)) % 256).astype(np.uint8)


def read(root: Path) -> Array:
    """Return the only series below ``root``, after a look at whether its header foretells it."""
    (series,) = find_series(root)
    geometry = geometry_of(series)
    volume = read_volume(series, geometry)
    header = header_of(geometry)
    assert volume.shape == (header.channels, *geometry.grid.shape)
    assert volume.dtype == header.dtype
    return volume


def refusal(root: Path) -> str:
    """Return the message about the only series below ``root``, after a look for the patient in it."""
    (series,) = find_series(root)
    with pytest.raises(InputError) as caught:
        read_volume(series)
    message = str(caught.value)
    assert not [secret for secret in secrets_of(series.files) if secret in message]
    return message


NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
LOSSLESS = (RLELossless, JPEGLSLossless, JPEG2000Lossless)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [*NATIVE, *LOSSLESS], ids=lambda syntax: UID(syntax).keyword)
def test_hounsfield_units_survive_every_lossless_syntax(tmp_path: Path, syntax: UID, signed: bool) -> None:
    intercept = 0 if signed else -1024
    write_ct_series(tmp_path, VOLUME, AXIAL, transfer_syntax=syntax, signed=signed, intercept=intercept)
    volume = read(tmp_path)
    assert volume.dtype == np.int16
    assert np.array_equal(volume[0], VOLUME)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1])
def test_lossless_jpeg(tmp_path: Path, syntax: UID, signed: bool) -> None:
    def edit(image: Dataset, k: int) -> None:
        stored = np.frombuffer(image.PixelData, np.uint16).reshape(48, 40, 1)
        compressed(image, lossless_jpeg(stored, predictor=1 if syntax == JPEGLosslessSV1 else 7), syntax)

    write_ct_series(tmp_path, VOLUME, AXIAL, signed=signed, intercept=0 if signed else -1024, edit=edit)
    assert np.array_equal(read(tmp_path)[0], VOLUME)


def test_lossless_jpeg_in_colour(tmp_path: Path) -> None:
    def edit(image: Dataset) -> None:
        image.PlanarConfiguration = 1
        compressed(image, lossless_jpeg(COLOURS, precision=8), JPEGLosslessSV1)

    write_flat(tmp_path / "x", COLOURS, photometric="RGB", edit=edit)
    assert np.array_equal(read(tmp_path).transpose(1, 2, 0), COLOURS)


def test_signed_pixels_of_fewer_bits_in_lossless_jpeg(tmp_path: Path) -> None:
    def edit(image: Dataset, k: int) -> None:
        stored = np.frombuffer(image.PixelData, np.uint16).reshape(48, 40, 1) & 0x0FFF
        image.BitsStored, image.HighBit = 12, 11
        compressed(image, lossless_jpeg(stored, precision=12), JPEGLosslessSV1)

    write_ct_series(tmp_path, VOLUME, AXIAL, signed=True, intercept=0, edit=edit)
    assert np.array_equal(read(tmp_path)[0], VOLUME)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, *LOSSLESS])
def test_frames_of_an_enhanced_image(tmp_path: Path, syntax: UID) -> None:
    write_enhanced(tmp_path / "x", VOLUME, AXIAL, transfer_syntax=syntax)
    assert np.array_equal(read(tmp_path)[0], VOLUME)


def test_frames_in_several_fragments_with_an_extended_offset_table(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "x", VOLUME, AXIAL)
    image = dcmread(tmp_path / "x")
    image.compress(RLELossless, encapsulate_ext=True, generate_instance_uid=False)
    dcmwrite(tmp_path / "x", image)
    assert np.array_equal(read(tmp_path)[0], VOLUME)


def compressed(pixels: Dataset, frame: bytes, syntax: UID) -> None:
    """Give a data set one compressed frame."""
    pixels.PixelData = encapsulate([frame])
    pixels["PixelData"].is_undefined_length = True
    pixels["PixelData"].VR = "OB"
    pixels.file_meta.TransferSyntaxUID = syntax


def write_jpeg(path: Path, image: Image.Image, *, photometric: str, syntax: UID, **options: Any) -> None:
    """Write an image that Pillow compresses."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if syntax == JPEGBaseline8Bit else "JPEG2000", **options)
    dataset = new_image(CTImageStorage, "XC")
    pixels = np.asarray(image)
    set_pixels(dataset, pixels, photometric="RGB" if pixels.ndim == 3 else "MONOCHROME2")
    dataset.PhotometricInterpretation = photometric
    compressed(dataset, buffer.getvalue(), syntax)
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, dataset, enforce_file_format=True)


def test_baseline_jpeg_in_grey(tmp_path: Path) -> None:
    write_jpeg(tmp_path / "x", Image.fromarray(RAMP), photometric="MONOCHROME2", syntax=JPEGBaseline8Bit, quality=100)
    volume = read(tmp_path)
    assert volume.dtype == np.uint8
    assert np.abs(volume[0].astype(int) - RAMP).max() <= 3


COLOURS = np.stack([RAMP // 2, RAMP // 4 + 90, 255 - RAMP], axis=-1)


@pytest.mark.parametrize(
    ("photometric", "syntax", "options", "error"),
    [
        ("YBR_FULL_422", JPEGBaseline8Bit, {"quality": 100, "subsampling": 1}, 110),
        ("YBR_FULL", JPEGBaseline8Bit, {"quality": 100, "subsampling": 0}, 4),
        ("YBR_RCT", JPEG2000Lossless, {"irreversible": False, "no_jp2": True}, 0),
        ("YBR_ICT", JPEG2000, {"irreversible": True, "no_jp2": True}, 4),
    ],
)
def test_compressed_colours(tmp_path: Path, photometric: str, syntax: UID, options: dict[str, Any], error: int) -> None:
    write_jpeg(tmp_path / "x", Image.fromarray(COLOURS), photometric=photometric, syntax=syntax, **options)
    volume = read(tmp_path)
    assert volume.dtype == np.uint8
    difference = np.abs(volume.transpose(1, 2, 0).astype(int) - COLOURS)
    # Where the ramp jumps, half of the colours' resolution is lost.
    assert difference.max() <= error
    assert difference.mean() < 2


@pytest.mark.parametrize("planar", [0, 1])
def test_native_rgb(tmp_path: Path, planar: int) -> None:
    def edit(image: Dataset) -> None:
        image.PlanarConfiguration = planar
        image.PixelData = (COLOURS.transpose(2, 0, 1) if planar else COLOURS).tobytes()

    write_flat(tmp_path / "x", COLOURS, photometric="RGB", edit=edit)
    volume = read(tmp_path)
    assert volume.shape == (3, 48, 64)
    assert np.array_equal(volume.transpose(1, 2, 0), COLOURS)


def test_native_ybr_is_converted(tmp_path: Path) -> None:
    ybr = np.asarray(Image.fromarray(COLOURS).convert("YCbCr"))
    write_flat(tmp_path / "x", ybr, photometric="YBR_FULL")
    assert np.abs(read(tmp_path).transpose(1, 2, 0).astype(int) - COLOURS).max() <= 3


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes_become_colours(tmp_path: Path, bits: int) -> None:
    palette = RNG.integers(0, 256, (3, 256)).astype(f"u{bits // 8}") * (257 if bits == 16 else 1)

    def edit(image: Dataset) -> None:
        image.PhotometricInterpretation = "PALETTE COLOR"
        for colour, values in zip(("Red", "Green", "Blue"), palette, strict=True):
            setattr(image, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, bits])
            setattr(image, f"{colour}PaletteColorLookupTableData", values.tobytes())

    write_flat(tmp_path / "x", RAMP, edit=edit)
    volume = read(tmp_path)
    assert volume.dtype == np.uint8
    assert np.array_equal(volume, (palette >> (bits - 8))[:, RAMP])


@pytest.mark.parametrize(("dtype", "bits"), [("u1", 8), ("u2", 12), ("u2", 16), ("i2", 12)])
def test_monochrome1_is_inverted_so_that_bright_is_dense(tmp_path: Path, dtype: str, bits: int) -> None:
    least = -(2 ** (bits - 1)) if dtype == "i2" else 0
    pixels = RNG.integers(least, least + 2**bits, (8, 9)).astype(dtype)
    write_flat(tmp_path / "x", pixels, photometric="MONOCHROME1", bits=bits, spacing=(0.2, 0.2))
    volume = read(tmp_path)
    assert volume.dtype == dtype
    assert np.array_equal(volume[0], 2 * least + 2**bits - 1 - pixels.astype(int))


def test_volumes_are_physical_and_never_inverted(tmp_path: Path) -> None:
    def edit(image: Dataset, k: int) -> None:
        image.PhotometricInterpretation = "MONOCHROME1"

    write_ct_series(tmp_path, VOLUME, AXIAL, edit=edit)
    assert np.array_equal(read(tmp_path)[0], VOLUME)


@pytest.mark.parametrize("signed", [False, True])
def test_bits_beyond_those_stored_are_no_pixels(tmp_path: Path, signed: bool) -> None:
    # An overlay in the four high bits, as old scanners wrote it.
    def edit(image: Dataset, k: int) -> None:
        image.BitsStored, image.HighBit = 12, 11
        stored = np.frombuffer(image.PixelData, np.uint16)
        image.PixelData = (stored & 0x0FFF | 0x5000).astype(np.uint16).tobytes()

    write_ct_series(tmp_path, VOLUME, AXIAL, edit=edit, signed=signed, intercept=0 if signed else -1024)
    assert np.array_equal(read(tmp_path)[0], VOLUME)


def test_padding_is_left_as_it_is(tmp_path: Path) -> None:
    volume = VOLUME.copy()
    volume[0] = -3024

    def edit(image: Dataset, k: int) -> None:
        image.add_new(0x00280120, "SS", -2000)

    write_ct_series(tmp_path, volume, AXIAL, signed=True, edit=edit)
    assert np.array_equal(read(tmp_path)[0], volume)


@pytest.mark.parametrize("pixel", [np.uint16, np.uint8])
@pytest.mark.parametrize("signed_slice", [0, 2])
def test_each_slice_says_whether_its_pixels_are_signed(tmp_path: Path, pixel: type, signed_slice: int) -> None:
    """As subtractions are stored: a negative value that was read as unsigned would be the brightest voxel."""
    values = RNG.integers(0, 120, (40, 48, 4))
    values[3, 5, signed_slice] = -5

    def edit(image: Dataset, k: int) -> None:
        kind = np.dtype(pixel).str.replace("u", "i") if k == signed_slice else pixel
        set_pixels(image, values[:, :, k].T.astype(kind))

    write_ct_series(tmp_path, values, AXIAL, modality="MR", intercept=0, edit=edit)
    (series,) = find_series(tmp_path)
    geometry = geometry_of(series)
    assert np.array_equal(read_volume(series, geometry)[0], values)
    assert np.array_equal(np.stack([each[0] for each in read_slices(series, geometry)], axis=2), values)


def test_pixels_in_the_upper_bits_are_refused(tmp_path: Path) -> None:
    def edit(image: Dataset, k: int) -> None:
        stored = np.frombuffer(image.PixelData, np.uint16).reshape(48, 40) % 4096 << 4
        set_pixels(image, stored.astype(np.uint16))
        image.BitsStored, image.HighBit = 12, 15

    write_ct_series(tmp_path, VOLUME, AXIAL, edit=edit)
    assert "expected pixels in the lower 12 bits, with a HighBit of 11; found 15" in refusal(tmp_path)


def test_a_slope_that_is_no_whole_number_gives_float32(tmp_path: Path) -> None:
    write_ct_series(tmp_path, VOLUME * 0.25, AXIAL, slope=0.25, intercept=-512)
    volume = read(tmp_path)
    assert volume.dtype == np.float32
    assert np.array_equal(volume[0], VOLUME * 0.25)


def test_every_slice_has_its_own_slope(tmp_path: Path) -> None:
    def edit(image: Dataset, k: int) -> None:
        image.RescaleSlope, image.RescaleIntercept = k + 0.5, 0

    write_ct_series(tmp_path, np.abs(VOLUME), AXIAL, intercept=0, modality="PT", edit=edit)
    assert np.array_equal(read(tmp_path)[0], np.abs(VOLUME) * (np.arange(4) + 0.5))


def test_mr_without_slope_keeps_its_type(tmp_path: Path) -> None:
    def edit(image: Dataset, k: int) -> None:
        del image.RescaleSlope, image.RescaleIntercept

    write_ct_series(tmp_path, np.abs(VOLUME), AXIAL, intercept=0, modality="MR", edit=edit)
    volume = read(tmp_path)
    assert volume.dtype == np.uint16
    assert np.array_equal(volume[0], np.abs(VOLUME))


def test_a_slice_beyond_int16_makes_the_volume_float32(tmp_path: Path) -> None:
    volume = VOLUME.copy()
    volume[2, 2, 3] = 40_000
    write_ct_series(tmp_path, volume, AXIAL)
    (series,) = find_series(tmp_path)
    read_back = read_volume(series)
    assert read_back.dtype == np.float32
    assert np.array_equal(read_back[0], volume)


def test_floating_point_pixels(tmp_path: Path) -> None:
    def edit(image: Dataset, k: int) -> None:
        pixels = (VOLUME[:, :, k].T / 8).astype(np.float32)
        del image.PixelData, image.BitsStored, image.HighBit, image.PixelRepresentation
        del image.RescaleSlope, image.RescaleIntercept
        image.BitsAllocated = 32
        image.FloatPixelData = pixels.tobytes()

    write_ct_series(tmp_path, VOLUME, AXIAL, edit=edit)
    volume = read(tmp_path)
    assert volume.dtype == np.float32
    assert np.array_equal(volume[0], VOLUME / 8)


@pytest.mark.parametrize("write", [write_ct_series, write_enhanced])
def test_slices_stream_in_the_memory_of_one(tmp_path: Path, write: Callable[..., Any]) -> None:
    volume = RNG.integers(-1000, 900, (128, 128, 60))
    write(tmp_path / "x", volume, AXIAL)
    (series,) = find_series(tmp_path)
    geometry = geometry_of(series)
    tracemalloc.start()
    count = 0
    for k, values in enumerate(read_slices(series, geometry)):
        assert np.array_equal(values, volume[np.newaxis, :, :, k])
        count += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 60
    assert peak < 12 * 128 * 128 * 2 + 2**20


def test_images_in_grey_and_colour_do_not_mix(tmp_path: Path) -> None:
    def edit(image: Dataset, k: int) -> None:
        if k == 3:
            set_pixels(image, np.zeros((48, 40, 3), np.uint8), photometric="RGB")

    write_ct_series(tmp_path, VOLUME, AXIAL, edit=edit)
    assert "another size" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("syntax", "words"),
    [
        (JPEGExtended12Bit, "expected pixels that can be decoded"),
        ("1.2.840.10008.1.2.4.100", "found MPEG2 Main Profile / Main Level. Convert the files"),
        ("1.2.3.4.5.6", "found an unknown transfer syntax. Convert the files"),
    ],
)
def test_compressions_without_a_decoder_are_named(tmp_path: Path, syntax: str, words: str) -> None:
    path = tmp_path / "x"
    write_jpeg(path, Image.fromarray(RAMP), photometric="MONOCHROME2", syntax=JPEGBaseline8Bit)
    image = dcmread(path)
    image.file_meta.TransferSyntaxUID = UID(syntax)
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    dcmwrite(path, image)
    message = refusal(tmp_path)
    assert words in message
    assert syntax not in message


def test_high_throughput_jpeg_2000_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels.decoders.base import HTJ2KLosslessDecoder

    monkeypatch.setattr(HTJ2KLosslessDecoder, "_available", {})
    path = tmp_path / "x"
    write_jpeg(path, Image.fromarray(RAMP), photometric="MONOCHROME2", syntax=JPEG2000Lossless, no_jp2=True)
    image = dcmread(path)
    image.file_meta.TransferSyntaxUID = HTJ2KLossless
    dcmwrite(path, image)
    assert "found High-Throughput JPEG 2000 Image Compression (Lossless Only). Install pylibjpeg-openj" in refusal(
        tmp_path
    )


DAMAGES = ("empty", "cut", "noise", "zeros", "huge", "other size")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, *LOSSLESS], ids=lambda syntax: UID(syntax).keyword)
def test_damaged_compressed_pixels(tmp_path: Path, syntax: UID, damage: str) -> None:
    """What is damaged is an InputError, or, where a decoder forgives, an image of the right size."""

    def as_jpeg(image: Dataset, k: int) -> None:
        stored = np.frombuffer(image.PixelData, np.uint16).reshape(48, 40, 1)
        compressed(image, lossless_jpeg(stored), JPEGLosslessSV1)

    if syntax == JPEGLosslessSV1:
        (file,) = write_ct_series(tmp_path, VOLUME[..., :1], AXIAL, edit=as_jpeg)
    else:
        (file,) = write_ct_series(tmp_path, VOLUME[..., :1], AXIAL, transfer_syntax=syntax)
    image = dcmread(file)
    frame = bytearray(get_frame(image.PixelData, 0, number_of_frames=1))
    if damage == "empty":
        frame = bytearray(2)
    elif damage == "cut":
        frame = frame[: len(frame) // 2]
    elif damage == "noise":
        frame[len(frame) // 2 :] = RNG.bytes(len(frame) - len(frame) // 2)
    elif damage == "zeros":
        frame = bytearray(len(frame))
    elif damage == "huge":
        image.Rows = image.Columns = 65535
    else:
        image.Rows = 47
    compressed(image, bytes(frame), syntax)
    dcmwrite(file, image)
    (series,) = find_series(tmp_path)
    geometry = geometry_of(series)
    tracemalloc.start()
    message = ""
    try:
        volume = read_volume(series, geometry)
    except InputError as error:
        message = str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24
    assert not [secret for secret in secrets_of([file]) if secret in message]
    if not message:
        # Run lengths do not say how many rows they are.
        assert damage in ("noise", "cut", "other size" if syntax == RLELossless else "cut")
        assert volume.shape[1:] == geometry.grid.shape
    else:
        assert str(file) in message


def test_a_codestream_that_claims_another_size_is_not_decoded(tmp_path: Path) -> None:
    (file,) = write_ct_series(tmp_path, VOLUME[..., :1], AXIAL, transfer_syntax=JPEG2000Lossless)
    content = file.read_bytes()
    at = content.index(b"\xff\x4f\xff\x51") + 8
    file.write_bytes(content[:at] + (60_000).to_bytes(4, "big") * 2 + content[at + 8 :])
    assert "expected 48x40x1 pixels; found 60000x60000x1" in refusal(tmp_path)


def test_truncated_native_pixels(tmp_path: Path) -> None:
    (file,) = write_ct_series(tmp_path, VOLUME[..., :1], AXIAL)
    file.write_bytes(file.read_bytes()[:-1])
    assert "expected 3,840 bytes of pixels, as its header says; found 3,839 bytes" in refusal(tmp_path)


def test_a_file_that_vanishes(tmp_path: Path) -> None:
    files = write_ct_series(tmp_path, VOLUME, AXIAL)
    (series,) = find_series(tmp_path)
    geometry = geometry_of(series)
    files[2].unlink()
    with pytest.raises(InputError, match=r"found no such file"):
        read_volume(series, geometry)


def test_random_damage_is_one_error_or_none(tmp_path: Path) -> None:
    (file,) = write_ct_series(tmp_path, VOLUME[:5, :6, :1], AXIAL)
    content, secrets = file.read_bytes(), secrets_of([file])
    for seed in range(400):
        rng = np.random.default_rng(seed)
        damaged = bytearray(content)
        for at in rng.integers(132, len(content), rng.integers(1, 6)):
            damaged[at] = rng.integers(256)
        file.write_bytes(damaged[: rng.integers(200, len(content))] if seed % 3 == 0 else damaged)
        message = ""
        try:
            for series in find_series(tmp_path):
                read_volume(series)
        except InputError as error:
            message = str(error)
        assert not [secret for secret in secrets if secret in message]


def test_libraries_words_are_kept_back(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught, reading.guarded(tmp_path / "x"):
        raise ValueError("could not convert 'Secret^Name'")
    assert "Secret" not in str(caught.value)
    assert caught.value.__suppress_context__
    with pytest.raises(AssertionError), reading.guarded(tmp_path / "x"):
        raise AssertionError
