"""Bases, sketches and the change of basis of the moments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medsaga.optim.projection import (
    as_matrix,
    exact_bases,
    matrix_shape,
    project,
    project_back,
    projected_sides,
    rotate_moments,
    sketch_basis,
    sketch_matrix,
    sketch_width,
)

BETAS = (0.9, 0.999)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def orthonormal(size: int, rank: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(random(size, rank, seed=seed))[0]


def decaying(m: int, n: int, seed: int = 0) -> Tensor:
    """A matrix whose singular values halve from one to the next."""
    k = min(m, n)
    return (
        orthonormal(m, k, seed)
        @ torch.diag(0.5 ** torch.arange(k, dtype=torch.float64))
        @ orthonormal(n, k, seed + 1).T
    )


@pytest.mark.parametrize(
    ("m", "n", "projection", "sides"),
    [
        (5, 3, "std", (False, True)),
        (3, 3, "std", (False, True)),
        (3, 5, "std", (True, False)),
        (5, 3, "left", (True, False)),
        (3, 5, "right", (False, True)),
        (3, 5, "two_sided", (True, True)),
    ],
)
def test_projected_sides(m: int, n: int, projection: str, sides: tuple[bool, bool]) -> None:
    assert projected_sides(m, n, projection) == sides


def test_convolution_kernel_is_seen_as_out_by_the_rest() -> None:
    kernel = random(8, 3, 2, 2)
    assert as_matrix(kernel).shape == matrix_shape(kernel.shape) == (8, 12)
    assert torch.equal(as_matrix(kernel)[3], kernel[3].flatten())


@pytest.mark.parametrize("sides", [(True, False), (False, True), (True, True)])
def test_projecting_forth_and_back_is_the_orthogonal_projector(sides: tuple[bool, bool]) -> None:
    gradient = random(7, 9)
    left, right = orthonormal(7, 3) if sides[0] else None, orthonormal(9, 3, 1) if sides[1] else None
    once = project_back(project(gradient, left, right), left, right)
    expected = gradient
    expected = expected if left is None else left @ left.T @ expected
    expected = expected if right is None else expected @ right @ right.T
    torch.testing.assert_close(once, expected)
    torch.testing.assert_close(project_back(project(once, left, right), left, right), once)


@pytest.mark.parametrize("shape", [(40, 30), (30, 40)])
def test_exact_bases_capture_the_most_energy_possible(shape: tuple[int, int]) -> None:
    gradient = random(*shape)
    left, right = exact_bases(gradient, 5, (True, True))
    assert left is not None
    assert right is not None
    best = torch.linalg.svdvals(gradient)[:5].norm()
    for captured in (project(gradient, left, None), project(gradient, None, right), project(gradient, left, right)):
        torch.testing.assert_close(captured.norm(), best)
    torch.testing.assert_close(left.T @ left, torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(right.T @ right, torch.eye(5, dtype=torch.float64))


@pytest.mark.parametrize("size", [(300, 200), (200, 300)])
def test_bases_own_just_their_memory(size: tuple[int, int]) -> None:
    gradient = random(*size).float()
    left, right = exact_bases(gradient, 4, (True, True))
    sketched = sketch_basis(gradient[:, :8], 4)
    for basis, rows in ((left, size[0]), (right, size[1]), (sketched, size[0])):
        assert basis is not None
        assert basis.untyped_storage().nbytes() == rows * 4 * 4


def test_sketch_of_a_matrix_of_low_rank_finds_its_range() -> None:
    gradient = random(50, 3) @ random(3, 70, seed=1)
    omega = sketch_matrix(70, sketch_width(3, 70), generator(), gradient)
    basis = sketch_basis(gradient @ omega, 3)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(basis @ (basis.T @ gradient), gradient)


def test_directions_beyond_the_rank_of_the_sketch_do_not_depend_on_rounding_errors() -> None:
    sketch = random(40, 3) @ random(3, 20, seed=1)
    basis = sketch_basis(sketch, 8)
    off = sketch_basis(sketch + 1e-15 * random(40, 20, seed=2), 8)
    # As subspaces: singular vectors may have any sign.
    torch.testing.assert_close(off @ off.T, basis @ basis.T, rtol=0, atol=1e-6)
    torch.testing.assert_close(sketch_basis(3 * sketch, 8).abs(), basis.abs(), rtol=0, atol=1e-6)


def test_sketch_keeps_the_bound_of_halko_martinsson_and_tropp() -> None:
    # Theorem 10.5: with k + p Gaussian columns, E ||G - Q Q^T G||^2 <= (1 + k / (p - 1)) times the least for rank k.
    gradient = decaying(60, 80) + 0.01 * random(60, 80)
    k, width = 4, sketch_width(4, 80)
    left_out = []
    for seed in range(50):
        q = sketch_basis(gradient @ sketch_matrix(80, width, generator(seed), gradient), width)
        left_out.append((gradient - q @ (q.T @ gradient)).square().sum())
    least = torch.linalg.svdvals(gradient)[k:].square().sum()
    assert float(torch.stack(left_out).mean() / least) <= 1 + k / (width - k - 1)


def test_sketch_energy_is_unbiased() -> None:
    gradient = random(10, 40)
    sketches = [gradient @ sketch_matrix(40, 16, generator(seed), gradient) for seed in range(4000)]
    mean = torch.stack([sketch @ sketch.T for sketch in sketches]).mean(0)
    exact = gradient @ gradient.T
    assert float((mean - exact).norm() / exact.norm()) < 0.02


def test_sketch_is_never_wider_than_the_side() -> None:
    assert sketch_width(4, 100) == 16
    assert sketch_width(4, 5) == 5


def moments(*shape: int, steps: int = 12) -> tuple[Tensor, Tensor]:
    """Adam's moments after some random gradients of very different sizes."""
    first, second = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for step in range(steps):
        gradient = random(*shape, seed=step) * 10.0 ** random(*shape, seed=100 + step)
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
    return first, second


