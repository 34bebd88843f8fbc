"""What GaLoreAdamW guarantees: projection on arrival, the subspace, accumulation, clipping, resuming, memory."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medsaga.errors import InputError
from medsaga.models.linear import Linear
from medsaga.optim import PRESETS, GaLoreAdamW
from medsaga.optim.projection import as_matrix, matrix_shape, projected_sides

SKETCH: dict[str, Any] = {"rank": 3, "refresh_every": 4, "refresh": "sketch", "moments": "rotate"}
EXACT: dict[str, Any] = SKETCH | {"refresh": "exact"}
MODES = [SKETCH, EXACT, EXACT | {"moments": "keep"}]
MODE_NAMES = ["sketch", "exact", "exact-keep"]
SHAPES = [(12, 8), (8, 12), (6, 3, 2, 2)]


def test_a_sketch_that_overflows_alone_makes_the_norm_no_number() -> None:
    """In float16 a gradient at a right angle to the subspace projects to nothing, and its sketch is infinite."""
    torch.manual_seed(0)
    layer = Linear(256, 256, bias=False).half()
    optimizer = GaLoreAdamW([{"params": [layer.weight], "rank": 8}], lr=1e-3, refresh_every=2)
    rows = torch.zeros(256)
    rows[0] = 1.0

    def backward(columns: Tensor, size: float) -> None:
        inputs = columns.expand(4, 256).half()
        (layer(inputs) * (rows * size / 4).half()).sum().backward()

    for _ in range(2):
        backward(torch.ones(256) / 16, 1.0)
        assert torch.isfinite(optimizer.gradient_norm())
        optimizer.step()
        optimizer.zero_grad()
    basis = optimizer.state[layer.weight]["basis_right"].float()
    columns = 4 * nn.functional.one_hot(torch.tensor(0), 256).float()
    backward(columns - basis @ (basis.T @ columns), 2e5)
    assert not torch.isfinite(optimizer.gradient_norm())


class Net(nn.Module):
    """A convolution, two matrices and their biases."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(1, 10, 3, dtype=dtype)
        self.wide = nn.Linear(40, 24, dtype=dtype)
        self.tall = nn.Linear(24, 30, dtype=dtype)

    def forward(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.convolution(images).flatten(1)
        output: Tensor = self.tall(torch.tanh(self.wide(hidden)))
        return output

    def matrices(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.dim() > 1]

    def biases(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.dim() == 1]


def batch(step: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """(4, 1, 4, 4) images and (4, 30) targets."""
    generator = torch.Generator().manual_seed(step)
    return (
        torch.randn(4, 1, 4, 4, generator=generator, dtype=dtype),
        torch.randn(4, 30, generator=generator, dtype=dtype),
    )


def optimizer_of(net: Net, **settings: Any) -> GaLoreAdamW:
    common: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}
    return GaLoreAdamW([{"params": net.matrices(), **settings}, {"params": net.biases()}], **common)


def backward(net: Net, step: int, parts: int = 1) -> None:
    """The gradient of the batch's mean error, in so many micro-batches."""
    images, targets = batch(step, net.wide.weight.dtype)
    for x, y in zip(images.chunk(parts), targets.chunk(parts), strict=True):
        ((net(x) - y).square().mean() / parts).backward()


def train(net: Net, optimizer: GaLoreAdamW, steps: range, parts: int = 1, max_norm: float | None = None) -> None:
    """A plain training loop; the first step calibrates first, on its own batch."""
    for step in steps:
        if optimizer.needs_calibration():
            backward(net, step, parts)
            optimizer.calibrate()
        backward(net, step, parts)
        if max_norm is not None:
            optimizer.clip_gradients(max_norm)
        optimizer.step()
        optimizer.zero_grad()


def weights(net: Net) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def snapshot(optimizer: GaLoreAdamW) -> list[Any]:
    entries = (entry for entry in optimizer.state.values())
    return [v.clone() if isinstance(v, Tensor) else v for entry in entries for v in entry.values()]


def same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("mode", MODES, ids=MODE_NAMES)
@pytest.mark.parametrize("projection", ["std", "left", "right", "two_sided"])
@pytest.mark.parametrize("shape", SHAPES)
def test_update_lies_in_the_projected_subspace(shape: tuple[int, ...], projection: str, mode: dict[str, Any]) -> None:
    weight = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = GaLoreAdamW([weight], lr=0.1, projection=projection, **mode)
    sides = projected_sides(*matrix_shape(shape), projection)
    generator = torch.Generator().manual_seed(1)
    moved = 0
    for _ in range(10):
        before = weight.detach().clone()
        bases = {k: v for k, v in optimizer.state[weight].items() if k.startswith("basis")}
        (weight * torch.randn(shape, generator=generator, dtype=torch.float64)).sum().backward()
        optimizer.step()
        if mode["refresh"] == "exact":
            bases = {k: v for k, v in optimizer.state[weight].items() if k.startswith("basis")}
        update = as_matrix(weight.detach() - before)
        if not bases:
            assert torch.equal(update, torch.zeros_like(update))
            continue
        assert set(bases) == {name for name, used in zip(("basis_left", "basis_right"), sides, strict=True) if used}
        assert int(torch.linalg.matrix_rank(update)) == 3
        inside = update
        if sides[0]:
            inside = bases["basis_left"] @ bases["basis_left"].T @ inside
        if sides[1]:
            inside = inside @ bases["basis_right"] @ bases["basis_right"].T
        torch.testing.assert_close(inside, update, rtol=0, atol=1e-12)
        moved += 1
    assert moved >= 9


@pytest.mark.parametrize("mode", MODES, ids=MODE_NAMES)
@pytest.mark.parametrize("projection", ["std", "two_sided"])
def test_micro_batches_equal_one_batch(mode: dict[str, Any], projection: str) -> None:
    whole, parts = Net(), Net()
    train(whole, optimizer_of(whole, **mode, projection=projection), range(14), max_norm=0.5)
    train(parts, optimizer_of(parts, **mode, projection=projection), range(14), parts=4, max_norm=0.5)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=0, atol=1e-9)


