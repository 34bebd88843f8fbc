"""Damaged and hostile files: refused in one message, or read as another program reads them.

Mutants of DICOM images, segmentations, structure sets and NIfTI volumes go through ``medsaga info``, which reads all
of a dataset, and some through ``medsaga predict``, in a process of their own. None may end in a traceback, a crash,
more than 10 s, or 2 GiB of memory.

Exit code 0 on a mutant is right only where the file still says something: then an independent reader (nibabel, the
gzip module with its checksum, pydicom and highdicom's rules) must find the same voxels at the same places as the
package does. A bit flipped in a native pixel or in a patient's birthday is no damage that anybody could see; one in
compressed data or in a length is. Swapped files must be refused whatever they hold.
"""

from __future__ import annotations

import gzip
import os
import random
import secrets
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from cli_batch import Done, run_batch
from clinical_phantoms import anatomy, write_examination
from dicom_phantoms import AFFINES, write_enhanced
from mutations import ANYWHERE, Mutator, checksum, headers, lengths, nifti_header
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from medsaga.data.dataset import read_dataset
from medsaga.data.inputs import find_inputs
from medsaga.data.items import read_item, read_mask

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="cli_batch needs /proc"),
    # The oracles' own complaints about what they read.
    pytest.mark.filterwarnings("ignore"),
]

SECONDS, PATIENCE = 10, 60
"""Of CPU time that a file may take, and of wall clock, on a busy machine, after which it counts as a hang."""
MOST_BYTES = 2**31
FEW = 20
"""Mutants of a kind that are made in each run of the tests; `exhaustive` are those after them."""
SHAPE = (14, 11, 4)


