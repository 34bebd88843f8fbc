"""The data of a run, checked: every file has been decoded once before anything is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from medsaga.data.dataset import (
    fingerprint,
    raise_problems,
    read_dataset,
    select_channels,
)
from medsaga.data.labels import listed
from medsaga.data.splits import Split, split_cases
from medsaga.data.survey import Survey, survey
from medsaga.data.types import Dataset
from medsaga.errors import InputError
from medsaga.progress import counting
from medsaga.settings.options import Settings, flag


@dataclass(frozen=True, eq=False)
class LoadedData:
    """A dataset of which every file has been decoded once; see `load_data`.

    Attributes:
        dataset: without problems, with the channels that the settings name.
        survey: what was found in the files.
        fingerprint: of all images and masks.
    """

    dataset: Dataset
    survey: Survey
    fingerprint: str


def load_data(data: Path, settings: Settings, console: Console) -> LoadedData:
    """Read a dataset with the channels that the settings name, and decode every file of it once.

    Raises:
        InputError: the first problem.
    """
    dataset = read_dataset(data, binary=bool(settings.binary))
    raise_problems(dataset.problems)
    dataset = select_channels(dataset, settings.channels)
    found = survey(dataset, counting(console, "checking images"))
    raise_problems(found.problems)
    warn(console, (*dataset.warnings, *found.warnings))
    return LoadedData(dataset, found, fingerprint(dataset))


def without_later_cases(dataset: Dataset, begun_with: Collection[str], console: Console) -> Dataset:
    """Leave out the cases that came after a run began, which goes on as it would have done, and say so."""
    later = [case for case in dataset.cases if case not in begun_with]
    if not later:
        return dataset
    said = f"{listed(later)} came after the run began, which goes on without: `medsaga continue` takes them in"
    console.print(said, markup=False, highlight=False, soft_wrap=True)
    return dataclasses.replace(dataset, items=dataset.items_of(tuple(begun_with)))


def unseen_labels(loaded: LoadedData, split: Split) -> tuple[str, ...]:
    """Return a warning for the labels that other cases hold and no training case does."""
    values = loaded.survey.labels_of_cases
    trained = frozenset[int]().union(*(values.get(case, frozenset()) for case in split.train))
    elsewhere = frozenset[int]().union(*values.values())
    unseen = [name for name, value in loaded.dataset.labels.items() if value in elsewhere - trained and value != 0]
    if not unseen:
        return ()
    return (f"no training case holds {listed(unseen)}: the model cannot learn what it never sees",)


def untested(split: Split) -> tuple[str, ...]:
    """Return a warning for a split that leaves no case to test on."""
    if split.test:
        return ()
    count = len(split.train) + len(split.validation)
    cases = "the only case is" if count == 1 else f"all {count} cases are"
    used = "trained on, or chosen by" if split.validation else "trained on"
    return (f"{cases} {used}, so nothing will be tested",)


def warn(console: Console, warnings: Sequence[str]) -> None:
    """Print what the user should know of the data, each thing once."""
    for warning in dict.fromkeys(warnings):
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)


def split_of(loaded: LoadedData, settings: Settings) -> Split:
    """Return the cases of a run.

    Raises:
        InputError: there are not enough, or none for what the settings ask of validation cases.
    """
    split = split_cases(
        loaded.dataset,
        shots=settings.shots,
        seed=settings.seed or 0,
        validation=settings.validation_cases,
        fold=settings.fold or 0,
        labels_of=loaded.survey.labels_of_cases,
        test_cases=settings.test_cases,
    )
    require_validation(settings, split, "Add --validation-cases N.")
    return split


def require_validation(settings: Settings, split: Split, do: str) -> None:
    """Check that a run that is to stop early has cases to tell when.

    Args:
        settings: what the user asks for.
        split: the cases of the run.
        do: what the user can do where there are none.

    Raises:
        InputError: there are none.
    """
    if settings.patience is not None and not split.validation:
        count = len(split.train)
        found = f"none, with {count} training case{'s' * (count != 1)}"
        raise InputError(flag("patience"), expected="validation cases beside it", found=found, do=do)
