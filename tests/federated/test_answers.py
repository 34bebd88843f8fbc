"""What a site sends, right or wrong, through the rounds of a server: no model is trained."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from medsaga.federated.averaging import Answer
from medsaga.federated.client import client_app
from medsaga.federated.grid import InProcessGrid
from medsaga.federated.options import Federation
from medsaga.federated.orders import Order, Scores
from medsaga.federated.plan import Plan
from medsaga.federated.processes import TOLD, Said
from medsaga.federated.results import result_of
from medsaga.federated.roster import Roster
from medsaga.federated.server import Rounds, State
from medsaga.federated.wire import from_record, to_record

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
    scores, untested = rounds.test(labels=2)
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


class Forged:
    """An app whose answers are changed on their way, as a site that is not ours could make them."""

    def __init__(self, app: Any, change: Callable[[Any], Any]) -> None:
        self._app, self._change = app, change

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer."""
        answer: Message = self._app(message, context)
        self._change(answer.content)
        return answer


def forged(rounds: Rounds, site: str, change: Callable[[Any], Any]) -> None:
    """Change the answers of a site."""
    assert isinstance(rounds.grid, InProcessGrid)
    apps: Any = rounds.grid._apps
    node = rounds.nodes()[site]
    apps[node] = Forged(apps[node], change)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: c["facts"].update(cases=math.inf), "it is no answer to an order"),
        (lambda c: c["facts"].update(cases=math.nan), "it is no answer to an order"),
        (lambda c: c["facts"].update(cases=1e15), "it says that it has trained on 1,000,000,000,000,000 cases"),
        (lambda c: c["facts"].update(cases=[1.0]), "it is no answer to an order"),
        (lambda c: c["facts"].update(decay=0.5), "its weight decay is 0.5, which is none"),
        (lambda c: c.pop("facts"), "it is no answer to an order"),
        (lambda c: c.update(tensors=MetricRecord({"safetensors": 1.0})), "it is no answer to an order"),
        (lambda c: c.update(tensors=to_record({"w": torch.ones(8, 6)}, 32)), "1 tensors are missing, 0 are unknown"),
    ],
)
@pytest.mark.parametrize("strategy", ["fedavg", "median"])
def test_a_malformed_answer_is_refused_by_the_name_of_its_site(
    change: Callable[[Any], Any], why: str, strategy: Any
) -> None:
    said: list[str] = []
    federation = Federation(rounds=1, local_steps=1, strategy=strategy)
    rounds = rounds_with({"north": Scripted(good()), "south": Scripted(good())}, said, federation)
    forged(rounds, "south", change)
    rounds.run()
    assert rounds.state.history[0]["refused"] == {"south": why}
    assert list(rounds.state.history[0]["sites"]) == ["north"]
    assert said[0] == f"round 1: the answer of south is refused: {why}"


def test_a_number_for_the_record_that_is_none_stays_out_of_the_record() -> None:
    said: list[str] = []
    rounds = rounds_with({"north": Scripted(good()), "south": Scripted(good())}, said)
    forged(rounds, "south", lambda c: c["facts"].update(loss=math.nan, peak_bytes=math.inf) if "facts" in c else None)
    rounds.run()
    assert said == ["round 1 of 1: loss north 1.000, south that is no number"]
    found = result(rounds)
    assert found["peak_memory_bytes"] == 5
    assert found["history"][0]["sites"]["south"]["loss"] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: c["scores"].update(dice=[1.0]), "it has scores of 1 labels instead of 2"),
        (lambda c: c["scores"].update(dice=[math.nan, 0.0]), "its Dice is not between 0 and 1"),
        (lambda c: c["scores"].update(dice=[7.0, 0.0]), "its Dice is not between 0 and 1"),
        (lambda c: c["scores"].update(counted=[math.inf, 1.0]), "it is no answer to an order"),
        (lambda c: c["scores"].update(cases=0.0), "it says that it was tested on 0 cases"),
        (lambda c: c["scores"].pop("cases"), "it is no answer to an order"),
        (lambda c: c.pop("scores"), "it is no answer to an order"),
    ],
)
def test_scores_that_cannot_be_are_refused(change: Callable[[Any], Any], why: str) -> None:
    said: list[str] = []
    rounds = rounds_with({"north": Scripted(good()), "south": Scripted(good())}, said)
    rounds.run()
    forged(rounds, "south", change)
    found = result(rounds)
    assert [site["name"] for site in found["sites"]] == ["north"]
    assert found["untested"] == {"south": f"refused: {why}"}
    assert said[-1] == f"the scores of south are refused: {why}"


def test_sketches_that_cannot_be_added_up_are_refused() -> None:
    left = {"w": (None, torch.arange(48.0).reshape(6, 8))}

    def change(name: str) -> Callable[[Any], Any]:
        def changed(content: Any) -> None:
            if "sketches" in content:
                sketch = from_record(content["sketches"])["w#right"]
                other = {"short": {"w#right": sketch[:-1]}, "odd": {"w#left": torch.ones(8, 6)}}[name]
                content["sketches"] = to_record(other, 16)

        return changed

    said: list[str] = []
    federation = Federation(rounds=1, local_steps=1, exchange="shared-basis")
    answer = good(tensors={"w": torch.full((8, 2), 0.01), "b": torch.full((3,), 0.01)}, sketches=left)
    sites = {name: Scripted(answer, sketched=good(tensors={}, sketches=left)) for name in ("a", "odd", "short", "z")}
    rounds = rounds_with(sites, said, federation, ranks={"w": 2})
    for name in ("odd", "short"):
        forged(rounds, name, change(name))
    rounds.run()
    assert rounds.state.history[0]["refused"] == {
        "odd": "its sketches are of other matrices or widths than those of most sites",
        "short": "the sketch of w, (8, 6), has the shape (5, 8)",
    }
    assert list(rounds.state.history[0]["sites"]) == ["a", "z"]


