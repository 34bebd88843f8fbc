"""Memory may run out at any allocation of an update: done again, it comes to the same bits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medsaga.models.int8 import quantise_linears
from medsaga.optim.accumulation import AccumulatingOptimizer
from medsaga.optim.galore import GaLoreAdamW
from medsaga.optim.sgd import MomentumSGD

STEPS = 3


class RunningOut(TorchDispatchMode):
    """Raises at the ``at``-th operation that makes memory of its own; the first is 1."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if type(leaf) is Tensor}
        made = func(*args, **(kwargs or {}))
        new = [leaf for leaf in tree_leaves(made) if type(leaf) is Tensor]
        if any(leaf.untyped_storage()._cdata not in known for leaf in new):
            self.left -= 1
            if self.left == 0:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return made


def sketched(parameters: Any) -> AccumulatingOptimizer:
    return GaLoreAdamW(parameters, lr=0.01, rank=64, refresh_every=2, weight_decay=0.1)


def exact(parameters: Any) -> AccumulatingOptimizer:
    return GaLoreAdamW(parameters, lr=0.01, rank=3, refresh_every=2, refresh="exact", moments="keep")


def eight_bits(parameters: Any) -> AccumulatingOptimizer:
    return GaLoreAdamW(parameters, lr=0.01, rank=64, refresh_every=2, projection="two_sided", state_bits=8)


def plain(parameters: Any) -> AccumulatingOptimizer:
    return GaLoreAdamW(parameters, lr=0.01)


def descent(parameters: Any) -> AccumulatingOptimizer:
    return MomentumSGD(parameters, lr=0.01)


def trained(
    make: Callable[[Any], AccumulatingOptimizer], dtype: torch.dtype, *, int8: bool, at: int
) -> tuple[Any, int]:
    """Train two layers; in each update memory runs out once, at the ``at``-th allocation. Return state and failures."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(72, 96, bias=False), nn.Linear(96, 80, bias=False)).to(dtype)
    if int8:
        quantise_linears(model)
    optimizer = make(model.parameters())
    failures = 0
    for step in range(STEPS):
        inputs = torch.randn(8, 72, generator=torch.Generator().manual_seed(step)).to(dtype)
        if optimizer.needs_calibration():
            model(inputs).float().square().mean().backward()
            try:
                with RunningOut(at):
                    optimizer.calibrate()
            except torch.OutOfMemoryError:
                failures += 1
                assert optimizer.needs_calibration(), "some have bases and some have none"
                optimizer.zero_grad()
                model(inputs).float().square().mean().backward()
                optimizer.calibrate()
        model(inputs).float().square().mean().backward()
        optimizer.clip_gradients(1.0)
        try:
            with RunningOut(at):
                optimizer.step()
        except torch.OutOfMemoryError:
            failures += 1
            optimizer.step()
        optimizer.zero_grad()
    weights = [copy.deepcopy(weight.detach()) for weight in model.parameters()]
    return [weights, optimizer.state_dict()["state"]], failures


@pytest.mark.parametrize(
    ("make", "dtype", "int8"),
    [
        (sketched, torch.float32, False),
        (exact, torch.float32, False),
        (eight_bits, torch.bfloat16, False),
        (sketched, torch.bfloat16, True),
        (plain, torch.bfloat16, False),
        (plain, torch.float32, False),
        (descent, torch.float32, False),
    ],
    ids=["sketched", "exact", "eight bits", "int8", "adamw", "adamw together", "sgd"],
)
def test_an_update_goes_on_to_the_same_bits(make: Any, dtype: torch.dtype, int8: bool) -> None:
    expected, none = trained(make, dtype, int8=int8, at=0)
    assert none == 0
    at, failures = 1, STEPS
    while failures:
        found, failures = trained(make, dtype, int8=int8, at=at)
        for one, other in zip(tree_leaves(found), tree_leaves(expected), strict=True):
            assert torch.equal(one, other) if isinstance(one, Tensor) else one == other, f"allocation {at}"
        at += 1 + at // 4
    assert at > 2, "there was nothing to fail"
