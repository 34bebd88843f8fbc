"""The two apps that Flower starts: the server's, in the server's folder, and a hospital's, in its own.

Which folder that is, they learn from their environment, so that no path is in any message. What they have to say to the
user they leave in a file of that folder; the command that the user has started prints it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from medsaga import files, run_folder
from medsaga.data.intensity import Intensity
from medsaga.errors import InputError, MedsagaError
from medsaga.evaluation.summary import dice_text
from medsaga.federated.client import MISMATCH, answered, client_app
from medsaga.federated.hospital import RUN, Hospital
from medsaga.federated.plan import Plan
from medsaga.federated.processes import TOLD, Said
from medsaga.federated.results import result_of
from medsaga.federated.roster import AGREED, Roster
from medsaga.federated.server import Rounds, State
from medsaga.federated.start import first_state, save_common_model
from medsaga.runs.prepare import manifest_of, new_model

FOLDER = "MEDSAGA_FEDERATION"
"""The environment variable that names the folder of the server or the site."""
SAID, TRACEBACK = "said.txt", "traceback.txt"
HOW = "how.json"
"""In the server's folder: for how many sites it waits, and how long."""
FAILED, OVER, DIFFERS = "failed", "over", "differs"
"""Kinds of what is said after which the command that waits for it ends."""
STARTED, LOCK = "started", "app.lock"
"""What the server's app says first, and the file in its folder that it has locked from then to its end."""
_TESTED = "tested.json"
"""What becomes ``result.json`` when the sites have been told that it is over."""
_PAUSE = 0.5

server = ServerApp()


@server.main()
def _serve(grid: Grid, context: Context) -> None:
    folder = Path(os.environ[FOLDER])
    said = Said(folder / SAID)
    while (lock := files.locked(folder / LOCK)) is None:  # an app whose server was killed has not ended yet
        time.sleep(_PAUSE)
    said.say("", STARTED)
    try:
        serve_rounds(grid, folder, said)
        said.say("", OVER)
    except MedsagaError as error:
        said.say(str(error), FAILED)
    except Exception as error:
        (folder / TRACEBACK).write_text(traceback.format_exc(), encoding="utf-8")
        said.say(f"{type(error).__name__}: {error} (unexpected; {folder / TRACEBACK})", FAILED)
        raise
    finally:
        lock.close()


def serve_rounds(grid: Grid, folder: Path, said: Said) -> None:
    """Gather the sites, make all rounds that are left, tell the sites that it is over, and write the result.

    Args:
        grid: Flower's.
        folder: of the server.
        said: takes what the user should know.
    """
    plan, how = Plan.read(folder), files.read_json(folder / HOW)
    roster = Roster(grid, plan, folder, said.say, how["timeout"])
    tested = folder / _TESTED
    # A server that was stopped while it told the sites needs those no more that have heard it and gone.
    if not tested.exists():
        files.write_json(tested, _trained_and_tested(grid, folder, said, plan, roster))
    roster.end(how["sites"])
    # Last: it says that the federation is complete.
    tested.replace(folder / run_folder.RESULT)


def _trained_and_tested(grid: Grid, folder: Path, said: Said, plan: Plan, roster: Roster) -> dict[str, Any]:
    """Make all rounds that are left, and write the common model; return the result."""
    how = files.read_json(folder / HOW)
    config = plan.config("", (), {"device": "cpu"})
    model, info = new_model(config, Console(quiet=True))
    symmetries = roster.gather(how["sites"], how["wait"])
    state = State.load(folder) or first_state(model, config.settings, plan.federation, symmetries)

    def nodes() -> dict[str, int]:
        there = roster.nodes()
        state.symmetries = roster.symmetries  # of those that have come late, too
        return there

    rounds = Rounds(
        grid,
        nodes=nodes,
        federation=plan.federation,
        state=state,
        keep=lambda state: state.save(folder),
        tell=said.say,
        timeout=how["timeout"],
    )
    rounds.run()
    agreed = files.read_json(folder / AGREED)
    intensities = tuple(Intensity(**each) for each in agreed["intensities"])
    plan.config("", intensities, {"device": "cpu"}).write(folder / run_folder.CONFIG)
    files.write_json(
        folder / run_folder.MANIFEST, manifest_of("", config, model.device, info) | {"requested": how["asked"]}
    )
    save_common_model(folder, model, state)
    labels = [name for name, value in plan.labels.items() if value != 0]
    scores, untested = rounds.test(len(labels))
    return result_of(
        labels,
        scores,
        state.history,
        method=config.settings.method,
        federation=plan.federation,
        trained_on={name: int(site["cases"]) for entry in state.history for name, site in entry["sites"].items()},
        untested=untested,
    )


def hospital_app(folder: Callable[[], Path]) -> ClientApp:
    """Return the app of a hospital.

    Args:
        folder: gives that of the hospital; see `medsaga.federated.hospital.open_folder`.
    """
    console = Console(stderr=True, quiet=True)

    def say(text: str, kind: str = TOLD) -> None:
        Said(folder() / SAID).say(text, kind)

    def failed(error: Exception) -> None:
        # Where the folder is gone, this fails as well, and Flower would send the server what the error says: a path.
        with contextlib.suppress(Exception):
            (folder() / TRACEBACK).write_text("".join(traceback.format_exception(error)), encoding="utf-8")
            if isinstance(error, InputError):
                say(str(error), DIFFERS)
            else:
                say(f"this order failed here: {error} (where: {folder() / TRACEBACK})")

    app = client_app(lambda _: Hospital.read(folder()).site(console, say), failed)

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        def greeted() -> RecordDict:
            plan = Plan.from_json(str(_of_server(message)["plan"]))
            return RecordDict({"site": ConfigRecord({**Hospital.read(folder()).greet(plan)})})

        answer = answered(message, greeted, failed)
        return Message(Error(answer.error.code, MISMATCH), reply_to=message) if answer.has_error() else answer

    @app.query("begin")
    def begin(message: Message, context: Context) -> Message:
        def begun() -> RecordDict:
            entries = json.loads(str(_of_server(message)["intensities"]))
            symmetries = Hospital.read(folder()).begin(tuple(Intensity(**each) for each in entries), console)
            say("the images are prepared; training begins")
            return RecordDict({"site": ConfigRecord({"symmetries": list(symmetries)})})

        return answered(message, begun, failed)

    @app.query("end")
    def end(message: Message, context: Context) -> Message:
        def ended() -> RecordDict:
            path = folder() / RUN / run_folder.RESULT
            try:
                if path.exists():
                    say(f"Dice of the common model on the cases here: {dice_text(files.read_json(path)['dice_mean'])}")
            finally:
                say("", OVER)
            return RecordDict()

        return answered(message, ended, failed)

    return app


def _of_server(message: Message) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], message.content["server"])


client = hospital_app(lambda: Path(os.environ[FOLDER]))
