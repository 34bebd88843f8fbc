"""Cases that a run was trained on are known again wherever they lie, and are not scored."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import write_toy_dataset
from rich.console import Console

from medsaga import run_folder
from medsaga.errors import InputError
from medsaga.runs.evaluate import evaluate_run
from medsaga.runs.train import train
from medsaga.settings.options import Settings

pytestmark = pytest.mark.xdist_group("seen_cases")

SETTINGS = Settings(
    model="tiny", shots=3, validation_cases=1, test_cases=2, image_size=64, steps=1, batch_size=2, rank=8, device="cpu"
)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two training cases, one validation case, two test cases and one that it does not use; and its data."""
    root = tmp_path_factory.mktemp("first")
    train(write_toy_dataset(root / "data"), root / "run", SETTINGS, console=Console(quiet=True))
    return root


def split_of(root: Path) -> dict[str, list[str]]:
    """Its cases."""
    split: dict[str, list[str]] = json.loads((root / "run" / run_folder.SPLIT).read_text())
    return split


def score(root: Path, data: Path) -> tuple[list[str], list[str], str]:
    """Evaluate on some data; return the cases scored, those left out, and what was said."""
    console = Console(file=io.StringIO(), width=500)
    result: dict[str, Any] = evaluate_run(root / "run", data=data, device="cpu", console=console)
    assert isinstance(console.file, io.StringIO)
    scored = [case["case"] for case in result["cases"]]
    return scored, result["cases_skipped_trained_on"], console.file.getvalue()


def rename(data: Path, old: str, new: str) -> None:
    """Give an image and its mask another name."""
    for kind in ("images", "masks"):
        (data / kind / f"{old}.png").rename(data / kind / f"{new}.png")


def keep(data: Path, names: list[str]) -> None:
    """Remove all other images."""
    for path in [*(data / "images").iterdir(), *(data / "masks").iterdir()]:
        if path.stem not in names:
            path.unlink()


@pytest.fixture
def moved(first: Path, tmp_path: Path) -> Path:
    """The data of the run, elsewhere."""
    return shutil.copytree(first / "data", tmp_path / "moved")


def test_of_its_own_data_elsewhere_the_test_cases_are_scored(first: Path, moved: Path) -> None:
    split = split_of(first)
    result = json.loads((first / "run" / run_folder.RESULT).read_text())
    scored, skipped, said = score(first, moved)
    assert scored == split["test"] == [case["case"] for case in result["cases"]]
    assert skipped == sorted([*split["train"], *split["validation"]])
    assert "the run's own data" in said
    assert json.loads((first / "run" / run_folder.RESULT).read_text()) == result


def test_known_images_under_other_names_are_left_out_of_other_data(first: Path, moved: Path) -> None:
    split = split_of(first)
    rename(moved, split["train"][0], "somebody")
    rename(moved, split["validation"][0], "nobody")
    write_toy_dataset(moved.with_name("more"), images=1, seed=5)
    for kind in ("images", "masks"):
        shutil.copy(moved.with_name("more") / kind / "img0.png", moved / kind / "new.png")
    scored, skipped, said = score(first, moved)
    assert skipped == sorted(["somebody", "nobody", split["train"][1]])
    assert "new" in scored
    assert set(split["test"]) < set(scored)
    assert len(scored) == 4, "with the case that the run did not use"
    assert "somebody" in said


def test_a_known_name_with_another_image_is_a_new_case(first: Path, moved: Path, tmp_path: Path) -> None:
    trained = split_of(first)["train"][0]
    other = write_toy_dataset(tmp_path / "other", images=1, seed=7)
    rename(other, "img0", trained)
    scored, skipped, said = score(first, other)
    assert (scored, skipped) == ([trained], [])
    assert f"share only the name with cases that the run has seen: {trained}" in said


def test_nothing_is_scored_where_all_was_seen(first: Path, moved: Path) -> None:
    split = split_of(first)
    keep(moved, [*split["train"], *split["validation"]])
    with pytest.raises(InputError, match="found 3, all of which it was trained on or chosen by"):
        score(first, moved)


def test_a_patient_with_one_known_slice_is_known(first: Path, moved: Path) -> None:
    split = split_of(first)
    one, other = split["train"][0], split["test"][0]
    rename(moved, one, "slice_a")
    rename(moved, other, "slice_b")
    keep(moved, ["slice_a", "slice_b", split["test"][1]])
    (moved / "cases.csv").write_text(f"name,case\nslice_a,patient\nslice_b,patient\n{split['test'][1]},another\n")
    scored, skipped, _ = score(first, moved)
    assert (scored, skipped) == (["another"], ["patient"])


def test_a_run_without_a_record_goes_by_names_and_says_so(first: Path, moved: Path, tmp_path: Path) -> None:
    run = shutil.copytree(first / "run", tmp_path / "old" / "run")
    (run / run_folder.DIGESTS).unlink()
    split = split_of(first)
    rename(moved, split["train"][0], "somebody")
    scored, skipped, said = score(tmp_path / "old", moved)
    assert skipped == sorted([split["train"][1], *split["validation"]])
    assert "somebody" in scored, "by its name it is a new one"
    assert "by their names only" in said


def test_without_its_data_it_says_how_to_name_them(first: Path, moved: Path, tmp_path: Path) -> None:
    run = shutil.copytree(first / "run", tmp_path / "lost" / "run")
    config = run / run_folder.CONFIG
    config.write_text(config.read_text().replace(str(first / "data"), str(tmp_path / "gone")))
    with pytest.raises(InputError, match=r"evaluate .*run --data FOLDER"):
        evaluate_run(run, device="cpu", console=Console(quiet=True))


def test_an_image_that_is_trained_on_and_tested_is_named_before_training(tmp_path: Path) -> None:
    data = write_toy_dataset(tmp_path / "data", images=2)
    shutil.copy(data / "images" / "img0.png", data / "images" / "img1.png")
    console = Console(file=io.StringIO(), width=500)
    train(
        data,
        tmp_path / "run",
        Settings(model="tiny", shots=1, image_size=64, steps=1, batch_size=1, device="cpu"),
        console=console,
    )
    assert isinstance(console.file, io.StringIO)
    assert "the same image is in 'img" in console.file.getvalue()
