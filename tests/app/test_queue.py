"""The queue of commands where something is wrong: the disk is full, the page's folder is gone, names are odd."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from conftest import write_toy_dataset
from page_server import page, until

from medsaga.app.jobs import Jobs
from medsaga.app.project import Project
from medsaga.app.results import predict_command
from medsaga.app.training import Choice, progress, train_command
from medsaga.data.dataset import read_dataset
from medsaga.data.items import read_mask

PRINT = (sys.executable, "-c", "print('{}')")


def test_a_command_that_cannot_be_started_holds_up_none(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "jobs", PRINT)
    first = jobs.add("predict", ["x" * 200_000_000])  # more than a system takes
    second = jobs.add("predict", [])
    until(lambda: second.state == "done")
    assert first.state == "failed"
    assert "could not be run" in first.message
    jobs.close()


@pytest.mark.skipif(os.name != "posix", reason="elsewhere an open folder cannot be removed")
def test_the_pages_own_folder_may_be_removed_while_it_is_open(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "own" / "jobs", PRINT)
    shutil.rmtree(tmp_path / "own")
    assert jobs.elsewhere() is None
    job = jobs.add("train", [])
    until(lambda: job.state == "done")
    jobs.close()


def test_a_follow_up_that_the_disk_refuses_holds_up_none(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "jobs", PRINT)

    def then() -> None:
        raise OSError(28, "No space left on device")

    first, second = jobs.add("train", [], then=then), jobs.add("train", [])
    until(lambda: second.state == "done")
    assert first.state == "done"
    assert "No space" in first.message
    jobs.close()


@pytest.mark.skipif(os.name != "posix", reason="names elsewhere hold no end of a line")
def test_as_many_images_as_there_are_can_be_segmented_and_none_is_named_in_the_command(toy: Path) -> None:
    (toy / "images" / "img0.png").rename(toy / "images" / "@ two\nlines.png")
    (toy / "masks" / "img0.png").unlink()
    project = Project(toy)
    arguments = predict_command(project, toy / "runs" / "run1")
    assert not any("img" in each or "lines" in each for each in arguments)
    listed = Path(arguments[2].removeprefix("@")).read_text().split("\0")
    assert listed == [*(str(path) for path in sorted((toy / "images").iterdir())), ""]


def test_two_trainings_that_wait_have_a_run_folder_each(toy: Path) -> None:
    project, choice = Project(toy), Choice(steps=5, memory=None, model="lite", hold_back=True)
    folders = [train_command(project, choice)[1] for _ in range(2)]
    assert [folder.name for folder in folders] == ["run1", "run2"]


@pytest.mark.skipif(os.name != "posix", reason="needs links and names of bytes")
def test_images_that_are_relative_links_are_trained_on(tmp_path: Path) -> None:
    """As DataLad and git-annex keep them."""
    toy = write_toy_dataset(tmp_path / "toy")
    (toy / "store").mkdir()
    for image in (toy / "images").iterdir():
        image.rename(toy / "store" / image.name)
        image.symlink_to(Path("..") / "store" / image.name)
    (toy / "masks" / "img0.png").unlink()
    arguments, _ = train_command(Project(toy), Choice(steps=5, memory=None, model="lite", hold_back=True))
    dataset = read_dataset(Path(arguments[1]))
    assert dataset.problems == ()
    assert len([read_mask(item) for item in dataset.items]) == 5


@pytest.mark.skipif(sys.platform != "linux", reason="file systems elsewhere take UTF-8 names alone")
def test_a_name_that_is_no_text_is_shown_and_its_folder_opened(tmp_path: Path) -> None:
    toy = write_toy_dataset(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")))
    for kind in ("images", "masks"):
        (toy / kind / "img0.png").rename(toy / kind / os.fsdecode(b"\xe9.png"))
    with page(toy, tmp_path) as client:
        assert [case["name"] for case in client.get("/api/cases").json][-1] == "\udce9"
        (found,) = (each for each in client.get("/api/folders").json["folders"] if each["name"] == "caf\udce9")
        assert client.post("/api/open", {"path": found["path"]}).status == 200
        assert client.get("/api/state").json["project"]["name"] == "caf\udce9"


def test_a_loss_that_is_no_number_leaves_the_curve_to_the_others(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        "".join(
            f'{{"kind": "step", "step": {n}, "loss": {loss}, "seconds": 0.1}}\n'
            for n, loss in ((1, 0.5), (2, "NaN"), (3, 0.25))
        )
    )
    assert progress(tmp_path, running=True)["loss"] == [[1, 0.5], [3, 0.25]]