class Greeting:
    """An app that says of itself what it is told, and nothing else."""

    def __init__(self, **said: Any) -> None:
        self._said = said

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer."""
        return Message(RecordDict({"site": ConfigRecord({**self._said})} if self._said else {}), reply_to=message)


def test_a_site_that_does_not_say_who_it_is_stays_out_and_the_others_train(tmp_path: Path) -> None:
    fine = json.dumps([{"kind": "identity", "low": 0.0, "high": 255.0}])
    apps: dict[int, Any] = {
        1: Greeting(),
        2: Greeting(name="failed: x\rover", intensities=fine),
        3: Greeting(name="../north", intensities=fine),
        4: Greeting(name="two", intensities=json.dumps([*json.loads(fine), *json.loads(fine)])),
        5: Greeting(name="none", intensities="[{}]"),
        6: Greeting(name="north", intensities=fine, symmetries=["left-right"]),
        7: Greeting(name="south", intensities=fine),
    }
    plan: Any = _Plan()
    said: list[str] = []
    roster = Roster(InProcessGrid(apps), plan, tmp_path, said.append, 60)
    roster.gather(2, patience=0)
    assert roster.nodes() == {"north": 6}
    assert said.count("a site does not say who it is, as it should, and stays out") == 5
    assert set(said[5:]) == {"north has joined", "south has joined", "south could not begin: its answer is none"}


def test_a_site_that_is_away_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else's key gets what belongs to it, such as its norms, or its weight in the mean."""
    fine = json.dumps([{"kind": "identity", "low": 0.0, "high": 255.0}])
    north, other = (Greeting(name="north", intensities=fine, symmetries=["left-right"]) for _ in range(2))
    apps: dict[int, Any] = {1: north, 2: other}
    grid, plan, said = InProcessGrid(apps), cast(Any, _Plan()), list[str]()
    roster = Roster(grid, plan, tmp_path, said.append, 60)
    there = iter(([1], [1], [2], [1, 2]))
    monkeypatch.setattr(grid, "get_node_ids", lambda: next(there))
    roster.gather(1, patience=0)
    assert roster.nodes() == {}
    assert roster.nodes() == {"north": 1}
    assert said == ["north has joined", "a second site calls itself north and stays out"]


class LateGreeting(Greeting):
    """It does not begin as often as it is told."""

    def __init__(self, refusals: int, **said: Any) -> None:
        super().__init__(**said)
        self._refusals = refusals

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer."""
        if message.metadata.message_type == "query.begin" and self._refusals > 0:
            self._refusals -= 1
            return Message(Error(2, "failed"), reply_to=message)
        return super().__call__(message, context)


@pytest.mark.parametrize("refusals", [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (2, 2)])
def test_who_begins_late_has_a_say_in_how_all_mirror(refusals: tuple[int, int], tmp_path: Path) -> None:
    fine = json.dumps([{"kind": "identity", "low": 0.0, "high": 255.0}])
    keeps = {"north": ["up-down"], "south": ["left-right", "up-down"]}
    apps: dict[int, Any] = {
        node: LateGreeting(refused, name=name, intensities=fine, symmetries=keeps[name])
        for node, (name, refused) in enumerate(zip(keeps, refusals, strict=True), start=1)
    }
    grid, plan = InProcessGrid(apps), cast(Any, _Plan())
    sites = Roster(grid, plan, tmp_path, lambda _: None, 60)
    sites.gather(2, patience=None)
    for _ in range(2):
        assert set(sites.symmetries) == (
            set.intersection(*(set(keeps[name]) for name in sites._begun)) if sites._begun else set()
        )
        assert sites.nodes().keys() == sites._begun
    assert sites.symmetries == ("up-down",)
    # A server that goes on has it from its folder, and asks who is there again.
    again = Roster(grid, plan, tmp_path, lambda _: None, 60)
    assert again.gather(1, patience=None) == again.symmetries == ("up-down",)
    # Who comes last has a say, too.
    apps[3] = Greeting(name="west", intensities=fine, symmetries=["left-right"])
    again.grid = InProcessGrid(apps)
    assert "west" in again.nodes()
    assert not again.symmetries


class _Plan:
    channels = ("grey",)

    def to_json(self) -> str:
        """Say nothing: the sites do not look."""
        return "{}"

    fixed_intensities = Plan.fixed_intensities
    settings: Any = dataclasses.make_dataclass("S", ["window", "intensity"])(None, "auto")


def test_what_a_site_is_called_is_never_taken_for_the_end(tmp_path: Path) -> None:
    said = Said(tmp_path / "said.txt")
    for text in ("failed: x has joined", "x\rover\ry has joined", "over", "a\u2028b\x1b[2J"):
        said.say(text)
    said.say("all rounds are made", "over")
    assert said.new() == [
        (TOLD, "failed: x has joined"),
        (TOLD, "x over y has joined"),
        (TOLD, "over"),
        (TOLD, "a b [2J"),
        ("over", "all rounds are made"),
    ]
    assert said.new() == []