def test_no_full_gradient_outlives_backward() -> None:
    net = Net()
    optimizer = optimizer_of(net, **SKETCH)
    for step in range(10):
        for _ in range(2):
            backward(net, step)
            assert all(parameter.grad is None for parameter in net.matrices())
            assert all(parameter.grad is not None for parameter in net.biases())
        kept = sum(tensor.numel() for tensor in optimizer.accumulators())
        assert 0 < kept < sum(parameter.numel() for parameter in net.matrices())
        optimizer.step()
        optimizer.zero_grad()
        assert optimizer.accumulators() == []


def test_exact_mode_keeps_full_gradients_in_refresh_steps_only() -> None:
    net = Net()
    optimizer = optimizer_of(net, **EXACT)
    assert not optimizer.needs_calibration()
    for step in range(10):
        backward(net, step)
        assert all((parameter.grad is not None) == (step % 4 == 0) for parameter in net.matrices())
        optimizer.step()
        assert all(parameter.grad is None for parameter in net.matrices())
        optimizer.zero_grad()


@pytest.mark.parametrize("mode", [SKETCH, EXACT], ids=["sketch", "exact"])
def test_basis_lasts_refresh_every_updates(mode: dict[str, Any]) -> None:
    net = Net()
    optimizer = optimizer_of(net, **mode)
    used = []
    for step in range(12):
        train(net, optimizer, range(step, step + 1))
        state = optimizer.state[net.tall.weight]
        used.append(state["basis_right"].clone())
    # In sketch mode the next basis is made after the last update with the old one, in exact mode before the first.
    changes = [step for step in range(1, 12) if not torch.equal(used[step], used[step - 1])]
    assert changes == ([3, 7, 11] if mode is SKETCH else [4, 8])


