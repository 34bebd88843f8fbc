"""Weights that are updated together: which ones, that it changes nothing, and that the calls become few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.step.updates import Calls
from medsaga.models.int8 import quantise_linears
from medsaga.optim.accumulation import AccumulatingOptimizer, norms_of, scaled
from medsaga.optim.buckets import ELEMENTS, buckets
from medsaga.optim.galore import GaLoreAdamW
from medsaga.optim.quantise import KINDS, dequantise_all, quantise, quantise_all
from medsaga.optim.rows import BLOCK, Row
from medsaga.optim.sgd import MomentumSGD

shapes = st.lists(st.lists(st.integers(1, 40), min_size=0, max_size=3).map(tuple), min_size=1, max_size=6)


def randoms(sizes: Sequence[tuple[int, ...]], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) for size in sizes]


# Which weights


def test_each_weight_is_in_one_bucket_and_none_is_too_large() -> None:
    most = ELEMENTS[0]
    weights = [torch.empty(size) for size in (most // 2, most, 3 * most, most // 2, 1, most // 3)]
    found = buckets(weights, lambda weight: 0, trained_elements=sum(weight.numel() for weight in weights))
    assert [[weight.numel() for weight in bucket] for bucket in found] == [
        [most // 2, most // 2],
        [most],
        [3 * most],
        [1, most // 3],
    ]


def test_a_large_model_has_large_buckets_up_to_a_limit() -> None:
    weights = [torch.empty(1000, 100, device="meta") for _ in range(100)]

    def largest(trained: int) -> int:
        return max(map(len, buckets(weights, lambda weight: 0, trained_elements=trained)))

    assert [largest(trained) for trained in (10, 4_000_000, 10**9)] == [1, 2, ELEMENTS[1] // 100_000]


def test_kinds_types_and_int8_weights_are_apart() -> None:
    layer = nn.Linear(8, 8)
    quantise_linears(nn.Sequential(layer))
    weights = [torch.empty(3), layer.weight, torch.empty(5), torch.empty(3), torch.empty(3, dtype=torch.bfloat16)]
    found = buckets(weights, lambda weight: weight.shape, trained_elements=100)
    assert sorted(sorted(map(id, bucket)) for bucket in found) == sorted(
        sorted(map(id, bucket)) for bucket in ([weights[0], weights[3]], [weights[1]], [weights[2]], [weights[4]])
    )


@given(st.lists(st.integers(1, ELEMENTS[0]), min_size=1, max_size=30), st.integers(0, 29))
def test_what_is_left_after_a_shortage_comes_into_the_same_buckets(sizes: list[int], done: int) -> None:
    weights = [torch.empty(size, device="meta") for size in sizes]
    whole = buckets(weights, lambda weight: weight.numel() % 2, trained_elements=1)
    finished = {id(weight) for bucket in whole[:done] for weight in bucket}
    left = [weight for weight in weights if id(weight) not in finished]
    again = buckets(left, lambda weight: weight.numel() % 2, trained_elements=1)
    assert [list(map(id, bucket)) for bucket in again] == [list(map(id, bucket)) for bucket in whole[done:]]


# Several in one


@given(shapes)
def test_a_row_gives_back_what_it_has_joined(sizes: list[tuple[int, ...]]) -> None:
    tensors = randoms(sizes)
    row = Row.of(tensors)
    flat = row.join(tensors, torch.float64, torch.device("cpu"))
    for one, other in zip(row.split(flat), tensors, strict=True):
        assert torch.equal(one, other.double())
        assert len(tensors) == 1 or one.storage_offset() % BLOCK == 0
    assert float(flat.abs().sum()) == pytest.approx(sum(float(each.double().abs().sum()) for each in tensors))


@given(shapes, st.sampled_from(KINDS))
def test_eight_bits_of_many_are_those_of_each(sizes: list[tuple[int, ...]], kind: str) -> None:
    tensors = [each.abs() for each in randoms(sizes)] if kind == "root" else randoms(sizes)
    together = quantise_all(tensors, kind)
    for (codes, scales), tensor in zip(together, tensors, strict=True):
        alone = quantise(tensor, kind)
        assert torch.equal(codes, alone[0])
        assert torch.equal(scales, alone[1])
        assert codes.untyped_storage().nbytes() == codes.numel(), "what is kept must not keep the others"
    for back, pair in zip(dequantise_all(together, kind, torch.float32, torch.device("cpu")), together, strict=True):
        assert torch.equal(back, dequantise_all([pair], kind, torch.float32, torch.device("cpu"))[0])


def test_norms_of_types_among_each_other() -> None:
    tensors = [
        each.to(dtype) for each, dtype in zip(randoms([(9,)] * 4), 2 * (torch.float32, torch.bfloat16), strict=True)
    ]
    expected = [torch.linalg.vector_norm(each, dtype=torch.float32) for each in tensors]
    assert torch.equal(torch.stack(norms_of(tensors)), torch.stack(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 3])
def test_scaled_gradients_are_copies(dtype: torch.dtype, count: int) -> None:
    gradients = [each.to(dtype) for each in randoms([(300,)] * count)]
    kept = [each.clone() for each in gradients]
    found = scaled(gradients, torch.tensor(0.5), torch.float32)
    for one, gradient, before in zip(found, gradients, kept, strict=True):
        assert torch.equal(one, gradient.float() * 0.5)
        one.zero_()
        assert torch.equal(gradient, before)


# An update


GALORE: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "rank": 8, "refresh_every": 3}
OPTIMIZERS: dict[str, tuple[dict[str, Any], Any]] = {
    "projected": (GALORE, GaLoreAdamW),
    "exact": (GALORE | {"refresh": "exact"}, GaLoreAdamW),
    "two-sided": (GALORE | {"projection": "two_sided"}, GaLoreAdamW),
    "on the host": (GALORE | {"rank": None, "state_on_host": True}, GaLoreAdamW),
    "sgd": ({"lr": 0.01, "weight_decay": 0.1}, MomentumSGD),
}


def _stepped(make: Any, settings: dict[str, Any], sizes: Sequence[tuple[int, int]], dtype: torch.dtype) -> Any:
    weights = [nn.Parameter(each.to(dtype)) for each in randoms(sizes)]
    optimizer: AccumulatingOptimizer = make(weights, **settings)
    for step in range(6):
        for weight, gradient in zip(weights, randoms(sizes, seed=step + 1), strict=True):
            (weight * gradient.to(dtype)).sum().backward()
        with Calls() as counting:
            optimizer.step()
        optimizer.zero_grad()
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return [*weights, *states], counting.count


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_together_is_as_one_by_one_to_the_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, make = OPTIMIZERS[name]
    sizes = [(24, 40), (40, 24), (17, 33), (9, 9)]
    together, few = _stepped(make, settings, sizes, torch.float32)
    monkeypatch.setattr("medsaga.optim.buckets.ELEMENTS", (1, 1))
    alone, many = _stepped(make, settings, sizes, torch.float32)
    assert few < many
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("settings", "of_each"),
    [({"rank": 64, "refresh_every": 100}, 6), ({"state_bits": 8}, 0), ({"state_on_host": True, "state_bits": 8}, 0)],
    ids=["projected", "eight bits", "on the host"],
)
def test_calls_are_few_whatever_the_number_of_weights(
    settings: dict[str, Any], of_each: int, dtype: torch.dtype
) -> None:
    """A projected weight takes one product of its own, and what leads to it."""
    few = _stepped(GaLoreAdamW, settings, [(64, 80)] * 2, dtype)[1]
    many = _stepped(GaLoreAdamW, settings, [(64, 80)] * 12, dtype)[1]
    assert many <= few + 10 * of_each
