"""What a site sends, right or wrong, through the rounds of a server: no model is trained."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from flwr.app import Message

from medsaga.federated.averaging import Answer
from medsaga.federated.client import client_app
from medsaga.federated.grid import InProcessGrid
from medsaga.federated.options import Federation
from medsaga.federated.orders import Order, Scores
from medsaga.federated.results import result_of
from medsaga.federated.server import Rounds, State

FACTS = {"loss": 1.0, "steps": 1.0, "skipped": 0.0, "images": 3.0, "seconds": 0.1, "peak_bytes": 5.0}
WEIGHTS = {"w": torch.ones(8, 6), "b": torch.ones(3)}


@dataclass
class Scripted:
    """A site that answers as it is told; an error is raised."""

    answer: Answer | Exception
    tested: Scores | Exception = ([1.5, 0.0], [2, 0], 2)
    sketched: Answer | None = None
    bits: int = 32

    def sketch(self, order: Order) -> Answer:
        """Answer with a sketch."""
        assert self.sketched is not None
        return self.sketched

    def train(self, order: Order) -> Answer:
        """Answer."""
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def scores(self, order: Order) -> Scores:
        """Test."""
        if isinstance(self.tested, Exception):
            raise self.tested
        return self.tested


def good(**changes: Any) -> Answer:
    """A usable answer, changed."""
    tensors = {name: weight + 0.01 for name, weight in WEIGHTS.items()}
    return dataclasses.replace(Answer("", 3, tensors, 1.0, {}, FACTS), **changes)


def rounds_with(
    sites: dict[str, Scripted], said: list[str], federation: Federation | None = None, **state: Any
) -> Rounds:
    """A server with these sites."""
    nodes = {name: number for number, name in enumerate(sites, start=1)}
    apps = {nodes[name]: client_app(lambda _, site=site: site, lambda _: None) for name, site in sites.items()}  # type: ignore[misc]
    return Rounds(
        InProcessGrid(apps),
        nodes=lambda: nodes,
        federation=federation or Federation(rounds=1, local_steps=1),
        state=State(dict(WEIGHTS), **state),
        keep=lambda _: None,
        tell=said.append,
    )


def result(rounds: Rounds) -> dict[str, Any]:
    """What the server writes at the end."""
    scores, untested = rounds.test()
    history = rounds.state.history
    trained = {name: int(site["cases"]) for entry in history for name, site in entry["sites"].items()}
    how: dict[str, Any] = {"method": "medsaga", "federation": rounds.federation}
    return result_of(["disc", "bar"], scores, history, trained_on=trained, untested=untested, **how)


def test_a_site_that_only_trained_or_was_only_tested_is_no_reason_to_have_no_result() -> None:
    said: list[str] = []
    sites = {
        "both": Scripted(good()),
        "tested": Scripted(MemoryError("no room"), ([0.5, 0.5], [1, 1], 1)),
        "trained": Scripted(good(), MemoryError("no room")),
        "neither": Scripted(MemoryError("no room"), MemoryError("no room")),
        "gone": Scripted(good()),
    }
    rounds = rounds_with(sites, said)
    rounds.run()
    left = {name: node for name, node in rounds.nodes().items() if name != "gone"}
    rounds.nodes = lambda: left
    found = result(rounds)
    assert {site["name"]: site["cases_trained_on"] for site in found["sites"]} == {"both": 3, "tested": 0}
    assert found["dice_mean"] == pytest.approx((0.75 + 0.5) / 2)
    assert found["untested"] == {
        "gone": "it was not there",
        "neither": "it did not answer",
        "trained": "it did not answer",
    }
