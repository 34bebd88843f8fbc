"""Hospitals and a server, with all they say to each other, without Flower's processes between them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import write_toy_dataset
from federation import QUIET, TINY
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.serde import message_to_proto
from safetensors.torch import load_file

from medsaga.cli import main
from medsaga.data.intensity import Intensity
from medsaga.data.symmetries import SYMMETRIES
from medsaga.errors import InputError
from medsaga.federated import roster, serving
from medsaga.federated.apps import HOW, SAID, hospital_app, serve_rounds
from medsaga.federated.client import MISMATCH
from medsaga.federated.grid import InProcessGrid
from medsaga.federated.hospital import Hospital, open_folder
from medsaga.federated.options import Federation, settings_for
from medsaga.federated.orders import Order
from medsaga.federated.plan import Plan
from medsaga.federated.processes import Said
from medsaga.federated.serving import plan_of, serve
from medsaga.files import read_json, sha256, write_json
from medsaga.settings.options import Settings

SECRET = "zyxwvut"


def hospital(root: Path, name: str, labels: str = "") -> Path:
    """Make the data and the folder of a hospital."""
    data = write_toy_dataset(root / SECRET / f"{name}_data", images=3, seed=len(name))
    for path in (*(data / "images").iterdir(), *(data / "masks").iterdir()):
        path.rename(path.with_name(f"{SECRET}{path.name}"))
    if labels:
        (data / "dataset.json").write_text(labels)
    folder = root / name
    open_folder(data, folder, QUIET, name=name, weights=None, device="cpu", test_cases=None, seed=0)
    return folder


def server(root: Path, federation: Federation, sites: int, settings: Settings = TINY) -> Path:
    """Make the folder of a server."""
    folder = root / "server"
    folder.mkdir()
    (root / "dataset.json").write_text('{"labels": {"background": 0, "disc": 1, "bar": 2}}')
    plan_of(root / "dataset.json", dataclasses.replace(settings, device="auto"), federation, QUIET).write(folder)
    write_json(folder / HOW, {"sites": sites, "wait": 0, "timeout": 60, "asked": {"settings": {}, "federation": {}}})
    return folder


def test_they_agree_train_and_test_and_the_model_can_be_used(tmp_path: Path) -> None:
    messages: list[Message] = []
    folders = {number: hospital(tmp_path, name) for number, name in enumerate(("north", "south"), start=1)}
    apps = {number: hospital_app(lambda folder=folder: folder) for number, folder in folders.items()}  # type: ignore[misc]
    folder = server(tmp_path, Federation(rounds=1, local_steps=1, exchange="shared-basis"), sites=2)
    serve_rounds(InProcessGrid(apps, messages.append), folder, Said(folder / SAID))
    result = read_json(folder / "result.json")
    assert [site["name"] for site in result["sites"]] == ["north", "south"]
    assert json.loads((folders[1] / SAID).read_text().splitlines()[-1])["kind"] == "over"
    data = tmp_path / SECRET / "north_data"
    assert main(["predict", str(folder), str(data / "images"), "--out", str(tmp_path / "p"), "--device", "cpu"]) == 0
    for message in messages:
        encoded = message_to_proto(message).SerializeToString()
        assert SECRET.encode() not in encoded
        assert str(tmp_path).encode() not in encoded
    # What a site says of itself, beside the answers that test_messages reads.
    said = [dict(m.content["site"]) for m in messages if m.has_content() and "site" in m.content]
    assert [set(record) for record in said] == [{"name", "intensities"}] * 2 + [{"symmetries"}] * 2


def test_hospitals_train_with_the_whole_of_the_common_model(tmp_path: Path) -> None:
    """`lite` has statistics of ImageNet beside its parameters: without them its weights are of no use."""
    folders = {number: hospital(tmp_path, name) for number, name in enumerate(("north", "south"), start=1)}
    apps = {number: hospital_app(lambda folder=folder: folder) for number, folder in folders.items()}  # type: ignore[misc]
    lite = dataclasses.replace(TINY, model="lite", random_weights=False, image_size=64)
    folder = server(tmp_path, Federation(rounds=1, local_steps=1), sites=2, settings=lite)
    serve_rounds(InProcessGrid(apps), folder, Said(folder / SAID))
    common = load_file(folder / "model.safetensors")
    at_site = torch.load(folders[1] / "run" / "rounds" / "0001" / "state.pt", weights_only=True)["model"]
    buffers = [name for name in common if "running_" in name]
    assert len(buffers) > 100
    model = Hospital.read(folders[1]).site(QUIET, lambda _: None).model
    for name, tensor in (*model.named_buffers(), *((name, at_site[name]) for name in buffers if name in at_site)):
        if name in common:
            assert torch.equal(tensor, common[name]), name
    assert any(name in common for name, _ in model.named_buffers())


class Late:
    """A hospital that is late to begin, and whose labels keep no mirroring."""

    def __init__(self, app: Any, refusals: int) -> None:
        self._app, self._refusals = app, refusals

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer."""
        answer: Message = self._app(message, context)
        if message.metadata.message_type == "query.begin":
            self._refusals -= 1
            if self._refusals >= 0:
                return Message(Error(2, "failed"), reply_to=message)
            answer.content["site"] = ConfigRecord({"symmetries": list[str]()})
        return answer


