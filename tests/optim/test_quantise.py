"""8-bit storage: the levels against the data type's bits, rounding against a search of all levels, and Adam on it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medsaga.memory.tracker import TensorTracker
from medsaga.optim.adamw import adamw_directions
from medsaga.optim.quantise import KINDS, dequantise, levels, quantise
from medsaga.optim.rows import BLOCK

DTYPES = (torch.float32, torch.float64)
TINY = torch.finfo(torch.float32).tiny
every_kind = pytest.mark.parametrize("kind", KINDS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(*shape: int, kind: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers of many magnitudes, not negative where the kind is ``root``."""
    draw = generator(seed)
    values = torch.randn(*shape, dtype=dtype, generator=draw) * 10 ** (-6 * torch.rand(*shape, generator=draw))
    return values.square() if kind == "root" else values


def restored(values: Tensor, kind: str, draw: torch.Generator | None = None) -> Tensor:
    return dequantise(*quantise(values, kind, draw), kind, values.dtype)


def stored(values: Tensor, kind: str) -> Tensor:
    """What is rounded: the root of a second moment, else the value itself."""
    return values.sqrt() if kind == "root" else values


def dynamic_from_bits(signed: bool) -> list[float]:
    """Read each of the 256 bytes as the paper describes (dynamic tree quantisation).

    From the left: a sign (signed only), zeros that count the decades below 1, a 1 that ends them, and the fraction.
    Unsigned numbers have one more bit of fraction. Without a 1, the two bytes that are left mean 0 and 1.
    """
    numbers = []
    for byte in range(256):
        bits = f"{byte:08b}"
        sign, body, extra = (bits[0], bits[1:], "") if signed else ("0", bits[:7], bits[7])
        if "1" not in body:
            numbers.append(float(bits[0] if signed else extra))
            continue
        zeros = body.index("1")
        fraction = body[zeros + 1 :] + extra
        edges = np.linspace(0.1, 1.0, 2 ** len(fraction) + 1)
        position = int(fraction, 2) if fraction else 0
        magnitude = (edges[position] + edges[position + 1]) / 2 / 10**zeros
        numbers.append(-magnitude if sign == "1" else magnitude)
    return sorted(numbers)


@pytest.mark.parametrize(("kind", "signed"), [("signed", True), ("root", False)])
def test_dynamic_levels_are_those_of_the_bits(kind: str, signed: bool) -> None:
    assert len(levels(kind)) == 256
    np.testing.assert_allclose(levels(kind), dynamic_from_bits(signed), rtol=1e-12)
    assert {0.0, 1.0} < set(levels(kind))


def test_linear_levels_are_even_and_symmetric() -> None:
    linear = np.array(levels("linear"))
    assert linear.size == 255
    np.testing.assert_array_equal(linear, -linear[::-1])
    np.testing.assert_allclose(np.diff(linear), 1 / 127)
    assert {-1.0, 0.0, 1.0} < set(linear)


@every_kind
@pytest.mark.parametrize("dtype", DTYPES)
def test_rounds_to_the_nearest_of_all_levels(kind: str, dtype: torch.dtype) -> None:
    """Also just beside every level and every middle between two, where a wrong neighbour would show."""
    table = torch.tensor(levels(kind), dtype=dtype)
    edges = torch.cat((table, (table[1:] + table[:-1]) / 2))
    lowest, highest = torch.tensor(-2.0, dtype=dtype), torch.tensor(2.0, dtype=dtype)
    edges = torch.cat((edges, torch.nextafter(edges, lowest), torch.nextafter(edges, highest)))
    edges = edges[(edges.abs() <= 1) & (edges >= (0 if kind == "root" else -1))]
    # Every block begins with its scale, 3; the rest of it is scaled by 3 too.
    rows = torch.cat((edges, edges.new_zeros(-len(edges) % (BLOCK - 1)))).view(-1, BLOCK - 1)
    values = 3 * torch.cat((torch.ones(len(rows), 1, dtype=dtype), rows), dim=1)
    given_values = values.square() if kind == "root" else values
    codes, scales = quantise(given_values, kind)
    assert (scales == 3).all()
    distance = (values[..., None] / 3 - table).abs()
    chosen = distance.gather(2, codes.long()[..., None])[..., 0]
    # The lowest second moments go up, whatever is nearer.
    lifted = (given_values > 0) & (values < 3 * table[1]) & (kind == "root")
    assert (chosen <= distance.amin(2) + 4 * torch.finfo(dtype).eps)[~lifted].all()
    assert (codes[lifted] == 1).all()


