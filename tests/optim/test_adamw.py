"""AdamW on many small weights: one call for all of them, and torch's numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.step.updates import Calls
from medsaga.optim.adamw import update_together
from medsaga.optim.galore import GaLoreAdamW

SHAPES = [(1,), (7,), (64, 3), (5000,), (4, 1, 5, 5)]
SETTINGS: dict[str, Any] = {"lr": 0.05, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.2}


def weights(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def gradient_for(weight: Tensor, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * step + weight.numel())
    return torch.randn(weight.shape, generator=generator).to(weight.dtype)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("state_bits", [32, 8])
def test_many_weights_are_torchs_adamw(clip: float | None, state_bits: int) -> None:
    ours, others = weights(), weights()
    if state_bits == 8:  # larger ones are rounded
        ours, others = ([weight for weight in some if weight.numel() < 4096] for some in (ours, others))
    optimizer = GaLoreAdamW(ours, state_bits=state_bits, **SETTINGS)
    reference = torch.optim.AdamW(others, foreach=False, **SETTINGS)
    for step in range(12):
        for mine, other in zip(ours, others, strict=True):
            # The first one has no gradient in some steps, and counts its own.
            mine.grad = other.grad = None
            if other.numel() > 1 or step % 3 == 1:
                mine.grad, other.grad = gradient_for(mine, step), gradient_for(other, step)
        if clip is not None:
            norm = optimizer.clip_gradients(clip)
            expected = torch.nn.utils.clip_grad_norm_(others, clip)
            torch.testing.assert_close(norm, expected)
        optimizer.step()
        optimizer.zero_grad()
        reference.step()
    for mine, other in zip(ours, others, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-6)
        state, expected_state = optimizer.state[mine], reference.state[other]
        assert state["step"] == expected_state["step"]
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(state[name], expected_state[name], rtol=2e-5, atol=1e-7)


def test_rates_are_those_of_each_group() -> None:
    (slow, quick), (slow_too, quick_too) = ((weights()[3], weights()[3]) for _ in range(2))
    optimizer = GaLoreAdamW([{"params": [slow], "lr": 1e-4}, {"params": [quick], "weight_decay": 0.5}], lr=0.1)
    reference = torch.optim.AdamW(
        [{"params": [slow_too], "lr": 1e-4}, {"params": [quick_too], "weight_decay": 0.5}], lr=0.1, weight_decay=0
    )
    for step in range(3):
        for weight in (slow, quick, slow_too, quick_too):
            weight.grad = gradient_for(weight, step)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(slow, slow_too, rtol=0, atol=1e-6)
    torch.testing.assert_close(quick, quick_too, rtol=0, atol=1e-6)


def test_a_shortage_between_two_groups_moves_no_weight_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(failing: int) -> list[Any]:
        pair = [nn.Parameter(torch.ones(9)) for _ in range(2)]
        optimizer = GaLoreAdamW([{"params": [pair[0]]}, {"params": [pair[1]], "lr": 0.2}], lr=0.1)
        calls = 0

        def update(*given: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == failing:
                raise MemoryError
            update_together(*given)

        monkeypatch.setattr("medsaga.optim.galore.update_together", update)
        for step in range(2):
            for weight in pair:
                weight.grad = gradient_for(weight, step)
            optimizer.clip_gradients(1.0)
            progress = []
            while True:
                try:
                    optimizer.step()
                    break
                except MemoryError:
                    progress.append(optimizer.done)
            assert progress == sorted(set(progress)), "the loop would take a second shortage for no progress"
            optimizer.zero_grad()
        return [*pair, *(optimizer.state[weight]["step"] for weight in pair)]

    expected = trained(failing=0)
    for failing in range(1, 5):
        for one, other in zip(trained(failing), expected, strict=True):
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_moments_of_a_transposed_gradient_stay_where_they_are() -> None:
    ours, other = (nn.Parameter(torch.arange(12.0).view(3, 4)) for _ in range(2))
    optimizer, reference = GaLoreAdamW([ours], **SETTINGS), torch.optim.AdamW([other], foreach=False, **SETTINGS)
    for step in range(4):
        gradient = gradient_for(ours, step)
        ours.grad, other.grad = gradient.t().contiguous().t() if step == 0 else gradient.clone(), gradient
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, other, rtol=0, atol=1e-6)


def test_the_number_of_operations_does_not_grow_with_that_of_the_weights() -> None:
    def operations(many: list[nn.Parameter]) -> int:
        optimizer = GaLoreAdamW(many, **SETTINGS)
        for step in range(2):
            for weight in many:
                weight.grad = gradient_for(weight, step)
            with Calls() as counting:
                optimizer.step()
        return counting.count

    assert operations([weight for seed in range(20) for weight in weights(seed)]) == operations(weights())


def test_a_transposed_weight_is_updated_like_any_other() -> None:
    flat, across = (nn.Parameter(torch.arange(12.0).view(3, 4)) for _ in range(2))
    across = nn.Parameter(across.detach().t().contiguous().t())
    assert not across.is_contiguous()
    for weight in (flat, across):
        optimizer = GaLoreAdamW([weight], **SETTINGS)
        for step in range(3):
            weight.grad = gradient_for(flat, step)
            optimizer.step()
    torch.testing.assert_close(flat, across, rtol=0, atol=1e-6)