def test_orders_mirror_as_all_agree_and_nobody_mirrors_against_its_labels(tmp_path: Path) -> None:
    messages: list[Message] = []
    folders = {number: hospital(tmp_path, name) for number, name in enumerate(("north", "south"), start=1)}
    apps: dict[int, Any] = {number: hospital_app(lambda folder=folder: folder) for number, folder in folders.items()}  # type: ignore[misc]
    apps[2] = Late(apps[2], refusals=2)
    folder = server(tmp_path, Federation(rounds=1, local_steps=1), sites=2)
    serve_rounds(InProcessGrid(apps, messages.append), folder, Said(folder / SAID))
    orders = [
        Order.unpack(message.content) for message in messages if message.has_content() and "order" in message.content
    ]
    assert [order.symmetries for order in orders] == [()] * 4
    # The bar is on the right: what a server says against that is not done.
    site = Hospital.read(folders[1]).site(QUIET, lambda _: None)
    site.scores(dataclasses.replace(orders[-1], symmetries=tuple(SYMMETRIES)))
    assert site.model.symmetries == ("up-down",)


class Backwards(InProcessGrid):
    """Answers come in another order than the orders went out, as over a network."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return super().send_and_receive(list(messages)[::-1], timeout=timeout)


def test_a_server_that_is_killed_in_a_round_comes_to_the_same_bits(tmp_path: Path) -> None:
    weights = []
    for name, grid in (("whole", InProcessGrid), ("killed", Backwards)):
        root = tmp_path / name
        folders = {number: hospital(root, site) for number, site in enumerate(("north", "south"), start=1)}
        apps = {number: hospital_app(lambda folder=folder: folder) for number, folder in folders.items()}  # type: ignore[misc]
        own = server(root, Federation(rounds=2, local_steps=1, exchange="shared-basis"), sites=2)
        if name == "killed":
            trained = 0

            def kill(message: Message) -> None:
                nonlocal trained
                trained += message.metadata.message_type == "train"
                # Two orders and two answers are the first round: now one site has trained in the second.
                if trained == 6:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                serve_rounds(grid(apps, kill), own, Said(own / SAID))
            assert not (own / "result.json").exists()
        serve_rounds(grid(apps), own, Said(own / SAID))
        weights.append(sha256(own / "model.safetensors"))
    assert weights[0] == weights[1]


@pytest.mark.parametrize("has_heard", [False, True])
def test_a_server_that_is_killed_at_the_end_tells_the_sites_and_writes_its_page(
    has_heard: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "_TO_COME_BACK", 1.0)
    federation = Federation(rounds=1, local_steps=1)
    folder, settings = hospital(tmp_path, "north"), settings_for(TINY, federation)
    own = server(tmp_path, federation, sites=1, settings=settings)
    apps, kinds = {1: hospital_app(lambda: folder)}, list[str]()

    def kill(message: Message) -> None:
        if message.metadata.message_type == "query.end" and bool(message.metadata.reply_to_message_id) == has_heard:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve_rounds(InProcessGrid(apps, kill), own, Said(own / SAID))
    assert not (own / "result.json").exists()
    # A site that has heard that it is over has gone.
    grid = InProcessGrid({} if has_heard else apps, lambda message: kinds.append(message.metadata.message_type))
    serve_rounds(grid, own, Said(own / SAID))
    assert kinds == ([] if has_heard else ["query.hello"] * 2 + ["query.end"] * 2)
    assert '"over"' in (folder / SAID).read_text()
    assert not (own / "index.html").exists()
    # The same command, when all but the page is there.
    keys = tmp_path / "keys"
    keys.mkdir()
    for name in ("ca.pem", "server.pem", "server.key"):
        (keys / name).touch()
    monkeypatch.setattr(serving, "_link", None)
    where: dict[str, Any] = {"key_folder": keys, "host": "127.0.0.1", "port": 1, "timeout": 60, "wait": 0}
    settings = dataclasses.replace(TINY, device="auto")
    result = serve(tmp_path / "dataset.json", own, settings, federation, **where, sites=1, console=QUIET)
    assert result == read_json(own / "result.json")
    assert "north" in (own / "index.html").read_text()


def test_the_server_refuses_what_each_hospital_chooses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["federate", "serve", str(tmp_path / "dataset.json"), "--out", str(tmp_path / "out"), "--shots", "3"]
    assert main([*command, "--keys", str(tmp_path / "keys")]) == 2
    assert "--shots: expected none at the server: each site divides its own cases" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("labels", "change", "told"),
    [
        ('{"labels": {"background": 0, "disc": 1, "rod": 2}}', {}, "labels: expected those of the federation"),
        ("", {"version": "0.0.0"}, "medsaga: expected the server's version 0.0.0"),
        ("", {"weights": "abc"}, "weights: expected the file that the federation starts from, SHA-256 abc"),
        ("", {"frozen": "abc"}, "model: expected the same numbers"),
    ],
)
def test_a_site_that_differs_hears_what_and_stays_out(
    labels: str, change: dict[str, Any], told: str, tmp_path: Path
) -> None:
    folder = hospital(tmp_path, "north", labels)
    own = server(tmp_path, Federation(rounds=1, local_steps=1), sites=1)
    plan = dataclasses.replace(Plan.read(own), **change)
    grid = InProcessGrid({1: hospital_app(lambda: folder)})
    greeting = RecordDict({"server": ConfigRecord({"plan": plan.to_json()})})
    (answer,) = grid.send_and_receive([grid.create_message(greeting, "query.hello", 1, "")])
    assert answer.has_error()
    assert answer.error.reason == MISMATCH
    assert told in (folder / SAID).read_text()
    assert Plan.from_json(plan.to_json()) == plan


def test_a_folder_in_which_a_training_has_begun_is_for_that_federation_alone(tmp_path: Path) -> None:
    folder = hospital(tmp_path, "north")
    plan = Plan.read(server(tmp_path, Federation(rounds=1, local_steps=1), sites=1))
    other = dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, encoder_lr=0.123))
    windows = ({"kind": "identity", "low": 0.0, "high": 255.0},), ({"kind": "percentile"},)
    grid = InProcessGrid({1: hospital_app(lambda: folder)})

    def asked(kind: str, **content: str) -> Message:
        order = RecordDict({"server": ConfigRecord({**content})})
        (answer,) = grid.send_and_receive([grid.create_message(order, kind, 1, "")])
        return answer

    # Before there is a training, the server may change its mind.
    assert asked("query.hello", plan=other.to_json()).has_content()
    assert asked("query.hello", plan=plan.to_json()).has_content()
    for _ in range(2):
        assert asked("query.begin", intensities=json.dumps(windows[0])).has_content()
        assert asked("query.hello", plan=plan.to_json()).has_content()
    assert asked("query.hello", plan=other.to_json()).error.reason == MISMATCH
    assert asked("query.begin", intensities=json.dumps(windows[1])).has_error()
    first, second = [line for line in (folder / SAID).read_text().splitlines() if "Choose another --out" in line]
    assert "found a training with other settings" in first
    assert "found a training with images made in another way" in second
    assert Plan.read(folder) == plan


def test_a_site_that_puts_right_what_differed_is_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower knows a site that comes back as the node that it was, whether or not it was seen to be away."""
    folder = hospital(tmp_path, "north", '{"labels": {"background": 0, "disc": 1, "rod": 2}}')
    own = server(tmp_path, Federation(rounds=1, local_steps=1), sites=1)
    now, said = [0.0], list[str]()

    def pause(_: float) -> None:
        now[0] += 10
        if now[0] == 50:
            (tmp_path / SECRET / "north_data" / "dataset.json").write_text(
                '{"labels": {"background": 0, "disc": 1, "bar": 2}}'
            )

    monkeypatch.setattr(roster, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=pause))
    sites = roster.Roster(InProcessGrid({1: hospital_app(lambda: folder)}), Plan.read(own), own, said.append, 60)
    sites.gather(1, patience=None)
    assert said == [f"a site does not fit this federation and stays out: {MISMATCH}", "north has joined"]
    assert sites.nodes() == {"north": 1}
    assert now[0] == 60