@every_kind
def test_error_is_within_half_a_level(kind: str) -> None:
    """Dynamic: in decade d of 7 there are n = 2^d levels (twice as many unsigned), 0.9 / n of the decade apart.

    At its lower end, 0.1 of the decade, half of that is 4.5 / n of the value. Linear: half of 1 / 127 of the largest.
    """
    values = sample(200, BLOCK, kind=kind)
    before, after = stored(values, kind), stored(restored(values, kind), kind)
    largest = before.abs().amax(1, keepdim=True)
    error = (after - before).abs()
    if kind == "linear":
        assert (error <= largest * (0.5 / 127 + 1e-6)).all()
        return
    ratio = (before / largest).abs()
    decade = (ratio.log10().ceil() + 6).clamp(-1, 6)  # 0.1..1 is decade 6
    inside = decade >= 1
    count = 2 ** (decade + (kind == "root"))
    assert inside.float().mean() > 0.9
    assert ((error / before.abs())[inside] <= (4.5 / count)[inside] + 1e-5).all()
    assert ((error / before.abs())[decade == 6] <= (0.036 if kind == "root" else 0.071)).all()


@every_kind
def test_stochastic_rounding_is_unbiased_between_two_neighbours(kind: str) -> None:
    """Hoeffding: the mean of N numbers within a gap is off by more than gap sqrt(ln(2/p) / 2N) with probability p."""
    row = sample(1, BLOCK, kind=kind, dtype=torch.float64)
    row[0, 0] = 100  # the scale: all others lie between the lowest and the highest level
    if kind == "root":
        row[0, 1:] = row[0, 1:].clamp(min=100 * (2 * levels(kind)[1]) ** 2)  # what is below is lifted
    draws = 4000
    before = stored(row, kind)[0]
    scale = before[0].item()
    after = stored(restored(row.expand(draws, BLOCK), kind, generator(1)), kind)
    table = scale * torch.tensor(levels(kind), dtype=torch.float64)
    upper = torch.bucketize(before[1:], table)
    low, high = table[upper - 1], table[upper]
    seen = after[:, 1:]
    near = torch.minimum((seen - low).abs(), (seen - high).abs())
    assert (near <= 1e-9 * scale).all()
    bound = (high - low) * math.sqrt(math.log(2 * BLOCK / 1e-6) / (2 * draws))
    assert ((seen.mean(0) - before[1:]).abs() <= bound).all()
    share = (before[1:] - low) / (high - low)
    assert (seen.std(0) > 0)[(share > 0.01) & (share < 0.99)].all()
    assert torch.allclose(after[:, 0], before[0])


def test_stochastic_rounding_keeps_small_changes_that_the_nearest_level_loses() -> None:
    """A hundred additions of a hundredth of a level add up to a level."""
    start = torch.full((4000,), 0.5 * 127)
    start[::BLOCK] = 127.0  # the scales
    nearest, stochastic, draw = start.clone(), start.clone(), generator()
    moving = start < 127
    for _ in range(100):
        nearest[moving] += 0.01
        stochastic[moving] += 0.01
        nearest, stochastic = restored(nearest, "linear"), restored(stochastic, "linear", draw)
    assert abs(stochastic[moving].mean().item() - 64.5) < 0.1
    assert (nearest[moving] == 64).all()