@pytest.fixture(autouse=True)
def same_uids_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let UIDs have the same digits in each run, so that the same mutants are made."""
    monkeypatch.setattr(secrets, "randbelow", random.Random(0).randrange)


@dataclass(frozen=True)
class Mutant:
    """A dataset with one spoilt file.

    Attributes:
        root: the dataset.
        file: the spoilt file.
        what: how it was spoilt.
    """

    root: Path
    file: Path
    what: str


@dataclass(frozen=True)
class Kind:
    """A dataset, the file in it that is spoilt, and how often it is spoilt in which ways."""

    make: Callable[[Path], Path]
    mutators: tuple[Mutator, ...]
    count: int


def a_slice(root: Path) -> Path:
    return write_examination(root, "case", shape=SHAPE)[1]


def a_compressed_slice(root: Path) -> Path:
    return write_examination(root, "case", shape=SHAPE, transfer_syntax=RLELossless)[2]


def frames(root: Path) -> Path:
    volume, labels = anatomy(0, SHAPE)
    write_enhanced(root / "images/case/frames.dcm", volume, AFFINES["oblique"])
    write_nifti(root / "masks/case.nii.gz", labels, AFFINES["oblique"])
    return root / "images/case/frames.dcm"


def a_segmentation(root: Path) -> Path:
    write_examination(root, "case", shape=SHAPE)
    return root / "masks/case.dcm"


def a_structure_set(root: Path) -> Path:
    write_examination(root, "case", shape=SHAPE, mask="rtstruct")
    return root / "masks/case.dcm"


def write_nifti(path: Path, voxels: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    return path


def a_volume(suffix: str, role: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        volume, labels = anatomy(0, SHAPE)
        paths = {
            "images": write_nifti(root / f"images/case{suffix}", volume, AFFINES["axial"]),
            "masks": write_nifti(root / f"masks/case{suffix}", labels, AFFINES["axial"]),
        }
        (root / "dataset.json").write_text('{"labels": {"background": 0, "kidney": 1, "liver": 2}}')
        return paths[role]

    return make


KINDS = {
    "slice": Kind(a_slice, (*ANYWHERE, lengths, lengths, headers, headers, headers), 130),
    "compressed slice": Kind(a_compressed_slice, (*ANYWHERE, lengths), 40),
    "frames": Kind(frames, (*ANYWHERE, lengths, headers, headers), 60),
    "segmentation": Kind(a_segmentation, (*ANYWHERE, lengths, lengths, headers, headers, headers), 130),
    "structure set": Kind(a_structure_set, (*ANYWHERE, headers, headers), 40),
    "nii image": Kind(a_volume(".nii", "images"), (*ANYWHERE, nifti_header, nifti_header), 60),
    "nii.gz image": Kind(a_volume(".nii.gz", "images"), (*ANYWHERE, nifti_header, checksum), 60),
    "nii.gz mask": Kind(a_volume(".nii.gz", "masks"), (*ANYWHERE, nifti_header, checksum), 60),
}


def mutants(kind: str, folder: Path, wanted: slice = slice(None)) -> list[Mutant]:
    """Make the wanted datasets of a kind, each with a spoilt file; the others are links to the same files."""
    made, rng = KINDS[kind], random.Random(kind)
    original = folder / "original"
    spoilt = made.make(original)
    content = spoilt.read_bytes()
    found = []
    for number in range(made.count):
        mutator = made.mutators[number % len(made.mutators)]
        changed = content
        while changed == content:
            changed = mutator(rng, content)
        if number not in range(made.count)[wanted]:
            continue
        root = folder / str(number)
        shutil.copytree(original, root, copy_function=os.link)
        file = root / spoilt.relative_to(original)
        file.unlink()
        file.write_bytes(changed)
        found.append(Mutant(root, file, f"{kind} {number}: {mutator.__name__}"))
    return found


def info(roots: Sequence[Path], folder: Path) -> list[Done]:
    return run_batch([["info", str(root)] for root in roots], folder, seconds=PATIENCE, address_space=MOST_BYTES)


def require_decent(done: Done, what: str) -> None:
    """Assert that a command ended as a user can stand it, whatever it was given."""
    assert done.code in (0, 2), f"{what}: {done.code}, {done.err!r}"
    assert b"Traceback" not in done.err, what
    assert b"Warning" not in done.err, f"{what}: {done.err!r}"
    assert done.seconds < SECONDS, what
    assert done.peak < MOST_BYTES, what
    if done.code == 2:
        assert done.err.count(b"medsaga: ") == 1, f"{what}: {done.err!r}"
        assert b"expected" in done.err, f"{what}: {done.err!r}"
        # Refused because of what it says, not because this process was given little.
        assert b"memory" not in done.err, f"{what}: {done.err!r}"


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        *(pytest.param(kind, slice(FEW), id=f"{kind}, first") for kind in KINDS),
        *(pytest.param(kind, slice(FEW, None), id=f"{kind}, others", marks=pytest.mark.exhaustive) for kind in KINDS),
    ],
)
def test_mutants_are_refused_or_read_as_others_read_them(tmp_path: Path, kind: str, wanted: slice) -> None:
    spoilt = mutants(kind, tmp_path, wanted)

    original, *done = info([tmp_path / "original", *(mutant.root for mutant in spoilt)], tmp_path / "told")

    assert original.code == 0, "mutants are refused because of how the test makes them"
    for mutant, each in zip(spoilt, done, strict=True):
        require_decent(each, mutant.what)
        if each.code == 0:
            require_agreement(mutant)
    assert [each.code for each in done].count(2) > len(done) / 3


def test_enough_is_spoilt() -> None:
    assert sum(kind.count for kind in KINDS.values()) >= 500


def require_agreement(mutant: Mutant) -> None:
    """Assert that other programs find the same in the files of a mutant as the package does."""
    dataset = read_dataset(mutant.root)
    (item,) = dataset.items
    image, mask, affine = read_item(item), read_mask(item), item.header.grid.affine
    assert affine is not None
    path = item.masks[0]
    if mutant.file.name.endswith((".nii", ".nii.gz")):
        require_same_nifti(mutant.root / "images" / path.name, image[0], affine, mutant.what)
    else:
        places = volume_by_pydicom(mutant.root / "images/case", affine, image.shape[1:])
        assert np.array_equal(places.astype(image.dtype), image[0]), mutant.what
    if path.suffix != ".dcm":
        require_same_nifti(path, mask, affine, mutant.what)
    elif "structure" in mutant.what:
        # Filling is checked elsewhere: here it counts that the file is one.
        assert "ROIContourSequence" in dcmread(path)
    else:
        labels = labels_by_pydicom(path, mutant.root / "images/case", affine, mask.shape, dataset.labels)
        assert np.array_equal(labels, mask), mutant.what


def require_same_nifti(path: Path, voxels: npt.NDArray[Any], affine: npt.NDArray[np.float64], what: str) -> None:
    if path.suffix == ".gz":
        # All of the file, for its checksum is at its end.
        gzip.decompress(path.read_bytes())
    image = nib.load(path)
    scale = {1: 1e3, 3: 1e-3}.get(int(image.header["xyzt_units"]) & 7, 1.0)
    stored = np.asanyarray(image.dataobj)
    assert np.array_equal(stored.reshape(voxels.shape).astype(voxels.dtype), voxels), what
    # A mask counts as being on its image's grid when it misses it by a hundredth of a mm.
    np.testing.assert_allclose(affine[:3], image.affine[:3] * scale, rtol=1e-6, atol=0.01, err_msg=what)


def volume_by_pydicom(folder: Path, affine: npt.NDArray[np.float64], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Put the frames of a folder where their headers say, ``(i, j, k)``; what no frame covers is NaN."""
    volume = np.full(shape, np.nan)
    for path in folder.iterdir():
        image = dcmread(path)
        # What is missing and can be told: the elements could be parsed, and MONOCHROME2 has one sample.
        if "TransferSyntaxUID" not in image.file_meta:
            image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SamplesPerPixel = image.get("SamplesPerPixel", 1)
        # The other decoder of RLE panics.
        is_rle = image.file_meta.TransferSyntaxUID == RLELossless
        stored = pixel_array(image, decoding_plugin="pydicom" if is_rle else "")
        groups = image.get("PerFrameFunctionalGroupsSequence")
        for values, own in zip(stored if groups else [stored], groups or [image], strict=True):
            index = index_of(own, image, affine)
            scaling = own.PixelValueTransformationSequence[0] if groups else image
            slope, intercept = float(scaling.RescaleSlope), float(scaling.RescaleIntercept)
            i, j, k = index(*np.indices(values.shape))
            volume[i, j, k] = values * slope + intercept
    return volume


