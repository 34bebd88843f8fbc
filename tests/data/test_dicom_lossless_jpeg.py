"""Lossless JPEG against an encoder of its own, written from the standard, and against a file that GDCM made."""

from __future__ import annotations

import base64
import struct
import time

import numpy as np
import pytest
from dicom_phantoms import lossless_jpeg as encode

from medsaga.data.dicom.lossless_jpeg import DamagedError, decode

RNG = np.random.default_rng(0)

GDCM = base64.b64decode(
    "/9j/wwALEAAGAAUBAREA/8QAFgABAQEAAAAAAAAAAAAAAAAACgwQ/9oACAEBAAEAAMrxXivFeW1kV2rxXivDVq8iu1eK8NWrxXkV"
    "2rw1avFeK8iuzVq8V4rxXn//2Q=="
)
"""A ramp of 6 x 5 pixels of 16 bits, as GDCM 3.2 compresses it with predictor 1."""


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("precision", [8, 12, 16])
def test_every_predictor(predictor: int, precision: int) -> None:
    noise = RNG.integers(0, 2**precision, (9, 11, 1))
    assert np.array_equal(decode(encode(noise, precision=precision, predictor=predictor), 9, 11, 1), noise)


@pytest.mark.parametrize("scans", [1, 3])
@pytest.mark.parametrize("predictor", [1, 4, 7])
def test_colours(predictor: int, scans: int) -> None:
    noise = RNG.integers(0, 256, (6, 7, 3))
    assert np.array_equal(decode(encode(noise, precision=8, predictor=predictor, scans=scans), 6, 7, 3), noise)


@pytest.mark.parametrize("predictor", range(1, 8))
def test_restart_intervals(predictor: int) -> None:
    noise = RNG.integers(0, 4096, (23, 5, 1))
    assert np.array_equal(decode(encode(noise, precision=12, predictor=predictor, restart_rows=2), 23, 5, 1), noise)


def test_a_point_transform() -> None:
    noise = RNG.integers(0, 4096, (6, 7, 1)) & ~7
    assert np.array_equal(decode(encode(noise, precision=12, shift=3), 6, 7, 1), noise)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 9), (9, 1)])
def test_thin_images(rows: int, columns: int) -> None:
    noise = RNG.integers(0, 65536, (rows, columns, 1))
    assert np.array_equal(decode(encode(noise), rows, columns, 1), noise)


def test_a_difference_of_half_the_range() -> None:
    image = np.array([0, 32768, 0, 65535, 32767, 0]).reshape(2, 3, 1)
    assert np.array_equal(decode(encode(image), 2, 3, 1), image)


def test_a_file_of_gdcm() -> None:
    assert decode(GDCM, 6, 5, 1)[..., 0].tolist() == (np.arange(30) * 700 % 4096).reshape(6, 5).tolist()


def test_damage_is_one_error_and_quick() -> None:
    content = encode(RNG.integers(0, 65536, (20, 20, 1)))
    start = time.perf_counter()
    failures = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        damaged = bytearray(content)
        for _ in range(3):
            damaged[rng.integers(len(damaged) if seed % 2 else 80)] = rng.integers(256)
        try:
            image = decode(bytes(damaged[: rng.integers(len(damaged))] if seed % 4 == 0 else damaged), 20, 20, 1)
        except DamagedError:
            failures += 1
        else:
            assert image.shape == (20, 20, 1)
    assert failures > 100
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(("rows", "columns", "samples"), [(21, 20, 1), (20, 21, 1), (20, 20, 3)])
def test_another_size_is_damage(rows: int, columns: int, samples: int) -> None:
    content = encode(RNG.integers(0, 256, (20, 20, 1)), precision=8)
    with pytest.raises(DamagedError):
        decode(content, rows, columns, samples)


def test_a_promise_of_more_samples_than_bits_is_damage() -> None:
    content = encode(np.zeros((2, 2, 1), int))
    at = content.index(b"\xff\xc3") + 5
    with pytest.raises(DamagedError):
        decode(content[:at] + struct.pack(">HH", 30_000, 30_000) + content[at + 4 :], 30_000, 30_000, 1)


def test_every_cut_is_damage() -> None:
    content = encode(RNG.integers(0, 65536, (3, 3, 1)))
    for end in range(len(content) - 3):
        with pytest.raises(DamagedError):
            decode(content[:end], 3, 3, 1)
