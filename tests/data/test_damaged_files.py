"""Damaged and odd files in every role: a dataset is fully usable, or InputErrors say why not. Nothing else happens."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import random
import resource
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image
from repetition import spread

from medsaga import cli
from medsaga.data.dataset import check_items, fingerprint, read_dataset
from medsaga.data.formats import format_of
from medsaga.data.inputs import find_inputs
from medsaga.data.items import read_item
from medsaga.errors import InputError
from medsaga.runs import train as loop

SECONDS_PER_DATASET = 2.0
MOST_ALLOCATED = 2**26
MOST_RESIDENT_KB = 2**19
ROUNDS = 6

Damage = Callable[[random.Random, bytes], bytes]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def nifti_bytes(voxels: np.ndarray, affine: np.ndarray | None = None) -> bytes:
    return nib.Nifti1Image(voxels, np.diag([2.0, 2, 5, 1]) if affine is None else affine).to_bytes()


def npz_bytes(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # its stub wants allow_pickle here
    return stream.getvalue()


def hdf5_bytes(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, compression="gzip")
    return stream.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (24, 20), dtype=np.uint8)
MASK = (np.indices((24, 20)).sum(axis=0) // 4 % 3).astype(np.uint8)
VOXELS = np.random.default_rng(1).integers(-1000, 1000, (8, 7, 6)).astype(np.int16)
VOXEL_MASK = (np.indices((8, 7, 6)).sum(axis=0) % 3).astype(np.uint8)
LABELS = {"background": 0, "liver": 1, "tumour": 2}
DESCRIPTION = json.dumps({"labels": LABELS}).encode()
CASES = b"name,case\na,1\nb,1\n"


def tiff_bytes(stack: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, stack, photometric="minisblack", **options)
    return stream.getvalue()


IMAGES: dict[str, tuple[bytes, bytes]] = {
    ".png": (encoded(Image.fromarray(PIXELS), "PNG"), encoded(Image.fromarray(MASK), "PNG")),
    ".tif": (
        encoded(Image.fromarray(PIXELS.astype(np.float32)), "TIFF"),
        encoded(Image.fromarray(MASK), "TIFF", compression="tiff_lzw"),
    ),
    ".tiff": (
        tiff_bytes(VOXELS.view(np.uint16), imagej=True, metadata={"axes": "ZYX"}),
        tiff_bytes(VOXEL_MASK, compression="zlib"),
    ),
    ".bmp": (encoded(Image.fromarray(PIXELS), "BMP"), encoded(Image.fromarray(MASK), "BMP")),
    ".gif": (encoded(Image.fromarray(PIXELS), "GIF"), encoded(Image.fromarray(MASK), "GIF")),
    ".npz": (npz_bytes(image=PIXELS / np.float32(255), label=MASK),) * 2,
    ".npy.h5": (hdf5_bytes(image=VOXELS.astype(np.float32), label=VOXEL_MASK),) * 2,
    ".nii": (nifti_bytes(VOXELS.astype(np.float32)), nifti_bytes(VOXEL_MASK)),
    ".nii.gz": (gzip.compress(nifti_bytes(VOXELS), mtime=0), gzip.compress(nifti_bytes(VOXEL_MASK), mtime=0)),
}
"""An image and its mask for each suffix."""


def flip_in_header(rng: random.Random, content: bytes) -> bytes:
    return flip(rng, content, min(len(content), 400))


def flip_anywhere(rng: random.Random, content: bytes) -> bytes:
    return flip(rng, content, len(content))


def flip(rng: random.Random, content: bytes, end: int) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        damaged[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def flip_inside_gzip(rng: random.Random, content: bytes) -> bytes:
    """Damage what was compressed, where there is any, so that the damage gets past the checksum."""
    if content[:2] != b"\x1f\x8b":
        return flip_in_header(rng, content)
    return gzip.compress(flip_in_header(rng, gzip.decompress(content)), mtime=0)


def truncate(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def extend(rng: random.Random, content: bytes) -> bytes:
    return content + rng.randbytes(rng.randrange(1, 3000))


def replace_all(rng: random.Random, content: bytes) -> bytes:
    return rng.randbytes(rng.randrange(3000))


def swap(rng: random.Random, content: bytes) -> bytes:
    """Put the content of another format under this suffix."""
    return rng.choice([each for pair in IMAGES.values() for each in pair])


DAMAGES: list[Damage] = [
    flip_in_header,
    flip_anywhere,
    flip_inside_gzip,
    truncate,
    extend,
    replace_all,
    swap,
]


def write_dataset(root: Path, suffix: str = ".png") -> dict[str, Path]:
    """Write a dataset of two items; return where one image, its mask and the descriptions lie, by their roles."""
    for kind, content in zip(("images", "masks"), IMAGES[suffix], strict=True):
        (root / kind).mkdir(parents=True, exist_ok=True)
        for name in "ab":
            (root / kind / f"{name}{suffix}").write_bytes(content)
    roles = {"image": root / "images" / f"a{suffix}", "mask": root / "masks" / f"a{suffix}"}
    roles |= {"description": root / "dataset.json", "cases": root / "cases.csv"}
    roles["description"].write_bytes(DESCRIPTION)
    roles["cases"].write_bytes(CASES)
    return roles


def usable_with(root: Path, role: str, content: bytes, suffix: str = ".png") -> bool:
    """Write a dataset in which one file is ``content``; see `assert_usable_or_reported`."""
    write_dataset(root, suffix)[role].write_bytes(content)
    return assert_usable_or_reported(root)


def assert_usable_or_reported(root: Path) -> bool:
    """Read and check a dataset within bounds; return whether it is usable, having used all of it."""
    tracemalloc.start()
    started = time.perf_counter()
    try:
        dataset = read_dataset(root)
        problems = (*dataset.problems, *check_items(dataset))
        seconds, peak = time.perf_counter() - started, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seconds < SECONDS_PER_DATASET
    assert peak < MOST_ALLOCATED
    for problem in problems:
        assert type(problem) is InputError
        assert "expected" in str(problem)
        # It would keep the decoded image alive.
        assert problem.__traceback__ is None
    if problems:
        return False
    assert dataset.items
    assert len(fingerprint(dataset)) == 64
    for item in dataset.items:
        assert item.masks
        image = read_item(item)
        assert image.shape == (item.header.channels, *item.header.grid.shape)
        assert np.isfinite(image).all()
        labels = format_of(item.masks[0]).read_labels(item.masks[0])
        assert labels.shape == item.header.grid.shape
        assert set(np.unique(labels).tolist()) <= set(dataset.labels.values())
    return True


@pytest.fixture(autouse=True, scope="module")
def memory_stays_bounded() -> Iterator[None]:
    """What C code allocates shows in the process alone."""
    # Imported when it is needed, which is not to be measured.
    importlib.import_module("SimpleITK")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_RESIDENT_KB


@pytest.mark.parametrize("suffix", IMAGES)
def test_undamaged_files_are_usable(tmp_path: Path, suffix: str) -> None:
    write_dataset(tmp_path, suffix)
    assert assert_usable_or_reported(tmp_path)


@pytest.mark.parametrize(("role", "suffix", "damage"), spread(["image", "mask"], IMAGES, DAMAGES))
def test_damaged_images_and_masks(tmp_path: Path, role: str, suffix: str, damage: Damage) -> None:
    rng = random.Random(f"{role} {suffix} {damage.__name__}")
    original = IMAGES[suffix][role == "mask"]
    path = write_dataset(tmp_path, suffix)[role]
    usable = []
    for _ in range(ROUNDS):
        path.write_bytes(damage(rng, original))
        usable.append(assert_usable_or_reported(tmp_path))
    if damage is replace_all:
        assert not any(usable)


@pytest.mark.parametrize("damage", [flip_anywhere, truncate, extend, replace_all])
@pytest.mark.parametrize("role", ["description", "cases"])
def test_damaged_descriptions(tmp_path: Path, role: str, damage: Damage) -> None:
    rng = random.Random(f"{role} {damage.__name__}")
    original = DESCRIPTION if role == "description" else CASES
    for _ in range(ROUNDS):
        usable_with(tmp_path, role, damage(rng, original))


def odd_value(rng: random.Random, depth: int = 0) -> Any:
    plain: list[Any] = [
        None,
        True,
        0,
        1,
        -1,
        2**70,
        1.5,
        1e308,
        "",
        "0",
        "1",
        "background",
        "../x",
        "\u0000",
        "é\n",
        [],
        {},
    ]
    if depth < 3 and rng.random() < 0.5:
        keys = ["labels", "channel_names", "modality", "0", "1", "background", "ignore", "x", "file_ending"]
        pairs = {rng.choice(keys): odd_value(rng, depth + 1) for _ in range(rng.randrange(4))}
        return rng.choice([pairs, list(pairs.values())])
    return rng.choice(plain)


@pytest.mark.parametrize("nnunet", [False, True])
def test_odd_descriptions(tmp_path: Path, nnunet: bool) -> None:
    write_dataset(tmp_path, ".png")
    if nnunet:
        (tmp_path / "images").rename(tmp_path / "imagesTr")
        (tmp_path / "masks").rename(tmp_path / "labelsTr")
        for name in "ab":
            (tmp_path / "imagesTr" / f"{name}.png").rename(tmp_path / "imagesTr" / f"{name}_0000.png")
        good = {"labels": LABELS, "channel_names": {"0": "CT"}, "file_ending": ".png"}
    else:
        good = {"labels": LABELS}
    rng = random.Random(0)
    usable = []
    for _ in range(60):
        key = rng.choice(["labels", "channel_names", "modality", "file_ending", "name"])
        document = rng.choice([odd_value(rng), {**good, key: odd_value(rng)}])
        (tmp_path / "dataset.json").write_text(json.dumps(document))
        usable.append(assert_usable_or_reported(tmp_path))
    assert any(usable)
    assert not all(usable)


@pytest.mark.parametrize(
    "cases",
    [
        b"",
        b"\n\n",
        b"\xef\xbb\xbfname,case\r\na,1\r\nb,2\r\n",
        b"case,name,more\n1,a,\n2,b,x\n",
        b"name,case\na\nb,1,2,3\n",
        b'name,case\n"a,1\nb,2\n',
        b"name,case\n\x00,1\n",
        b"name,case\n" + b"a" * 200_000 + b",1\n",
        b"name,case\n/etc/passwd,1\n../images/a,2\n-rf,3\n",
        b"name,name,case,case\na,b,1,2\n",
        b"\xff\xfe\x00n",
    ],
)
def test_odd_cases(tmp_path: Path, cases: bytes) -> None:
    assert usable_with(tmp_path, "cases", cases) == (b"\xef\xbb\xbf" in cases or b"more" in cases)


NIFTI_FIELDS: dict[str, Any] = {
    "dim": [32767, -1, 0, 1, 2],
    "pixdim": [0, -1, np.nan, np.inf, 1e-30, 1e30],
    "srow_x": [0, np.nan, np.inf, 1e30],
    "srow_y": [0, np.nan, -np.inf],
    "quatern_b": [np.nan, 2, -5],
    "vox_offset": [np.nan, np.inf, -1, 0, 353, 1e9, 1e30],
    "scl_slope": [np.nan, np.inf, 1e38, -1, 1e-40],
    "scl_inter": [np.nan, -np.inf, 1e38],
    "datatype": [0, 1, 2, 4, 8, 16, 32, 64, 128, 255, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304],
    "bitpix": [0, 1, -8, 32767],
    "qform_code": [-1, 0, 1, 32767],
    "sform_code": [-1, 0],
    "xyzt_units": [0, 1, 3, 7, 255],
    "intent_code": [1007, 2003, -1],
}


@pytest.mark.parametrize(("suffix", "role"), spread([".nii", ".nii.gz"], ["image", "mask"]))
def test_nifti_headers_that_lie(tmp_path: Path, suffix: str, role: str) -> None:
    rng = random.Random(f"{suffix} {role}")
    content = nifti_bytes(VOXELS if role == "image" else VOXEL_MASK)
    path = write_dataset(tmp_path, suffix)[role]
    usable = []
    for _ in range(80):
        header = nib.Nifti1Header(content[:348], check=False)
        for name in rng.sample(list(NIFTI_FIELDS), rng.choice([1, 1, 2, 3])):
            if header[name].ndim:
                header[name][rng.randrange(header[name].size)] = rng.choice(NIFTI_FIELDS[name])
            else:
                header[name] = rng.choice(NIFTI_FIELDS[name])
        damaged = header.binaryblock + content[348:]
        path.write_bytes(gzip.compress(damaged, mtime=0) if suffix == ".nii.gz" else damaged)
        usable.append(assert_usable_or_reported(tmp_path))
    assert any(usable)
    assert not all(usable)


def png_with_size(width: int, height: int) -> bytes:
    content = bytearray(IMAGES[".png"][0])
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def png_of_16_bits(colours: np.ndarray) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", colours.shape[1], colours.shape[0], 16, 2, 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def with_value(value: float) -> np.ndarray:
    pixels = PIXELS.astype(np.float32)
    pixels[5, 6] = value
    return pixels


GREY = Image.fromarray(PIXELS)
ODD_FILES: dict[str, tuple[bytes, bool, bool]] = {
    "bomb": (png_with_size(2**31 - 1, 2**31 - 1), False, False),
    "bomb below the limit": (png_with_size(12_000, 12_000), False, False),
    "no width": (png_with_size(0, 24), False, False),
    "16-bit": (encoded(Image.fromarray(MASK.astype(np.uint16)), "PNG"), True, True),
    "16-bit out of labels": (encoded(Image.fromarray(MASK.astype(np.uint16) * 999), "PNG"), True, False),
    "one bit": (encoded(Image.fromarray(MASK == 1), "PNG"), True, True),
    "RGBA": (encoded(GREY.convert("RGBA"), "PNG"), True, False),
    "coloured": (encoded(Image.merge("RGB", [GREY, GREY, Image.fromarray(MASK)]), "PNG"), True, False),
    "mask in RGBA": (encoded(Image.fromarray(MASK).convert("RGBA"), "PNG"), True, True),
    "16-bit colour": (png_of_16_bits(np.dstack([PIXELS] * 3)), True, False),
    "transparent": (encoded(Image.new("RGBA", (20, 24)), "PNG"), False, False),
    "grey with alpha": (encoded(GREY.convert("LA"), "PNG"), True, False),
    "CMYK JPEG": (encoded(GREY.convert("CMYK"), "JPEG"), False, False),
    "JPEG": (encoded(GREY, "JPEG"), True, False),
    "GIF": (encoded(GREY, "GIF"), True, False),
    "animation": (encoded(GREY, "PNG", save_all=True, append_images=[Image.fromarray(MASK)]), False, False),
    "pages": (encoded(GREY, "TIFF", save_all=True, append_images=[GREY]), False, False),
    "NaN": (encoded(Image.fromarray(with_value(np.nan)), "TIFF"), False, False),
    "infinity": (encoded(Image.fromarray(with_value(np.inf)), "TIFF"), False, False),
    "another size": (encoded(Image.fromarray(MASK[:-1]), "PNG"), False, False),
    "turned": (encoded(Image.fromarray(MASK.T.copy()), "PNG"), False, False),
    "constant": (encoded(Image.new("L", (20, 24)), "PNG"), False, True),
}
"""A file, whether it is a usable image beside grey ones of 24 x 20, and whether it is a usable mask."""


@pytest.mark.parametrize("name", ODD_FILES)
def test_odd_files(tmp_path: Path, name: str) -> None:
    content, is_image, is_mask = ODD_FILES[name]
    assert usable_with(tmp_path / "image", "image", content) == is_image
    assert usable_with(tmp_path / "mask", "mask", content) == is_mask


@pytest.mark.parametrize("nested", [b"\0" * 2**26, gzip.compress(b"\0" * 2**20)])
def test_gzip_bombs(tmp_path: Path, nested: bytes) -> None:
    bomb = gzip.compress(nifti_bytes(VOXELS) + nested, mtime=0)
    usable_with(tmp_path / "behind", "image", bomb, ".nii.gz")
    assert not usable_with(tmp_path / "only", "image", gzip.compress(nested), ".nii.gz")


@pytest.mark.parametrize("name", ["-rf", "a b", "é日本", "two\nlines", "50%", "a.b.c", "[x]", "$(x)", "x" * 200])
def test_odd_names(tmp_path: Path, name: str) -> None:
    write_dataset(tmp_path)
    for kind in ("images", "masks"):
        (tmp_path / kind / "a.png").rename(tmp_path / kind / f"{name}.png")
    (tmp_path / "cases.csv").unlink()
    assert assert_usable_or_reported(tmp_path)
    assert {item.name for item in find_inputs(tmp_path / "images")} == {name, "b"}


def test_inputs_to_predict_on_that_are_damaged(tmp_path: Path) -> None:
    rng = random.Random(0)
    for number in range(60):
        suffix = rng.choice(list(IMAGES))
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(rng.choice(DAMAGES)(rng, IMAGES[suffix][0]))
        try:
            (item,) = find_inputs(path)
            image = format_of(path).read_image(path)
        except InputError as problem:
            assert problem.where == str(path)  # noqa: PT017 - either outcome is right
        else:
            assert image.shape == (item.header.channels, *item.header.grid.shape)


# Which damage is noticed, `test_damaged_images_and_masks` shows of all kinds.
@pytest.mark.parametrize(("role", "suffix"), spread(["image", "mask"], IMAGES))
def test_info_and_train_say_what_is_wrong_and_write_nothing(
    tmp_path: Path,
    role: str,
    suffix: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Usable data are not trained on here: only what comes before the first step is in question.
    monkeypatch.setattr(loop, "fit", lambda *_: None)
    monkeypatch.setattr(loop, "_test", lambda *_: {})
    rng = random.Random(f"{role} {suffix} cli")
    for round_number, damage in enumerate(rng.sample(DAMAGES, 3)):
        root, run = tmp_path / f"data{round_number}", tmp_path / f"run{round_number}"
        roles = write_dataset(root, suffix)
        roles[role].write_bytes(damage(rng, roles[role].read_bytes()))
        info = cli.main(["info", str(root), "--json"])
        told = capsys.readouterr()
        options = ["--model=tiny", "--image-size=64", "--device=cpu", "--json"]
        train = cli.main(["train", str(root), "--out", str(run), *options])
        trained = capsys.readouterr()
        assert (info, train) in [(0, 0), (2, 2)], trained.err
        assert "Traceback" not in told.err + trained.err
        assert bool(json.loads(told.out)["problems"]) == (info == 2)
        assert run.exists() == (train == 0)
        if train == 2:
            assert trained.err.count("medsaga: ") == 1
            assert "expected" in trained.err
