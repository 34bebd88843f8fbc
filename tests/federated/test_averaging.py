"""The server's arithmetic against numpy, and what it refuses."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medsaga.federated.averaging import Answer, absurd, change_norm, fault, mean, median, moved
from medsaga.federated.grid import InProcessGrid
from medsaga.federated.privacy import delta_of, epsilon_of
from medsaga.federated.wire import from_record, size_of, to_record

FACTS = {"loss": 1.0, "steps": 2.0, "skipped": 0.0, "images": 3.0, "seconds": 0.1, "peak_bytes": 0.0}


def answer(site: str, cases: int, **tensors: Tensor) -> Answer:
    """An answer of whole weights."""
    return Answer(site, cases, tensors, 1.0, {}, FACTS)


@given(
    cases=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    seed=st.integers(0, 2**20),
)
@settings(deadline=None, max_examples=30)
def test_the_mean_is_that_of_numpy_weighted_by_cases_and_the_median_is_numpys(cases: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    arrays = [random.normal(size=(3, 4)).astype(np.float32) for _ in cases]
    answers = [
        answer(f"s{n}", count, w=torch.from_numpy(a)) for n, (count, a) in enumerate(zip(cases, arrays, strict=True))
    ]
    tensors, decay = mean(answers)
    wanted = np.average(np.stack(arrays).astype(np.float64), axis=0, weights=cases)
    np.testing.assert_allclose(tensors["w"].numpy(), wanted, rtol=0, atol=3e-7)
    assert decay == pytest.approx(1)
    np.testing.assert_allclose(median(answers)[0]["w"].numpy(), np.median(np.stack(arrays), axis=0), rtol=0, atol=3e-7)


def test_the_decay_of_sites_that_have_skipped_steps_is_part_of_the_mean() -> None:
    # c W + P N per site, of two sites with decays of their own: the mean of both is what is moved to.
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 7, dtype=torch.float64, generator=random)
    basis = torch.linalg.qr(torch.randn(5, 2, dtype=torch.float64, generator=random))[0]
    answers, ends = [], []
    for cases, decay in ((1, 0.9), (3, 0.8)):
        factor = torch.randn(2, 7, dtype=torch.float64, generator=random)
        answers.append(dataclasses.replace(answer(f"s{cases}", cases, w=factor), decay=decay))
        ends.append(decay * weight + basis @ factor)
    after = moved({"w": weight}, *mean(answers), {"w": (basis, None)})["w"]
    torch.testing.assert_close(after, (ends[0] + 3 * ends[1]) / 4)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tensors": {"w": torch.tensor([1.0, math.nan])}}, "w holds numbers that are not finite"),
        ({"tensors": {"w": torch.tensor([1.0, math.inf])}}, "w holds numbers that are not finite"),
        ({"tensors": {"w": torch.zeros(3)}}, "w has the shape (3,) instead of (2,)"),
        ({"tensors": {"v": torch.zeros(2)}}, "1 tensors are missing, 1 are unknown"),
        ({"decay": 1.5}, "its weight decay is 1.5, which is none"),
        ({"decay": math.nan}, "its weight decay is nan, which is none"),
        ({"cases": 0}, "it has trained on no case"),
        ({"cases": 10**15}, "it says that it has trained on 1,000,000,000,000,000 cases"),
        ({"sketches": {"w": (None, torch.tensor([[math.nan, 0.0]]))}}, "a sketch of its gradient is not finite"),
        ({"sketches": {"w": (None, torch.tensor([[1e30, 0.0]]))}}, "a sketch of its gradient is not finite"),
        ({"sketches": {"w": (None, torch.zeros(2, 1))}}, "the sketch of w, (2, 1), has the shape (2, 1)"),
        ({"sketches": {"v": (None, torch.zeros(1, 2))}}, "it has sketched what is not projected"),
        ({"tensors": {"w": torch.tensor([1, 2])}}, "w holds numbers that are not finite"),
        ({"sketches": {"w": (None, torch.zeros(1, 2))}}, None),
        ({}, None),
    ],
)
def test_what_cannot_be_used_is_said_in_words(change: dict[str, Any], why: str | None) -> None:
    one = dataclasses.replace(answer("s", 1, w=torch.zeros(2)), **change)
    assert fault(one, {"w": torch.empty(2, device="meta")}, {"w": (2, 1, 1)}) == why


def test_weights_that_are_sent_whole_have_no_decay_and_a_sketch_that_is_asked_for_is_there() -> None:
    assert fault(dataclasses.replace(answer("s", 1), decay=0.9), {}, {}) == "its weight decay is 0.9, which is none"
    assert fault(answer("s", 1), {}, {"w": (2, 1, 1)}) == "there is no sketch of its gradient"


def test_a_change_far_longer_than_the_others_is_absurd() -> None:
    before = {"w": torch.ones(4)}
    near, far = answer("a", 1, w=torch.full((4,), 1.01)), answer("c", 1, w=torch.full((4,), 1.5))
    assert change_norm(near, before) == pytest.approx(0.02, rel=1e-4)
    norms = {"a": 0.02, "b": 0.03, "c": change_norm(far, before)}
    assert list(absurd(norms, 2.0)) == ["c"]
    # Of two sites nobody can say which is right, unless a change is longer than all weights.
    assert absurd({"a": 0.02, "c": 1.0}, 2.0) == {}
    assert list(absurd({"a": 0.02, "c": 2.1}, 2.0)) == ["c"]
    # Sites that have made no step say nothing of the others.
    assert absurd({"a": 0.0, "b": 0.0, "c": 0.5}, 2.0) == {}
    assert list(absurd({"a": 0.0, "b": 0.01, "c": 0.01, "d": 1.0}, 2.0)) == ["d"]


@given(st.integers(0, 2**20), st.floats(-30, 30))
@settings(deadline=None, max_examples=30)
def test_16_bits_keep_eleven_of_each_number(seed: int, size: float) -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2**size
    values[0] = 0
    arrived = from_record(to_record({"a": values.float()}, 16))["a"].double()
    assert ((arrived - values.float()).abs() <= 2.0**-11 * values.abs() + 2.0**-39 * values.abs().max()).all()
    assert arrived[0] == 0


@pytest.mark.parametrize("bits", [16, 32])
def test_what_is_not_finite_arrives_so(bits: int) -> None:
    sent = {
        "a": torch.tensor([1.0, math.nan]),
        "b": torch.tensor([math.inf, 1.0]),
        "c": torch.zeros(2),
        "d": torch.zeros(0),
    }
    arrived = from_record(to_record(sent, bits))
    assert [bool(arrived[name].isfinite().all()) for name in sent] == [False, False, True, True]


def test_a_record_that_holds_no_file_of_tensors_is_no_answer() -> None:
    with pytest.raises(KeyError):
        from_record(ArrayRecord())
    for content in (b"", b"words", bytes(100)):
        with pytest.raises(ValueError, match="no safetensors file"):
            from_record(ArrayRecord({"safetensors": Array("uint8", (len(content),), "safetensors", content)}))


def test_the_bytes_counted_are_those_of_flowers_own_encoding() -> None:
    from flwr.common.serde import message_to_proto

    content = RecordDict(
        {"w": to_record({"a": torch.zeros(1000, 7), "b": torch.ones(3)}, 32), "c": ConfigRecord({"round": 3})}
    )
    message = InProcessGrid({}).create_message(content, "train", 1, "1")
    assert size_of(message) == pytest.approx(len(message_to_proto(message).SerializeToString()), rel=0.02)


def test_epsilon_is_that_of_the_exact_curve_of_the_gaussian_mechanism() -> None:
    # By numbers: the integral of the part by which one density exceeds e^epsilon times the other.
    for epsilon, noise, rounds in ((0.5, 2.0, 1), (1.0, 1.0, 4), (3.0, 5.0, 10)):
        mu = math.sqrt(rounds) / noise
        x = np.linspace(-12, 12 + mu, 400_001)
        one, other = (np.exp(-((x - shift) ** 2) / 2) / math.sqrt(2 * math.pi) for shift in (mu, 0))
        integral = float(np.trapezoid(np.maximum(one - math.exp(epsilon) * other, 0), x))
        assert delta_of(epsilon, noise, rounds) == pytest.approx(integral, rel=1e-5)
        assert epsilon_of(noise, rounds, integral) == pytest.approx(epsilon, rel=1e-5)
    # More rounds tell more, more noise tells less.
    assert epsilon_of(1, 10, 1e-5) > epsilon_of(1, 1, 1e-5) > epsilon_of(4, 1, 1e-5) > 0
    assert epsilon_of(1e7, 1, 1e-5) == 0


def test_a_message_without_content_takes_no_bytes() -> None:
    from flwr.app import Error

    asked = InProcessGrid({}).create_message(RecordDict(), "train", 1, "1")
    assert size_of(Message(Error(2, "failed"), reply_to=asked)) == 0
