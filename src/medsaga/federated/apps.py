"""The two apps that Flower starts: the server's, in the server's folder, and a hospital's, in its own.

Which folder that is, they learn from their environment, so that no path is in any message. What they have to say to the
user they leave in a file of that folder; the command that the user has started prints it.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from medsaga import files, run_folder
from medsaga.data.intensity import Intensity
from medsaga.errors import InputError, MedsagaError
from medsaga.federated.client import answered, client_app
from medsaga.federated.hospital import RUN, Hospital
from medsaga.federated.plan import Plan
from medsaga.federated.processes import Said
from medsaga.federated.results import result_of
from medsaga.federated.roster import Roster
from medsaga.federated.server import Rounds, State
from medsaga.federated.site import LocalSite
from medsaga.federated.start import first_state, save_common_model
from medsaga.runs.prepare import manifest_of, new_model

FOLDER = "MEDSAGA_FEDERATION"
"""The environment variable that names the folder of the server or the site."""
SAID = "said.txt"
HOW = "how.json"
"""In the server's folder: for how many sites it waits, and how long."""
FAILED, OVER, DIFFERS = "failed: ", "over", "differs: "
"""How lines begin after which the command that waits for them ends."""
MISMATCH = "its labels, channels, model, weights or version differ; the site itself says which"

server = ServerApp()


@server.main()
def _serve(grid: Grid, context: Context) -> None:
    folder = Path(os.environ[FOLDER])
    said = Said(folder / SAID)
    try:
        serve_rounds(grid, folder, said)
        said.say(OVER)
    except MedsagaError as error:
        said.say(f"{FAILED}{error}")
    except Exception as error:
        (folder / "traceback.txt").write_text(traceback.format_exc())
        said.say(f"{FAILED}{type(error).__name__}: {error} (unexpected; {folder / 'traceback.txt'})")
        raise


def serve_rounds(grid: Grid, folder: Path, said: Said) -> None:
    """Gather the sites, make all rounds that are left, and write the result.

    Args:
        grid: Flower's.
        folder: of the server.
        said: takes what the user should know.
    """
    plan, how = Plan.read(folder), files.read_json(folder / HOW)
    config = plan.config("", (), {"device": "cpu"})
    model, info = new_model(config, Console(quiet=True))
    roster = Roster(grid, plan, folder, said.say, how["timeout"])
    symmetries = roster.gather(how["sites"], how["wait"])
    state = State.load(folder) or first_state(model, config.settings, plan.federation, symmetries)
    rounds = Rounds(
        grid,
        nodes=roster.nodes,
        federation=plan.federation,
        state=state,
        keep=lambda state: state.save(folder),
        tell=said.say,
        timeout=how["timeout"],
    )
    rounds.run()
    agreed = files.read_json(folder / "agreed.json")
    intensities = tuple(Intensity(**each) for each in agreed["intensities"])
    plan.config("", intensities, {"device": "cpu"}).write(folder / run_folder.CONFIG)
    files.write_json(
        folder / run_folder.MANIFEST, manifest_of("", config, model.device, info) | {"requested": how["asked"]}
    )
    save_common_model(folder, model, state, config.settings)
    scores = rounds.test()
    result = result_of(
        [name for name, value in plan.labels.items() if value != 0],
        scores,
        state.history,
        method=config.settings.method,
        federation=plan.federation,
        trained_on={name: int(site["cases"]) for entry in state.history for name, site in entry["sites"].items()},
    )
    files.write_json(folder / run_folder.RESULT, result)
    roster.end()


def _hospital() -> Hospital:
    return Hospital.read(Path(os.environ[FOLDER]))


def _said() -> Said:
    return Said(Path(os.environ[FOLDER]) / SAID)


def _console() -> Console:
    return Console(stderr=True, quiet=True)


def _site(context: Context) -> LocalSite:
    return _hospital().site(_console(), _said().say)


def _failed(error: Exception) -> None:
    folder = Path(os.environ[FOLDER])
    (folder / "traceback.txt").write_text("".join(traceback.format_exception(error)))
    _said().say(f"this order failed here: {error} (where: {folder / 'traceback.txt'})")


client = client_app(_site, _failed)


@client.query("hello")
def _hello(message: Message, context: Context) -> Message:
    text = str(cast(Mapping[str, Any], message.content["server"])["plan"])
    try:
        return answered(
            message, lambda: RecordDict({"site": ConfigRecord(dict(_hospital().greet(Plan.from_json(text))))}), _raise
        )
    except InputError as error:
        _said().say(f"{DIFFERS}{error}")
        return Message(Error(2, MISMATCH), reply_to=message)
    except Exception as error:
        _failed(error)
        return Message(Error(2, MISMATCH), reply_to=message)


def _raise(error: Exception) -> None:
    raise error


@client.query("begin")
def _begin(message: Message, context: Context) -> Message:
    def begun() -> RecordDict:
        text = str(cast(Mapping[str, Any], message.content["server"])["intensities"])
        intensities = tuple(Intensity(**each) for each in json.loads(text))
        symmetries = _hospital().begin(intensities, _console())
        _said().say("the images are prepared; training begins")
        return RecordDict({"site": ConfigRecord({"symmetries": list(symmetries)})})

    return answered(message, begun, _failed)


@client.query("end")
def _end(message: Message, context: Context) -> Message:
    folder = Path(os.environ[FOLDER])
    result = files.read_json(folder / RUN / run_folder.RESULT) if (folder / RUN / run_folder.RESULT).exists() else {}
    _said().say(f"Dice of the common model on the cases here: {result.get('dice_mean')}")
    _said().say(OVER)
    return Message(RecordDict(), reply_to=message)