@every_kind
def test_depends_on_the_seed_alone(kind: str) -> None:
    values = sample(5, 300, kind=kind)
    first, again = quantise(values, kind, generator(3)), quantise(values, kind, generator(3))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], quantise(values, kind, generator(4))[0])


@every_kind
def test_what_is_stored_is_stored_again_without_change(kind: str) -> None:
    """Levels are fixed points, with and without a generator: moments that do not change do not drift.

    In float64, where the quotient by the scale is off by less than any draw can see.
    """
    codes, scales = quantise(sample(7, 300, kind=kind), kind)
    exact = dequantise(codes, scales, kind, torch.float64)
    for draw in (None, generator()):
        again, same = quantise(exact, kind, draw)
        assert torch.equal(again, codes)
        assert torch.equal(same, scales)


@every_kind
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(numbers=st.lists(st.floats(-(2.0**120), 2.0**120, width=32), max_size=600), exponent=st.integers(-149, 0))
def test_zero_sign_and_largest_survive(
    kind: str, stochastic: bool, dtype: torch.dtype, numbers: list[float], exponent: int
) -> None:
    values = torch.tensor(numbers, dtype=dtype) * 2.0**exponent
    values = values.abs() if kind == "root" else values
    codes, scales = quantise(values, kind, generator() if stochastic else None)
    after = dequantise(codes, scales, kind, dtype)
    assert codes.shape == after.shape == values.shape
    assert scales.shape == (math.ceil(len(numbers) / BLOCK),)
    assert after.isfinite().all()
    assert (after[values == 0] == 0).all()
    assert (after * values.sign() >= 0).all()
    if kind == "root":
        assert (after[values > 0] > 0).all()
    for start in range(0, len(numbers), BLOCK):
        block, back = values[start : start + BLOCK], after[start : start + BLOCK]
        largest = block.abs().argmax()
        if kind == "root" or dtype == torch.float64:  # a root is squared, and a float64 scale is rounded to float32
            torch.testing.assert_close(back[largest], block[largest], rtol=4e-7, atol=1.2 * TINY)
        else:
            assert back[largest] == block[largest]


@every_kind
@pytest.mark.parametrize("shape", [(), (0,), (1,), (255,), (256,), (257,), (3, 5, 7), (2, 0, 3), (64, 72)])
def test_any_shape(kind: str, shape: tuple[int, ...]) -> None:
    values = sample(*shape, kind=kind) if shape else sample(1, kind=kind)[0]
    codes, scales = quantise(values, kind, generator())
    assert (codes.shape, codes.dtype) == (values.shape, torch.uint8)
    assert (scales.shape, scales.dtype) == ((math.ceil(values.numel() / BLOCK),), torch.float32)
    assert codes.untyped_storage().nbytes() == values.numel(), "no padding is kept or saved"
    assert dequantise(codes, scales, kind).shape == values.shape
    for dtype in (*DTYPES, torch.bfloat16):
        assert dequantise(codes, scales, kind, dtype).dtype == dtype


@every_kind
def test_strides_do_not_matter_and_values_stay(kind: str) -> None:
    values = sample(70, 90, kind=kind)
    before = values.clone()
    for view in (values.T, values[::2, 1:], values.expand(2, 70, 90)):
        codes, scales = quantise(view, kind, generator())
        same, expected = quantise(view.contiguous(), kind, generator())
        assert codes.is_contiguous()
        assert torch.equal(codes, same)
        assert torch.equal(scales, expected)
    assert torch.equal(values, before)


@pytest.mark.parametrize("kind", ["signed", "linear"])
def test_negated_values_are_the_same_codes_with_negated_scales(kind: str) -> None:
    values = sample(10, BLOCK, kind=kind)
    codes, scales = quantise(values, kind)
    opposite, negated = quantise(-values, kind)
    assert torch.equal(codes, opposite)
    assert torch.equal(scales, -negated)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@every_kind
