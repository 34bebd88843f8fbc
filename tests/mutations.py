"""Ways to spoil the bytes of a file: of any, of DICOM with explicit types, of NIfTI."""

from __future__ import annotations

import gzip
import io
import random
import struct
from collections.abc import Callable, Iterator, Sequence

import nibabel as nib
import numpy as np
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

Mutator = Callable[[random.Random, bytes], bytes]


def flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 40])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_early(rng: random.Random, content: bytes) -> bytes:
    """Flip bits where the header is."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 2, 5])):
        changed[rng.randrange(min(1400, len(changed)))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def extend(rng: random.Random, content: bytes) -> bytes:
    return content + rng.randbytes(rng.randrange(1, 300))


def blank(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content))
    size = min(rng.choice([4, 64, 512]), len(content) - start)
    return content[:start] + bytes([rng.choice([0, 255])]) * size + content[start + size :]


def cut_out(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.choice([1, 2, 8, 100]) :]


def repeat(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content))
    piece = content[start : start + rng.choice([2, 8, 200])]
    return content[:start] + piece * rng.choice([2, 2, 50]) + content[start + len(piece) :]


def lengths(rng: random.Random, content: bytes) -> bytes:
    """Let an element of explicit type claim another length, or another type."""
    places = [at for at in range(132, len(content) - 8) if content[at : at + 2].isalpha() and _is_head(content, at)]
    at = rng.choice(places or [132])
    changed = bytearray(content)
    if rng.random() < 0.3:
        changed[at : at + 2] = rng.choice([b"SQ", b"UN", b"OB", b"DS", b"US", b"UI", b"ZZ", b"\0\0", b"FD", b"AT"])
    elif content[at : at + 2] in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
        struct.pack_into("<I", changed, at + 4, rng.choice([0, 1, 2**16, 2**31 - 2, 2**32 - 2, 2**32 - 1]))
    else:
        struct.pack_into("<H", changed, at + 2, rng.choice([0, 1, 2, 255, 0x7FFF, 0xFFFE, 0xFFFF]))
    return bytes(changed)


def _is_head(content: bytes, at: int) -> bool:
    group = struct.unpack_from("<H", content, at - 4)[0]
    return content[at : at + 2].isupper() and group in (0x2, 0x8, 0x10, 0x18, 0x20, 0x28, 0x3006, 0x62, 0x7FE0, 0x5200)


ANYWHERE: tuple[Mutator, ...] = (flip, flip_early, truncate, extend, blank, cut_out, repeat)
NUMBERS = (
    "NaN",
    "inf",
    "-inf",
    "0",
    "-1",
    "1e308",
    "1e-308",
    "9" * 16,
    "-" + "9" * 15,
    "",
    "1\\2\\3\\4",
    "\xff",
    "0x10",
)
WORDS = (0, 1, 7, 0x7FFF, 0x8000, 0xFFFF)
"""Values of unsigned shorts."""
DECIMALS = {
    "ImagePositionPatient": 3,
    "ImageOrientationPatient": 6,
    "PixelSpacing": 2,
    "SliceThickness": 1,
    "RescaleSlope": 1,
    "RescaleIntercept": 1,
    "NumberOfFrames": 1,
}
SHORTS = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
    *("PlanarConfiguration", "SegmentNumber", "ReferencedSegmentNumber", "MaximumFractionalValue"),
)
UIDS = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"),
    *("ReferencedSOPInstanceUID", "SegmentationType", "PhotometricInterpretation", "Modality", "PatientID"),
)


def headers(rng: random.Random, content: bytes) -> bytes:
    """Set elements to values that cannot be, wherever they are in the sequences, or delete them.

    The bytes are put in as they are: the file is written without types, so that a reader looks them up.
    """
    image = dcmread(io.BytesIO(content))
    with disable_value_validation():
        places = [(owner, element.tag) for owner in _levels(image) for element in owner]
        wanted = {*DECIMALS, *SHORTS, *UIDS}
        known = [(owner, tag) for owner, tag in places if owner[tag].keyword in wanted]
        for owner, tag in rng.sample(known, min(len(known), rng.choice([1, 1, 2]))):
            keyword = owner[tag].keyword
            if rng.random() < 0.2:
                del owner[tag]
            elif keyword in DECIMALS:
                values = str(owner[tag].value).strip("[]").replace(", ", "\\").split("\\")
                values[rng.randrange(len(values))] = rng.choice(NUMBERS)
                owner.add_new(tag, "OB", "\\".join(values).encode("latin-1"))
            elif keyword in SHORTS:
                owner.add_new(tag, "OB", struct.pack("<H", rng.choice(WORDS)) * rng.choice([1, 1, 1, 3]))
            else:
                owner.add_new(tag, "OB", rng.choice([b"", b"1.2.3", b"\xff" * 64, b"1." * 500, b"../../x\0"]))
        if rng.random() < 0.1:
            owner, tag = rng.choice(places)
            del owner[tag]
        image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        target = io.BytesIO()
        image.save_as(target, implicit_vr=True, little_endian=True)
    return target.getvalue()


def _levels(dataset: Dataset) -> Iterator[Dataset]:
    yield dataset
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _levels(item)


def checksum(rng: random.Random, content: bytes) -> bytes:
    """Spoil the checksum or the length at the end of a gzip file."""
    at = len(content) - rng.randrange(1, 9)
    return content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :]


NIFTI_FIELDS: dict[str, Sequence[float]] = {
    "dim": (32767, -1, 0, 1, 2, 3),
    "pixdim": (0, -1, np.nan, np.inf, 1e-30, 1e30),
    "srow_x": (0, np.nan, np.inf, 1e30),
    "srow_z": (0, np.nan, -np.inf),
    "quatern_b": (np.nan, 2, -5),
    "vox_offset": (np.nan, np.inf, -1, 0, 353, 1e9, 1e30),
    "scl_slope": (np.nan, np.inf, 1e38, -1, 2),
    "scl_inter": (np.nan, -np.inf, 1e38, 5),
    "datatype": (0, 1, 2, 4, 8, 16, 32, 64, 128, 255, 256, 512, 768, 1024, 1280, 2304),
    "bitpix": (0, 1, -8, 32767),
    "sform_code": (-1, 0),
    "xyzt_units": (0, 1, 3, 255),
}


def nifti_header(rng: random.Random, content: bytes) -> bytes:
    is_gzip = content[:2] == b"\x1f\x8b"
    plain = gzip.decompress(content) if is_gzip else content
    header = nib.Nifti1Header(plain[:348], check=False)
    for name in rng.sample(list(NIFTI_FIELDS), rng.choice([1, 1, 2])):
        if header[name].ndim:
            header[name][rng.randrange(header[name].size)] = rng.choice(NIFTI_FIELDS[name])
        else:
            header[name] = rng.choice(NIFTI_FIELDS[name])
    changed = header.binaryblock + plain[348:]
    return gzip.compress(changed, mtime=0) if is_gzip else changed
