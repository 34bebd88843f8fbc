"""Who the patient is stays in DICOM: no name, number, date or UID in messages, run folders or other files.

Every element of the phantoms that may hold words or numbers about a person holds a secret, in damaged headers also
where numbers belong. Then commands are run as users run them, with all warnings and with ``--debug``, and all bytes
that they write are searched, also those within gzip, zip, PNG and the data of web pages.
"""

from __future__ import annotations

import base64
import gzip
import io
import re
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cli_batch import Done, run_batch
from clinical_phantoms import anatomy, write_examination, write_seg
from dicom_phantoms import AFFINES, NAME, secrets_of, write_ct_series, write_flat
from PIL import Image, PngImagePlugin
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="cli_batch needs /proc"),
    pytest.mark.xdist_group("privacy"),
]

TRAIN = ["--model=tiny", "--shots=2", "--image-size=64", "--steps=1", "--batch-size=2", "--rank=4", "--device=cpu"]
TOKEN = "Zyxwvut"
"""Part of every secret that the phantoms of this file add."""
OF_PATIENTS = (
    *("OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "PatientAddress", "PatientComments"),
    *("StudyDescription", "AdditionalPatientHistory"),
)
OF_IMAGES = (
    *("InstitutionName", "InstitutionAddress", "OperatorsName", "PerformingPhysicianName"),
    *("ImageComments", "ProtocolName", "StationName", "DeviceSerialNumber"),
)


def confide(image: Dataset, k: int) -> None:
    """Put secrets into all elements that may hold words."""
    with disable_value_validation():
        for keyword in (*OF_PATIENTS, *OF_IMAGES):
            setattr(image, keyword, f"{TOKEN} {keyword} {k}")
        image.PatientTelephoneNumbers = f"{TOKEN}-555"
        block = image.private_block(0x0009, f"{TOKEN} PRIVATE", create=True)
        block.add_new(0x01, "LO", f"{TOKEN} private {k}")


def searched(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file, and what is packed into them."""
    yield from unpacked(path.read_bytes())


def unpacked(content: bytes) -> Iterator[bytes]:
    yield content
    if content[:2] == b"\x1f\x8b":
        yield from unpacked(gzip.decompress(content))
    elif content[:4] == b"PK\3\4":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                yield from unpacked(archive.read(name))
    elif content[:8] == b"\x89PNG\r\n\x1a\n":
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            yield repr(picture.info).encode()
    elif b"base64," in content:
        for data in re.findall(rb"base64,([A-Za-z0-9+/=]+)", content):
            yield from unpacked(base64.b64decode(data))


def leaks(contents: Iterator[bytes], secrets: set[str]) -> set[str]:
    """Return the secrets that occur, as UTF-8 or UTF-16, in upper or lower case."""
    found = set()
    for content in contents:
        lowered = content.lower()
        for secret in secrets:
            if any(secret.lower().encode(encoding) in lowered for encoding in ("utf-8", "utf-16-le")):
                found.add(secret)
    return found


@dataclass(frozen=True)
class Clinic:
    """A dataset whose headers are full of secrets, a run that was trained on it, and its predictions on others."""

    data: Path
    run: Path
    secrets: set[str]
    done: list[Done]
    predicted: Path
    """A folder with new images and, in ``out``, what was predicted from them."""


def all_secrets(*folders: Path) -> set[str]:
    """Return names, identities, dates and UIDs of all DICOM files of some folders, also as people write dates."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    secrets = secrets_of(path for path in files if path.read_bytes()[128:132] == b"DICM")
    # A UID of few digits, such as that of a storage class, would be no secret.
    secrets = {each for each in secrets if len(each) >= 6}
    return secrets | {TOKEN, "2019-04-17", "1948-02-29", "Secret Name"}


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Clinic:
    root = tmp_path_factory.mktemp("clinic")
    for number in range(3):
        write_examination(root / "data", f"case{number}", seed=number, edit=confide)
    volume, _ = anatomy(7)
    for number in range(2):
        write_ct_series(root / f"new/export/{number}/S1", volume, AFFINES["oblique"], edit=confide, seed=number)
    grey = np.random.default_rng(0).integers(0, 4000, (40, 50)).astype(np.uint16)
    write_flat(root / "new/xray.dcm", grey, spacing=(0.2, 0.2), edit=lambda image: confide(image, 0))
    run, new = root / "run", root / "new"
    predict = ["predict", str(run)]
    wanted = ["--overlay", "--probabilities", "--measure", "--device", "cpu"]
    commands = [
        ["info", str(root / "data")],
        ["info", str(root / "data"), "--json"],
        ["train", str(root / "data"), "--out", str(run), *TRAIN],
        ["evaluate", str(run), "--json", "--device", "cpu"],
        ["evaluate", str(run), "--data", str(root / "data"), "--device", "cpu"],
        [*predict, str(new / "export"), "--out", str(new / "out/nifti"), "--format", "nifti", *wanted],
        [*predict, str(new / "export"), "--out", str(new / "out/seg"), *wanted],
        [*predict, str(new / "export/0"), "--out", str(new / "out/rt.dcm"), "--format", "rtstruct", *wanted],
        [*predict, str(new / "xray.dcm"), "--out", str(new / "out/xray.png"), *wanted],
    ]
    done = run_batch(commands, root / "told")
    assert [each.code for each in done] == [0] * len(commands), [each.err for each in done]
    return Clinic(root / "data", run, all_secrets(root / "data", new), done, new)


def test_the_search_finds_what_is_packed(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", f"of {TOKEN}", zip=True)
    Image.new("L", (4, 4)).save(tmp_path / "a.png", pnginfo=text)
    page = b"<img src='data:image/png;base64," + base64.b64encode((tmp_path / "a.png").read_bytes()) + b"'>"
    (tmp_path / "page.html").write_bytes(page)
    (tmp_path / "b.gz").write_bytes(gzip.compress(TOKEN.upper().encode("utf-16-le")))
    with zipfile.ZipFile(tmp_path / "state.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", b"x" + TOKEN.encode() * 50)
    (tmp_path / "clean.gz").write_bytes(gzip.compress(b"nothing"))
    for path in tmp_path.iterdir():
        assert TOKEN.encode() not in path.read_bytes()
        assert leaks(searched(path), {TOKEN}) == (set() if path.name == "clean.gz" else {TOKEN})


def test_the_phantoms_hold_what_is_searched_for(clinic: Clinic) -> None:
    held = {each for path in clinic.data.rglob("*.dcm") for each in leaks(searched(path), clinic.secrets)}
    assert {NAME, TOKEN} <= held
    assert len(held) > 15


def test_commands_say_nothing_of_the_patient(clinic: Clinic) -> None:
    for each in clinic.done:
        assert each.out + each.err
        assert leaks(iter([each.out, each.err]), clinic.secrets) == set(), each.argv


def test_run_folders_hold_nothing_of_the_patient(clinic: Clinic) -> None:
    files = [path for path in clinic.run.rglob("*") if path.is_file()]
    assert {"config.toml", "manifest.json", "model.safetensors", "report.html", "state.pt"} <= {x.name for x in files}
    for path in files:
        assert leaks(searched(path), clinic.secrets) == set(), path.name


def test_predictions_that_are_no_dicom_hold_nothing_of_the_patient(clinic: Clinic) -> None:
    secrets = all_secrets(clinic.predicted)
    written = [path for path in (clinic.predicted / "out").rglob("*") if path.is_file()]
    others = [path for path in written if path.suffix != ".dcm"]
    assert {".gz", ".png", ".csv", ".tif"} <= {path.suffix for path in others}
    for path in others:
        assert leaks(searched(path), secrets) == set(), path.name
    # What goes back into the archive says whose it is, as all of a study does, and nothing of the images themselves.
    of_images = {f"{TOKEN} {keyword}" for keyword in OF_IMAGES} | {f"{TOKEN} private", f"{TOKEN} PRIVATE"}
    for path in set(written) - set(others):
        assert leaks(searched(path), {NAME, *of_images}) == {NAME}, path.name


Damage = Callable[[Path, list[Path]], object]
"""Spoils a dataset of one case, given the files of its images."""


def edited(change: Callable[[Dataset], object], which: int | None = 2) -> Damage:
    """Return what changes the headers of one slice, or of all."""

    def damage(root: Path, files: list[Path]) -> None:
        del root
        for path in files if which is None else [files[which]]:
            with disable_value_validation(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = dcmread(path)
                change(image)
                image.save_as(path)

    return damage


def put(keyword: str, value: object, vr: str | None = None) -> Callable[[Dataset], object]:
    """Return what sets an element, unchecked; with ``vr`` under another type than DICOM gives it."""

    def change(image: Dataset) -> None:
        if vr is None:
            setattr(image, keyword, value)
        else:
            image.add_new(keyword, vr, value)

    return change


def cut(part: float) -> Damage:
    def damage(root: Path, files: list[Path]) -> None:
        del root
        files[1].write_bytes(files[1].read_bytes()[: int(files[1].stat().st_size * part)])

    return damage


def replaced(old: bytes, new: bytes) -> Damage:
    """Return what overwrites bytes of one slice, for what pydicom would not write."""
    assert len(old) == len(new)

    def damage(root: Path, files: list[Path]) -> None:
        del root
        content = files[3].read_bytes()
        assert old in content
        files[3].write_bytes(content.replace(old, new))

    return damage


def swallowing(root: Path, files: list[Path]) -> None:
    """Let a description, which messages show, be so long that it holds the names behind it."""
    for path in files:
        content = path.read_bytes()
        head = b"\x08\0\x3e\x10LO"
        at = content.index(head) + len(head)
        length = content.index(b"\x10\0\x20\0LO") - at - 2
        path.write_bytes(content[:at] + length.to_bytes(2, "little") + content[at + 2 :])
    files[2].unlink()


def of_another(root: Path, files: list[Path]) -> None:
    others = write_ct_series(root.parent / "other", anatomy(5)[0], AFFINES["axial"], patient_id=f"{TOKEN} 2")
    write_seg(root / "masks/case.dcm", anatomy(5)[1], others)


def same_place_other_pixels(root: Path, files: list[Path]) -> None:
    image = dcmread(files[0])
    image.PixelData = image.PixelData[::-1]
    image.SOPInstanceUID = generate_uid()
    image.save_as(root / "images/case/again.dcm")


def mask_with(change: Callable[[Dataset], object]) -> Damage:
    def damage(root: Path, files: list[Path]) -> None:
        edited(change)(root, [root / "masks/case.dcm"] * 3)

    return damage


def mask_cut(root: Path, files: list[Path]) -> None:
    path = root / "masks/case.dcm"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def another_series(root: Path, files: list[Path]) -> None:
    study = dcmread(files[0]).StudyInstanceUID
    write_ct_series(root / "images/case/again", anatomy(3)[0], AFFINES["coronal"], study_uid=study, edit=confide)


def deflated_garbage(root: Path, files: list[Path]) -> None:
    content = files[2].read_bytes()
    head = content[:400].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"[:20])
    files[2].write_bytes(head + zlib.compress(content[400:]))


def secret_uid(image: Dataset) -> None:
    image.SeriesInstanceUID = f"1.2.{TOKEN}"


DAMAGES: dict[str, Damage] = {
    "truncated header": cut(0.2),
    "truncated pixels": cut(0.9),
    "a slice is missing": lambda root, files: files[2].unlink(),
    "two images at one place": same_place_other_pixels,
    "two series": another_series,
    "deflated garbage": deflated_garbage,
    "name for a spacing": edited(put("PixelSpacing", f"{TOKEN}\\1", "LO")),
    "name for a position": edited(put("ImagePositionPatient", [f"{TOKEN}", "1", "2"], "LO")),
    "name for a slope": edited(put("RescaleSlope", TOKEN, "LO")),
    "name for a size": edited(put("Rows", TOKEN, "LO")),
    "name for a decimal": replaced(b"-1024.0", b"Zyxwvut"),
    "name for an interpretation": edited(put("PhotometricInterpretation", f"{TOKEN}^A")),
    "description that swallows names": swallowing,
    "name for a character set": edited(put("SpecificCharacterSet", f"ISO_IR {TOKEN}"), None),
    "name for a UID": edited(secret_uid),
    "name for a transfer syntax": replaced(b"1.2.840.10008.1.2.1\0", b"1.2.Zyxwvut.10008.1\0"),
    "name for a type": replaced(b"(\0\x10\0US", b"(\0\x10\0ZZ"),
    "another orientation": edited(put("ImageOrientationPatient", [0, 1, 0, 1, 0, 0])),
    "another frame of reference": edited(put("FrameOfReferenceUID", "1.2.3.7493021")),
    "mask of another patient": mask_with(put("PatientID", f"{TOKEN} 2")),
    "mask of another examination": of_another,
    "mask of another space": mask_with(put("FrameOfReferenceUID", "1.2.3.7493021")),
    "mask is cut": mask_cut,
    "mask of unknown segments": mask_with(lambda document: setattr(document, "SegmentSequence", [])),
    "mask without frames": mask_with(lambda document: delattr(document, "PerFrameFunctionalGroupsSequence")),
    "mask is an image": lambda root, files: shutil.copy(files[0], root / "masks/case.dcm"),
}

HARMLESS = {"name for a character set"}
"""Damages that nobody has to hear of: no number of the images depends on them."""


def test_errors_say_nothing_of_the_patient(clinic: Clinic, tmp_path: Path) -> None:
    secrets, commands = {TOKEN}, []
    for number, damage in enumerate(DAMAGES.values()):
        root = tmp_path / str(number)
        files = write_examination(root, "case", seed=1, edit=confide)
        secrets |= all_secrets(root)
        damage(root, files)
        commands.append(["info", str(root), "--debug"])
    secrets |= all_secrets(tmp_path / "other")
    for number in (0, 2, 4, 12, 14):
        image = str(tmp_path / str(number) / "images/case")
        commands.append(["predict", str(clinic.run), image, "--out", str(tmp_path / "p.dcm"), "--debug"])
    chosen = dcmread(sorted(clinic.data.rglob("I0*"))[0], stop_before_pixels=True).SeriesInstanceUID
    scan = str(tmp_path / "4/images/case")
    # A user may type a UID; what is printed goes to others.
    commands.append(["predict", str(clinic.run), scan, "--out", str(tmp_path / "p.dcm"), "--series", str(chosen)])
    done = run_batch(commands, tmp_path / "told")

    for each, name in zip(done, [*DAMAGES, *["predict"] * 6], strict=True):
        assert leaks(iter([each.out, each.err]), secrets | clinic.secrets) == set(), f"{name}: {each.err!r}"
        assert each.code == (0 if name in HARMLESS else 2), f"{name}: {each.err!r}"
        if each.code:
            assert b"expected" in each.err
    assert not (tmp_path / "p.dcm").exists()
