"""What is saved of a run, in one place, so that a resumed run is bitwise the run that was not interrupted.

``state.pt`` holds the last weights, the optimizer's state and the ``Counters``. Batches, augmentation
and the optimizer's random numbers are pure functions of the seed and the step, so that no generator needs saving.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from medsaga import files, run_folder
from medsaga.errors import InputError
from medsaga.memory.tracker import is_out_of_memory
from medsaga.models.base import SegmentationModel
from medsaga.models.int8 import load_plain_state, plain_state
from medsaga.models.weights.names import layout_of
from medsaga.models.weights.others import refuse_others
from medsaga.optim.accumulation import AccumulatingOptimizer
from medsaga.settings.options import ResolvedSettings
from medsaga.training.scaling import LossScale, loss_scale_for


@dataclass
class Counters:
    """Where a run stands.

    Attributes:
        step: optimizer steps tried so far, the skipped ones included.
        skipped: steps skipped because a gradient was not finite.
        skipped_in_a_row: those at the end.
        best_dice: best validation Dice so far; None before the first evaluation or without validation cases.
        evaluations_since_best: for early stopping.
        stopped_early: whether that has happened: no further step is made.
        evaluated_step: step after which the last evaluation was.
        peak_bytes: largest memory of all tensors so far.
        peak_breakdown: the same by category; it adds up to ``peak_bytes``.
        device_peak_bytes: largest memory so far by the accelerator's own count; None without one.
        micro_batch_size: images per backward pass now; fewer than the settings say when memory has run out.
        checkpoint_blocks: whether the encoder's blocks are computed again in backward, likewise.
        loss_scale: factor of the loss.
    """

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_dice: float | None = None
    evaluations_since_best: int = 0
    stopped_early: bool = False
    evaluated_step: int = 0
    peak_bytes: int = 0
    peak_breakdown: dict[str, int] = field(default_factory=dict)
    device_peak_bytes: int | None = None
    micro_batch_size: int = 0
    checkpoint_blocks: bool = False
    loss_scale: LossScale = field(default_factory=LossScale)

    def note_step(self, *, made: bool) -> None:
        """Count a step that was made, or skipped."""
        self.step += 1
        self.skipped += not made
        self.skipped_in_a_row = 0 if made else self.skipped_in_a_row + 1

    def note_evaluation(self, dice: float | None, *, is_best: bool, patience: int | None) -> None:
        """Count an evaluation.

        Args:
            dice: of the validation cases; None where there are none.
            is_best: whether the weights are kept.
            patience: evaluations without a better Dice that end the run.
        """
        self.evaluated_step = self.step
        if is_best:
            self.best_dice, self.evaluations_since_best = dice, 0
            return
        self.evaluations_since_best += 1
        self.stopped_early = patience is not None and self.evaluations_since_best >= patience


def save_state(run: Path, model: SegmentationModel, optimizer: AccumulatingOptimizer, counters: Counters) -> None:
    """Write ``state.pt``, whole or not at all."""
    state = {"model": plain_state(model), "optimizer": optimizer.state_dict(), "counters": asdict(counters)}
    # Of a file that torch opens itself, its error would not say that the disk is full.
    with files.replacing(run / run_folder.STATE) as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def load_state(
    run: Path, model: SegmentationModel, optimizer: AccumulatingOptimizer, settings: ResolvedSettings
) -> Counters:
    """Load ``state.pt`` into the model and the optimizer; return where the run stands.

    A run that was stopped before its first checkpoint starts from the beginning.

    Raises:
        InputError: the file is damaged, holds code, or belongs to another model.
    """
    path = run / run_folder.STATE
    if not path.exists():
        return Counters(
            micro_batch_size=settings.micro_batch_size,
            checkpoint_blocks=settings.checkpointing == "blocks",
            loss_scale=loss_scale_for(settings.precision),
        )
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        refuse_others(path, state["model"])
        # The optimizer's state has no names: it would be given to parameters that are counted in another order now.
        if layout_of(state["model"]).name == "transformers":
            raise ValueError("the state of a run that an earlier version of medsaga began; its model can still be used")
        load_plain_state(model, state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scale = LossScale(**state["counters"].pop("loss_scale"))
        return Counters(**state["counters"], loss_scale=scale)
    except (AssertionError, InputError):
        raise  # a fault of ours, or a sentence already
    except Exception as error:  # a damaged archive raises whatever the damage hits first
        if isinstance(error, OSError) or is_out_of_memory(error):
            raise  # the file is whole
        raise InputError(
            path, expected="the state of this run", found=str(error).splitlines()[0], do="Train again from the start."
        ) from None
