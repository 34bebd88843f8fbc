"""What leaves a site: every message of whole federations is read, and holds what the docs list and nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_toy_dataset
from federation import TINY, together
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import message_to_proto
from safetensors.numpy import load

from medsaga.federated.apps import SAID, hospital_app
from medsaga.federated.averaging import Answer
from medsaga.federated.client import FAILED, MISMATCH, NEEDS_WEIGHTS, OUT_OF_MEMORY, client_app, reason_of
from medsaga.federated.grid import InProcessGrid
from medsaga.federated.options import Federation
from medsaga.federated.orders import FACTS, SCORES, Order

DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "federated.md"
SECRET = "zyxwvut"
"""Part of the name of every folder and case."""
SKETCH_MARGIN = 1000
"""A sketch of a small matrix is wider than the matrix, by some columns."""
RECORDS = {"facts", "tensors", "sketches", "scores"}


def read(message: Message, parameters: dict[str, tuple[int, ...]]) -> None:
    """Check all that an answer holds."""
    assert message.has_content()
    assert message.content.keys() <= RECORDS
    for record in message.content.values():
        match record:
            case MetricRecord():
                assert record.keys() in (set(FACTS), set(SCORES))
                assert all(
                    isinstance(n, int | float) for v in record.values() for n in (v if isinstance(v, list) else [v])
                )
            case ArrayRecord():
                (file,) = record.values()
                arrays = load(file.data)
                # Nothing stands in the file's header beside the tensors.
                header = json.loads(file.data[8 : 8 + int.from_bytes(file.data[:8], "little")])
                assert header.keys() == arrays.keys()
                for name, array in arrays.items():
                    assert re.sub(r"#(left|right|scale)", "", name) in parameters
                    assert array.dtype in (np.float32, np.float16)
                    assert array.size <= np.prod(parameters[re.sub(r"#\w+", "", name)]) + SKETCH_MARGIN
            case _:
                raise AssertionError(f"{type(record)} leaves a site")


@pytest.mark.parametrize(
    ("exchange", "method"),
    [
        ("shared-basis", "medsaga"),
        *(pytest.param("weights", m, marks=pytest.mark.exhaustive) for m in ("samed", "frozen")),
    ],
)
def test_weights_counts_and_dice_leave_a_site_and_nothing_else(exchange: Any, method: str, tmp_path: Path) -> None:
    data = write_toy_dataset(tmp_path / SECRET / "data")
    for path in (*(data / "images").iterdir(), *(data / "masks").iterdir()):
        path.rename(path.with_name(f"{SECRET}{path.name}"))
    messages: list[Message] = []
    federation = Federation(rounds=2, local_steps=1, exchange=exchange)
    settings = dataclasses.replace(TINY, method=method)
    with together(data, tmp_path / "out", federation, settings=settings, sites=2, seen=messages.append) as run:
        run.rounds.run()
        scores, untested = run.rounds.test(labels=2)
        parameters = {name: tuple(p.shape) for name, p in run.experiment.model.named_parameters()}
    answers = [message for message in messages if message.metadata.reply_to_message_id]
    assert len(answers) == len(messages) / 2 == (8 if exchange == "shared-basis" else 6)
    for message in answers:
        read(message, parameters)
    for message in messages:
        encoded = message_to_proto(message).SerializeToString()
        assert SECRET.encode() not in encoded.lower()
        assert b"site1" not in encoded
        assert str(tmp_path).encode() not in encoded
    assert {len(dice) for dice, _, _ in scores.values()} == {2}
    assert untested == {}


class Dying:
    """A site at which something goes wrong."""

    bits = 32

    def train(self, order: Order) -> Answer:
        """Fail with an error that names a patient."""
        raise FileNotFoundError(f"/home/{SECRET}/patient.png")

    sketch = train

    def scores(self, order: Order) -> Any:
        """Fail for want of memory."""
        raise MemoryError(f"no room for {SECRET}")


def test_an_error_says_nothing_of_what_went_wrong() -> None:
    errors: list[Exception] = []
    grid = InProcessGrid({1: client_app(lambda _: Dying(), errors.append)})
    content = Order(1, weights={}).pack(32)
    orders = [grid.create_message(content, kind, 1, "1") for kind in ("train", "query.sketch", "evaluate")]
    answers = list(grid.send_and_receive(orders))
    assert [answer.error.reason for answer in answers] == [FAILED, FAILED, OUT_OF_MEMORY]
    assert len(errors) == 3
    assert SECRET in str(errors[0])
    assert SECRET.encode() not in b"".join(message_to_proto(answer).SerializeToString() for answer in answers)


@pytest.mark.parametrize("kind", ["query.hello", "query.begin", "query.sketch", "train", "evaluate", "query.end"])
def test_where_the_folder_of_a_site_is_gone_no_error_leaves_that_names_it(kind: str, tmp_path: Path) -> None:
    """What went wrong cannot be written down then; Flower would send on whatever the app raises."""
    grid = InProcessGrid({1: hospital_app(lambda: tmp_path / SECRET / "site")})
    content = Order(1, weights={}).pack(32)
    content["server"] = ConfigRecord({"plan": "{}", "intensities": "[]"})
    (answer,) = grid.send_and_receive([grid.create_message(content, kind, 1, "1")])
    assert answer.error.reason == (MISMATCH if kind == "query.hello" else FAILED)
    assert SECRET.encode() not in message_to_proto(answer).SerializeToString()


def test_a_site_whose_result_cannot_be_read_ends_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("{")
    grid = InProcessGrid({1: hospital_app(lambda: tmp_path)})
    (answer,) = grid.send_and_receive([grid.create_message(RecordDict(), "query.end", 1, "1")])
    assert answer.error.reason == FAILED
    assert '"kind": "over"' in (tmp_path / SAID).read_text()


def test_the_server_repeats_no_words_but_ours() -> None:
    assert reason_of(Error(2, NEEDS_WEIGHTS)) == NEEDS_WEIGHTS
    assert reason_of(Error(2, f"<class 'FileNotFoundError'>:<'/home/{SECRET}/patient.png'>")) == "failed"
    assert reason_of(Error(2)) == "failed"


@pytest.mark.exhaustive
def test_a_site_that_has_lost_its_folder_asks_for_all_weights(toy: Path, tmp_path: Path) -> None:
    import shutil

    messages: list[Message] = []
    federation = Federation(rounds=2, local_steps=1, exchange="shared-basis")
    with together(toy, tmp_path / "out", federation, sites=2, seen=messages.append) as run:
        run.rounds.round()
        shutil.rmtree(run.experiment.runs["site1"].folder / "rounds")
        run.rounds.round()
        assert sorted(run.state.history[1]["sites"]) == ["site1", "site2"]
    assert [message.error.reason for message in messages if message.has_error()] == [NEEDS_WEIGHTS]


def test_the_docs_list_all_that_leaves() -> None:
    text = DOCS.read_text(encoding="utf-8")
    section = text[text.index("## What leaves a site") :]
    for name in (*FACTS, *SCORES):
        assert f"`{name}`" in section, name
    assert ConfigRecord.__name__ not in section
