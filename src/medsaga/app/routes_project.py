"""The routes of the folder that is open: its state, its cases and labels, and opening another."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from medsaga.app.export import FORMATS, export_labels, export_model, formats_of
from medsaga.app.opening import browse, make_dataset, make_phantom
from medsaga.app.project import Project
from medsaga.app.requests import Json, document, path_of, session_of
from medsaga.data.sources import place_of
from medsaga.errors import InputError


def state(request: Request) -> Response:
    """Say what is open and what goes on: asked again and again."""
    session = session_of(request)
    project, jobs = session.project, session.jobs
    if project is None or jobs is None:
        return Json({"project": None, "notices": session.notices})
    found = session.found()
    return Json(
        {
            "project": {
                "name": project.root.name,
                "path": str(project.root),
                "layout": project.dataset.layout,
                "channels": list(project.dataset.channels),
                "labels": project.labels(),
                "revision": project.revision,
                "checked": found is not None,
                "problems": found["problems"] if found else [str(each) for each in project.dataset.problems],
                "warnings": found["warnings"] if found else list(project.dataset.warnings),
            },
            "jobs": [job.to_json() for job in jobs.all()],
            "elsewhere": jobs.elsewhere(),
            "notices": session.notices,
        }
    )


def cases(request: Request) -> Response:
    """List the images of the open folder."""
    project, _ = session_of(request).need()
    return Json([_described(project, key) for key in project.items])


def folders(request: Request) -> Response:
    """List the folders in a folder, for the user to choose one."""
    asked = request.query_params.get("path")
    return Json(browse(path_of(asked) if asked else session_of(request).folder))


async def open_project(request: Request) -> Response:
    """Open a folder."""
    asked = str((await document(request)).get("path", ""))
    if not asked:
        raise InputError("the folder", expected="a path", found="none", do="Choose a folder.")
    await run_in_threadpool(session_of(request).open, path_of(asked))
    return Json({})


async def open_phantom(request: Request) -> Response:
    """Make the phantom where the server was started, and open it."""
    session = session_of(request)
    root = await run_in_threadpool(make_phantom, session.folder)
    await run_in_threadpool(session.open, root)
    return Json({})


async def open_images(request: Request) -> Response:
    """Copy a folder of images into a new dataset, and open that."""
    asked = str((await document(request)).get("path", ""))
    root = await run_in_threadpool(make_dataset, path_of(asked).resolve())
    await run_in_threadpool(session_of(request).open, root)
    return Json({})


async def labels(request: Request) -> Response:
    """Add a label, or give one another name or colour."""
    project, _ = session_of(request).need()
    asked = await document(request)
    name, colour, added = (None if asked.get(part) is None else str(asked[part]) for part in ("name", "colour", "add"))
    if added is not None:
        await run_in_threadpool(project.add_label, added, colour)
    else:
        value = asked.get("value")
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputError("the labels", expected="one of them", found=repr(value), do="Load the page again.")
        await run_in_threadpool(project.change_label, value, name, colour)
    return Json(project.labels())


def export_choices(request: Request) -> Response:
    """Say in which formats label maps can be written."""
    project, _ = session_of(request).need()
    possible = formats_of(project)
    return Json([{"kind": k, "name": name, "possible": k in possible} for k, name in FORMATS.items()])


async def export(request: Request) -> Response:
    """Write masks, predictions or a model into a new folder."""
    project, _ = session_of(request).need()
    asked = await document(request)
    run = project.runs.found()[str(asked["run"])] if asked.get("run") else None
    if asked.get("what") == "model":
        if run is None:
            raise InputError("the model", expected="a run", found="none", do="Train first.")
        exported = await run_in_threadpool(export_model, project, run)
    else:
        if run is None:
            await run_in_threadpool(project.require_saved)
        exported = await run_in_threadpool(export_labels, project, str(asked.get("format")), run)
    return Json(exported.to_json())


def _described(project: Project, key: str) -> dict[str, Any]:
    item = project.item(key)
    grid, why_not = item.header.grid, project.place(item).why_not
    return {
        "id": key,
        "name": item.name,
        "case": item.case,
        "file": place_of(item.images[0]).name,
        "shape": list(grid.shape),
        "spacing": None if grid.spacing is None else [round(float(each), 3) for each in grid.spacing],
        "state": project.state(key),
        "picture": project.picture_stamp(key),
        "why_not": why_not,
    }


ROUTES = [
    Route("/api/state", state),
    Route("/api/cases", cases),
    Route("/api/folders", folders),
    Route("/api/open", open_project, methods=["POST"]),
    Route("/api/phantom", open_phantom, methods=["POST"]),
    Route("/api/images", open_images, methods=["POST"]),
    Route("/api/labels", labels, methods=["POST"]),
    Route("/api/export", export_choices),
    Route("/api/export", export, methods=["POST"]),
]