def test_moments_follow_the_basis_only_when_rotated() -> None:
    states = {}
    for moments in ("rotate", "keep"):
        net = Net()
        optimizer = optimizer_of(net, **(SKETCH | {"moments": moments}))
        train(net, optimizer, range(3))
        old = optimizer.state[net.tall.weight]["basis_right"]
        train(net, optimizer, range(3, 4))
        states[moments] = optimizer.state[net.tall.weight]
    rotated, kept = states["rotate"], states["keep"]
    assert torch.equal(rotated["basis_right"], kept["basis_right"])
    change = rotated["basis_right"].T @ old
    assert not torch.allclose(change.abs(), torch.eye(3, dtype=torch.float64), atol=0.1)
    torch.testing.assert_close(rotated["exp_avg"], kept["exp_avg"] @ change.T)
    assert not torch.allclose(rotated["exp_avg_sq"], kept["exp_avg_sq"])


@pytest.mark.parametrize("call", [GaLoreAdamW.calibrate, GaLoreAdamW.step])
def test_calibration_moves_nothing(call: Callable[[GaLoreAdamW], object]) -> None:
    net = Net()
    optimizer = optimizer_of(net, **SKETCH)
    before = weights(net)
    assert optimizer.needs_calibration()
    backward(net, 0)
    assert float(optimizer.gradient_norm()) > 0
    call(optimizer)
    assert torch.equal(weights(net), before)
    assert not optimizer.needs_calibration()
    assert optimizer.accumulators() == []
    assert all(parameter.grad is None for parameter in net.parameters())
    train(net, optimizer, range(1))
    assert not torch.equal(weights(net), before)


def test_weight_that_gets_its_first_gradient_late_is_calibrated_then() -> None:
    net = Net()
    late = nn.Parameter(torch.zeros(6, 5, dtype=torch.float64))
    optimizer = GaLoreAdamW([*net.matrices(), late], lr=0.01, **SKETCH)
    train(net, optimizer, range(2))
    for turn in range(2):
        backward(net, turn)
        (late * torch.arange(30.0).reshape(6, 5)).sum().backward()
        before = weights(net)
        optimizer.step()
        optimizer.zero_grad()
        assert not torch.equal(weights(net), before)
        assert bool(late.detach().any()) == (turn == 1)


