"""What the server knows while it runs: the open project, its jobs, and the thread that keeps both in order."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from medsaga import files
from medsaga.app.jobs import Jobs
from medsaga.app.opening import open_folder
from medsaga.app.preview import Preview, preview_of
from medsaga.app.project import Project
from medsaga.app.results import predict_command, prediction_of, predictions
from medsaga.data.dataset import read_dataset
from medsaga.data.survey import survey
from medsaga.errors import InputError, MedsagaError

_SAVE_EVERY = 0.5
_KEPT_NOTICES = 20
_WATCH_EVERY = 4
"""Rounds of saving between two looks for masks that other programs have written."""


class Session:
    """The state of the server.

    Args:
        folder: where the user starts to look for data.

    Attributes:
        folder: see above.
        project: that is open; None at first.
        jobs: of the open project.
        estimates: of memory, and looks at cases, which do not wait for a training.
        previews: the looks at runs that train.
        notices: what the user should know, the newest last, each with its number: the page says each once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project: Project | None = None
        self.jobs: Jobs | None = None
        self.estimates: Jobs | None = None
        self.previews: dict[Path, Preview] = {}
        self.notices: list[dict[str, Any]] = []
        self._wrong: set[str] = set()
        self._predicted: tuple[tuple[str, str, str, int, tuple[int, ...]], npt.NDArray[np.uint8]] | None = None
        self._survey: Connection | None = None
        self._found: dict[str, Any] | None = None
        self._lock = threading.Lock()
        self._held: IO[bytes] | None = None
        self._ended = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._keeper.start()

    def open(self, path: Path) -> Project:
        """Open a folder, and look through its files in a process of its own.

        Raises:
            InputError: it cannot be opened, or a job of the project that is open still runs.
        """
        project = open_folder(path)
        with self._lock:
            moves = self.project is not None and project.root != self.project.root
            if self.project is not None:
                if moves and self.jobs and any(job.state in ("waiting", "running") for job in self.jobs.all()):
                    raise InputError(
                        "another folder",
                        expected="no training under way in this one",
                        found="one",
                        do="Stop it, or wait for its end.",
                    )
                self.project.save_changes(at_once=True)
            self._hold(project)
            if moves:
                self._close_jobs()
            self.project = project
            self.jobs = self.jobs or Jobs(project.own / "jobs")
            self.estimates = self.estimates or Jobs(project.own / "jobs" / "estimates")
            self._survey, self._found = _in_process(project.root), None
        return project

    def found(self) -> dict[str, Any] | None:
        """Return what is wrong with the data; None while they are looked through."""
        with self._lock:
            if self._found is None and self._survey is not None and self._survey.poll():
                try:
                    self._found = self._survey.recv()
                except (EOFError, OSError):  # it was killed; the page works without its word
                    self._found = {"problems": [], "warnings": ["the files could not be looked through"]}
                self._survey.close()
                self._survey = None
            return self._found

    def need(self) -> tuple[Project, Jobs]:
        """Return the open project and its jobs.

        Raises:
            InputError: none is open.
        """
        if self.project is None or self.jobs is None:
            raise InputError("the page", expected="an open folder", found="none", do="Open one first.")
        return self.project, self.jobs

    def predict(self, run: Path, key: str) -> None:
        """Put the segmentation of all other cases by a run into the queue."""
        project, jobs = self.need()
        jobs.add("predict", predict_command(project, run), run=key, then=project.touch)

    def predicted(self, run: str, key: str) -> npt.NDArray[np.uint8]:
        """Return a predicted label map as class indices, ``(*shape)``; the last one that was asked for is kept.

        Args:
            run: id of the run.
            key: id of the image.

        Raises:
            InputError: there is none, or it cannot be read.
        """
        project, _ = self.need()
        folder = project.runs.found()[run]
        path = predictions(project, folder).get(key)
        labels = tuple(project.dataset.labels.values())  # which the indices are of
        stamp = (str(project.root), run, key, path.stat().st_mtime_ns if path else 0, labels)
        with self._lock:
            if self._predicted is None or self._predicted[0] != stamp:
                self._predicted = (stamp, prediction_of(project, folder, key))
            return self._predicted[1]

    def preview(self, run: Path) -> Preview:
        """Return the look at a run, which goes on by being asked for."""
        project, _ = self.need()
        assert self.estimates is not None, "an open project has them"
        with self._lock:
            if run not in self.previews:
                self.previews[run] = preview_of(project, run)
            found = self.previews[run]
            found.look(project, self.estimates, run)
            return found

    def close(self) -> None:
        """Write what was painted, and stop what runs."""
        self._ended.set()
        self._keeper.join()
        if self.project is not None:
            self.project.save_changes(at_once=True)
        self._close_jobs()
        if self._held is not None:
            self._held.close()
            self._held = None

    def _hold(self, project: Project) -> None:
        """Take the folder for this server alone: two would write one journal."""
        if self.project is not None and self.project.root == project.root:
            return
        files.require_writable(project.own, "Copy the folder to a place that can be written to.")
        project.own.mkdir(exist_ok=True)
        held = files.locked(project.own / "lock")
        if held is None:
            raise InputError(
                project.root.name,
                expected="a folder that no other page has open",
                found="one that is open in another",
                do="Go on there, or end it.",
            )
        if self._held is not None:
            self._held.close()
        self._held = held

    def _close_jobs(self) -> None:
        for jobs in (self.jobs, self.estimates):
            if jobs is not None:
                jobs.close()
        self.jobs = self.estimates = None

    def _keep(self) -> None:
        rounds = 0
        while not self._ended.wait(_SAVE_EVERY):
            project, rounds = self.project, rounds + 1
            if project is None:
                continue
            self._keep_in_order(project, watch=rounds % _WATCH_EVERY == 0)

    def _keep_in_order(self, project: Project, *, watch: bool) -> None:
        """Write what was painted, look for what others have written, and say what the user should know of it."""
        wrong = set()
        try:
            wrong = {f"Not written into the folder: {text}" for text in project.save_changes().values()}
            if watch and project.watch():
                self.say("masks or labels were changed by another program and have been taken over")
        except (MedsagaError, OSError) as error:
            wrong.add(str(error))
        except Exception as error:  # without this thread nothing more would be written
            wrong.add(f"the folder could not be looked at: an error of the page, {type(error).__name__}")
        for text in [*project.said(), *sorted(wrong - self._wrong)]:
            self.say(text)
        # What goes on being wrong is said once; what was found while watching stands until the next look.
        self._wrong = wrong if watch else self._wrong | wrong

    def say(self, text: str) -> None:
        """Tell the user something, who may have been told the same before."""
        number = self.notices[-1]["number"] + 1 if self.notices else 1
        self.notices = [*self.notices[1 - _KEPT_NOTICES :], {"number": number, "text": text}]


def _look_through(root: str, answer: Connection) -> None:
    """Decode every file of a dataset once and send what is wrong with them, as JSON."""
    dataset = read_dataset(Path(root), masks_required=False)
    found = survey(dataset)
    # Nobody listens any more where the server was killed.
    with contextlib.suppress(OSError):
        answer.send(
            {
                "problems": [str(each) for each in (*dataset.problems, *found.problems)],
                "warnings": [*dataset.warnings, *found.warnings],
            }
        )


def _in_process(root: Path) -> Connection:
    """Look through a dataset in a process of its own: decoding would hold up the slices that are asked for."""
    spawning = multiprocessing.get_context("spawn")
    received, sent = spawning.Pipe(duplex=False)
    spawning.Process(target=_look_through, args=(str(root), sent), daemon=True).start()
    sent.close()
    return received