def test_what_is_not_finite_spoils_its_block_and_no_other(kind: str, bad: float) -> None:
    values = sample(2, BLOCK, kind=kind) + 1e-9
    values[0, 7] = bad
    after = restored(values, kind, generator())
    assert not after[0].isfinite().any()
    assert after[1].isfinite().all()


def test_no_second_moment_falls_to_zero_beside_a_huge_one() -> None:
    values = torch.tensor([1e30, 1e-30, 1e-45, 0.0])
    for draw in (None, generator()):
        after = restored(values, "root", draw)
        lowest = 1e30 * levels("root")[1] ** 2
        torch.testing.assert_close(after, torch.tensor([1e30, lowest, lowest, 0.0]))


def test_no_second_moment_falls_to_zero_below_the_range_of_the_scale() -> None:
    after = restored(torch.tensor([1e-100, 1e-120, 0.0], dtype=torch.float64), "root")
    assert (after[:2] > 0).all()
    assert after[2] == 0


def test_bases_stay_nearly_orthonormal() -> None:
    """Rounding to 1/127 of a block's largest element leaves P^T P within a few per cent of the identity."""
    basis = torch.linalg.qr(torch.randn(768, 64, generator=generator()))[0]
    for draw in (None, generator(1)):
        after = restored(basis, "linear", draw)
        assert torch.linalg.matrix_norm(after.T @ after - torch.eye(64), ord=2) < 0.02
        assert torch.linalg.matrix_norm(after - basis, ord=2) < 0.02


def test_second_moments_decay_with_stochastic_rounding_only() -> None:
    """One step of decay, 0.05 % of the root, is less than half a level: the nearest one is where it was."""
    beta2, steps = 0.999, 500
    start = sample(500, BLOCK, kind="root")
    start[:, 0] = 1000  # a scale that stays; all others decay
    start = restored(start, "root")
    nearest, stochastic, draw = start.clone(), start.clone(), generator()
    for _ in range(steps):
        nearest[:, 1:] *= beta2
        stochastic[:, 1:] *= beta2
        nearest, stochastic = restored(nearest, "root"), restored(stochastic, "root", draw)
    assert torch.equal(nearest, start)
    above_lowest = start[:, 1:] > 1000 * (20 * levels("root")[1]) ** 2
    decay = (stochastic[:, 1:].sqrt()[above_lowest].sum() / start[:, 1:].sqrt()[above_lowest].sum()).item()
    assert abs(decay / beta2 ** (steps / 2) - 1) < 0.02


@pytest.mark.parametrize(("stochastic", "distance", "excess"), [(True, 0.02, 0.01), (False, 0.06, 0.05)])
def test_adam_with_8_bit_moments_stays_close_to_torch(stochastic: bool, distance: float, excess: float) -> None:
    """Regression with inputs of very different sizes: weights and loss end near those of torch's AdamW.

    Measured: stochastic rounding ends within 0.8 % of its weights, the nearest level within 4 %.
    """
    draw = generator()
    inputs = torch.randn(256, 40, generator=draw) * torch.logspace(-1.5, 0.5, 40)
    target = inputs @ torch.randn(40, 30, generator=draw) + 0.1 * torch.randn(256, 30, generator=draw)
    betas, eps, lr = (0.9, 0.999), 1e-8, 0.02
    exact = torch.zeros(40, 30, requires_grad=True)
    optimizer = torch.optim.AdamW([exact], lr=lr, betas=betas, eps=eps, weight_decay=0.0)
    weight = torch.zeros(40, 30)
    rounding = generator(1) if stochastic else None
    first, second = quantise(weight, "signed"), quantise(weight, "root")
    for step in range(1, 401):
        optimizer.zero_grad()
        (inputs @ exact - target).square().mean().backward()
        optimizer.step()
        gradient = 2 * inputs.T @ (inputs @ weight - target) / target.numel()
        exp_avg, exp_avg_sq = dequantise(*first, "signed"), dequantise(*second, "root")
        (direction,), (exp_avg,), (exp_avg_sq,) = adamw_directions(
            [gradient], [exp_avg], [exp_avg_sq], step, betas, eps
        )
        weight -= lr * direction
        first, second = quantise(exp_avg, "signed", rounding), quantise(exp_avg_sq, "root", rounding)
    expected = exact.detach()
    assert (weight - expected).norm() / expected.norm() < distance
    loss, reference = ((inputs @ each - target).square().mean().item() for each in (weight, expected))
    assert abs(loss / reference - 1) < excess
    assert reference < 0.1 * target.square().mean().item()


