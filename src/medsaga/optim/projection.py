"""Low-rank projection of gradients: bases, sketches, and moments that follow a change of basis.

Everything here is a pure function of tensors. A weight is seen as an (m, n) matrix. A projection has a left basis
P (m, r), a right basis Q (n, r), or both, each with orthonormal columns; None stands for "not on this side":

    left only    P^T G      (r, n)        update  P N
    right only   G Q        (m, r)        update  N Q^T
    two-sided    P^T G Q    (r, r)        update  P N Q^T

Sources: GaLore (arXiv 2403.03507) for the projection, MedSAGa (arXiv 2407.15042) for the two-sided form, Halko,
Martinsson and Tropp (2011) for the sketch, LDAdam (arXiv 2410.16103) for the moments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medsaga.memory.meta import keyed_generator

PROJECTIONS = ("std", "left", "right", "two_sided")


def as_matrix(tensor: Tensor) -> Tensor:
    """See a weight or its gradient as a matrix: (out, in, kh, kw) becomes (out, in * kh * kw)."""
    return tensor.reshape(tensor.shape[0], -1)


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return the shape of ``as_matrix`` for a weight of this shape."""
    return shape[0], math.prod(shape[1:])


def projected_sides(m: int, n: int, projection: str) -> tuple[bool, bool]:
    """Say on which sides (left, right) an (m, n) gradient is projected.

    ``std`` keeps the basis of the shorter side, as GaLore does: right when m >= n, else left.
    """
    if projection == "std":
        return m < n, m >= n
    return projection in ("left", "two_sided"), projection in ("right", "two_sided")


def project(
    gradient: Tensor,  # (768, 3072)
    left: Tensor | None,  # (768, 64)
    right: Tensor | None,  # None
) -> Tensor:  # (64, 3072)
    """Return P^T G Q, leaving out the side whose basis is None."""
    if left is not None:
        gradient = left.T @ gradient
    return gradient if right is None else gradient @ right


def project_back(
    low_rank: Tensor,  # (64, 3072)
    left: Tensor | None,  # (768, 64)
    right: Tensor | None,  # None
) -> Tensor:  # (768, 3072)
    """Return P N Q^T, leaving out the side whose basis is None."""
    if left is not None:
        low_rank = left @ low_rank
    return low_rank if right is None else low_rank @ right.T


def exact_bases(
    gradient: Tensor,  # (768, 3072)
    rank: int,
    sides: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:  # (768, 64), None
    """Return the leading singular vectors of the gradient for each projected side, by a full SVD (GaLore, eq. 12).

    Each basis has its own memory: a slice of the SVD's factor would keep the whole factor alive.
    """
    u, _, vh = _svd(gradient)
    left = u[:, :rank].clone(memory_format=torch.contiguous_format) if sides[0] else None
    right = vh[:rank].T.clone(memory_format=torch.contiguous_format) if sides[1] else None
    return left, right


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin SVD, on the matrix's device; MPS has none, so that there it is computed on the CPU."""
    there = matrix.cpu() if matrix.device.type == "mps" else matrix
    u, values, vh = torch.linalg.svd(there, full_matrices=False)
    return u.to(matrix.device), values.to(matrix.device), vh.to(matrix.device)


def sketch_width(rank: int, size: int) -> int:
    """Return how many columns a sketch has, at most the length of the side it is taken along.

    Chosen by measurement: benchmarks/galore.
    """
    return min(2 * rank + 8, size)


def sketch_matrix(
    size: int,  # 3072, the side along which the gradient is sketched
    width: int,  # 136
    generator: torch.Generator,
    like: Tensor,
) -> Tensor:  # (3072, 136)
    """Return the Gaussian matrix Omega of a sketch Y = G Omega, in the dtype and on the device of ``like``.

    Its variance is 1 / width: then E[Y Y^T] = G G^T, and ||Y|| estimates ||G||.
    """
    return torch.randn(size, width, generator=generator, dtype=like.dtype, device=like.device) / math.sqrt(width)


def sketch_basis(
    sketch: Tensor,  # (768, 136)
    rank: int,
) -> Tensor:  # (768, 64)
    """Return the leading left singular vectors of a sketch Y = G Omega, in their own memory (Halko et al., 2011).

    A gradient of few image positions has a lower rank than the basis. Nothing but rounding errors would choose the
    other directions then, and with them what later gradients are projected to: another order of additions, by
    micro-batches or several processes, would be another run. So noise chooses them, the same for every sketch of a
    size, far above rounding errors and far below anything that a gradient says: sqrt(machine epsilon) of the sketch.
    """
    generator = keyed_generator(sketch.device, 0, "completion")
    noise = torch.randn(sketch.shape, generator=generator, dtype=sketch.dtype, device=sketch.device)
    noise *= sketch.square().mean().sqrt() * math.sqrt(torch.finfo(sketch.dtype).eps)
    u = _svd(noise.add_(sketch))[0]
    return u[:, :rank].clone(memory_format=torch.contiguous_format)


def rotate_moments(
    exp_avg: Tensor,  # (64, 3072)
    exp_avg_sq: Tensor,  # (64, 3072)
    change_left: Tensor | None,  # (64, 64), P_new^T P_old
    change_right: Tensor | None,  # None, Q_new^T Q_old
    step: int,
    betas: tuple[float, float],
) -> tuple[Tensor, Tensor]:  # (64, 3072), (64, 3072)
    """Express Adam's moments, after ``step`` updates, in a new basis.

    The first moment is linear: M_new = C M. The second is LDAdam's estimate (arXiv 2410.16103): with the moments
    corrected for bias and independent coordinates, V_new = (C o C)(V - M^2) + (C M)^2. Two additions, because our
    basis changes seldom (LDAdam's changes a little at every step):

    - A new direction that lies outside the old subspace has no history there; its second moment would be 0 at a
      late step, and its first updates several times too large. The missing share 1 - sum_j C_ij^2 comes
      from the old direction of the same rank of singular value, which is what keeping the moments would give.
    - V - M^2 can be negative. V_new is kept above the least value that Adam itself can reach,
      V >= M^2 (1 - b2)(1 - b1^2 / b2) / (1 - b1)^2 (Cauchy and Schwarz), so that the update stays bounded.

    A basis that stays as it was (C = I) leaves the moments as they were.
    """
    beta1, beta2 = betas
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    new_avg = project_back(exp_avg, change_left, change_right)
    square_left = None if change_left is None else change_left.square()
    square_right = None if change_right is None else change_right.square()
    variance = exp_avg_sq / correction2 - (exp_avg / correction1).square()
    estimate = project_back(variance, square_left, square_right) + (new_avg / correction1).square()
    kept = project_back(torch.ones_like(exp_avg), square_left, square_right).clamp(max=1)
    new_sq = correction2 * estimate + (1 - kept) * exp_avg_sq
    least = max(0.0, (1 - beta2) * (1 - beta1**2 / beta2) / (1 - beta1) ** 2)
    return new_avg, torch.maximum(new_sq, least * new_avg.square())
