"""The learning rate over the run."""

from __future__ import annotations


def learning_rate_factor(step: int, *, steps: int, warmup: int, power: float = 0.9) -> float:
    """Linear warm-up, then polynomial decay to zero (SAMed, arXiv 2304.13785).

    Args:
        step: the step about to be made, from 0.
        steps: length of the run.
        warmup: steps over which the factor rises to 1.
        power: exponent of the decay.

    Returns:
        the factor in (0, 1] by which the peak learning rate is multiplied.
    """
    if step < warmup:
        return (step + 1) / warmup
    return (1.0 - (step - warmup) / max(1, steps - warmup)) ** power