def labels_by_pydicom(
    path: Path, images: Path, affine: npt.NDArray[np.float64], shape: tuple[int, ...], labels: dict[str, int]
) -> npt.NDArray[np.int64]:
    """Put the frames of a segmentation where they say, or on the image that they refer to; the highest label wins."""
    document = dcmread(path)
    # A label whose length is damaged goes on with what stood behind it.
    names = {item.SegmentNumber: str(item.SegmentLabel).split("\0")[0].strip() for item in document.SegmentSequence}
    found = np.zeros(shape, np.int64)
    # By hand, for pydicom fails on files that hold more bits than they say.
    count, shape_of_frame = int(document.NumberOfFrames), (document.Rows, document.Columns)
    bits = np.unpackbits(np.frombuffer(document.PixelData, np.uint8), bitorder="little")
    stored = bits[: count * shape_of_frame[0] * shape_of_frame[1]].reshape(count, *shape_of_frame)
    # Single bits are binary whether or not the file says it.
    assert document.BitsAllocated == 1
    assert document.get("SegmentationType") in ("BINARY", "", None)
    for values, own in zip(stored, document.PerFrameFunctionalGroupsSequence, strict=True):
        number = own.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        if any(item.get("ImagePositionPatient") for item in own.get("PlanePositionSequence", [])):
            to_index = index_of(own, document, affine)
        else:
            source = own.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            image = next(each for each in map(dcmread, images.iterdir()) if each.SOPInstanceUID == source)
            to_index = index_of(image, image, affine)
        i, j, k = to_index(*np.nonzero(values))
        found[i, j, k] = np.maximum(found[i, j, k], labels[names[number]])
    return found


