"""What a training run tells whoever listens: the terminal, the log, a page in the browser, a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Working:
    """Something that takes a while before the first step.

    Attributes:
        what: in words.
        done: how much of it.
        total: in all.
    """

    what: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """One optimizer step is over.

    Attributes:
        step: number of steps tried so far, this one included.
        loss: of the batch.
        made: whether weights were updated; a gradient that is not finite skips the step.
        lr_factor: share of the peak learning rate.
        seconds: that it took.
        peak_bytes: largest memory of all tensors so far.
    """

    step: int
    loss: float
    made: bool
    lr_factor: float
    seconds: float
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The Dice that is followed has been computed.

    Attributes:
        step: after which step.
        loss: of the last batch; None where there was none.
        dice: of the validation cases, or else of the training cases, in the model's square.
        is_validation: whether it is of validation cases.
        skipped_steps: steps skipped so far.
        peak_bytes: largest memory of all tensors so far.
        breakdown: the same by category.
        device_peak_bytes: largest memory by the accelerator's own count; None without one.
    """

    step: int
    loss: float | None
    dice: float
    is_validation: bool
    skipped_steps: int
    peak_bytes: int
    breakdown: dict[str, int] = field(default_factory=dict)
    device_peak_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Saved:
    """The state is on disk; a run that is killed now goes on from here.

    Attributes:
        step: after which step.
    """

    step: int


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something that the user should know, in words."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """No further step is made.

    Attributes:
        step: after which step.
        reason: ``finished``, ``patience`` (early stopping), ``cancelled``, or ``paused`` after the steps asked for.
    """

    step: int
    reason: Literal["finished", "patience", "cancelled", "paused"]


Event = Working | Stepped | Evaluated | Saved | Notice | Stopped
Listener = Callable[[Event], None]
