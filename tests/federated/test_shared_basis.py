"""A shared basis: what travels is small, and its mean is exactly the mean of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from conftest import write_toy_dataset
from federation import TINY, Together, together
from flwr.app import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from resolved import resolved
from torch import Tensor

from medsaga.errors import InputError
from medsaga.federated.options import Federation
from medsaga.federated.server import factor_shape
from medsaga.federated.wire import from_record, rounded
from medsaga.memory.meta import on_meta
from medsaga.methods import build_model, new_optimizer
from medsaga.optim.projection import project_back, projected_sides, sketch_width
from medsaga.optim.shared_basis import SharedBasisAdamW, factor_of

REPEATS = pytest.mark.exhaustive


def mean_of_ends(run: Together, number: int) -> dict[str, Tensor]:
    """The mean of all weights over the sites at the end of a round, weighted by cases, in float64."""
    sites = run.experiment.partition.sites
    total = sum(len(site.split.train) for site in sites)
    ends = [(len(site.split.train) / total, run.ended(site.name, number)) for site in sites]
    return {name: torch.stack([share * end[name].double() for share, end in ends]).sum(0) for name in run.state.weights}


@pytest.mark.parametrize(
    ("double", "bits", "most"),
    [(False, 32, 1e-5), pytest.param(True, 32, 1e-10, marks=REPEATS), pytest.param(False, 16, None, marks=REPEATS)],
)
def test_the_mean_of_what_travels_is_the_mean_of_the_weights(
    tmp_path: Path, double: bool, bits: Literal[16, 32], most: float | None
) -> None:
    data = write_toy_dataset(tmp_path / "toy", images=7)
    federation = Federation(rounds=2, local_steps=2, exchange="shared-basis", bits=bits)
    with together(data, tmp_path / "out", federation, double=double) as run:
        cases = [len(site.split.train) for site in run.experiment.partition.sites]
        assert len(set(cases)) > 1, "the mean is to be a weighted one"
        for number in (1, 2):
            before = run.state.weights
            run.rounds.round()
            assert run.errors == []
            ends, moved = mean_of_ends(run, number), 0
            for name, weight in run.state.weights.items():
                exact = ends[name]
                change = (exact - before[name].double()).abs().max()
                moved += bool(change > 1e-4)
                # In 16 bits a number is off by half a unit in its last place, of 11 bits.
                limit = most or 2**-10 * max(float(change), float(before[name].abs().max()) * 1e-4) + 1e-6
                assert (weight.double() - exact).abs().max() < limit, name
            assert moved > len(before) / 2
        assert set(run.state.ranks) <= set(run.state.weights)


@REPEATS
def test_from_the_second_round_on_no_projected_weight_travels_whole(tmp_path: Path) -> None:
    data = write_toy_dataset(tmp_path / "toy")
    messages: list[Message] = []
    federation = Federation(rounds=3, local_steps=2, exchange="shared-basis")
    with together(data, tmp_path / "out", federation, sites=2, seen=messages.append) as run:
        run.rounds.run()
        ranks, weights = run.state.ranks, run.state.weights
    sent = [m.content for m in messages if m.metadata.message_type == "train" and m.metadata.group_id != "1"]
    assert len(sent) == 8
    for content in sent:
        assert "weights" not in content
        record = content.array_records["tensors" if "tensors" in content else "change"]
        for name, tensor in from_record(record).items():
            if name in ranks:
                assert min(tensor.shape) == ranks[name]
                assert sum(tensor.shape) <= sum((weights[name].shape[0], weights[name][0].numel()))


@REPEATS
def test_every_update_lies_in_the_shared_subspace(tmp_path: Path) -> None:
    data = write_toy_dataset(tmp_path / "toy")
    federation = Federation(rounds=1, local_steps=3, exchange="shared-basis")
    bases = {}

    def note(order, answer):  # type: ignore[no-untyped-def]
        bases.update(order.bases)
        return answer

    with together(data, tmp_path / "out", federation, sites=2, double=True, changes={"site1": note}) as run:
        before = run.state.weights
        run.rounds.run()
        ended = run.ended("site1", 1)
    assert bases
    for name, (left, right) in bases.items():
        # W - c W0 for the c that is nearest: weight decay multiplies, all else is in the subspace.
        start, end = (tensor.double().reshape(len(tensor), -1) for tensor in (before[name], ended[name]))
        for basis, of in ((left, lambda m: m), (right, lambda m: m.T)):
            if basis is None:
                continue
            q = torch.linalg.qr(basis.double())[0]
            outside, outside_start = (of(m) - q @ (q.T @ of(m)) for m in (end, start))
            c = (outside * outside_start).sum() / outside_start.square().sum()
            assert 0.99 < c <= 1
            assert (outside - c * outside_start).abs().max() < 1e-12


@given(
    shape=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    rank=st.integers(1, 4),
    side=st.sampled_from(["std", "two_sided"]),
)
@settings(deadline=None, max_examples=40)
def test_a_factor_is_found_again_by_least_squares(shape: tuple[int, int], rank: int, side: str) -> None:
    generator = torch.Generator().manual_seed(sum(shape) + rank)
    rank = min(rank, *shape)
    sides = projected_sides(*shape, side)
    # Bases as they arrive in 16 bits: orthonormal to three digits only.
    left, right = (
        rounded({"q": torch.linalg.qr(torch.randn(size, rank, generator=generator, dtype=torch.float64))[0]}, 16)[
            "q"
        ].double()
        if there
        else None
        for there, size in zip(sides, shape, strict=True)
    )
    wanted = torch.randn(factor_shape(shape, (left, right)), generator=generator, dtype=torch.float64)
    change = project_back(wanted, left, right)
    torch.testing.assert_close(factor_of(change, left, right), wanted, rtol=0, atol=1e-9)


def test_the_sum_of_sketches_is_the_sketch_of_the_sum() -> None:
    gradients = [torch.randn(6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in range(3)]

    def sketch(gradient: Tensor, number: int = 0) -> Tensor:
        weight = torch.nn.Parameter(torch.zeros(6, 10, dtype=torch.float64))
        optimizer = SharedBasisAdamW([weight], rank=2, seed=5)
        optimizer.sketching, optimizer.sketch_number = True, number
        (weight * gradient).sum().backward()
        left, right = optimizer.take_sketches()[weight]
        assert right is None
        assert left is not None
        return left

    torch.testing.assert_close(sum(map(sketch, gradients)), sketch(sum(gradients)))  # type: ignore[arg-type]
    assert not torch.equal(sketch(gradients[0]), sketch(gradients[0], number=1))


def test_a_given_basis_moves_the_weight_in_it_and_rotates_the_moments() -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 6, dtype=torch.float64))
    optimizer = SharedBasisAdamW([weight], rank=2, lr=0.1)
    random = torch.Generator().manual_seed(0)
    for _ in range(2):
        basis = torch.linalg.qr(torch.randn(4, 2, dtype=torch.float64, generator=random))[0]
        optimizer.give_bases({weight: (basis, None)})
        before = weight.detach().clone()
        (weight * torch.randn(4, 6, dtype=torch.float64, generator=random)).sum().backward()
        optimizer.step()
        change = weight.detach() - before
        assert change.abs().max() > 0.01
        torch.testing.assert_close(basis @ (basis.T @ change), change)
    assert optimizer.state[weight]["step"] == 2
    assert optimizer.take_sketches() == {}


@pytest.mark.parametrize("state_bits", [32, 8])
def test_a_change_is_in_the_subspace_that_all_know_whatever_the_moments_are_kept_in(state_bits: int) -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(192, 384, generator=random) * 0.02)
    before = weight.detach().clone()
    basis = torch.linalg.qr(torch.randn(192, 64, generator=random))[0]
    optimizer = SharedBasisAdamW([weight], rank=64, state_bits=state_bits)
    for _ in range(2):
        optimizer.give_bases({weight: (basis, None)})
        (weight * torch.randn(192, 384, generator=random)).sum().backward()
        optimizer.step()
    change, known = (weight.detach() - before).double(), basis.double()
    left_out = change - known @ factor_of(change, known, None)
    assert left_out.norm() < 1e-5 * change.norm()
    assert ("exp_avg_scales" in optimizer.state[weight]) == (state_bits == 8)


def test_it_makes_no_bases_of_full_gradients() -> None:
    with pytest.raises(InputError, match="refresh: expected sketch: bases are given; found exact"):
        SharedBasisAdamW([torch.nn.Parameter(torch.zeros(4, 6))], rank=2, refresh="exact")


def test_vit_b_at_rank_64_sends_an_eighth_of_its_weights_at_most() -> None:
    at_1024 = resolved(TINY.__class__(model="vit_b", random_weights=True, device="cpu"), batch_size=1)
    with on_meta():
        model = build_model(at_1024, classes=3, in_channels=3)
    weights = dict(model.named_parameters())
    optimizer = new_optimizer(model, at_1024)
    ranks = {weight: group["rank"] for group in optimizer.param_groups for weight in group["params"]}
    optimizer.close()
    federation = Federation(exchange="shared-basis")
    whole = shared = 0
    for weight in weights.values():
        whole += 2 * 4 * weight.numel()  # both directions, float32
        rank, numbers = ranks[weight], weight.numel()
        if rank is None:
            shared += 2 * federation.travelling_bits // 8 * numbers
            continue
        m, n = weight.shape[0], numbers // weight.shape[0]
        short, long = min(m, n), max(m, n)
        rank = min(rank, short)
        shared += 2 * federation.travelling_bits // 8 * rank * long  # factors
        shared += 2 * short * (sketch_width(rank, long) + rank)  # a sketch up, a basis down, in 16 bits
    assert whole > 7e8
    assert shared < whole / 8