def index_of(own: Dataset, image: Dataset, affine: npt.NDArray[np.float64]) -> Callable[..., npt.NDArray[np.int64]]:
    """Return what brings rows and columns of a frame to voxel indices, (3, ...)."""

    def first(group: str, keyword: str) -> npt.NDArray[np.float64]:
        shared = (image.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
        for source in (own, shared):
            if group in source:
                return np.array([float(value) for value in source[group].value[0][keyword].value])
        return np.array([float(value) for value in image[keyword].value])

    position = first("PlanePositionSequence", "ImagePositionPatient")
    across, down = first("PlaneOrientationSequence", "ImageOrientationPatient").reshape(2, 3)
    between_rows, between_columns = first("PixelMeasuresSequence", "PixelSpacing")
    back = np.linalg.inv(affine)

    def to_index(rows: npt.NDArray[Any], columns: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        lps = (
            position + rows[..., np.newaxis] * between_rows * down + columns[..., np.newaxis] * between_columns * across
        )
        exact = (lps * (-1, -1, 1)) @ back[:3, :3].T + back[:3, 3]
        assert np.abs(exact - np.rint(exact)).max(initial=0) < 0.25
        return np.moveaxis(np.rint(exact).astype(np.int64), -1, 0)

    return to_index


def image_bytes(root: Path) -> bytes:
    return next(path for path in sorted((root / "images/case").iterdir())).read_bytes()


def test_swapped_files_are_refused(tmp_path: Path) -> None:
    """Something else under a good name: nothing of it may be taken for voxels."""
    dicom, volume = tmp_path / "dicom", tmp_path / "volume"
    a_slice(dicom)
    a_volume(".nii.gz", "images")(volume)
    a_slice_of_it, seg = image_bytes(dicom), (dicom / "masks/case.dcm").read_bytes()
    packed = (volume / "images/case.nii.gz").read_bytes()
    plain = gzip.decompress(packed)
    a_slice_name = sorted(path.name for path in (dicom / "images/case").iterdir())[1]
    swaps = [
        *[
            (dicom, f"images/case/{a_slice_name}", content)
            for content in (seg, packed, plain, b"", b"\0" * 4096, b"MZ")
        ],
        *[(dicom, "masks/case.dcm", content) for content in (a_slice_of_it, packed, b"", b"{}", seg[:132])],
        *[(volume, "images/case.nii.gz", content) for content in (seg, b"", gzip.compress(seg), packed[:-1])],
        *[(volume, "masks/case.nii.gz", content) for content in (a_slice_of_it, gzip.compress(b""), packed[20:])],
    ]
    roots = []
    for number, (source, name, content) in enumerate(swaps):
        root = tmp_path / f"swap{number}"
        shutil.copytree(source, root)
        (root / name).write_bytes(content)
        roots.append(root)

    done = info(roots, tmp_path / "told")

    for (_, name, content), each in zip(swaps, done, strict=True):
        require_decent(each, f"{name}: {content[:20]!r}")
        assert each.code == 2, f"{name}: {content[:20]!r}"


def nested(depth: int) -> bytes:
    """Return an element (0008,1140) of sequences in sequences, of explicit type and without lengths."""
    opening = struct.pack("<HH2sHI", 0x8, 0x1140, b"SQ", 0, 2**32 - 1) + struct.pack("<HHI", 0xFFFE, 0xE000, 2**32 - 1)
    closing = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return opening * depth + closing * depth


def deflated(zeros: int) -> bytes:
    """Return a small file that inflates to a long one."""
    head = bytes(128) + b"DICM"
    syntax = b"1.2.840.10008.1.2.1.99"
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(syntax)) + syntax
    head += struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta)) + meta
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = packer.compress(struct.pack("<HH2sHI", 0x9, 0x10, b"OB", 0, zeros)) + packer.flush(zlib.Z_FULL_FLUSH)
    # Behind a full flush nothing is remembered: what 16 MiB become can be repeated.
    body += (packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)) * (zeros >> 24)
    return head + body + packer.flush()


def test_bombs(tmp_path: Path) -> None:
    """Sequences in sequences without end, and files that inflate to a thousand times their size."""
    original = tmp_path / "original"
    a_slice(original)
    slice_name = sorted(path.name for path in (original / "images/case").iterdir())[1]
    bomb = deflated(1200 * 2**20)
    roots: list[Path] = []
    deep = []
    for name in (f"images/case/{slice_name}", "masks/case.dcm"):
        content = (original / name).read_bytes()
        # Behind the first element that is no meta information: group 8 begins with it.
        at = content.index(b"\x08\0\x16\0UI")
        for changed in [bomb, *(content[:at] + nested(depth) + content[at:] for depth in (3, 300, 3_000, 100_000))]:
            root = tmp_path / f"bomb{len(roots)}"
            shutil.copytree(original, root)
            (root / name).write_bytes(changed)
            roots.append(root)
            deep.append(changed is not bomb)

    done = info(roots, tmp_path / "told")

    for root, each, is_deep in zip(roots, done, deep, strict=True):
        require_decent(each, root.name)
        assert is_deep or each.code == 2
        if each.code == 0:
            assert_unchanged(root, original)


def assert_unchanged(root: Path, original: Path) -> None:
    """Assert that a dataset that can be used holds the voxels of the original."""
    ((item,), (same,)) = (read_dataset(each).items for each in (root, original))
    assert np.array_equal(read_item(item), read_item(same))
    assert np.array_equal(read_mask(item), read_mask(same))


