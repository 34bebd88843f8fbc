"""What cannot be written, or would be lost, is said before any work is done."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import content, labels_in, write_toy_dataset
from dicom_phantoms import AFFINES, write_ct_series
from PIL import Image

from medsaga import files
from medsaga.cli import main
from medsaga.data.inputs import find_inputs
from medsaga.errors import InputError
from medsaga.prediction.files import predict_files
from medsaga.prediction.record import RECORD, Written
from medsaga.prediction.targets import require_distinct, targets_of

FAST = ["--model", "tiny", "--image-size", "64", "--steps", "2", "--batch-size", "2", "--rank", "4", "--device", "cpu"]


@contextlib.contextmanager
def nothing_can_be_written() -> Iterator[None]:
    """Let every write to a file fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("verb", ["train", "compare", "demo", "predict", "convert"])
@pytest.mark.parametrize("wrong", ["below a file", "too long", "a link to nothing"])
def test_an_out_that_cannot_be_made_is_refused_before_any_work(
    trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, wrong: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    # 255 bytes are the most, and an umlaut has two.
    out = {
        "below a file": tmp_path / "file/x",
        "too long": tmp_path / ("ü" * 128),
        "a link to nothing": tmp_path / "link/x",
    }
    data, path = str(trained_toy / "data"), str(out[wrong])
    argv = {
        "train": ["train", data, "--out", path, *FAST],
        "compare": ["compare", data, "--out", path, "--shots", "1", "--methods", "unet"],
        "demo": ["demo", "--out", path],
        "predict": ["predict", str(trained_toy / "run"), f"{data}/images", "--out", path],
        "convert": ["weights", "convert", "starter", path + ".safetensors"],
    }
    before = content(tmp_path)
    assert main(argv[verb]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert str(out[wrong].parent) in said.err
    assert content(tmp_path) == before


@pytest.mark.parametrize("verb", ["train", "resume", "compare", "demo", "predict", "evaluate", "convert"])
def test_a_full_disk_is_found_before_any_work(
    trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    data, run, out = str(trained_toy / "data"), str(trained_toy / "run"), str(tmp_path / "out")
    argv = {
        "train": ["train", data, "--out", out, *FAST],
        "resume": ["train", data, "--out", run, "--resume"],
        "compare": ["compare", data, "--out", out, "--shots", "1", "--methods", "unet"],
        "demo": ["demo", "--out", out],
        "predict": ["predict", run, f"{data}/images", "--out", out],
        "evaluate": ["evaluate", run],
        "convert": ["weights", "convert", "starter", out + ".safetensors"],
    }
    if verb == "resume":  # of a complete run nothing is written
        unfinished = shutil.copytree(trained_toy / "run", tmp_path.with_name(f"{tmp_path.name}-run"))
        (unfinished / "result.json").unlink()
        argv["resume"][3] = str(unfinished)
    before = content(trained_toy)
    with nothing_can_be_written():
        assert main(argv[verb]) == 2
    assert "file too large" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert content(trained_toy) == before


def test_a_disk_that_fills_up_later_is_no_fault_of_ours(
    trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for the trial, the label maps and the record, not for the probabilities.
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))
    try:
        argv = ["predict", str(trained_toy / "run"), str(trained_toy / "data/images"), "--out", str(tmp_path / "out")]
        assert main([*argv, "--probabilities"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert "File too large" in said
    assert "unexpected" not in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == []


def test_more_than_the_disk_holds_is_refused(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    files.require_room(tmp_path / "new", free // 2, "a test")
    with pytest.raises(InputError, match=r"MiB of free disk for a test; found [\d,]+ MiB"):
        files.require_room(tmp_path / "new", free * 2 + 2**30, "a test")


def test_true_masks_are_not_overwritten(trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_toy_dataset(tmp_path / "data")
    before = content(data)
    predict = ["predict", str(trained_toy / "run"), str(data / "images"), "--out", str(data / "masks")]
    assert main(predict) == 2
    said = capsys.readouterr()
    assert "img0.png, img1.png, img2.png and 3 more" in said.err
    assert "--overwrite" in said.err
    assert said.out == ""
    assert content(data) == before
    assert main([*predict, "--overwrite"]) == 0
    assert labels_in(data / "masks/img0.png").shape == (48, 64)
    assert content(data / "masks")["img0.png"] != before["masks/img0.png"]
    assert content(data / "images") == {name[7:]: held for name, held in before.items() if name.startswith("images/")}


def test_our_own_files_are_replaced_and_corrected_ones_are_not(
    trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, images, out = trained_toy / "run", trained_toy / "data/images", tmp_path / "out"
    predict = ["predict", str(run), str(images), "--out", str(out), "--measure"]
    assert main(predict) == 0
    first = content(out)
    assert main([*predict, "--overlay", "--fill-holes"]) == 0
    assert content(out).keys() == first.keys() | {f"img{n}_overlay.png" for n in range(6)}
    assert main(predict) == 0
    assert {name: held for name, held in content(out).items() if name in first and name != RECORD} == {
        name: held for name, held in first.items() if name != RECORD
    }
    corrected = np.ones((48, 64), np.uint8)
    Image.fromarray(corrected).save(out / "img3.png")
    capsys.readouterr()
    assert main(predict) == 2
    assert "found files that medsaga did not write, or that were changed since: img3.png." in capsys.readouterr().err
    np.testing.assert_array_equal(labels_in(out / "img3.png"), corrected)
    assert main([*predict, "--overwrite"]) == 0
    assert content(out)["img3.png"] == first["img3.png"]


@pytest.mark.parametrize("name", ["confidence.csv", "measurements.csv", "img5_overlay.png", "img5_probabilities.tif"])
def test_relatives_of_label_maps_are_not_overwritten_either(trained_toy: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    options = ["--measure", "--overlay", "--probabilities"]
    predict = ["predict", str(trained_toy / "run"), str(trained_toy / "data/images"), "--out", str(tmp_path)]
    assert main([*predict, *options]) == 2
    assert content(tmp_path) == {name: b"mine"}
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert main([*predict, *options, "--overwrite"]) == 2


def test_case_after_case_keeps_the_measurements_of_all(trained_toy: Path, tmp_path: Path) -> None:
    for name in ("img0", "img1", "img0"):
        image = trained_toy / f"data/images/{name}.png"
        assert main(["predict", str(trained_toy / "run"), str(image), "--out", str(tmp_path), "--measure"]) == 0
    together = tmp_path / "together"
    images = [str(trained_toy / f"data/images/{name}.png") for name in ("img0", "img1")]
    assert main(["predict", str(trained_toy / "run"), *images, "--out", str(together), "--measure"]) == 0
    one_by_one, at_once = (
        sorted((folder / "measurements.csv").read_text().splitlines()) for folder in (tmp_path, together)
    )
    assert one_by_one == at_once


def test_the_table_of_confidence_keeps_the_cases_of_earlier_commands(trained_toy: Path, tmp_path: Path) -> None:
    """Also where a case is segmented again, alone or with others: the table tells of the label maps that are there."""
    predict, images = ["predict", str(trained_toy / "run")], trained_toy / "data/images"

    def segment(out: str, *names: str, tta: str = "none") -> list[str]:
        paths = [str(images / f"{name}.png") for name in names]
        assert main([*predict, *paths, "--out", str(tmp_path / out), "--tta", tta]) == 0
        return (tmp_path / out / "confidence.csv").read_text().splitlines()

    at_once = segment("at once", "img0", "img1", "img2", "img3")
    segment("in parts", "img0", "img1")
    assert segment("in parts", "img2", "img3") == at_once
    mirrored = segment("in parts", "img2", tta="all")
    assert [line for line in mirrored if "img2" not in line] == [line for line in at_once if "img2" not in line]
    assert mirrored != at_once
    assert segment("in parts", "img1", "img2") == at_once
    (tmp_path / "in parts/confidence.csv").write_text("mine")
    assert main([*predict, str(images / "img0.png"), "--out", str(tmp_path / "in parts")]) == 0
    assert (tmp_path / "in parts/confidence.csv").read_text() == "mine"


def test_one_file_again_and_a_file_of_somebody_else(trained_toy: Path, tmp_path: Path) -> None:
    predict = ["predict", str(trained_toy / "run"), str(trained_toy / "data/images/img0.png")]
    assert main([*predict, "--out", str(tmp_path / "x.tif")]) == 0
    assert main([*predict, "--out", str(tmp_path / "x.tif"), "--tta", "all"]) == 0
    (tmp_path / "mine.png").write_bytes(b"mine")
    assert main([*predict, "--out", str(tmp_path / "mine.png")]) == 2
    assert (tmp_path / "mine.png").read_bytes() == b"mine"


def test_an_input_is_not_overwritten_under_any_name(trained_toy: Path, tmp_path: Path) -> None:
    image = tmp_path / "images/scan.png"
    image.parent.mkdir()
    shutil.copy(trained_toy / "data/images/img0.png", image)
    before = image.read_bytes()
    (tmp_path / "hard").mkdir()
    os.link(image, tmp_path / "hard/scan.png")
    (tmp_path / "linked").symlink_to(image.parent)
    for out in ("images", "hard", "linked", "images/../images/scan.png"):
        predict = ["predict", str(trained_toy / "run"), str(image), "--out", str(tmp_path / out), "--overwrite"]
        assert main(predict) == 2
    assert image.read_bytes() == before


def test_two_outputs_of_one_name(trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", "a_overlay.png"):
        shutil.copy(trained_toy / "data/images/img0.png", images / name)
    predict = ["predict", str(trained_toy / "run"), str(images), "--out", str(tmp_path / "out")]
    assert main([*predict, "--overlay"]) == 2
    assert "a_overlay.png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(predict) == 0


@pytest.mark.parametrize(
    "names", [("Scan.png", "scan.png"), ("Stra\u00dfe.png", "STRASSE.png"), ("M\u00fc.png", "Mu\u0308.png")]
)
def test_names_that_are_one_where_case_does_not_count(tmp_path: Path, names: tuple[str, str]) -> None:
    paths = [tmp_path / name for name in names]
    require_distinct(paths, ignores_case=False)
    with pytest.raises(InputError, match="the same file there"):
        require_distinct(paths, ignores_case=True)


def test_whether_case_counts_is_asked_of_the_file_system(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert files.ignores_case(tmp_path) == (tmp_path / "A").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_names_as_long_as_the_file_system_takes(
    trained_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    # Longer with a suffix of ours than 255 bytes; the first two differ at their ends alone, the third has 2 a letter.
    names = ["1.2.840." * 30 + "1", "1.2.840." * 30 + "2", "ü" * 124, "short"]
    for number, name in enumerate(names):
        shutil.copy(trained_toy / f"data/images/img{number}.png", images / f"{name}.png")
    options = ["--probabilities", "--overlay", "--measure"]
    assert main(["predict", str(trained_toy / "run"), str(images), "--out", str(out), *options]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert len({path.name for path in written}) == 4
    assert max(len(os.fsencode(path.name)) for path in out.iterdir()) <= 255
    by_name = {path.stem: path for path in written}
    # The tables call the images as their files are called.
    for table in ("confidence.csv", "measurements.csv"):
        rows = (out / table).read_text(encoding="utf-8").splitlines()[1:]
        assert {row.split(",")[0] for row in rows} == by_name.keys()
    for number, name in enumerate(names):
        (found,) = (
            path
            for path in written
            if path.stem[:50] == name[:50] and (number > 1 or path.stem == files.shortened(name, len(path.stem)))
        )
        alone = tmp_path / f"{number}.png"
        predict_files(trained_toy / "run", images / f"{name}.png", alone)
        np.testing.assert_array_equal(labels_in(found), labels_in(alone))


def test_shortened_names_fit_and_differ() -> None:
    long = ["x" * 300 + end for end in ("a", "b")] + ["é" * 150, "é" * 151]
    short = [files.shortened(name, 200) for name in long]
    assert all(len(os.fsencode(name)) <= 200 for name in short)
    assert len(set(short)) == 4
    assert files.shortened("x" * 200, 200) == "x" * 200
    assert short == [files.shortened(name, 200) for name in long]


def test_the_record_is_made_before_the_file_has_its_name(tmp_path: Path) -> None:
    record = Written(tmp_path)
    with record.replacing(tmp_path / "a.png") as made:
        made.write_bytes(b"first")
    with contextlib.suppress(KeyboardInterrupt), record.replacing(tmp_path / "a.png") as made:
        made.write_bytes(b"second")
        raise KeyboardInterrupt
    assert (tmp_path / "a.png").read_bytes() == b"first"
    assert content(tmp_path).keys() == {"a.png", RECORD}
    # Killed between the two: the record has what the file does not have yet.
    with (tmp_path / RECORD).open("a") as handle:
        handle.write(json.dumps({"file": "a.png", "sha256": "0" * 64}) + '\n{"file": "b.p')
    again = Written(tmp_path)
    assert again.has(tmp_path / "a.png")
    assert not again.has(tmp_path / "b.png")
    with again.replacing(tmp_path / "b.png") as made:
        made.write_bytes(b"third")
    (tmp_path / "a.png").write_bytes(b"changed")
    last = Written(tmp_path)
    assert last.has(tmp_path / "b.png")
    assert not last.has(tmp_path / "a.png")


def test_a_file_that_only_has_the_name_of_the_record(trained_toy: Path, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text("my own notes\nof two lines\n")
    predict = ["predict", str(trained_toy / "run"), str(trained_toy / "data/images"), "--out", str(tmp_path)]
    assert main([*predict, "--overwrite"]) == 2
    assert content(tmp_path) == {RECORD: b"my own notes\nof two lines\n"}


def test_what_was_stopped_is_kept_and_the_same_command_goes_on(trained_toy: Path, tmp_path: Path) -> None:
    from rich.console import Console

    def stop(path: Path) -> None:
        if path.stem == "img2":
            raise KeyboardInterrupt

    run, images, silent = trained_toy / "run", trained_toy / "data/images", Console(file=io.StringIO())
    with pytest.raises(KeyboardInterrupt):
        predict_files(run, images, tmp_path / "out", console=silent, written=stop)
    rows = (tmp_path / "out/confidence.csv").read_text().splitlines()[1:]
    assert {row.split(",")[0] for row in rows} == {"img0", "img1", "img2"}
    assert len(predict_files(run, images, tmp_path / "out", console=silent)) == 6
    assert len((tmp_path / "out/confidence.csv").read_text().splitlines()) == 7


def test_a_folder_that_is_no_comparison_is_left_alone(trained_toy: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("my page")
    argv = ["compare", str(trained_toy / "data"), "--out", str(tmp_path), "--shots", "1", "--methods", "unet"]
    assert main(argv) == 2
    assert content(tmp_path) == {"index.html": b"my page"}


def test_the_names_of_an_export_with_nested_uids_fit(tmp_path: Path) -> None:
    folders = ["1.2.826.0.1.3680043.8.498." + str(n) * 38 for n in (1, 2, 3)]
    for last in ("4" * 60, "5" * 60):
        write_ct_series(tmp_path / "export" / Path(*folders) / last, np.zeros((9, 8, 3)), AFFINES["axial"])
    items = find_inputs(tmp_path / "export")
    assert [len(item.name) for item in items] == [255, 255]
    targets = targets_of(items, tmp_path / "out", "auto", one_file=False, overlay=True, probabilities=True)
    files.require_writable(tmp_path / "out")
    (tmp_path / "out").mkdir()
    paths = [path for target in targets for path in target.paths]
    for path in paths:
        with files.replacing(path) as temporary:
            temporary.write_bytes(b"")
    assert len(list((tmp_path / "out").iterdir())) == len(paths) == 6
    assert all(path.name.startswith(folders[0]) for path in paths)
