"""Loss scaling: gradients in float16 are computed multiplied, so that small ones do not vanish."""

from __future__ import annotations

from dataclasses import dataclass

INITIAL = 2.0**14
GROW_AFTER = 100
LARGEST = 2.0**24


@dataclass
class LossScale:
    """The factor of the loss; a step whose gradient overflows is skipped and halves it (arXiv 1710.03740).

    What has been projected on arrival is divided by it later, in float32: see `GaLoreAdamW.scale_gradients`.

    Attributes:
        value: the factor now.
        adaptive: whether it changes; where gradients have float32's range it is 1 for good.
        good_steps: steps without an overflow since it last changed.
    """

    value: float = 1.0
    adaptive: bool = False
    good_steps: int = 0

    def adapt(self, *, finite: bool) -> None:
        """Halve it after a gradient that is not finite, double it after many that were."""
        if not self.adaptive:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.good_steps == GROW_AFTER and self.value < LARGEST:
            self.value *= 2
            self.good_steps = 0


def loss_scale_for(precision: str) -> LossScale:
    """Return the scale that a run in a precision begins with."""
    return LossScale(INITIAL, adaptive=True) if precision == "fp16" else LossScale()
