"""Two commands that write into one place at the same time: neither loses what is the other's."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from medsaga import files
from medsaga.errors import InputError, RunError, collecting
from medsaga.prediction.files import OutputOptions, predict_files
from medsaga.prediction.segmenter import Segmenter

ALL = [f"img{number}" for number in range(4)]


def segment(trained: Path, out: Path, *names: str, **given: Any) -> None:
    """Segment images of the toy dataset, with both tables."""
    images = [trained / "data/images" / f"{name}.png" for name in names]
    console = Console(quiet=True)
    predict_files(trained / "run", images, out, OutputOptions(measure=True), tta="none", console=console, **given)


def lines(table: Path) -> list[str]:
    """The lines of a table, sorted: in which order the commands wrote them does not matter."""
    return sorted(table.read_text().splitlines())


def assert_whole(trained: Path, out: Path, alone: Path) -> None:
    """The tables are as of one command, and medsaga knows all of the files as its own."""
    segment(trained, alone, *ALL)
    for table in ("measurements.csv", "confidence.csv"):
        assert lines(out / table) == lines(alone / table)
    segment(trained, out, *ALL)


def test_the_tables_hold_the_cases_of_both_predictions(trained_toy: Path, tmp_path: Path) -> None:
    def another(path: Path) -> None:
        if path.name == "img0.png":
            segment(trained_toy, tmp_path / "out", "img2", "img3")

    segment(trained_toy, tmp_path / "out", "img0", "img1", written=another)
    assert_whole(trained_toy, tmp_path / "out", tmp_path / "alone")


def test_the_record_holds_the_files_of_both_predictions(
    trained_toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the other begins and ends while the first image of this one is segmented."""
    original = Segmenter.predict_item

    def overtaken(*given: Any, **more: Any) -> Any:
        monkeypatch.undo()
        segment(trained_toy, tmp_path / "out", "img2", "img3")
        return original(*given, **more)

    monkeypatch.setattr(Segmenter, "predict_item", overtaken)
    segment(trained_toy, tmp_path / "out", "img0", "img1")
    assert_whole(trained_toy, tmp_path / "out", tmp_path / "alone")


def test_a_table_that_is_changed_by_hand_meanwhile_stays(trained_toy: Path, tmp_path: Path) -> None:
    table = tmp_path / "measurements.csv"

    def change(path: Path) -> None:
        if path.name == "img0.png":
            table.write_text("mine")

    with pytest.raises(RunError, match="changed since"):
        segment(trained_toy, tmp_path, "img0", "img1", written=change)
    assert table.read_text() == "mine"
    segment(trained_toy, tmp_path, "img0", "img1", overwrite=True, written=change)
    assert table.read_text().startswith("case,")


def test_a_table_of_confidence_that_is_changed_by_hand_meanwhile_stays(trained_toy: Path, tmp_path: Path) -> None:
    table = tmp_path / "confidence.csv"
    with pytest.raises(InputError, match="changed since"):
        segment(trained_toy, tmp_path, "img0", "img1", written=lambda _: table.write_text("mine"))
    assert table.read_text() == "mine"


@pytest.mark.parametrize("is_new", [False, True])
def test_a_label_map_that_is_corrected_meanwhile_stays(trained_toy: Path, tmp_path: Path, is_new: bool) -> None:
    """A folder takes hours, in which people correct what is done."""
    mine = b"mine"
    if not is_new:
        segment(trained_toy, tmp_path, *ALL)
    wanted = OutputOptions(overlay=True)

    def correct(path: Path) -> None:
        if path.name == "img0.png":
            (tmp_path / "img2.png").write_bytes(mine)

    images = [trained_toy / "data/images" / f"{name}.png" for name in ALL]
    given: dict[str, Any] = {"tta": "none", "console": Console(quiet=True), "written": correct}
    with pytest.raises(RunError, match=r"1 of 4 images(?s:.*)img2.png.*changed since"):
        predict_files(trained_toy / "run", images, tmp_path, wanted, **given)
    assert (tmp_path / "img2.png").read_bytes() == mine
    assert sorted(path.name for path in tmp_path.glob("*_overlay.png")) == [f"img{n}_overlay.png" for n in (0, 1, 3)]
    predict_files(trained_toy / "run", images, tmp_path, wanted, overwrite=True, **given)
    assert (tmp_path / "img2.png").read_bytes() != mine


def test_of_two_that_make_one_folder_the_first_to_be_ready_has_it(tmp_path: Path) -> None:
    def make() -> Any:
        return files.making_folder(tmp_path / "run", "a run folder", "Choose another.")

    problems: list[InputError] = []
    with collecting(problems), make() as slow:
        (slow / "whose").write_text("of the slow one")
        with make() as quick:
            (quick / "whose").write_text("of the quick one")
    assert "run: expected a run folder that does not exist yet" in str(problems[0])
    assert (tmp_path / "run" / "whose").read_text() == "of the quick one"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "run").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_what_killed_processes_have_left_of_a_folder_goes_with_the_next_one(tmp_path: Path) -> None:
    left, at_work, other = (tmp_path / name for name in (".medsaga-a.starting", ".medsaga-b.starting", ".starting"))
    for folder in (left, at_work, other):
        (folder / "new").mkdir(parents=True)
    for folder in (left, other):
        os.utime(folder, (time.time() - 7200,) * 2)
    with files.making_folder(tmp_path / "run", "a run folder", "Choose another."):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {at_work.name, other.name, "run"}


def test_one_at_a_time_keeps_others_out(tmp_path: Path) -> None:
    order = []

    def second() -> None:
        with files.one_at_a_time(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    with files.one_at_a_time(tmp_path):
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert not list(tmp_path.iterdir())
