"""Stochastic rounding: one of the two neighbours, and the number itself on average."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medsaga.models.int8 import Int8Weight, quantise_linears
from medsaga.optim.galore import GaLoreAdamW
from medsaga.optim.rounding import round_stochastically, write_weight

NARROW = [torch.bfloat16, torch.float16]


def _random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _values(count: int) -> Tensor:
    """Numbers of both signs over six decades, all of them normal in float16."""
    generator = _random(1)
    exponents = torch.empty(count).uniform_(-3, 3, generator=generator)
    return 10**exponents * torch.randn(count, generator=generator).sign()


def _rounded(values: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    weight = torch.full_like(values, torch.nan, dtype=dtype)
    write_weight(weight, values.clone(), _random(seed))
    return weight


def _neighbours(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The numbers of the type next to the values, nearer to zero and farther from it; a number is its own."""
    nearest = values.to(dtype)
    # Magnitudes of floats are in the order of their bits.
    step = (nearest.double().abs() < values.double().abs()).short() - (
        nearest.double().abs() > values.double().abs()
    ).short()
    other = (nearest.view(torch.int16) + step).view(dtype)
    inner = torch.where(nearest.abs() < other.abs(), nearest, other)
    return inner, torch.where(nearest.abs() < other.abs(), other, nearest)


@pytest.mark.parametrize("dtype", NARROW)
def test_results_are_the_neighbours_with_the_right_frequencies(dtype: torch.dtype) -> None:
    values = _values(2000)
    inner, outer = _neighbours(values, dtype)
    assert bool((inner.double().abs() < values.double().abs()).all())
    assert bool((outer.double().abs() > values.double().abs()).all())
    seeds = 400
    farther = torch.zeros(len(values), dtype=torch.float64)
    for seed in range(seeds):
        rounded = _rounded(values, dtype, seed)
        assert bool(((rounded == inner) | (rounded == outer)).all())
        farther += rounded == outer
    share = (values.double() - inner.double()) / (outer.double() - inner.double())
    deviation = (farther / seeds - share) / (share * (1 - share) / seeds).sqrt()
    common = (share > 0.05) & (share < 0.95)  # elsewhere a count of 400 is not normally distributed
    assert int(common.sum()) > 1500
    # Standard normal numbers: 2000 of them lie within 5 but for one in a thousand draws, and so does their mean.
    assert float(deviation[common].abs().max()) < 5
    assert abs(float(deviation[common].mean())) < 5 / int(common.sum()) ** 0.5
    assert float(deviation[common].std()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("dtype", NARROW)
def test_the_mean_is_the_value(dtype: torch.dtype) -> None:
    unit = torch.finfo(dtype).eps  # the distance of two neighbours from 1 to 2
    for share in (0.001, 0.3, 0.5, 0.9):
        value = 1 + share * unit
        draws = torch.cat([_rounded(torch.full((4096,), value), dtype, seed) for seed in range(50)]).double()
        spread = unit * (share * (1 - share) / len(draws)) ** 0.5
        assert abs(float(draws.mean()) - value) < 5 * spread
        assert abs(float(draws.mean()) - round(value / unit) * unit) > 5 * spread or share == 0.001


@pytest.mark.parametrize("dtype", NARROW)
def test_what_the_type_holds_stays(dtype: torch.dtype) -> None:
    exact = torch.cat([_values(1000).to(dtype), torch.tensor([0.0, -0.0, 1.0, -2.0, torch.inf, -torch.inf]).to(dtype)])
    for seed in range(20):
        assert torch.equal(_rounded(exact.float(), dtype, seed).view(torch.int16), exact.view(torch.int16))


@pytest.mark.parametrize("dtype", NARROW)
def test_signs_are_treated_alike(dtype: torch.dtype) -> None:
    values = _values(1000)
    assert torch.equal(_rounded(-values, dtype, 3), -_rounded(values, dtype, 3))


@pytest.mark.parametrize("dtype", NARROW)
def test_the_generator_decides(dtype: torch.dtype) -> None:
    values = _values(1000)
    torch.manual_seed(5)
    first = _rounded(values, dtype, 7)
    torch.manual_seed(6)
    assert torch.equal(_rounded(values, dtype, 7), first)
    assert not torch.equal(_rounded(values, dtype, 8), first)


def test_small_numbers_of_float16_go_to_a_neighbour_too() -> None:
    values = torch.empty(5000).uniform_(-6e-5, 6e-5, generator=_random())
    smallest = 2.0**-24  # the distance of all numbers below 6e-5, which have fewer than 10 bits
    assert float((_rounded(values, torch.float16, 0).float() - values).abs().max()) < smallest


def test_rounding_is_in_place_and_leaves_what_the_type_holds() -> None:
    values = _values(100)
    before = values.clone()
    round_stochastically(values, torch.bfloat16, _random())
    assert not torch.equal(values, before)
    assert torch.equal(values.bfloat16().float(), values)


def test_updates_far_below_half_a_step_move_a_weight_on_average_and_copies_do_not() -> None:
    learning_rate, steps, size = 1e-4, 100, 10_000
    # At 1.5 the numbers of bfloat16 are 0.0078 apart, 78 times an update.
    weight, copied = nn.Parameter(torch.full((size,), 1.5, dtype=torch.bfloat16)), torch.full((size,), 1.5).bfloat16()
    optimizer = GaLoreAdamW([weight], lr=learning_rate)
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        optimizer.step()  # with a constant gradient Adam's direction is 1
        copied.copy_(copied.float() - learning_rate)
    assert bool((copied == 1.5).all())
    moved = 1.5 - weight.detach().double()
    unit = 2.0**-7
    spread = (steps * learning_rate * (unit - learning_rate) / size) ** 0.5
    assert abs(float(moved.mean()) - steps * learning_rate) < 5 * spread
    assert 5 * spread < 0.05 * steps * learning_rate
    # Steps are rounded independently of each other.
    assert float(moved.std()) == pytest.approx(spread * size**0.5, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_weights_get_the_values_as_they_are(dtype: torch.dtype) -> None:
    values = _values(100).to(dtype) / 3
    weight = torch.zeros_like(values)
    write_weight(weight, values.clone(), _random())
    assert torch.equal(weight, values)
    write_weight(weight, weight, _random())  # the update of a wide weight happens in its own memory
    assert torch.equal(weight, values)


def test_int8_weights_are_stored_as_codes() -> None:
    layer = nn.Linear(256, 64, dtype=torch.bfloat16)
    quantise_linears(layer)
    weight = layer.weight
    assert isinstance(weight, Int8Weight)
    codes, scales = weight.codes, weight.scales
    values = torch.randn(64, 256, generator=_random())
    draws = []
    for seed in range(200):
        write_weight(weight, values.clone(), _random(seed))
        assert (weight.codes is codes) & (weight.scales is scales)
        draws.append(weight.dequantise(torch.float32))
    step = scales.repeat_interleave(128, 1)
    assert bool(((draws[0] - values).abs() < step * 1.0001).all())
    assert not torch.equal(draws[0], draws[1])
    error = (torch.stack(draws).mean(0) - values) / step
    # The spread of one draw is half a step at most.
    assert float(error.abs().max()) < 6 * 0.5 / 200**0.5
