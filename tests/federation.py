"""A small federation in this process, of which a test sees every part."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from rich.console import Console
from torch import Tensor

from medsaga.federated.averaging import Answer
from medsaga.federated.client import client_app
from medsaga.federated.experiment import Experiment, agreed, prepared
from medsaga.federated.grid import InProcessGrid
from medsaga.federated.options import Federation, settings_for
from medsaga.federated.orders import Order
from medsaga.federated.partition import divide
from medsaga.federated.server import Rounds, State
from medsaga.federated.site import LocalSite
from medsaga.federated.start import first_state
from medsaga.models.precision import cast_parameters
from medsaga.settings.options import Settings

QUIET = Console(quiet=True)
TINY = Settings(model="tiny", random_weights=True, image_size=32, batch_size=2, rank=4, device="cpu")


@dataclass(eq=False)
class Together:
    """A federation that can start.

    Attributes:
        experiment: its folders, sites and model.
        rounds: its server.
        said: what the server has told.
        errors: what has gone wrong at sites.
    """

    experiment: Experiment
    rounds: Rounds
    said: list[str]
    errors: list[Exception]

    @property
    def state(self) -> State:
        """Where the rounds stand."""
        return self.rounds.state

    def ended(self, site: str, number: int) -> dict[str, Tensor]:
        """Return all weights with which a site has ended a round."""
        state = torch.load(self.experiment.runs[site].folder / f"rounds/{number:04d}/state.pt", weights_only=True)
        weights: dict[str, Tensor] = state["model"]
        return weights


@dataclass
class Changed:
    """A site whose answers are changed before they leave.

    Attributes:
        site: that does the work.
        change: makes another answer of the answer to a training order.
    """

    site: LocalSite
    change: Callable[[Order, Answer], Answer]

    @property
    def bits(self) -> int:
        """As the site's."""
        return self.site.bits

    def sketch(self, order: Order) -> Answer:
        """Do as the site does."""
        return self.site.sketch(order)

    def train(self, order: Order) -> Answer:
        """Answer in another way."""
        return self.change(order, self.site.train(order))

    def scores(self, order: Order) -> Any:
        """Do as the site does."""
        return self.site.scores(order)


def _given(site: Any, _: Context) -> Any:
    return site


@contextlib.contextmanager
def together(
    data: Path,
    folder: Path,
    federation: Federation,
    *,
    settings: Settings = TINY,
    sites: int = 3,
    double: bool = False,
    changes: Mapping[str, Callable[[Order, Answer], Answer]] | None = None,
    seen: Callable[[Message], None] = lambda _: None,
) -> Iterator[Together]:
    """Prepare a federation on a dataset.

    Args:
        data: the dataset.
        folder: of the experiment; one that is there is gone on with.
        federation: how the sites train together.
        settings: of each site.
        sites: how many.
        double: whether all weights are float64.
        changes: of the answers of some sites, by name.
        seen: called with every message.
    """
    settings = settings_for(settings, federation)
    partition = divide(data, settings, QUIET, sites=sites, by=None)
    said: list[str] = []
    errors: list[Exception] = []
    config = agreed(data, settings, federation, partition)
    with prepared(folder, config, federation, partition, {}, QUIET) as experiment:
        if double:
            cast_parameters(experiment.model, torch.float64)
        nodes = {name: number for number, name in enumerate(experiment.runs, start=1)}
        apps: dict[int, ClientApp] = {}
        for name, run in experiment.runs.items():
            local = LocalSite(run, federation, QUIET)
            site = Changed(local, changes[name]) if changes and name in changes else local
            apps[nodes[name]] = client_app(partial(_given, site), errors.append)
        state = State.load(folder) or first_state(
            experiment.model, experiment.config.settings, federation, experiment.symmetries
        )
        rounds = Rounds(
            InProcessGrid(apps, seen),
            nodes=lambda: nodes,
            federation=federation,
            state=state,
            keep=lambda state: state.save(folder),
            tell=said.append,
        )
        yield Together(experiment, rounds, said, errors)
