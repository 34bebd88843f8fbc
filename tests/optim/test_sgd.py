"""SGD with momentum against torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from medsaga.optim.sgd import MomentumSGD


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 3))


def _backward(network: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    loss = network(torch.randn(8, 12, generator=generator)).square().mean()
    loss.backward()
    return loss.detach()


def test_equals_torch_step_for_step() -> None:
    ours, theirs = _network(), _network()
    mine = MomentumSGD(ours.parameters(), lr=0.05, weight_decay=1e-2)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    for step in range(20):
        for network, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            _backward(network, step)
            optimizer.step()
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_clipping_equals_torch() -> None:
    ours, theirs = _network(), _network()
    mine, reference = MomentumSGD(ours.parameters(), lr=0.1), torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    _backward(ours, 0)
    _backward(theirs, 0)
    norm = mine.clip_gradients(1e-3)
    assert float(norm) == pytest.approx(float(nn.utils.clip_grad_norm_(theirs.parameters(), 1e-3)))
    mine.step()
    reference.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_goes_on_from_its_state_to_the_same_bits() -> None:
    network = _network().bfloat16()
    for weight in network.parameters():
        weight.data = weight.data.clone()
    optimizer = MomentumSGD(network.parameters(), lr=0.1)

    def steps(network: nn.Module, optimizer: MomentumSGD, numbers: range) -> None:
        for step in numbers:
            optimizer.zero_grad()
            generator = torch.Generator().manual_seed(step)
            network(torch.randn(8, 12, generator=generator).bfloat16()).square().mean().backward()
            optimizer.step()

    steps(network, optimizer, range(3))
    saved = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
    steps(network, optimizer, range(3, 6))
    again = _network().bfloat16()
    again.load_state_dict(saved[0])
    other = MomentumSGD(again.parameters(), lr=0.1)
    other.load_state_dict(saved[1])
    assert all(value["momentum"].dtype == torch.float32 for value in other.state.values())
    steps(again, other, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_a_bfloat16_weight_moves_by_less_than_its_spacing_on_the_average() -> None:
    weight = nn.Parameter(torch.ones(20_000, dtype=torch.bfloat16))
    optimizer = MomentumSGD([weight], lr=1e-4, momentum=0.0)
    for _ in range(10):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert float(weight.detach().float().mean()) == pytest.approx(1 - 1e-3, abs=2e-4)
