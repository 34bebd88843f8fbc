"""``medsaga federate simulate``: all sites and the server in one process, with the messages that would travel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from medsaga import files, run_folder
from medsaga.errors import InputError, Interrupted
from medsaga.federated.baselines import Outcome, alone, pooled
from medsaga.federated.client import client_app
from medsaga.federated.experiment import Experiment, agreed, prepared
from medsaga.federated.grid import InProcessGrid
from medsaga.federated.options import Federation, require_enough, settings_for
from medsaga.federated.page import experiments_in, write_page
from medsaga.federated.partition import Partition, divide
from medsaga.federated.results import result_of
from medsaga.federated.server import Rounds, State
from medsaga.federated.site import LocalSite
from medsaga.federated.start import first_state, save_common_model
from medsaga.planning.resolve import choose_model, find_weights, without_effect
from medsaga.runs.loading import warn
from medsaga.settings.options import Settings, named

PARTITION = "sites.json"
"""In the folder of a simulation: which cases are at which site. All experiments in it share them."""
REQUESTED = "federation.json"
"""In the folder of an experiment: what was asked for."""


def simulate(
    data: Path,
    out: Path,
    settings: Settings,
    federation: Federation,
    *,
    sites: int = 4,
    by: str | None = None,
    console: Console,
    seen: Callable[[Message], None] = lambda _: None,
) -> dict[str, Any]:
    """Train one model at several sites that exchange no images, test it at each, and write a run folder and a page.

    Each call is one experiment: a method and a way to exchange, with a folder of its own in ``out``. An experiment that
    was stopped goes on with the round after its last; one that is complete is not run again. The page compares all that
    lie in ``out``.

    Args:
        data: the dataset, or a folder with one for each site.
        out: folder of the simulation.
        settings: of each site's training.
        federation: how the sites train together.
        sites: how many, where cases are divided at random.
        by: a column of ``cases.csv``, or ``folder``; None for random.
        console: where progress is shown.
        seen: called with every message that would travel.

    Returns:
        the content of the experiment's ``result.json``.

    Raises:
        InputError: the data or the settings cannot be used, or ``out`` holds something else.
        Interrupted: the user pressed Ctrl-C; the rounds that are complete are kept.
        RunError: fewer sites than wanted have given a usable answer.
    """
    files.require_writable(out)
    settings = settings_for(settings, federation)
    choice = choose_model(settings)
    find_weights(choice)
    warn(console, without_effect(choice))
    partition = divide(data, settings, console, sites=sites, by=by)
    require_enough(federation, len(partition.sites))
    config = agreed(data, settings, federation, partition)
    _check_same(out / PARTITION, _described(partition), "the sites of this simulation")
    folder = out / f"{settings.method or 'medsaga'}-{federation.name}"
    asked = {"settings": named(settings), "federation": federation.asked()}
    _check_same(folder / REQUESTED, asked, "what this experiment began with")
    result_file = folder / run_folder.RESULT
    if not result_file.exists():
        try:
            with prepared(folder, config, federation, partition, asked, console) as experiment:
                result = _experiment(experiment, console, seen)
                for run in experiment.runs.values():
                    run.remove_cache()
        except (Interrupted, KeyboardInterrupt):
            said = f"{folder}: stopped; the rounds that are complete are kept. The same command goes on."
            raise Interrupted(said) from None
        # Last: it says that the experiment is complete.
        files.write_json(result_file, result)
    write_page(out, experiments_in(out), title=data.resolve().name)
    document: dict[str, Any] = files.read_json(result_file)
    return document


def _experiment(experiment: Experiment, console: Console, seen: Callable[[Message], None]) -> dict[str, Any]:
    """Train and test; return the result."""
    ways: dict[str, Callable[[], Outcome]] = {
        "alone": lambda: alone(experiment, console),
        "pooled": lambda: pooled(experiment, console),
    }
    together = ways.get(experiment.federation.exchange, lambda: _together(experiment, console, seen))
    scores, history = together()
    config = experiment.config
    return result_of(
        experiment.labels,
        scores,
        history,
        method=config.settings.method,
        federation=experiment.federation,
        trained_on={site.name: len(site.split.train) for site in experiment.partition.sites},
        untested={},
    )


def _together(experiment: Experiment, console: Console, seen: Callable[[Message], None]) -> Outcome:
    """Make all rounds, test, and write the common model."""
    folder, federation, settings = experiment.folder, experiment.federation, experiment.config.settings
    nodes = {name: number for number, name in enumerate(sorted(experiment.runs), start=1)}
    apps = {number: _app(LocalSite(experiment.runs[name], federation, console)) for name, number in nodes.items()}
    state = State.load(folder) or first_state(experiment.model, settings, federation, experiment.symmetries)
    rounds = Rounds(
        InProcessGrid(apps, seen),
        nodes=lambda: nodes,
        federation=federation,
        state=state,
        keep=lambda state: state.save(folder),
        tell=lambda text: console.print(text, markup=False, highlight=False),
    )
    scores = {}
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        rounds.run()
        scores.update(rounds.test(len(experiment.labels))[0])

    app(rounds.grid, Context(0, 0, {}, RecordDict(), {}))
    save_common_model(folder, experiment.model, state)
    return scores, state.history


def _app(site: LocalSite) -> ClientApp:
    def failed(error: Exception) -> None:
        raise error

    return client_app(lambda _: site, failed)


def _described(partition: Partition) -> dict[str, Any]:
    """Return a partition as JSON has it."""
    sites = {site.name: site.split.to_json() for site in partition.sites}
    return {"data_fingerprint": partition.loaded.fingerprint, "sites": sites}


def _check_same(path: Path, document: dict[str, Any], what: str) -> None:
    """Write a document, or make sure that it is the one that was written before.

    Raises:
        InputError: it is another one.
    """
    if not path.exists():
        files.write_json(path, document)
        return
    before = files.read_json(path)
    if before != document:
        differing = [name for name in document if before.get(name) != document[name]]
        raise InputError(
            path,
            expected=what,
            found=f"other {' and '.join(differing)}",
            do="Choose another --out, or give the options that it began with.",
        )
