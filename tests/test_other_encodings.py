"""Names that are no UTF-8, and consoles that lack most characters: nothing crashes, and what is written is valid."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import tomllib
from pathlib import Path

import pytest
from conftest import write_toy_dataset
from rich.console import Console

from medsaga import files
from medsaga.cli import main
from medsaga.cli.printing import print_whatever_comes
from medsaga.settings.run_config import read_config
from medsaga.training.bar import RunProgress
from medsaga.training.events import Stepped

NOT_UTF_8 = os.fsdecode(b"M\xfcller")
FAST = ["--model=tiny", "--shots=2", "--image-size=64", "--steps=1", "--batch-size=2", "--rank=4", "--device=cpu"]


def on_console(encoding: str, argv: list[str]) -> tuple[int, bytes, bytes]:
    """Run a command on a console; return the exit code and the bytes that came out of stdout and stderr."""
    out, err = io.BytesIO(), io.BytesIO()
    with (
        contextlib.redirect_stdout(io.TextIOWrapper(out, encoding, write_through=True)),
        contextlib.redirect_stderr(io.TextIOWrapper(err, encoding, write_through=True)),
    ):
        try:
            code = main(argv)
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        return code, out.getvalue(), err.getvalue()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A dataset in a folder whose name is no UTF-8, with one such image and one of many characters."""
    data = write_toy_dataset(tmp_path / NOT_UTF_8)
    for kind in ("images", "masks"):
        (data / kind / "img0.png").rename(data / kind / f"{NOT_UTF_8}.png")
        (data / kind / "img1.png").rename(data / kind / "Łódź→ß.png")
    return data


@pytest.mark.parametrize("encoding", ["utf-8", pytest.param("cp1252", marks=pytest.mark.exhaustive), "ascii"])
def test_names_of_all_kinds_on_all_consoles(trained_toy: Path, data: Path, tmp_path: Path, encoding: str) -> None:
    run, out = str(trained_toy / "run"), tmp_path / "out"
    code, printed, _ = on_console(encoding, ["predict", run, str(data), "--out", str(out), "--measure", "--overlay"])
    assert code == 0
    # The path is what a script can open.
    assert os.fsencode(out / f"{NOT_UTF_8}.png") + b"\n" in printed
    for table in ("confidence.csv", "measurements.csv"):
        with (out / table).open(encoding="utf-8", newline="") as handle:
            assert {row[0] for row in csv.reader(handle)} >= {"M\\xfcller", "Łódź→ß", "img2"}
    assert on_console(encoding, ["predict", run, str(data), "--out", str(out), "--measure", "--overlay"])[0] == 0
    for argv in (["info", str(data)], ["evaluate", run, str(data)], ["suggest", str(data / "images"), "--n", "2"]):
        assert on_console(encoding, argv)[0] == 0
        code, printed, _ = on_console(encoding, [*argv, "--json"])
        assert code == 0
        json.loads(printed.decode("ascii"))
    code, _, said = on_console(encoding, ["info", str(data / "nowhere→")])
    assert code == 2
    assert b"M\xfcller" in said
    assert {"utf-8": "nowhere→".encode(), "cp1252": b"nowhere\\u2192", "ascii": b"nowhere\\u2192"}[encoding] in said


def test_a_run_on_data_whose_name_is_no_utf_8(data: Path, tmp_path: Path) -> None:
    run = tmp_path / NOT_UTF_8 / "run"
    assert on_console("cp1252", ["train", str(data), "--out", str(run), *FAST])[0] == 0
    tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    assert Path(read_config(run / "config.toml").data) == data
    for name in ("split.json", "result.json", "manifest.json", "report.html", "metrics.jsonl"):
        (run / name).read_text(encoding="utf-8")
    before = json.loads((run / "result.json").read_text())
    code, printed, _ = on_console("ascii", ["evaluate", str(run), "--json"])
    assert code == 0
    assert json.loads(printed)["cases"] == before["cases"]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_help_complaints_and_progress_on_a_console_of_few_characters(encoding: str) -> None:
    for verb in ([], ["train"], ["predict"], ["weights", "list"]):
        code, printed, _ = on_console(encoding, [*verb, "--help"])
        assert code == 0
        assert printed.startswith(b"usage: medsaga")
    code, _, said = on_console(encoding, ["train", "x", "--out", "y", "--no-such-flag"])
    assert code == 2
    assert b"--no-such-flag" in said
    shown = io.BytesIO()
    with contextlib.redirect_stderr(io.TextIOWrapper(shown, encoding, write_through=True)):
        print_whatever_comes()
        console = Console(stderr=True, force_terminal=True, width=100)
        with RunProgress(console, steps=4, dice_name="Dice") as progress:
            progress.show(Stepped(step=2, loss=0.5, made=True, lr_factor=1.0, seconds=0.1, peak_bytes=2**30))
    assert b"2/4" in shown.getvalue()


def test_text_files_are_utf_8_whatever_they_hold(tmp_path: Path) -> None:
    files.write_text(tmp_path / "x", f"{NOT_UTF_8} \ud800 ß")
    assert (tmp_path / "x").read_bytes() == b"M\\xfcller \\ud800 \xc3\x9f"
    files.write_csv(tmp_path / "x", [["a", 1], [NOT_UTF_8, "b,c"]])
    assert (tmp_path / "x").read_bytes() == b'a,1\nM\\xfcller,"b,c"\n'
    files.write_json(tmp_path / "x", {NOT_UTF_8: 1})
    assert files.read_json(tmp_path / "x") == {NOT_UTF_8: 1}
