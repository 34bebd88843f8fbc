"""A look at a case while a run trains: what its weights of the last evaluation make of it.

The case is segmented by a process of its own, beside the training and after it in priority, once for an evaluation and
only while somebody looks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medsaga import run_folder
from medsaga.app.jobs import Job, Jobs
from medsaga.app.pictures import picture_of
from medsaga.app.project import Project
from medsaga.app.results import command_for, read_prediction
from medsaga.app.training import evaluated_step, role_of
from medsaga.data.formats import is_image
from medsaga.errors import InputError

_SIZE = 420
"""Pixels of the longer side."""


@dataclass
class Preview:
    """How far the look at one run is.

    Attributes:
        key: of the image.
        folder: for its label map.
        step: after which the weights were that the picture is of; 0 while there is none.
        job: that segments it with the weights after ``asked``.
        asked: see ``job``.
    """

    key: str
    folder: Path
    step: int = 0
    job: Job | None = None
    asked: int = 0

    def look(self, project: Project, jobs: Jobs, run: Path) -> None:
        """Take note of what is done, and ask for the next picture where there are new weights."""
        if self.job is not None and self.job.state in ("done", "failed", "stopped"):
            if self.job.state == "done":
                self.step = self.asked
            self.job = None
        newest = evaluated_step(run)
        if self.job is None and newest > self.asked and (run / run_folder.MODEL).exists():
            self.asked = newest
            inputs = command_for(project, run, [project.item(self.key)], self.folder)
            self.job = jobs.add("preview", [*inputs, "--tta", "none"])

    def picture(self, project: Project, run: Path) -> bytes:
        """Return the picture as PNG.

        Raises:
            InputError: there is none yet.
        """
        found = [path for path in sorted(self.folder.glob("*")) if is_image(path)] if self.folder.is_dir() else []
        if not self.step or not found:
            raise InputError("the picture", expected="one", found="none yet", do="Wait for the first evaluation.")
        classes = read_prediction(project, project.item(self.key), run, found[0])
        return picture_of(project.image(self.key), classes, _SIZE)


def preview_of(project: Project, run: Path) -> Preview:
    """Choose a case to look at, which is none that is trained on where there is another."""
    order = {"test": 0, "new": 1, "validation": 2, "train": 3}
    key = min(project.items, key=lambda each: (order[role_of(project.item(each), run)], project.item(each).name))
    return Preview(key, project.own / "previews" / run.name)