@every_kind
@pytest.mark.parametrize("stochastic", [False, True])
def test_meta_tensors_are_counted_like_real_ones(kind: str, stochastic: bool) -> None:
    def measure(device: str) -> int:
        values = torch.ones(64, 72, device=device)
        quantise(values, kind)  # a first one makes tables, which stay
        tracker = TensorTracker()
        with tracker:
            codes, scales = quantise(values, kind, generator() if stochastic else None)
            back = dequantise(codes, scales, kind)
        assert (codes.shape, codes.dtype, scales.shape) == (values.shape, torch.uint8, (18,))
        assert back.device == values.device
        return tracker.peak_bytes

    assert measure("meta") == measure("cpu")


@every_kind
def test_meta_tensors_have_shapes_and_types(kind: str) -> None:
    """What predicts memory runs on meta tensors, whose generators are the CPU's."""
    codes, scales = quantise(torch.ones(64, 72, device="meta"), kind, generator())
    assert (codes.is_meta, codes.shape, codes.dtype) == (True, (64, 72), torch.uint8)
    assert (scales.is_meta, scales.shape, scales.dtype) == (True, (18,), torch.float32)
    assert dequantise(codes, scales, kind).shape == (64, 72)


def test_state_takes_two_bytes_a_weight() -> None:
    tracker = TensorTracker()
    gradient = torch.ones(64, 5120)
    with tracker:
        moments = quantise(gradient, "signed"), quantise(gradient, "root")
        tracker.assign([tensor for moment in moments for tensor in moment], "optimizer")
        torch.zeros(10_000_000)  # a peak, after which the bytes of what is left are read
    assert tracker.breakdown["optimizer"] == 2 * (1 + 4 / BLOCK) * gradient.numel()


@every_kind
@pytest.mark.parametrize("stochastic", [False, True])
def test_temporaries_are_few(kind: str, stochastic: bool) -> None:
    values = torch.ones(64, 5120)
    size = 4 * values.numel()
    tracker = TensorTracker()
    with tracker:
        stored_values = quantise(values, kind, generator() if stochastic else None)
    assert tracker.peak_bytes < 3.6 * size
    tracker = TensorTracker()
    with tracker:
        dequantise(*stored_values, kind)
    assert tracker.peak_bytes < 2.3 * size


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
@every_kind
def test_an_accelerator_stores_the_same(kind: str) -> None:
    device = torch.accelerator.current_accelerator()
    assert device is not None
    values = sample(64, 300, kind=kind)
    codes, scales = quantise(values, kind)
    there = quantise(values.to(device), kind)
    # Roots and quotients may differ in the last bit, and then a value in the middle of two levels goes the other way.
    assert (there[0].cpu().int() - codes.int()).abs().max() <= 1
    assert (there[0].cpu() == codes).float().mean() > 0.999
    torch.testing.assert_close(there[1].cpu(), scales)
    torch.testing.assert_close(
        dequantise(codes.to(device), scales.to(device), kind).cpu(), dequantise(codes, scales, kind)
    )
    draw = torch.Generator(device).manual_seed(0)
    assert restored(values.to(device), kind, draw).isfinite().all()
