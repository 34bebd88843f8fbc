"""The routes of one image: its slices, and what is painted on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from medsaga.app.interpolation import between, gaps_beside
from medsaga.app.masks import PaintedMask
from medsaga.app.own import id_of
from medsaga.app.pictures import picture_of
from medsaga.app.project import Project
from medsaga.app.requests import Json, document, number, number_in, session_of
from medsaga.app.results import prediction_of, predictions
from medsaga.app.versions import ChangedElsewhere
from medsaga.data.slices import SliceView, most_labelled
from medsaga.errors import InputError

_THUMBNAIL = 192
"""Pixels of the longer side."""
_MOST_DEPTH = 4096
_BINARY = "application/octet-stream"
Changed = TypeVar("Changed")


def about(request: Request) -> Response:
    """Say how an image is cut, scaled and shown, and where its label map stands."""
    project, key = _asked(request)
    image = project.image(key)
    views = {
        plane: {
            "slices": view.slices,
            "height": view.slice_shape[0],
            "width": view.slice_shape[1],
            "spacing": view.spacing,
            "order": list(view.order),
            "flips": list(view.flips),
        }
        for plane, view in image.views.items()
    }
    channels = [
        {"offset": scale[0], "step": scale[1], "window": list(window)}
        for scale, window in zip(image.scales, image.windows, strict=True)
    ]
    names = list(project.dataset.channels)
    if len(names) != len(channels):
        names = [f"channel {index + 1}" for index in range(len(channels))]
    colour = "image" in views and len(channels) == 3 and len(project.item(key).images) == 1
    facts = {"planes": views, "channels": channels, "names": names, "colour": colour}
    with _held(project, key) as mask:
        stack = mask.stack(next(iter(image.views)))
        # Where there is something to see.
        start = most_labelled(stack) if mask.classes.any() else len(stack) // 2
        return Json({**facts, "start": start, **_described(mask, _folder_stamp(project))})


def image_slice(request: Request) -> Response:
    """Return a slice of one channel, 16 bits little-endian, row by row."""
    project, key = _asked(request)
    plane, index = request.query_params.get("plane", ""), number(request, "index")
    values = project.image(key).slice(plane, index, number(request, "channel"))
    return Response(values.tobytes(), media_type=_BINARY)


def label_slice(request: Request) -> Response:
    """Return the class of every pixel of a slice, 8 bits: of the mask, or of the prediction of a run."""
    project, key = _asked(request)
    plane, index = request.query_params.get("plane", ""), number(request, "index")
    run = request.query_params.get("run")
    if run is None:
        return Response(project.mask(key).slice(plane, index).tobytes(), media_type=_BINARY)
    stack = project.image(key).views[plane].of_labels(session_of(request).predicted(run, key))
    if not 0 <= index < len(stack):
        raise IndexError(index)
    return Response(stack[index].tobytes(), media_type=_BINARY)


def thumbnail(request: Request) -> Response:
    """Return a small picture of the slice that holds most of the labels, with these on it."""
    project, key = _asked(request)
    run = request.query_params.get("run")
    classes = project.mask(key).classes if run is None else session_of(request).predicted(run, key)
    content = picture_of(project.image(key), classes, _THUMBNAIL)
    return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


async def edit(request: Request) -> Response:
    """Replace a box of the label map by what the body holds, 8 bits a pixel.

    This and the other changes are told by what stamp the user knows the label map, if the page says so, and refused
    where it is another by now: a stroke is a box, with all that was seen around the brush.
    """
    project, key = _asked(request)
    shape = tuple(number(request, name) for name in ("slices", "height", "width"))
    corner = (number(request, "start"), number(request, "top"), number(request, "left"))
    content = await request.body()
    if len(content) != shape[0] * shape[1] * shape[2] or shape[0] > _MOST_DEPTH:
        expected = "a byte for each pixel"
        raise InputError("the stroke", expected=expected, found=f"{len(content)} bytes", do="Load the page again.")
    classes = np.frombuffer(content, np.uint8).reshape(shape)
    kind = request.query_params.get("kind", "brush")[:20]
    plane = request.query_params.get("plane", "")
    seen = request.query_params.get("seen")
    _, now = await run_in_threadpool(_changed, project, key, seen, lambda mask: mask.edit(kind, plane, corner, classes))
    return Json(now)


async def undo(request: Request) -> Response:
    """Take the last edit back."""
    project, key = _asked(request)
    box, now = await run_in_threadpool(_changed, project, key, await _seen(request), PaintedMask.undo)
    return Json({**now, "at": None if box is None else [box.plane, box.start]})


async def redo(request: Request) -> Response:
    """Do an edit again."""
    project, key = _asked(request)
    box, now = await run_in_threadpool(_changed, project, key, await _seen(request), PaintedMask.redo)
    return Json({**now, "at": None if box is None else [box.plane, box.start]})


async def interpolate(request: Request) -> Response:
    """Fill the slices between the outlined ones beside the one that is shown."""
    project, key = _asked(request)
    asked = await document(request)
    plane, index, label = str(asked.get("plane")), number_in(asked, "index", 0), number_in(asked, "label", 1)
    views = project.image(key).views

    def fill(mask: PaintedMask) -> int:
        return _interpolated(mask, views, plane, index, label)

    filled, now = await run_in_threadpool(_changed, project, key, await _seen(request), fill)
    return Json({**now, "filled": filled})


async def finish(request: Request) -> Response:
    """Write the mask into the dataset."""
    return await _moved(request, Project.finish)


async def reopen(request: Request) -> Response:
    """Take the mask out of the dataset again, which makes it a draft."""
    return await _moved(request, Project.reopen)


async def _moved(request: Request, move: Callable[[Project, str], None]) -> Response:
    """Move a mask into the dataset or out of it, if it is what the user sees."""
    project, key = _asked(request)
    return Json(await run_in_threadpool(_changed_in, project, key, await _seen(request), lambda _: move(project, key)))


async def begin(request: Request) -> Response:
    """Start the label map anew: from a prediction, from an earlier version, or empty."""
    project, key = _asked(request)
    asked, seen = await document(request), await _seen(request)
    if asked.get("run"):
        run = project.runs.found()[str(asked["run"])]
        path = predictions(project, run)[key]
        prediction_of(project, run, key)

        def change(mask: PaintedMask) -> None:
            mask.begin("prediction", (path,))
            if asked.get("accept"):
                project.finish(key)

    elif asked.get("version"):
        version = number_in(asked, "version", 0)

        def change(mask: PaintedMask) -> None:
            mask.revert(version)

    else:

        def change(mask: PaintedMask) -> None:
            mask.begin("empty")

    now = await run_in_threadpool(_changed_in, project, key, seen, change)
    project.touch()
    return Json(now)


def _changed_in(project: Project, key: str, seen: str | None, change: Callable[[PaintedMask], None]) -> dict[str, Any]:
    """Change a label map by what may also change the folder; see `_changed`."""
    with project.lock:
        _, now = _changed(project, key, seen, change)
        return now


def _changed(
    project: Project, key: str, seen: str | None, change: Callable[[PaintedMask], Changed]
) -> tuple[Changed, dict[str, Any]]:
    """Change a label map, if it is the one that the user has seen; return what comes of it, and where it stands then.

    Nobody else changes it in between: else the user would be told the stamp of what has not been seen.
    """
    project.keep_labels(key)
    with _held(project, key) as mask:
        folder = _folder_stamp(project)  # the classes of the change are those of now, whatever they become meanwhile
        if seen not in (None, f"{folder}.{mask.stamp}"):
            raise ChangedElsewhere
        return change(mask), _described(mask, folder)


@contextlib.contextmanager
def _held(project: Project, key: str) -> Iterator[PaintedMask]:
    """Hold the label map of an image for the block: nobody else changes it."""
    while True:
        mask = project.mask(key)
        with mask.lock:
            if not mask.dropped:  # while the lock was waited for
                yield mask
                return


def _interpolated(mask: PaintedMask, views: Mapping[str, SliceView], plane: str, index: int, label: int) -> int:
    stack = mask.stack(plane)
    gaps = gaps_beside(np.array([(each == label).any() for each in stack]), index)
    if not gaps:
        raise InputError(
            "the label",
            expected="outlines on two slices with others between them",
            found="none beside this slice",
            do="Outline it on a slice above or below, then interpolate.",
        )
    for low, high in gaps:
        inside = between(stack[low] == label, stack[high] == label, high - low - 1, views[plane].spacing)
        within = stack[low + 1 : high]
        mask.edit(
            "interpolate", plane, (low + 1, 0, 0), np.where(inside & (within == 0), label, within).astype(np.uint8)
        )
    return sum(high - low - 1 for low, high in gaps)


def _folder_stamp(project: Project) -> str:
    """What stamps of label maps begin with: images of two folders can have one name, and classes another meaning."""
    return f"{id_of(str(project.root))}.{project.meaning}"


async def _seen(request: Request) -> str | None:
    stamp = (await document(request)).get("seen")
    return None if stamp is None else str(stamp)


def _described(mask: PaintedMask, folder: str) -> dict[str, Any]:
    """Say where a label map stands, which is held meanwhile."""
    return {
        "stamp": f"{folder}.{mask.stamp}",
        "state": mask.state,
        "undo": mask.can_undo,
        "redo": mask.can_redo,
        "history": mask.history,
        "empty": not mask.classes.any(),
        "unwritten": mask.problem if mask.state == "done" and mask.changed is not None else "",
        "why_not": mask.place.why_not,
    }


def _asked(request: Request) -> tuple[Project, str]:
    project, _ = session_of(request).need()
    key = request.path_params["key"]
    project.item(key)
    return project, key


def _route(path: str, endpoint: Any, method: str = "GET") -> Route:
    return Route(f"/api/cases/{{key}}{path}", endpoint, methods=[method])


ROUTES = [
    _route("", about),
    _route("/image", image_slice),
    _route("/labels", label_slice),
    _route("/thumbnail", thumbnail),
    _route("/edit", edit, "POST"),
    _route("/undo", undo, "POST"),
    _route("/redo", redo, "POST"),
    _route("/interpolate", interpolate, "POST"),
    _route("/finish", finish, "POST"),
    _route("/reopen", reopen, "POST"),
    _route("/begin", begin, "POST"),
]