def test_who_joins_again_may_name_other_weights_and_another_device_but_no_other_cases(tmp_path: Path) -> None:
    folder = hospital(tmp_path, "north")
    own = server(tmp_path, Federation(rounds=1, local_steps=1), sites=1)
    Hospital.read(folder).greet(Plan.read(own))
    Hospital.read(folder).begin((Intensity("identity", 0.0, 255.0),), QUIET)
    told: dict[str, Any] = {"name": "north", "weights": None, "device": "cpu", "test_cases": None, "seed": 0}

    def again(**changes: Any) -> None:
        open_folder(tmp_path / SECRET / "north_data", folder, QUIET, **(told | changes))

    again(weights="here.pth")
    again(device="cpu:0")
    kept = Hospital.read(folder)
    assert (kept.weights, kept.device) == ("here.pth", "cpu:0")
    # The run that has begun takes them, too.
    with pytest.raises(InputError, match=r"here\.pth"):
        kept.site(QUIET, lambda _: None)
    for changes, said in (
        ({"device": "cuda:99"}, "--device: expected a device of this machine"),
        ({"seed": 1}, f"--seed: expected 0, as {folder} began with; found 1. Choose another --out"),
        ({"test_cases": 1}, "--test-cases: expected a fifth of the cases, as .* found 1"),
        ({"name": "south"}, "expected north with the data .* found south with"),
    ):
        with pytest.raises(InputError, match=said):
            again(**changes)
    assert Hospital.read(folder) == kept
