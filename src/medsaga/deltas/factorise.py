"""The change of a matrix in few numbers: W - c W0 = L^T R, a truncated SVD in 8 or 16 bits.

Weight decay shrinks the whole of W0, which no low rank can express: the scalar c takes that out. What is left of a run
is concentrated in few directions, and by the theorem of Eckart and Young (1936) no matrix of rank r is closer to it, in
the Frobenius norm, than its r largest singular values with their vectors.

Matrices are (m, n) float32. Singular values come from the eigenvalues of the smaller Gram matrix, in float64, which
resolves them down to 1e-8 of the largest and takes a tenth of the time of an SVD.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CODES = {"int8": torch.int8, "fp16": torch.float16}
"""How the factors may be stored."""
CODE_ERRORS = {"int8": 0.015, "fp16": 0.001}
"""What storing the factors so may change at most, relative to their product. Two factors of normally distributed
numbers lose 0.011 in int8; factors of which int8 loses more are stored in fp16."""
_LEVELS = 127
_WHOLE_BYTES = 2
_STEPS = 200
"""Bisections of the price: far beyond what float64 tells apart."""


@dataclass(frozen=True, eq=False)
class Factor:
    """The rows of one factor as codes, each with its own scale.

    Attributes:
        codes: (r, k) int8 or float16.
        scales: (r,) float32, never negative; a row is worth codes * scale.
    """

    codes: Tensor
    scales: Tensor

    def rows(self) -> Tensor:
        """Return (r, k) float32."""
        return self.codes.float() * self.scales[:, None]


@dataclass(frozen=True, eq=False)
class Factors:
    """A matrix (m, n) of rank r: the product of the transpose of ``left``, (r, m), and ``right``, (r, n)."""

    left: Factor
    right: Factor

    def product(self) -> Tensor:
        """Return (m, n) float32."""
        return self.left.rows().T @ self.right.rows()


def as_matrix(tensor: Tensor) -> Tensor:
    """See a weight as a matrix: a kernel (out, in, h, w) as (out, in * h * w), a table (1, h, w, c) as (h * w, c)."""
    return tensor.flatten(0, -2) if tensor.shape[0] == 1 else tensor.flatten(1)


def share_of_base(weight: Tensor, base: Tensor) -> float:
    """Return the c that makes the norm of ``weight - c * base`` smallest: least squares; 1 where the base is zero."""
    flat = base.double().flatten()
    square = float(flat @ flat)
    return float(weight.double().flatten() @ flat) / square if square > 0 else 1.0


def shrunk(weight: Tensor, base: Tensor) -> tuple[float, Tensor]:
    """Return c, and the `spectrum` of ``weight - c * base``.

    c is that of least squares where it leaves the smaller sum of singular values, else 1: where nothing has decayed,
    the part of a change that happens to lie along the base would be taken for decay, and a change of low rank become
    one of full rank.
    """
    tried = [(share, spectrum(weight - share * base)) for share in (1.0, share_of_base(weight, base))]
    return min(tried, key=lambda one: float(one[1].sqrt().sum()))


def spectrum(change: Tensor) -> Tensor:
    """Return the squares of all singular values, (min(m, n),) float64, the largest first."""
    return torch.linalg.eigvalsh(_gram(change)).flip(0).clamp(min=0)


def truncated(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors (r, m) and (r, n) of the nearest matrix of a rank, float32; row j belongs to direction j."""
    tall = change if change.shape[0] >= change.shape[1] else change.T
    _, vectors = torch.linalg.eigh(_gram(change))
    basis = vectors[:, vectors.shape[1] - rank :].flip(1).T.float()
    images = basis @ tall.T
    return (images, basis) if tall is change else (basis, images)


def encoded(left: Tensor, right: Tensor, codes: str) -> Factors:
    """Store factors as codes of a kind of ``CODES``, or in fp16 if that would change more than ``CODE_ERRORS`` says."""
    factors = Factors(_encoded(left, CODES[codes]), _encoded(right, CODES[codes]))
    exact = left.T @ right
    lost = torch.linalg.vector_norm(factors.product() - exact)
    if codes != "fp16" and lost > CODE_ERRORS[codes] * torch.linalg.vector_norm(exact):
        return encoded(left, right, "fp16")
    return factors


def choose_ranks(
    spectra: Sequence[Tensor], shapes: Sequence[tuple[int, int]], *, lost: float, code_bytes: int
) -> list[int | None]:
    """Return the rank of each matrix, so that all together are as small as they can be; None: store it whole.

    One price, in squared error per byte, is asked for all matrices: each keeps the directions that are worth it. That
    is the cheapest choice for the error that comes of it (Everett 1963), and the price is as high as ``lost`` allows.

    Args:
        spectra: the squared singular values of each change, the largest first.
        shapes: of each matrix, (m, n).
        lost: what the squares of all that is left out may add up to.
        code_bytes: of a number of a factor. A matrix that is stored whole takes two bytes a number and loses nothing.
    """
    tails = [torch.cat((spectrum.flip(0).cumsum(0).flip(0), spectrum.new_zeros(1))) for spectrum in spectra]

    def ranks_at(price: float) -> tuple[list[int | None], float]:
        ranks: list[int | None] = []
        total = 0.0
        for values, tail, (m, n) in zip(spectra, tails, shapes, strict=True):
            row = (m + n) * code_bytes + 8  # and two scales
            rank = int((values >= price * row).sum())
            left_out = float(tail[rank])
            if rank * row + left_out / price > m * n * _WHOLE_BYTES:
                ranks.append(None)
            else:
                ranks.append(rank)
                total += left_out
        return ranks, total

    positive = torch.cat([values[values > 0] for values in spectra]) if spectra else torch.empty(0)
    if not len(positive):
        return [0] * len(spectra)
    low, high = math.log(float(positive.min())) - 50, math.log(float(positive.sum())) + 50
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if ranks_at(math.exp(middle))[1] <= lost:
            low = middle
        else:
            high = middle
    return ranks_at(math.exp(low))[0]


def _gram(change: Tensor) -> Tensor:
    tall = (change if change.shape[0] >= change.shape[1] else change.T).double()
    return tall.T @ tall


def _encoded(rows: Tensor, dtype: torch.dtype) -> Factor:
    largest = rows.abs().amax(1) if rows.numel() else rows.new_zeros(len(rows))
    scales = largest / _LEVELS if dtype == torch.int8 else largest
    exact = rows / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    return Factor((exact.round() if dtype == torch.int8 else exact).to(dtype), scales)
