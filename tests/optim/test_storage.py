"""The optimizer's state in 8 bits and on the host: its bytes, its bits when resumed, and what it costs in accuracy."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medsaga.models.int8 import Int8Weight, load_plain_state, plain_state, quantise_linears
from medsaga.optim.galore import GaLoreAdamW
from medsaga.optim.storage import LEAST_QUANTISED, Storage

CPU = torch.device("cpu")
GALORE: dict[str, Any] = {"rank": 48, "refresh_every": 4}


class Net(nn.Module):
    """Two projected matrices whose moments and bases are large enough for 8 bits, one full matrix, and biases."""

    def __init__(self, dtype: torch.dtype, *, int8: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(96, 128, dtype=dtype)
        self.second = nn.Linear(128, 96, dtype=dtype)
        self.last = nn.Linear(96, 64, dtype=dtype)
        if int8:
            quantise_linears(self.first)
            quantise_linears(self.second)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.second(torch.tanh(self.first(inputs)))
        output: Tensor = self.last(torch.tanh(hidden))
        return output


def _optimizer(net: Net, *, bits: int = 8, on_host: bool = False) -> GaLoreAdamW:
    projected: list[Tensor] = [net.first.weight, net.second.weight]
    known = {id(weight) for weight in projected}
    others = [weight for weight in net.parameters() if id(weight) not in known]
    groups = [{"params": projected, **GALORE}, {"params": others}]
    return GaLoreAdamW(groups, lr=2e-3, state_bits=bits, state_on_host=on_host, seed=3)


def _train(net: Net, optimizer: GaLoreAdamW, steps: range) -> list[float]:
    """Learn a fixed random map from noisy batches; return the losses."""
    target = torch.randn(96, 64, generator=torch.Generator().manual_seed(9)) / 96**0.5
    losses = []
    for step in steps:
        inputs = torch.randn(64, 96, generator=torch.Generator().manual_seed(step))
        for _ in range(2 if optimizer.needs_calibration() else 1):
            loss = (net(inputs.to(net.last.bias.dtype)).float() - inputs @ target).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def _saved(net: Net, optimizer: GaLoreAdamW) -> io.BytesIO:
    file = io.BytesIO()
    torch.save({"model": plain_state(net), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    return file


def _flat(document: Any) -> dict[str, Any]:
    """A nested state with one entry per leaf."""
    if isinstance(document, dict):
        return {f"{key}/{name}": leaf for key, value in document.items() for name, leaf in _flat(value).items()}
    if isinstance(document, list | tuple):
        return _flat(dict(enumerate(document)))
    return {"": document}


def _assert_same_bits(one: Any, other: Any) -> None:
    first, second = _flat(one), _flat(other)
    assert first.keys() == second.keys()
    for name, leaf in first.items():
        if isinstance(leaf, Tensor):
            assert leaf.dtype == second[name].dtype, name
            assert torch.equal(leaf, second[name]), name
        else:
            assert leaf == second[name], name


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


# What is stored


def test_32_bits_on_the_device_are_the_tensor_itself() -> None:
    state: dict[str, Any] = {}
    value = torch.randn(100, 100)
    storage = Storage(32, on_host=False)
    state.update(storage.stored("exp_avg", value))
    assert state == {"exp_avg": value}
    assert state["exp_avg"] is value
    assert storage.read(state, "exp_avg", value) is value
    assert storage.read(state, "exp_avg_sq", value) is None


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_lies_on_the_host_is_read_as_a_copy(device: str) -> None:
    """As a GPU would have it, so that a prediction, whose tensors have no place, counts it."""
    value = torch.ones(100, 100, device=device)
    storage = Storage(32, on_host=True)
    read = storage.read(storage.stored("exp_avg", value), "exp_avg", value)
    assert read is not None
    assert read.untyped_storage()._cdata != value.untyped_storage()._cdata


def test_tensors_below_the_limit_stay_as_they_are() -> None:
    storage = Storage(8, on_host=False)
    for size, names in ((LEAST_QUANTISED - 1, {"exp_avg"}), (LEAST_QUANTISED, {"exp_avg", "exp_avg_scales"})):
        state: dict[str, Any] = {}
        value = torch.randn(size)
        state.update(storage.stored("exp_avg", value))
        assert state.keys() == names
        read = storage.read(state, "exp_avg", value)
        assert read is not None
        assert read.dtype == torch.float32
        assert torch.equal(read, value) == (size < LEAST_QUANTISED)


def test_eight_bits_of_a_basis_and_of_moments_are_close() -> None:
    storage = Storage(8, on_host=False)
    basis = torch.linalg.qr(torch.randn(768, 64, generator=torch.Generator().manual_seed(0)))[0]
    state: dict[str, Any] = {}
    state.update(storage.stored("basis_left", basis))
    moments = 1e-4 * torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
    state.update(storage.stored_moments([moments], [moments.square()], torch.Generator().manual_seed(2))[0])
    read = storage.read(state, "basis_left", basis)
    assert read is not None
    # Levels are 1/127 of the largest of 256 entries apart, which is about 3 spreads: 0.7 % of the spread is lost.
    assert float((read - basis).norm() / basis.norm()) < 0.01
    exp_avg, exp_avg_sq = (storage.read_all([state], name, basis)[0] for name in ("exp_avg", "exp_avg_sq"))
    assert float((exp_avg - moments).norm() / moments.norm()) < 0.02
    assert float((exp_avg_sq - moments.square()).norm() / moments.square().norm()) < 0.02


@pytest.mark.parametrize(("bits", "low", "high"), [(32, 8.0, 8.0), (8, 2.0, 2.1)])
def test_bytes_per_weight_of_two_moments(bits: int, low: float, high: float) -> None:
    weight = nn.Parameter(torch.zeros(256, 300, dtype=torch.bfloat16))
    bias = nn.Parameter(torch.zeros(256, dtype=torch.bfloat16))
    optimizer = GaLoreAdamW([weight, bias], state_bits=bits)
    for _ in range(2):
        weight.grad, bias.grad = torch.ones_like(weight), torch.ones_like(bias)
        optimizer.step()
    (of_weight, _), (of_bias, _) = optimizer.state_tensors()
    assert low <= _bytes(of_weight) / weight.numel() <= high
    assert _bytes(of_bias) == 8 * 256
    assert {tensor.dtype for tensor in of_bias} == {torch.float32}


# What training gives


def test_eight_bits_train_like_32() -> None:
    nets = {bits: Net(torch.float32) for bits in (32, 8)}
    start = torch.cat([weight.detach().flatten() for weight in nets[8].parameters()])
    losses = {bits: _train(net, _optimizer(net, bits=bits), range(60)) for bits, net in nets.items()}
    moved = {bits: torch.cat([w.detach().flatten() for w in net.parameters()]) - start for bits, net in nets.items()}
    assert losses[32][-1] < 0.5 * losses[32][0]
    # Each step, 8 bits change a direction by about 2 %, at random and without a bias, so that errors do not pile up:
    # after 60 steps the weights had moved to places 2.3 % of their way apart, and the losses differed by 0.1 %.
    assert losses[8] == pytest.approx(losses[32], rel=0.01)
    distance = float((moved[8] - moved[32]).norm() / moved[32].norm())
    assert 0 < distance < 0.05


# Saved and resumed


@pytest.mark.parametrize("stop", [3, 4, 6])
@pytest.mark.parametrize("int8", [False, True], ids=["bf16", "int8"])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(int8: bool, stop: int) -> None:
    straight = Net(torch.bfloat16, int8=int8)
    reference = _optimizer(straight)
    _train(straight, reference, range(10))

    net = Net(torch.bfloat16, int8=int8)
    optimizer = _optimizer(net)
    _train(net, optimizer, range(stop))
    saved = torch.load(_saved(net, optimizer), weights_only=True)
    _assert_same_bits(saved, {"model": plain_state(net), "optimizer": optimizer.state_dict()})

    resumed = Net(torch.bfloat16, int8=int8)
    torch.manual_seed(77)
    other = _optimizer(resumed)
    load_plain_state(resumed, saved["model"])
    other.load_state_dict(saved["optimizer"])
    _assert_same_bits(other.state_dict(), saved["optimizer"])
    assert isinstance(resumed.first.weight, Int8Weight) == int8
    assert other.state[resumed.first.weight]["exp_avg"].dtype == torch.uint8
    assert not other.needs_calibration()
    _train(resumed, other, range(stop, 10))
    _assert_same_bits(plain_state(resumed), plain_state(straight))
    _assert_same_bits(other.state_dict(), reference.state_dict())


@pytest.mark.parametrize("bits", [8, 32])
def test_the_host_keeps_the_same_bits(bits: int) -> None:
    here, there = Net(torch.bfloat16), Net(torch.bfloat16)
    ours, theirs = _optimizer(here, bits=bits), _optimizer(there, bits=bits, on_host=True)
    _train(here, ours, range(9))
    _train(there, theirs, range(9))
    _assert_same_bits(plain_state(here), plain_state(there))
    for (near, on_device), (far, on_host) in zip(ours.state_tensors(), theirs.state_tensors(), strict=True):
        assert (on_device, on_host) == (False, True)
        assert {tensor.device for tensor in far} == {CPU}
        _assert_same_bits(near, far)
    again = Net(torch.bfloat16)
    reloaded = _optimizer(again, bits=bits, on_host=True)
    saved = torch.load(_saved(there, theirs), weights_only=True)
    load_plain_state(again, saved["model"])
    reloaded.load_state_dict(saved["optimizer"])
    _train(again, reloaded, range(9, 12))
    _train(here, ours, range(9, 12))
    _assert_same_bits(plain_state(here), plain_state(again))


def test_the_state_is_what_is_reported() -> None:
    net = Net(torch.bfloat16)
    optimizer = _optimizer(net)
    assert [tensors for tensors, _ in optimizer.state_tensors()] == [[]] * 6
    _train(net, optimizer, range(5))
    reported = [id(tensor) for tensors, _ in optimizer.state_tensors() for tensor in tensors]
    held = [id(v) for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    assert sorted(reported) == sorted(held)
