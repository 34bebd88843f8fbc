"""What a training of the page is made of: a set of its own, which cases are kept for the test, and what has changed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import content, labels_in, write_toy_dataset
from page_server import page
from PIL import Image

from medsaga import run_folder
from medsaga.app.project import Project
from medsaga.app.training import Choice, continue_command, labelled_since, train_command
from medsaga.data.dataset import read_dataset
from medsaga.data.phantom import write_phantom_ct
from medsaga.data.splits import SPLITS_NAME, Split, split_cases
from medsaga.errors import InputError

Begin = Callable[[list[str], Path], None]
CHOICE = Choice(steps=5, memory=None, model="lite", hold_back=True)


def split_of(arguments: list[str]) -> Split:
    """Draw the cases as the command line does that is given some arguments."""
    shots = int(arguments[arguments.index("--shots") + 1]) if "--shots" in arguments else None
    return split_cases(read_dataset(Path(arguments[1])), shots=shots, seed=0, validation=None, fold=0)


def write_folds(root: Path, train: list[str], val: list[str]) -> None:
    (root / SPLITS_NAME).write_text(json.dumps([{"train": train, "val": val}]))


def accept(project: Project, name: str) -> None:
    """Take a prediction over as the mask of an image, as the page does."""
    key = project.names[name]
    prediction = project.root / "predicted.png"
    labels = np.zeros((48, 64), np.uint8)
    labels[5:20, 5:20] = 1
    Image.fromarray(labels).save(prediction)
    project.mask(key).begin("prediction", (prediction,))
    project.finish(key)


@pytest.fixture
def begin(trained_toy: Path) -> Begin:
    """Makes what a run folder has of its data when the run has begun: as if its turn in the queue had come."""

    def run(arguments: list[str], out: Path) -> None:
        config = (trained_toy / "run" / run_folder.CONFIG).read_text()
        out.mkdir(parents=True)
        (out / run_folder.CONFIG).write_text(config.replace(str(trained_toy / "data"), arguments[1]))
        (out / run_folder.SPLIT).write_text(json.dumps(split_of(arguments).to_json()))

    return run


@pytest.mark.parametrize("labelled", [3, 4, 5])
@pytest.mark.parametrize("hold_back", [True, False])
def test_cases_that_folds_keep_for_the_test_are_never_trained_on(
    tmp_path: Path, labelled: int, *, hold_back: bool
) -> None:
    root, names = tmp_path / "data", [f"phantom_{number:03d}" for number in range(5)]
    write_phantom_ct(root, cases=5, shape=(8, 8, 2), seed=0)
    for name in names[labelled:]:
        (root / "labelsTr" / f"{name}.nii.gz").unlink()
    write_folds(root, [*names[:2], names[4]], names[2:4])
    arguments, _ = train_command(Project(root), dataclasses.replace(CHOICE, hold_back=hold_back))
    split = split_of(arguments)
    assert set(split.train) == {*names[:2], names[4]} & {*names[:labelled]}
    assert set(split.test) == {*names[2:4]} & {*names[:labelled]}


def test_folds_without_a_labelled_case_to_train_on_are_told_of(toy: Path) -> None:
    (toy / "masks" / "img0.png").unlink()
    write_folds(toy, ["img0"], ["img1"])
    with pytest.raises(InputError, match="to train on"):
        train_command(Project(toy), CHOICE)
    write_folds(toy, ["img1"], ["nobody"])
    with pytest.raises(InputError, match="nobody"):
        train_command(Project(toy), CHOICE)


def test_what_folds_keep_for_the_test_is_nothing_to_train_again_with(toy: Path, begin: Begin) -> None:
    for name in ("img0", "img5"):
        (toy / "masks" / f"{name}.png").unlink()
    write_folds(toy, ["img1", "img2", "img3", "img5"], ["img0", "img4"])
    project = Project(toy)
    arguments, out = train_command(project, CHOICE)
    begin(arguments, out)
    accept(project, "img0")
    assert labelled_since(project, out) == []
    accept(project, "img5")
    assert labelled_since(project, out) == ["img5"]


def test_a_set_stays_as_it_was_when_a_mask_is_corrected(toy: Path) -> None:
    project = Project(toy)
    arguments, out = train_command(project, CHOICE)
    data = Path(arguments[1])
    assert data.is_relative_to(toy / ".medsaga")
    before = content(data)
    key = project.names["img0"]
    project.mask(key).edit("brush", "image", (0, 0, 0), np.ones((1, 9, 9), np.uint8))
    project.finish(key)
    assert content(data) == before
    assert (labels_in(toy / "masks" / "img0.png")[:9, :9] == 1).all()
    # The name is kept for the run, also by a page that opens the folder anew.
    assert train_command(Project(toy), CHOICE)[1] != out


def test_what_is_corrected_while_a_training_waits_counts_for_the_next_one(toy: Path, begin: Begin) -> None:
    project = Project(toy)
    arguments, out = train_command(project, dataclasses.replace(CHOICE, hold_back=False))
    key = project.names["img0"]
    mask = project.mask(key)
    mask.edit("brush", "image", (0, 0, 0), np.ones((1, 9, 9), np.uint8))
    project.finish(key)
    begin(arguments, out)
    assert labelled_since(project, out) == ["img0"]
    # What is undone is as it was trained on.
    mask.undo()
    project.finish(key)
    assert labelled_since(project, out) == []
    mask.redo()
    project.finish(key)
    arguments, again = continue_command(project, out, 5)
    assert read_dataset(Path(arguments[2])).cases == ("img0",)
    # A run that goes on was trained on the newest copy of each case.
    shutil.copytree(out, again)
    config = again / run_folder.CONFIG
    config.write_text(config.read_text().replace("added = []", f"added = [{arguments[2]!r}]".replace("'", '"')))
    assert labelled_since(project, again) == []


def test_a_prediction_that_was_accepted_as_it_was_is_no_truth_for_a_test(tmp_path: Path) -> None:
    root = write_toy_dataset(tmp_path / "toy", images=12)
    for number in range(6, 12):
        (root / "masks" / f"img{number}.png").unlink()
    project = Project(root)
    for number in range(6, 12):
        accept(project, f"img{number}")
    split = split_of(train_command(project, CHOICE)[0])
    assert len(split.test) == 1
    assert set(split.test) <= {f"img{number}" for number in range(6)}
    assert len({*split.train, *split.validation}) == 11
    # Of one that was mended the user is the author.
    for number in range(6, 12):
        key = project.names[f"img{number}"]
        project.mask(key).edit("brush", "image", (0, 40, 40), np.ones((1, 3, 3), np.uint8))
        project.finish(key)
    assert len(split_of(train_command(project, CHOICE)[0]).test) == 2


def test_accepted_predictions_alone_are_no_test(toy: Path) -> None:
    for mask in (toy / "masks").iterdir():
        mask.unlink()
    project = Project(toy)
    for name in list(project.names):
        accept(project, name)
    split = split_of(train_command(project, CHOICE)[0])
    assert (len(split.train), split.test) == (6, ())


def test_the_page_is_told_that_the_data_fix_the_test(toy: Path, tmp_path: Path, begin: Begin) -> None:
    project = Project(toy)
    begin(*train_command(project, CHOICE))
    with page(toy, tmp_path) as client:
        about = client.get("/api/runs").json
        assert about["test_is_fixed"] is False
        write_folds(toy, ["img1"], ["nobody"])
        assert client.get("/api/runs").json["test_is_fixed"] is True
        # Folds that do not fit keep nobody from the results.
        assert client.get(f"/api/runs/{about['runs'][0]['id']}/results").status == 200
        refused = client.post("/api/runs", {"time": "quick"})
        assert refused.status == 422
        assert b"nobody" in refused.body
