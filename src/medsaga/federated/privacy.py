"""Differential privacy of what a site sends: the epsilon of clipped changes with Gaussian noise.

A site's change is clipped to an L2 norm of C and gets noise of standard deviation z C. Two neighbouring data sets are
those of the site with and without its cases altogether: its change is there, or is zero. T rounds are T Gaussian
mechanisms of sensitivity C, which together are exactly one of multiplier z / sqrt(T) (Dong, Roth and Su, Gaussian
differential privacy, arXiv 1905.02383, corollary 2), and for one Gaussian mechanism epsilon and delta are known in
closed form (Balle and Wang, arXiv 1805.06530, theorem 8). There is no bound in it that could be loose, and nothing is
gained from drawing sites at random, because all take part in every round.
"""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import log_ndtr


def delta_of(epsilon: float, noise: float, rounds: int) -> float:
    """Return the least delta at which the rounds together are (epsilon, delta)-private.

    Args:
        epsilon: at least 0.
        noise: z, the noise's standard deviation in units of the clipping norm.
        rounds: T.
    """
    mu = math.sqrt(rounds) / noise
    first, second = log_ndtr(mu / 2 - epsilon / mu), epsilon + log_ndtr(-mu / 2 - epsilon / mu)
    return float(math.exp(first) * -math.expm1(min(0.0, second - first)))


def epsilon_of(noise: float, rounds: int, delta: float) -> float:
    """Return the least epsilon at which the rounds together are (epsilon, delta)-private; see `delta_of`."""
    if delta_of(0.0, noise, rounds) <= delta:
        return 0.0
    most = 1.0
    while delta_of(most, noise, rounds) > delta:
        most *= 2
    return float(brentq(lambda epsilon: delta_of(epsilon, noise, rounds) - delta, 0.0, most, xtol=1e-9))