@pytest.mark.parametrize("mode", [SKETCH, EXACT], ids=["sketch", "exact"])
def test_clipping_is_that_of_the_low_rank_gradients(mode: dict[str, Any]) -> None:
    net = Net()
    optimizer = optimizer_of(net, **mode)
    train(net, optimizer, range(2))
    images, targets = batch(2)
    full = torch.autograd.grad((net(images) - targets).square().mean(), list(net.parameters()))
    by_hand = []
    for parameter, gradient in zip(net.parameters(), full, strict=True):
        state = optimizer.state[parameter]
        low = as_matrix(gradient) if parameter.dim() > 1 else gradient
        low = state["basis_left"].T @ low if "basis_left" in state else low
        by_hand.append(low @ state["basis_right"] if "basis_right" in state else low)
    norm = torch.cat([low.flatten() for low in by_hand]).norm()
    backward(net, 2)
    torch.testing.assert_close(optimizer.gradient_norm(), norm)
    torch.testing.assert_close(optimizer.clip_gradients(float(norm) / 2), norm)
    torch.testing.assert_close(optimizer.gradient_norm(), norm / 2, rtol=1e-5, atol=0.0)
    assert float(optimizer.clip_gradients(1e9)) == pytest.approx(float(norm) / 2, rel=1e-5)
    optimizer.scale_gradients(0.5)
    torch.testing.assert_close(optimizer.gradient_norm(), norm / 4, rtol=1e-5, atol=0.0)
    before = [optimizer.state[parameter]["exp_avg"].clone() for parameter in net.parameters()]
    optimizer.step()
    for parameter, earlier, low in zip(net.parameters(), before, by_hand, strict=True):
        expected = earlier.lerp(low / 4, 1 - 0.9)
        after = optimizer.state[parameter]["exp_avg"]
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("mode", [SKETCH, EXACT], ids=["sketch", "exact"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [0, 2, 3, 4])
def test_skipped_step_damages_nothing(at: int, value: float, mode: dict[str, Any]) -> None:
    net, clean = Net(), Net()
    optimizer, reference = optimizer_of(net, **mode), optimizer_of(clean, **mode)
    train(net, optimizer, range(at))
    train(clean, reference, range(at))
    before, state = weights(net), snapshot(optimizer)
    backward(net, at)
    (net.wide.weight[0, 0] * value + net.convolution.weight[0, 0, 0, 0] * value).backward()
    backward(net, at)
    assert not bool(optimizer.clip_gradients(1.0).isfinite())
    if at == 0 and mode is SKETCH:
        assert not optimizer.calibrate()
        assert optimizer.needs_calibration()
    optimizer.zero_grad()
    assert torch.equal(weights(net), before)
    assert same(snapshot(optimizer), state)
    train(net, optimizer, range(at, at + 6))
    train(clean, reference, range(at, at + 6))
    assert torch.equal(weights(net), weights(clean))


@pytest.mark.parametrize("mode", MODES, ids=MODE_NAMES)
def test_two_runs_are_bitwise_equal(mode: dict[str, Any]) -> None:
    first, second = Net(torch.float32), Net(torch.float32)
    train(first, optimizer_of(first, **mode), range(10))
    torch.manual_seed(99)  # nothing draws from the global generator
    train(second, optimizer_of(second, **mode), range(10))
    assert torch.equal(weights(first), weights(second))


def test_seed_decides_the_sketches() -> None:
    first, second = Net(), Net()
    train(first, optimizer_of(first, **SKETCH, seed=1), range(3))
    train(second, optimizer_of(second, **SKETCH, seed=2), range(3))
    assert not torch.equal(weights(first), weights(second))


@pytest.mark.parametrize("stop", [2, 3, 4, 5])
@pytest.mark.parametrize("mode", MODES, ids=MODE_NAMES)
def test_resumed_run_is_bitwise_the_uninterrupted_one(mode: dict[str, Any], stop: int) -> None:
    straight = Net(torch.float32)
    reference = optimizer_of(straight, **mode)
    train(straight, reference, range(11))
    first = Net(torch.float32)
    earlier = optimizer_of(first, **mode)
    train(first, earlier, range(stop))
    file = io.BytesIO()
    torch.save({"net": first.state_dict(), "optimizer": earlier.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = Net(torch.float32)
    optimizer = optimizer_of(resumed, **(mode | {"rank": 1}))  # settings come from the file as well
    resumed.load_state_dict(saved["net"])
    optimizer.load_state_dict(saved["optimizer"])
    train(resumed, optimizer, range(stop, 11))
    assert torch.equal(weights(resumed), weights(straight))
    assert same(snapshot(optimizer), snapshot(reference))


def test_state_of_narrow_weights_stays_float32() -> None:
    net = Net(torch.bfloat16)
    optimizer = optimizer_of(net, **SKETCH)
    train(net, optimizer, range(5))
    copy = Net(torch.bfloat16)
    other = optimizer_of(copy, **SKETCH)
    other.load_state_dict(optimizer.state_dict())
    for state in (optimizer.state, other.state):
        tensors = [value for entry in state.values() for value in entry.values() if isinstance(value, Tensor)]
        assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert same(snapshot(other), snapshot(optimizer))
    loaded = other.state[copy.tall.weight]["exp_avg"]
    assert loaded.data_ptr() != optimizer.state[net.tall.weight]["exp_avg"].data_ptr()
    assert net.tall.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("mode", [SKETCH, EXACT], ids=["sketch", "exact"])
def test_memory_of_the_state(mode: dict[str, Any]) -> None:
    weight = nn.Parameter(torch.zeros(200, 100))
    optimizer = GaLoreAdamW([weight], lr=0.1, **(mode | {"rank": 5}))
    for _ in range(9):
        (weight * torch.randn(200, 100)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    tensors = [value for value in optimizer.state[weight].values() if isinstance(value, Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    assert sum(storages.values()) == 4 * (100 * 5 + 2 * 200 * 5)


def test_close_removes_the_hooks() -> None:
    net = Net()
    optimizer = optimizer_of(net, **SKETCH)
    optimizer.close()
    backward(net, 0)
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert optimizer.accumulators() == []


def test_projected_parameters_counts_what_is_projected() -> None:
    net = Net()
    assert optimizer_of(net, **SKETCH).projected_parameters() == 10 * 9 + 24 * 40 + 30 * 24
    assert optimizer_of(net).projected_parameters() == 0
    assert not optimizer_of(net).needs_calibration()


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_rank_is_capped_by_the_matrix(preset: str) -> None:
    weight = nn.Parameter(torch.zeros(3, 70))
    optimizer = GaLoreAdamW([weight], rank=4, refresh_every=200, **PRESETS[preset])
    for _ in range(2):
        (weight * torch.randn(3, 70)).sum().backward()
        optimizer.step()
    assert optimizer.state[weight]["basis_left"].shape == (3, 3)
    assert bool(weight.detach().any())


@pytest.mark.parametrize("settings", [
    {"lr": -1.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, 0.0)}, {"eps": 0.0}, {"weight_decay": -0.1}, {"rank": 0},
    {"refresh_every": 0}, {"scale": 0.0}, {"projection": "both"}, {"refresh": "never"}, {"moments": "drop"},
])  # fmt: skip
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(InputError, match=f"{name}: expected .*; found"):
        GaLoreAdamW([nn.Parameter(torch.zeros(3, 4))], **({"rank": 2} | settings))


def test_vectors_and_frozen_matrices_cannot_be_projected() -> None:
    for parameter in (nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(5, 5), requires_grad=False)):
        with pytest.raises(InputError, match="group without a rank"):
            GaLoreAdamW([parameter], rank=2)


def regression(optimizer_for: Callable[[nn.Parameter], torch.optim.Optimizer], steps: int) -> float:
    """Fit a (20, 30) linear map of rank 4 from noisy batches; return the share of it that is still missing."""
    generator = torch.Generator().manual_seed(5)
    target = torch.randn(20, 4, generator=generator) @ torch.randn(4, 30, generator=generator)
    weight = nn.Parameter(torch.zeros(20, 30))
    optimizer = optimizer_for(weight)
    for _ in range(steps):
        inputs = torch.randn(64, 30, generator=generator)
        noise = 0.1 * torch.randn(64, 20, generator=generator)
        (inputs @ (weight - target).T + noise).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return float((weight.detach() - target).norm() / target.norm())


@pytest.mark.parametrize("settings", [
    {"refresh": "sketch", "lr": 0.05}, {"refresh": "exact", "lr": 0.05},
    {"refresh": "exact", "moments": "keep", "lr": 0.05},
    # Moves 36 coordinates where the others move 180: a longer stride for the same way.
    {"refresh": "sketch", "projection": "two_sided", "lr": 0.2},
])  # fmt: skip
def test_converges_as_well_as_adamw(settings: dict[str, Any]) -> None:
    reference = regression(lambda weight: torch.optim.AdamW([weight], lr=0.02, weight_decay=0.0), 600)
    ours = regression(lambda weight: GaLoreAdamW([weight], rank=6, refresh_every=20, **settings), 600)
    assert reference < 0.05
    assert ours < 2 * reference
