"""What a run is, from its settings to its samples, while it is prepared and when it can start."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medsaga import run_folder
from medsaga.data.samples import Samples
from medsaga.data.splits import Split
from medsaga.data.types import Dataset
from medsaga.errors import InputError
from medsaga.models.base import SegmentationModel
from medsaga.settings.options import ResolvedSettings
from medsaga.settings.run_config import RunConfig


@dataclass(frozen=True)
class Plan:
    """What a run is, in a form that processes can send each other.

    Attributes:
        config: resolved.
        split: which cases are for what.
        dataset: checked.
    """

    config: RunConfig
    split: Split
    dataset: Dataset


@dataclass(frozen=True)
class Run(Plan):
    """A run that can start or go on.

    Attributes:
        folder: the run folder; it exists.
        model: with its initial weights, on ``device``.
        train: samples to train on.
        monitor: samples whose Dice is followed during the run: the validation cases, or else the training cases.
        device: where it runs.
    """

    folder: Path
    model: SegmentationModel
    train: Samples
    monitor: Samples
    device: torch.device

    @property
    def plan(self) -> Plan:
        """What other processes need to open the same run."""
        return Plan(self.config, self.split, self.dataset)

    def remove_cache(self) -> None:
        """Remove the prepared images from the run folder."""
        shutil.rmtree(self.folder / run_folder.CACHE, ignore_errors=True)


@dataclass(frozen=True)
class Prepared:
    """A run of which all is resolved and checked, before its images are prepared.

    Attributes:
        folder: the run folder.
        config: resolved.
        split: which cases are for what.
        dataset: checked.
        model: with its initial weights, in the shape that the method gives it, on the CPU.
        model_info: where the weights came from; empty where they are still to be loaded from the run's state.
        device: where the run will be.
    """

    folder: Path
    config: RunConfig
    split: Split
    dataset: Dataset
    model: SegmentationModel
    model_info: dict[str, Any]
    device: torch.device


def require_images_for_all(settings: ResolvedSettings, processes: int) -> None:
    """Raise InputError unless each of several processes has an image in every batch."""
    if settings.batch_size < processes:
        raise InputError(
            "--batch-size",
            expected=f"at least {processes}, an image for each process",
            found=str(settings.batch_size),
            do="Use larger batches, or fewer --devices.",
        )