NAMES = (
    "case..",
    "-rf",
    "$(touch pwned)",
    "a b;c",
    "two\nlines",
    "[bold]x",
    "%s%n",
    "é日本",
    "x" * 200,
    "CON",
    "~",
    "\\\\h\\c",
)


def test_tricks_with_names_links_and_pipes(tmp_path: Path) -> None:
    original = tmp_path / "original"
    file = a_slice(original)
    outside = tmp_path / "outside"
    write_examination(outside, "case", seed=5, shape=SHAPE)
    roots: list[Path] = []

    def another() -> Path:
        roots.append(tmp_path / f"trick{len(roots)}")
        shutil.copytree(original, roots[-1])
        return roots[-1]

    for name in NAMES:
        root = another()
        (root / "images/case").rename(root / "images" / name)
        (root / "masks/case.dcm").rename(root / "masks" / f"{name}.dcm")
    # What must not be followed, opened or waited for, beside good files.
    os.mkfifo(another() / "images/case/I9")
    (another() / "images/case/loop").symlink_to("..", target_is_directory=True)
    (another() / "images/case/I9").symlink_to("/dev/zero")
    (another() / "images/case/I9").symlink_to("no such file")
    (another() / "images/case/DICOMDIR").write_bytes(file.read_bytes()[:500])
    (another() / "images/case/.hidden.dcm").write_bytes(b"nothing")
    harmless = len(roots)
    # A link is followed, here to a slice of another series.
    (another() / "images/case/I9").symlink_to(next((outside / "images/case").iterdir()))
    # What takes the place of a file that is needed.
    for target in ("/dev/zero", "no such file", str(outside / "masks/case.dcm")):
        root = another()
        (root / "masks/case.dcm").unlink()
        (root / "masks/case.dcm").symlink_to(target)
    root = another()
    (root / "masks/case.dcm").unlink()
    os.mkfifo(root / "masks/case.dcm")
    (another() / "cases.csv").write_text("name,case\n../../etc/passwd,1\n")
    (another() / "dataset.json").write_text('{"labels": {"background": 0, "../../x": 1}}')

    done = info(roots, tmp_path / "told")

    for number, (root, each) in enumerate(zip(roots, done, strict=True)):
        require_decent(each, root.name)
        assert each.code == (0 if number < harmless else 2), f"{number}: {each.err!r}"
        if each.code == 0:
            assert_unchanged(root, original)
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.exhaustive  # that predict refuses what is damaged, test_privacy and test_damaged_files show, too
def test_mutants_that_are_predicted_on(tmp_path: Path) -> None:
    """No label map of an input that cannot be read, and none at another place than the input's."""
    a_slice(tmp_path / "data")
    write_examination(tmp_path / "data", "second", seed=2, shape=SHAPE)
    small = ["--model=tiny", "--image-size=64", "--steps=1", "--batch-size=1", "--rank=2", "--device=cpu"]
    train = ["train", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--shots", "1", *small]
    spoilt = [
        mutant
        for kind in ("slice", "frames", "nii.gz image")
        for mutant in mutants(kind, tmp_path / kind, slice(None, None, 6))
    ]
    sources = [mutant.file if mutant.file.suffix == ".gz" else mutant.file.parent for mutant in spoilt]
    outs = [tmp_path / f"{number}.nii.gz" for number in range(len(spoilt))]
    predict = ["predict", str(tmp_path / "run"), "--device", "cpu", "--format", "nifti"]
    commands = [[*predict, str(source), "--out", str(out)] for source, out in zip(sources, outs, strict=True)]

    first, *done = run_batch([train, *commands], tmp_path / "told", seconds=PATIENCE)

    assert first.code == 0, first.err
    assert len(done) > 30
    for mutant, each, out in zip(spoilt, done, outs, strict=True):
        require_decent(each, mutant.what)
        assert out.exists() == (each.code == 0), mutant.what
        if each.code == 0:
            (item,) = find_inputs(mutant.file if mutant.file.suffix == ".gz" else mutant.file.parent)
            labels = nib.load(out)
            assert labels.shape == item.header.grid.shape, mutant.what
            assert item.header.grid.affine is not None
            np.testing.assert_allclose(labels.affine, item.header.grid.affine, atol=1e-3, err_msg=mutant.what)
    assert {each.code for each in done} == {0, 2}
