"""The data of a run, checked: every file has been decoded once before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from medsaga.config import Settings
from medsaga.data.dataset import (
    check_items,
    fingerprint,
    labels_of_cases,
    raise_problems,
    read_dataset,
    select_channels,
)
from medsaga.data.splits import Split, split_cases
from medsaga.data.types import Dataset
from medsaga.progress import counting


@dataclass(frozen=True, eq=False)
class CheckedData:
    """A dataset of which every file has been decoded once; see `check_data`.

    Attributes:
        dataset: without problems, with the channels that the settings name.
        labels_of_cases: label values of each case.
        fingerprint: of all images and masks.
    """

    dataset: Dataset
    labels_of_cases: dict[str, frozenset[int]]
    fingerprint: str


def check_data(data: Path, settings: Settings, console: Console) -> CheckedData:
    """Read a dataset with the channels that the settings name, and decode every file of it once.

    Raises:
        InputError: the first problem.
    """
    dataset = read_dataset(data)
    raise_problems(dataset.problems)
    dataset = select_channels(dataset, settings.channels)
    raise_problems(check_items(dataset, counting(console, "checking images")))
    return CheckedData(dataset, labels_of_cases(dataset), fingerprint(dataset))


def split_of(checked: CheckedData, settings: Settings) -> Split:
    """Return the cases of a run; InputError where there are not enough."""
    return split_cases(
        checked.dataset,
        shots=settings.shots,
        seed=settings.seed,
        validation=settings.validation_cases,
        fold=settings.fold,
        labels_of=checked.labels_of_cases,
        test_cases=settings.test_cases,
    )
