"""GaLoreAdamW against independent implementations of GaLore and AdamW."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medsaga.optim import PRESETS, GaLoreAdamW

Gradients = list[Tensor]


def gradients(*shape: int, steps: int, dtype: torch.dtype = torch.float64) -> Gradients:
    """Gradients with decaying singular values that drift, so that a change of the basis matters."""
    made = torch.Generator().manual_seed(3)
    rows, columns = shape[0], int(np.prod(shape[1:]))
    scale = 0.7 ** torch.arange(min(rows, columns))
    left = torch.linalg.qr(torch.randn(rows, len(scale), generator=made))[0]
    result = []
    for _ in range(steps):
        left = torch.linalg.qr(left + 0.1 * torch.randn(left.shape, generator=made))[0]
        right = torch.linalg.qr(torch.randn(columns, len(scale), generator=made))[0]
        result.append((left * scale @ right.T).reshape(shape).to(dtype))
    return result


def run(optimizer: torch.optim.Optimizer, weight: nn.Parameter, each: Gradients) -> list[Tensor]:
    """Feed the gradients through backward; return the weight after every step."""
    path = []
    for gradient in each:
        optimizer.zero_grad()
        (weight * gradient).sum().backward()
        optimizer.step()
        path.append(weight.detach().clone())
    return path


def galore_in_numpy(
    weight: np.ndarray,
    each: list[np.ndarray],
    *,
    lr: float,
    rank: int,
    every: int,
    scale: float,
    weight_decay: float,
    projection: str,
) -> list[np.ndarray]:
    """Algorithm 2 of GaLore (arXiv 2403.03507), with decoupled weight decay as in AdamW."""
    m: Any = 0.0
    v: Any = 0.0
    path = []
    for t, gradient in enumerate(each):
        if t % every == 0:
            # Kept moments depend on the signs of the singular vectors, which are LAPACK's choice: take torch's LAPACK.
            u, _, vt = (part.numpy() for part in torch.linalg.svd(torch.from_numpy(gradient), full_matrices=False))
        p, q = u[:, :rank], vt[:rank].T
        wide = weight.shape[0] < weight.shape[1]
        left = projection in ("left", "two_sided") or (projection == "std" and wide)
        right = projection in ("right", "two_sided") or (projection == "std" and not wide)
        low = p.T @ gradient if left else gradient
        low = low @ q if right else low
        m = 0.9 * m + 0.1 * low
        v = 0.999 * v + 0.001 * low**2
        update = (m / (1 - 0.9 ** (t + 1))) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
        update = p @ update if left else update
        update = update @ q.T if right else update
        weight = weight * (1 - lr * weight_decay) - lr * scale * update
        path.append(weight)
    return path


@pytest.mark.parametrize("projection", ["std", "left", "right", "two_sided"])
@pytest.mark.parametrize("shape", [(12, 7), (7, 12)])
def test_reference_mode_is_algorithm_2_of_the_paper(shape: tuple[int, int], projection: str) -> None:
    each = gradients(*shape, steps=25)
    weight = nn.Parameter(torch.ones(shape, dtype=torch.float64))
    settings = PRESETS["reference"] | {"rank": 4, "refresh_every": 6, "projection": projection}
    optimizer = GaLoreAdamW([weight], lr=0.05, weight_decay=0.1, **settings)
    ours = run(optimizer, weight, each)
    theirs = galore_in_numpy(
        np.ones(shape),
        [gradient.numpy() for gradient in each],
        lr=0.05,
        rank=4,
        every=6,
        scale=0.25,
        weight_decay=0.1,
        projection=projection,
    )
    for mine, reference in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.numpy(), reference, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("shape", "name", "theirs"), [
    ((12, 7), "std", "std"), ((7, 12), "std", "std"), ((12, 7), "left", "left"), ((12, 7), "two_sided", "full"),
])  # fmt: skip
def test_reference_mode_is_the_galore_of_pytorch_optimizer(
    shape: tuple[int, int], name: str, theirs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytorch_optimizer.optimizer.galore import GaLore
    from pytorch_optimizer.optimizer.utils.galore import GaLoreProjector

    # It counts steps from 1 where the paper and galore-torch count from 0, so that its first basis lasts a step less.
    original = GaLoreProjector.project
    monkeypatch.setattr(GaLoreProjector, "project", lambda self, gradient, step: original(self, gradient, step - 1))
    each = gradients(*shape, steps=25, dtype=torch.float32)
    mine, other = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.ones(shape))
    # It adds epsilon before the bias correction, torch and the paper after it; and it decays the weight after the
    # step. With a vanishing epsilon and no decay there is no difference.
    common: dict[str, Any] = {"lr": 0.01, "eps": 1e-30, "weight_decay": 0.0}
    ours = GaLoreAdamW([mine], **common, **(PRESETS["reference"] | {"rank": 4, "refresh_every": 6, "projection": name}))
    group = {"params": [other], "rank": 4, "update_proj_gap": 6, "scale": 0.25, "projection_type": theirs}
    reference = GaLore([group], betas=(0.9, 0.999), **common)
    for a, b in zip(run(ours, mine, each), run(reference, other, each), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)
    moments, expected = ours.state[mine], reference.state[other]
    torch.testing.assert_close(moments["exp_avg"], expected["exp_avg"])
    torch.testing.assert_close(moments["exp_avg_sq"], expected["exp_avg_sq"])


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9), (5, 3, 2, 2)])
@pytest.mark.parametrize("projection", ["std", "left", "right", "two_sided"])
def test_identity_basis_is_adamw(shape: tuple[int, ...], projection: str) -> None:
    each = gradients(*shape, steps=15)
    rows, columns = shape[0], int(np.prod(shape[1:]))
    # A two-sided projection of full rank needs two whole identities: give it those, whatever rank the matrix caps at.
    mine, other = (nn.Parameter(torch.ones(shape, dtype=torch.float64)) for _ in range(2))
    common: dict[str, Any] = {"lr": 0.05, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.2}
    ours = GaLoreAdamW([mine], rank=100, projection=projection, refresh_every=1000, **common)
    (mine * each[0]).sum().backward()
    ours.calibrate()
    state = ours.state[mine]
    for name, size in (("basis_left", rows), ("basis_right", columns)):
        if name in state:
            state[name] = torch.eye(size, dtype=torch.float64)
    reference = torch.optim.AdamW([other], **common)
    for a, b in zip(run(ours, mine, each), run(reference, other, each), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_plain_groups_are_adamw() -> None:
    each = gradients(8, 5, steps=30)
    mine, other = (nn.Parameter(torch.ones(8, 5, dtype=torch.float64)) for _ in range(2))
    ours = GaLoreAdamW([mine], lr=0.05, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.2)
    reference = torch.optim.AdamW([other], lr=0.05, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.2)
    for a, b in zip(run(ours, mine, each), run(reference, other, each), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(ours.state[mine][name], reference.state[other][name], rtol=0, atol=1e-12)
