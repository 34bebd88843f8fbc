"""What comparisons with public code share: random tensors, and distances."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn


def draw_all(model: nn.Module) -> None:
    """Give parameters and the statistics of norms random values, from torch's global generator."""
    for name, tensor in model.named_parameters():
        if tensor.dim() == 1 and "weight" in name:
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif tensor.dim() < 4:
            nn.init.normal_(tensor, std=0.02 if "weight" in name and tensor.dim() == 2 else 0.1)
        else:
            nn.init.kaiming_normal_(tensor)
    for name, statistic in model.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(statistic, std=0.2)
        if name.endswith("running_var"):
            nn.init.uniform_(statistic, 0.5, 2)


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Return the norm of the difference by the norm."""
    return float((ours - theirs).detach().norm() / theirs.detach().norm())


def furthest_gradient(
    ours: nn.Module, theirs: nn.Module, own_name: Callable[[str], str] = str, *, left_out: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the largest distance among the gradients of all parameters, and whose it is.

    Args:
        ours: has gradients.
        theirs: has gradients.
        own_name: our name of their parameter.
        left_out: how the names of our parameters begin that they do not have.
    """
    expected = {own_name(name): p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    found = {
        name: p.grad
        for name, p in ours.named_parameters()
        if p.grad is not None and not name.startswith(tuple(left_out))
    }
    assert found.keys() == expected.keys()
    far = {name: distance(found[name], expected[name]) for name in found}
    worst = max(far, key=lambda name: far[name])
    return {"largest of the gradients": far[worst], "of": worst, "gradients": len(far)}
