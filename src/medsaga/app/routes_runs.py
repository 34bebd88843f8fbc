"""The routes of training: what it will take, starting, following and stopping it, and its results."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from medsaga import run_folder
from medsaga.app.export import delta_command
from medsaga.app.jobs import Job, Jobs
from medsaga.app.own import id_of
from medsaga.app.project import Project
from medsaga.app.requests import Json, document, session_of
from medsaga.app.results import results
from medsaga.app.security import REPORT_POLICY
from medsaga.app.training import (
    Choice,
    continue_command,
    labelled_cases,
    labelled_since,
    progress,
    resume_command,
    train_command,
)
from medsaga.app.training_set import fixes_test
from medsaga.errors import InputError


def runs(request: Request) -> Response:
    """List the runs, the newest first, each with where it stands."""
    project, jobs = session_of(request).need()
    found = [_described(project, jobs, key, run) for key, run in reversed(project.runs.found().items())]
    labelled, cases = labelled_cases(project), len(project.dataset.cases)
    return Json({"runs": found, "labelled": labelled, "cases": cases, "test_is_fixed": fixes_test(project)})


def run(request: Request) -> Response:
    """Say where a run stands, with its curves."""
    project, jobs = session_of(request).need()
    key = request.path_params["key"]
    return Json(_described(project, jobs, key, project.runs.found()[key]))


async def train(request: Request) -> Response:
    """Put a training on all labelled cases into the queue."""
    session = session_of(request)
    project, jobs = session.need()
    choice = Choice.of(await document(request))
    await run_in_threadpool(project.require_saved)
    arguments, out = await run_in_threadpool(train_command, project, choice)
    return _queued(request, jobs, arguments, out)


async def train_again(request: Request) -> Response:
    """Put a training into the queue that goes on from a run with what was labelled since."""
    session = session_of(request)
    project, jobs = session.need()
    before = project.runs.found()[request.path_params["key"]]
    steps = Choice.of({"time": "usual", **await document(request)}).steps
    await run_in_threadpool(project.require_saved)
    arguments, out = await run_in_threadpool(continue_command, project, before, steps)
    return _queued(request, jobs, arguments, out)


async def resume(request: Request) -> Response:
    """Put the rest of an interrupted run into the queue."""
    project, jobs = session_of(request).need()
    out = project.runs.found()[request.path_params["key"]]
    if jobs.elsewhere() is not None:
        raise InputError("the run", expected="no training under way", found="one", do="Stop it, or wait for its end.")
    return _queued(request, jobs, resume_command(out), out)


async def predict(request: Request) -> Response:
    """Put the segmentation of the other cases into the queue."""
    session = session_of(request)
    project, _ = session.need()
    key = request.path_params["key"]
    session.predict(project.runs.found()[key], key)
    return Json({})


async def stop(request: Request) -> Response:
    """Stop a job; a training saves its state first."""
    _, jobs = session_of(request).need()
    number = int(request.path_params["number"])
    if number:
        jobs.stop(number)
    else:
        jobs.stop_elsewhere()
    return Json({})


async def memory(request: Request) -> Response:
    """Say what memory a training would take; None until it is known. Asked again until it is."""
    session = session_of(request)
    (project, _), jobs = session.need(), session.estimates
    assert jobs is not None, "an open project has them"
    choice = Choice.of(await document(request))
    classes = len(project.dataset.labels)
    channels = next(iter(project.items.values())).header.channels
    arguments = ["memory", *choice.arguments(), "--classes", str(classes), "--in-channels", str(channels), "--json"]
    known = [job for job in jobs.all() if job.arguments == arguments]
    job = known[-1] if known else jobs.add("memory", arguments)

    def read(found: dict[str, Any]) -> dict[str, Any]:
        return {"bytes": found["peak_bytes"], "finest": found.get("finest", {}).get("peak_bytes")}

    return _settled(job, read)


async def suggest(request: Request) -> Response:
    """Name the cases that are best labelled next; asked again until they are known."""
    project, jobs = session_of(request).need()
    runs = [folder for folder in project.runs.found().values() if (folder / run_folder.RESULT).exists()]
    last = [str(runs[-1])] if runs else []
    arguments = ["suggest", *last, str(project.root), "--n", "3", "--json"]
    asked = await document(request)
    known = [job for job in jobs.all() if job.arguments == arguments]
    job = jobs.add("suggest", arguments) if not known or asked.get("again") else known[-1]
    return _settled(job, lambda found: {"cases": [each["case"] for each in found["suggestions"]]})


def result(request: Request) -> Response:
    """List the predicted cases of a run, the least confident first."""
    project, _ = session_of(request).need()
    folder = project.runs.found()[request.path_params["key"]]
    since: list[str] = []
    with contextlib.suppress(InputError):  # such as of folds that do not fit: no reason to show no results
        since = labelled_since(project, folder)
    return Json({"cases": results(project, folder), "since": since})


def preview(request: Request) -> Response:
    """Say which case is looked at while a run trains, and of which step its picture is."""
    session = session_of(request)
    project, _ = session.need()
    found = session.preview(project.runs.found()[request.path_params["key"]])
    return Json({"case": project.item(found.key).name, "step": found.step})


def preview_picture(request: Request) -> Response:
    """Return that picture."""
    session = session_of(request)
    project, _ = session.need()
    run = project.runs.found()[request.path_params["key"]]
    return Response(session.preview(run).picture(project, run), media_type="image/png")


async def delta(request: Request) -> Response:
    """Write what a run has changed in its base weights as a small file; asked again until it is written."""
    session = session_of(request)
    (project, _), jobs = session.need(), session.estimates
    assert jobs is not None, "an open project has them"
    key = request.path_params["key"]
    run = project.runs.found()[key]
    known = [job for job in jobs.all() if job.kind == "export" and job.run == key]
    under_way = bool(known) and known[-1].state in ("waiting", "running")
    if not known or ((await document(request)).get("again") and not under_way):
        job = jobs.add("export", await run_in_threadpool(delta_command, project, run), run=key)
    else:
        job = known[-1]
    return _settled(job, lambda found: {"folder": str(Path(found["file"]).parent), "files": 1})


def report(request: Request) -> Response:
    """Show the report of a run."""
    project, _ = session_of(request).need()
    path = project.runs.found()[request.path_params["key"]] / run_folder.REPORT
    if not path.is_file():
        raise KeyError(path)
    return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})


def _settled(job: Job, read: Callable[[dict[str, Any]], dict[str, Any]]) -> Response:
    """Say how far a job is that is asked for again and again, and what ``read`` makes of its JSON in the end."""
    if job.state in ("failed", "stopped"):
        return Json({"state": "failed", "message": job.message or "It was stopped."})
    if job.state != "done":
        return Json({"state": "waiting"})
    return Json({"state": "done", **read(json.loads(job.stdout))})


def _queued(request: Request, jobs: Jobs, arguments: list[str], out: Path) -> Response:
    session, key = session_of(request), id_of(str(out))

    def segment() -> None:
        session.predict(out, key)

    jobs.add("train", arguments, run=key, then=segment)
    return Json({"run": key})


def _described(project: Project, jobs: Jobs, key: str, folder: Path) -> dict[str, Any]:
    elsewhere = jobs.elsewhere() or {}
    own = any(job.run == key and job.kind == "train" and job.state == "running" for job in jobs.all())
    running = own or (elsewhere.get("run") == key and elsewhere.get("kind") == "train")
    return {"id": key, "name": folder.name, **progress(folder, running=running)}


def _route(path: str, endpoint: Any, method: str = "GET") -> Route:
    return Route(f"/api/runs{path}", endpoint, methods=[method])


ROUTES = [
    _route("", runs),
    _route("", train, "POST"),
    _route("/{key}", run),
    _route("/{key}/again", train_again, "POST"),
    _route("/{key}/resume", resume, "POST"),
    _route("/{key}/predict", predict, "POST"),
    _route("/{key}/results", result),
    _route("/{key}/report", report),
    _route("/{key}/delta", delta, "POST"),
    _route("/{key}/preview", preview, "POST"),
    _route("/{key}/picture", preview_picture),
    Route("/api/jobs/{number:int}/stop", stop, methods=["POST"]),
    Route("/api/memory", memory, methods=["POST"]),
    Route("/api/suggest", suggest, methods=["POST"]),
]
