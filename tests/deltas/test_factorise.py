"""The change of a matrix as factors, against numpy's SVD and against all choices of ranks there are."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from medsaga.deltas.factorise import (
    CODE_ERRORS,
    as_matrix,
    choose_ranks,
    encoded,
    share_of_base,
    shrunk,
    spectrum,
    truncated,
)

SHAPES = [(40, 24), (24, 40), (16, 16), (1, 9)]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nearest(matrix: Tensor, rank: int) -> npt.NDArray[Any]:
    """The best matrix of a rank, by numpy's SVD."""
    u, s, vt = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    nearest: npt.NDArray[Any] = (u[:, :rank] * s[:rank]) @ vt[:rank]
    return nearest


@pytest.mark.parametrize("shape", SHAPES)
def test_the_spectrum_and_the_factors_are_those_of_numpy(shape: tuple[int, int]) -> None:
    matrix = drawn(*shape)
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(spectrum(matrix).numpy(), values**2, rtol=1e-6, atol=1e-9)
    for rank in (0, 1, min(shape) // 2, min(shape)):
        left, right = truncated(matrix, rank)
        assert (left.shape, right.shape) == ((rank, shape[0]), (rank, shape[1]))
        np.testing.assert_allclose((left.T @ right).numpy(), nearest(matrix, rank), atol=1e-4)


def test_small_directions_are_told_from_none() -> None:
    u, v = np.linalg.qr(drawn(30, 30).double().numpy())[0], np.linalg.qr(drawn(20, 20).double().numpy())[0]
    values = np.logspace(0, -6, 20)
    matrix = torch.from_numpy((u[:, :20] * values) @ v.T).float()
    np.testing.assert_allclose(spectrum(matrix).sqrt().numpy()[:15], values[:15], rtol=1e-2)


def test_c_is_that_of_least_squares() -> None:
    base, weight = drawn(30, 20, seed=1), drawn(30, 20, seed=2) + 0.7 * drawn(30, 20, seed=1)
    expected = np.linalg.lstsq(base.numpy().reshape(-1, 1), weight.numpy().reshape(-1), rcond=None)[0][0]
    assert share_of_base(weight, base) == pytest.approx(expected, rel=1e-5)
    assert share_of_base(0.96 * base, base) == pytest.approx(0.96, rel=1e-6)
    assert share_of_base(weight, torch.zeros(30, 20)) == 1.0


def test_weight_decay_costs_no_rank() -> None:
    """A change of rank 3 beside a decay of all weights: without c every direction would be needed."""
    base, update = drawn(60, 40, seed=1), drawn(60, 3, seed=2) @ drawn(3, 40, seed=3)
    # So that least squares takes nothing of the update for decay.
    base -= (update * base).sum() / update.square().sum() * update
    weight = 0.98 * base + update
    with_c, without = spectrum(weight - share_of_base(weight, base) * base), spectrum(weight - base)
    lost = 1e-3**2 * float(with_c.sum())
    assert choose_ranks([with_c], [(60, 40)], lost=lost, code_bytes=1) == [3]
    (rank,) = choose_ranks([without], [(60, 40)], lost=lost, code_bytes=1)
    assert rank is None or rank > 30


def test_a_change_without_decay_keeps_its_rank() -> None:
    """Least squares would take what lies along the base for decay."""
    base = drawn(60, 40, seed=1)
    update = drawn(60, 2, seed=2) @ drawn(2, 40, seed=3) + 0.5 * torch.from_numpy(nearest(base, 2)).float()
    share, values = shrunk(base + update, base)
    assert share == 1.0
    assert float(values[4:].sum()) < 1e-10 * float(values.sum())
    assert shrunk(0.9 * base, base)[0] == pytest.approx(0.9)


@pytest.mark.parametrize("codes", ["int8", "fp16"])
@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e5])
def test_stored_factors_lose_no_more_than_is_said(codes: str, scale: float) -> None:
    left, right = truncated(scale * drawn(300, 200), 40)
    factors = encoded(left, right, codes)
    exact = (left.T @ right).double()
    lost = float((factors.product().double() - exact).norm() / exact.norm())
    assert 0 < lost < CODE_ERRORS[codes]
    assert {factor.codes.dtype for factor in (factors.left, factors.right)} == {
        {"int8": torch.int8, "fp16": torch.float16}[codes]
    }


def test_factors_with_spikes_are_stored_in_16_bits() -> None:
    left = torch.full((1, 3000), 0.004)
    left[0, 0] = 1.0
    factors = encoded(left, drawn(1, 50), "int8")
    assert factors.left.codes.dtype == torch.float16
    exact = left.T @ drawn(1, 50)
    assert (factors.product() - exact).norm() < CODE_ERRORS["int8"] * exact.norm()


def test_a_factor_of_zeros_comes_back() -> None:
    factors = encoded(torch.zeros(2, 6), drawn(2, 5), "int8")
    assert torch.equal(factors.product(), torch.zeros(6, 5))
    assert encoded(torch.zeros(0, 6), torch.zeros(0, 5), "int8").product().shape == (6, 5)


def test_one_matrix_gets_the_smallest_rank_that_will_do() -> None:
    values = spectrum(drawn(400, 30) * torch.logspace(0, -2, 30))
    for bound in (0.5, 0.1, 0.03):
        lost = bound**2 * float(values.sum())
        (rank,) = choose_ranks([values], [(400, 30)], lost=lost, code_bytes=1)
        assert rank is not None
        assert float(values[rank:].sum()) <= lost < float(values[rank - 1 :].sum())


def test_no_other_ranks_lose_less_in_fewer_bytes() -> None:
    """Everett's theorem, by trying all there are."""
    shapes = [(9, 5), (30, 4), (6, 6)]
    spectra = [
        spectrum(drawn(*shape, seed=seed) * torch.logspace(0, -seed, shape[1])) for seed, shape in enumerate(shapes)
    ]

    def cost(ranks: Any) -> tuple[float, float]:
        size = lost = 0.0
        for rank, values, (m, n) in zip(ranks, spectra, shapes, strict=True):
            size += 2 * m * n if rank is None else rank * (m + n + 8)
            lost += 0.0 if rank is None else float(values[rank:].sum())
        return size, lost

    options = [[None, *range(len(values) + 1)] for values in spectra]
    for bound in (0.6, 0.3, 0.1, 0.01):
        allowed = bound**2 * sum(float(values.sum()) for values in spectra)
        size, lost = cost(choose_ranks(spectra, shapes, lost=allowed, code_bytes=1))
        assert lost <= allowed
        for other in itertools.product(*options):
            their_size, their_loss = cost(other)
            assert their_size >= size - 1e-9 or their_loss >= lost - 1e-9


def test_kernels_and_tables_are_seen_as_matrices() -> None:
    assert as_matrix(torch.zeros(8, 3, 5, 5)).shape == (8, 75)
    assert as_matrix(torch.zeros(1, 14, 14, 64)).shape == (196, 64)
    assert as_matrix(torch.zeros(7, 9)).shape == (7, 9)