def test_unchanged_basis_leaves_the_moments() -> None:
    first, second = moments(4, 9)
    same = torch.eye(4, dtype=torch.float64)
    new_first, new_second = rotate_moments(first, second, same, None, 12, BETAS)
    torch.testing.assert_close(new_first, first)
    torch.testing.assert_close(new_second, second)


def test_permuted_and_flipped_directions_take_their_moments_along() -> None:
    first, second = moments(3, 4)
    left = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    right = torch.diag(torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64))
    new_first, new_second = rotate_moments(first, second, left, right, 12, BETAS)
    torch.testing.assert_close(new_first, left @ first @ right.T)
    torch.testing.assert_close(new_second, second[[1, 0, 2]])


def test_first_moment_is_that_of_the_gradients_in_the_new_basis() -> None:
    old = orthonormal(8, 3)
    new = orthonormal(8, 3, seed=1)
    first, second = moments(3, 5)
    rotated, _ = rotate_moments(first, second, new.T @ old, None, 12, BETAS)
    torch.testing.assert_close(rotated, new.T @ (old @ first))


def test_second_moment_agrees_with_a_change_of_basis_of_gaussian_gradients() -> None:
    # The formula is exact for independent coordinates: long averages of such gradients must reach it.
    step = 100_000
    betas = (0.999, 0.9999)
    mean, deviation = random(4, 1, seed=3), random(4, 1, seed=4).abs() + 0.5
    change = orthonormal(4, 4, seed=5)
    first, second = mean, mean**2 + deviation**2
    _, rotated = rotate_moments(first, second, change, None, step, betas)
    samples = mean + deviation * random(4, 400_000, seed=6)
    measured = (change @ samples).square().mean(1, keepdim=True)
    torch.testing.assert_close(rotated, measured, rtol=0.02, atol=0.0)


def test_directions_without_history_keep_the_scale_of_their_place() -> None:
    first, second = moments(2, 5)
    nothing_in_common = torch.zeros(2, 2, dtype=torch.float64)
    new_first, new_second = rotate_moments(first, second, nothing_in_common, None, 12, BETAS)
    assert torch.equal(new_first, torch.zeros_like(first))
    torch.testing.assert_close(new_second, second)


def test_update_after_a_rotation_stays_within_the_bound_of_adam() -> None:
    bound = (1 - BETAS[0]) / ((1 - BETAS[1]) * (1 - BETAS[0] ** 2 / BETAS[1])) ** 0.5
    for seed in range(20):
        first, second = moments(6, 50, steps=30 + seed)
        change = orthonormal(12, 6, seed=seed).T @ orthonormal(12, 6, seed=seed + 1)
        new_first, new_second = rotate_moments(first, second, change, None, 30 + seed, BETAS)
        assert bool((new_second > 0).all())
        assert float((new_first.abs() / new_second.sqrt()).max()) <= bound * (1 + 1e-9)
