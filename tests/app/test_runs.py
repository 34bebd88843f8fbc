"""Training from the page: which cases, one command at a time, results, accepting, going on, export."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from clinical_phantoms import write_examination
from conftest import write_toy_dataset
from page_server import page, until
from PIL import Image
from rich.console import Console

from medsaga import run_folder
from medsaga.app.export import export_labels, export_model, formats_of
from medsaga.app.jobs import Jobs
from medsaga.app.opening import make_dataset, open_folder
from medsaga.app.project import Project
from medsaga.app.results import PREDICTIONS
from medsaga.app.training import Choice, continue_command, labelled_cases, labelled_since, progress, train_command
from medsaga.data.dataset import read_dataset
from medsaga.errors import InputError

CHOICE = Choice(steps=5, memory=None, model="lite", hold_back=True)


def write_dicom_dataset(root: Path) -> Path:
    """Two examinations in folders, without masks."""
    for number in range(2):
        write_examination(root, f"case{number}", seed=number, mask="none")
    return root


def has(log: Path, text: str) -> bool:
    return log.exists() and f"{text}\n" in log.read_text()


def fake(tmp_path: Path) -> tuple[str, ...]:
    """A command that says when it begins and ends, waits for a file, and stops at SIGINT as a training does."""
    script = tmp_path / "command.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "log, name, kind = sys.argv[1:4]\n"
        "def say(text):\n"
        "    with open(log, 'a') as file: file.write(f'{text} {name}\\n')\n"
        "def stop(*_):\n"
        "    say('stopped'); print('medsaga: stopped', file=sys.stderr); os._exit(130)\n"
        "signal.signal(signal.SIGINT, stop)\n"
        "say('begun')\n"
        "while kind == 'wait' and not os.path.exists(log + '.go'): time.sleep(0.02)\n"
        "say('ended')\n"
        "if kind == 'fail': print('noise\\nmedsaga: it does not work', file=sys.stderr); sys.exit(2)\n"
        "print('{}')\n"
    )
    return (sys.executable, str(script))


def test_one_command_runs_at_a_time_and_the_others_wait(tmp_path: Path) -> None:
    log, followed = tmp_path / "log", []
    jobs = Jobs(tmp_path / "jobs", fake(tmp_path))
    first = jobs.add("train", [str(log), "a", "wait"], then=lambda: followed.append("a"))
    second = jobs.add("predict", [str(log), "b", "fail"], then=lambda: followed.append("b"))
    third = jobs.add("train", [str(log), "c", "now"])
    until(lambda: has(log, "begun a"))
    time.sleep(0.1)
    assert (first.state, second.state, third.state) == ("running", "waiting", "waiting")
    assert log.read_text() == "begun a\n"
    jobs.stop(third.number)
    (tmp_path / "log.go").touch()
    until(lambda: second.state == "failed")
    assert (first.state, third.state) == ("done", "stopped")
    assert second.message == "it does not work"
    assert followed == ["a"]
    assert log.read_text().split("\n")[:-1] == ["begun a", "ended a", "begun b", "ended b"]
    jobs.close()


def test_what_cannot_follow_a_command_holds_up_none(tmp_path: Path) -> None:
    log, jobs = tmp_path / "log", Jobs(tmp_path / "jobs", fake(tmp_path))

    def then() -> None:
        raise InputError("segmenting", expected="a case", found="none", do="Add images.")

    first = jobs.add("train", [str(log), "a", "now"], then=then)
    second = jobs.add("train", [str(log), "b", "now"])
    until(lambda: second.state == "done")
    assert first.state == "done"
    assert "Add images" in first.message
    jobs.close()


def test_a_command_that_is_stopped_may_save(tmp_path: Path) -> None:
    log = tmp_path / "log"
    jobs = Jobs(tmp_path / "jobs", fake(tmp_path))
    job = jobs.add("train", [str(log), "a", "wait"])
    until(lambda: has(log, "begun a"))
    jobs.stop(job.number)
    until(lambda: job.state == "stopped")
    assert log.read_text() == "begun a\nstopped a\n"
    other = jobs.add("train", [str(log), "b", "wait"])
    until(lambda: has(log, "begun b"))
    jobs.close()
    assert other.state == "stopped"
    assert "stopped b" in log.read_text()


@pytest.mark.skipif(os.name != "posix", reason="locks are seen on POSIX alone")
def test_a_command_outlives_a_server_that_is_killed_and_the_next_one_waits_for_it(tmp_path: Path) -> None:
    log, command = tmp_path / "log", fake(tmp_path)
    server = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from medsaga.app.jobs import Jobs\n"
            f"Jobs(Path({str(tmp_path / 'jobs')!r}), {command!r}).add('train', [{str(log)!r}, 'a', 'wait'], run='r')\n"
            "time.sleep(60)",
        ]
    )
    until(lambda: has(log, "begun a"))
    server.kill()
    server.wait()
    jobs = Jobs(tmp_path / "jobs", command)
    assert jobs.elsewhere() is not None
    second = jobs.add("train", [str(log), "b", "now"])
    time.sleep(0.3)
    assert second.state == "waiting"
    found = jobs.elsewhere()
    assert found is not None
    assert (found["kind"], found["run"]) == ("train", "r")
    jobs.stop_elsewhere()
    until(lambda: second.state == "done")
    assert log.read_text().split("\n")[:-1] == ["begun a", "stopped a", "begun b", "ended b"]
    assert jobs.elsewhere() is None
    jobs.close()


@pytest.fixture
def opened(trained_toy: Path, tmp_path: Path) -> tuple[Project, Path]:
    """A toy dataset of which two cases were trained on and the others are without masks, with its run."""
    shutil.copytree(trained_toy / "data", tmp_path / "data")
    run = tmp_path / "data" / "runs" / "run1"
    shutil.copytree(trained_toy / "run", run)
    config = run / run_folder.CONFIG
    config.write_text(config.read_text().replace(str(trained_toy), str(tmp_path)))
    split = json.loads((run / run_folder.SPLIT).read_text())
    left = {"train": split["train"], "validation": [], "test": split["test"][:1]}
    (run / run_folder.SPLIT).write_text(json.dumps(left))
    for name in split["test"][1:]:
        (tmp_path / "data" / "masks" / f"{name}.png").unlink()
    past = time.time() - 1000
    for mask in (tmp_path / "data" / "masks").iterdir():
        os.utime(mask, (past, past))
    project = open_folder(run)
    assert project.root == tmp_path / "data"
    return project, next(iter(project.runs.found().values()))


def test_only_labelled_cases_are_trained_on_by_links_and_copies(opened: tuple[Project, Path]) -> None:
    project, _ = opened
    arguments, out = train_command(project, CHOICE)
    data = Path(arguments[1])
    dataset = read_dataset(data)
    assert dataset.problems == ()
    assert list(dataset.cases) == labelled_cases(project)
    assert len(dataset.cases) == 3
    assert arguments[arguments.index("--shots") + 1] == "3"  # too few for a test
    assert out == project.root / "runs" / "run2"
    image = dataset.items[0].images[0]
    assert isinstance(image, Path)
    assert image.samefile(project.root / "images" / image.name)
    # Painting later leaves what was trained on as it is.
    assert not dataset.items[0].masks[0].samefile(project.root / "masks" / dataset.items[0].masks[0].name)


def test_where_all_is_labelled_a_part_is_kept_for_the_test_if_the_user_says_so(toy: Path) -> None:
    arguments, _ = train_command(Project(toy), CHOICE)
    assert read_dataset(Path(arguments[1])).cases == read_dataset(toy).cases
    assert "--shots" not in arguments
    arguments, _ = train_command(Project(toy), dataclasses.replace(CHOICE, hold_back=False))
    assert arguments[arguments.index("--shots") + 1] == "6"


@pytest.mark.parametrize(
    "document",
    [{}, {"time": "x"}, {"time": 0}, {"time": "quick", "memory": "much"}, {"time": "quick", "model": "--out=/etc"}],
)
def test_choices_that_make_no_sense_are_refused(document: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Choice.of(document)


def test_the_usual_length_is_left_to_the_run() -> None:
    asked = {"memory": "", "model": "lite"}
    assert Choice.of({**asked, "time": "usual"}).arguments() == ["--model", "lite"]
    assert Choice.of({**asked, "time": "quick"}).arguments()[:2] == ["--steps", "60"]


def test_results_are_accepted_and_mended_and_trained_on_again(opened: tuple[Project, Path], tmp_path: Path) -> None:
    from medsaga.prediction.files import predict_files

    project, run = opened
    predict_files(run, project.root / "images", run / PREDICTIONS, console=Console(quiet=True), device="cpu")
    with page(project.root, tmp_path) as client:
        (about,) = client.get("/api/runs").json["runs"]
        assert about["state"] == "done"
        found = client.get(f"/api/runs/{about['id']}/results").json
        sure = [case["confidence"] for case in found["cases"]]
        assert len(sure) == 6
        assert sure == sorted(sure)
        assert found["since"] == []
        new = [case for case in found["cases"] if case["role"] == "new"]
        assert {case["state"] for case in new} == {"none"}
        accepted, mended = new[0], new[1]
        shown = client.get(f"/api/cases/{accepted['id']}/labels?plane=image&index=0&run={about['id']}").body
        assert (
            client.post(f"/api/cases/{accepted['id']}/begin", {"run": about["id"], "accept": True}).json["state"]
            == "done"
        )
        written = np.asarray(Image.open(project.root / "masks" / f"{accepted['name']}.png"))
        assert written.tobytes() == shown
        assert client.post(f"/api/cases/{mended['id']}/begin", {"run": about["id"]}).json["state"] == "draft"
        client.paint(mended["id"], "image", (0, 0, 0), (1, 9, 9), 2)
        assert client.get(f"/api/runs/{about['id']}/results").json["since"] == [accepted["name"]]
        client.post(f"/api/cases/{mended['id']}/finish")
        assert set(client.get(f"/api/runs/{about['id']}/results").json["since"]) == {accepted["name"], mended["name"]}
        assert client.get(f"/api/runs/{about['id']}/report").headers["content-security-policy"].startswith("sandbox")
    again = Project(project.root)
    # A test case stays out, even when its mask is changed.
    test = next(case["name"] for case in found["cases"] if case["role"] == "test")
    (again.root / "masks" / f"{test}.png").touch()
    assert set(labelled_since(again, run)) == {accepted["name"], mended["name"]}
    arguments, _ = continue_command(again, run, 5)
    dataset = read_dataset(Path(arguments[2]))
    assert dataset.problems == ()
    assert set(dataset.cases) == {accepted["name"], mended["name"]}
    again.add_label("third")
    with pytest.raises(InputError, match="labels"):
        continue_command(again, run, 5)


def test_a_look_at_a_training_asks_once_for_each_evaluation(opened: tuple[Project, Path], tmp_path: Path) -> None:
    from medsaga.app.preview import preview_of

    project, run = opened
    script = tmp_path / "predict.py"
    script.write_text(
        "import sys, pathlib, shutil\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1]); out.mkdir(parents=True, exist_ok=True)\n"
        "name = pathlib.Path(open(sys.argv[3][1:]).read().rstrip(chr(0))).name\n"
        f"shutil.copy(pathlib.Path({str(project.root / 'masks')!r}) / name, out / name)\n"
    )
    jobs = Jobs(tmp_path / "jobs", (sys.executable, str(script)))
    preview = preview_of(project, run)
    held_out = json.loads((run / run_folder.SPLIT).read_text())["test"]
    assert project.item(preview.key).case in held_out
    with pytest.raises(InputError):
        preview.picture(project, run)
    for _ in range(5):
        preview.look(project, jobs, run)
    until(lambda: all(job.state == "done" for job in jobs.all()))
    preview.look(project, jobs, run)
    assert preview.step == 2
    assert len(jobs.all()) == 1
    assert preview.picture(project, run).startswith(b"\x89PNG")
    jobs.close()


def test_what_is_exported_is_what_is_shown(opened: tuple[Project, Path]) -> None:
    from medsaga.prediction.segmenter import Segmenter

    project, run = opened
    assert formats_of(project) == ["png"]
    folder = export_labels(project, "png", None).folder
    assert sorted(path.stem for path in folder.iterdir()) == labelled_cases(project)
    for path in folder.iterdir():
        np.testing.assert_array_equal(
            np.asarray(Image.open(path)), np.asarray(Image.open(project.root / "masks" / path.name))
        )
    with pytest.raises(InputError, match="prediction"):
        export_labels(project, "png", run)
    with pytest.raises(InputError):
        export_labels(project, "nifti", None)
    model = export_model(project, run).folder
    assert list(Segmenter.load(model, "cpu").config.labels) == ["background", "disc", "bar"]


@pytest.mark.exhaustive
def test_a_delta_that_is_exported_segments_as_the_run_does(opened: tuple[Project, Path], tmp_path: Path) -> None:
    from medsaga.prediction.files import predict_files

    project, run = opened
    with page(project.root, tmp_path) as client:
        path = f"/api/runs/{client.get('/api/runs').json['runs'][0]['id']}/delta"
        found = client.post(path, {"again": True}).json
        end = time.monotonic() + 120
        while found["state"] == "waiting":
            assert time.monotonic() < end
            time.sleep(0.1)
            found = client.post(path).json
        assert (found["state"], found["files"]) == ("done", 1)
        (file,) = Path(found["folder"]).iterdir()
    for model, name in ((run, "whole"), (file, "delta")):
        predict_files(
            model,
            project.root / "images" / "img0.png",
            tmp_path / f"{name}.png",
            console=Console(quiet=True),
            device="cpu",
        )
    whole, delta = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("whole", "delta"))
    assert (whole == delta).mean() > 0.99


def test_progress_of_a_run_at_every_point(opened: tuple[Project, Path], tmp_path: Path) -> None:
    _, run = opened
    whole = (run / run_folder.METRICS).read_text().splitlines(keepends=True)
    shown = progress(run, running=False)
    assert (shown["state"], shown["step"], shown["steps"]) == ("done", 2, 2)
    assert len(shown["loss"]) == 2
    assert shown["expected_bytes"] > 0
    part = tmp_path / "part"
    shutil.copytree(run, part)
    (part / run_folder.RESULT).unlink()
    for lines in range(len(whole) + 1):
        (part / run_folder.METRICS).write_text("".join(whole[:lines]) + '{"kind": "st')
        assert progress(part, running=True)["state"] in ("preparing", "training", "testing")
        assert progress(part, running=False)["state"] == "interrupted"


def test_a_folder_of_pictures_becomes_a_dataset_beside_it(tmp_path: Path) -> None:
    toy = write_toy_dataset(tmp_path / "toy", images=2)
    pictures = toy / "images"
    shutil.move(pictures, tmp_path / "holiday")
    before = sorted(path.name for path in (tmp_path / "holiday").iterdir())
    with page(None, tmp_path) as client:
        kinds = {each["name"]: each["kind"] for each in client.get("/api/folders").json["folders"]}
        assert kinds["holiday"] == "images"
        assert client.get("/api/cases").status == 422
        assert client.post("/api/images", {"path": str(tmp_path / "holiday")}).status == 200
        assert {case["state"] for case in client.get("/api/cases").json} == {"none"}
        assert client.post("/api/images", {"path": str(tmp_path / "holiday")}).status == 422
    assert sorted(path.name for path in (tmp_path / "holiday").iterdir()) == before


def test_dicom_is_labelled_and_exported_as_a_segmentation_of_its_series(tmp_path: Path) -> None:
    from pydicom import dcmread

    root = write_dicom_dataset(tmp_path / "clinic")
    (root / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1}}')
    project = Project(root)
    key = next(iter(project.items))
    image = project.image(key)
    plane = next(iter(image.views))
    project.mask(key).edit("brush", plane, (0, 1, 1), np.ones((1, 4, 4), np.uint8))
    project.finish(key)
    assert "seg" in formats_of(project)
    (path,) = export_labels(project, "seg", None).folder.iterdir()
    assert dcmread(path).Modality == "SEG"
    arguments, _ = train_command(project, CHOICE)
    assert read_dataset(Path(arguments[1])).problems == ()


def test_an_export_of_series_becomes_a_dataset(tmp_path: Path) -> None:
    root = write_dicom_dataset(tmp_path / "clinic")
    dataset = read_dataset(make_dataset(root / "images"), masks_required=False)
    assert dataset.problems == ()
    assert len(dataset.items) == 2
