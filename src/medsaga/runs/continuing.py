"""Going on from a finished run with new or corrected cases: its settings, and its data together with the new ones."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from medsaga.data.dataset import (
    fingerprint,
    raise_problems,
    read_dataset,
    select_channels,
)
from medsaga.data.intensity import require_mappable
from medsaga.data.known import image_digests
from medsaga.data.labels import listed
from medsaga.data.layouts.labelling import DESCRIPTION
from medsaga.data.sources import place_of
from medsaga.data.splits import Split
from medsaga.data.survey import survey
from medsaga.data.types import Dataset, Item
from medsaga.errors import InputError
from medsaga.methods import method_named
from medsaga.methods.base import unchanged
from medsaga.planning.defaults import DeviceDefaults
from medsaga.planning.resolve import Facts, resolve
from medsaga.progress import counting
from medsaga.runs.loading import warn, without_later_cases
from medsaga.settings.options import DERIVED, MAY_CHANGE, ResolvedSettings, Settings, flag, in_json, named
from medsaga.settings.run_config import RunConfig


@dataclass(frozen=True, eq=False)
class JoinedData:
    """The data of a run that continues another.

    Attributes:
        dataset: all cases of the run, each from the folder that brought it last; every file has been decoded once.
        split: its training cases, old and new; the validation and test cases are those of the run before.
        fingerprint: of all folders.
        fingerprint_before: of all folders but the last.
        cases: of each folder, in the order in which they were added.
    """

    dataset: Dataset
    split: Split
    fingerprint: str
    fingerprint_before: str
    cases: list[list[str]]


def inherited(before: ResolvedSettings, settings: Settings) -> ResolvedSettings:
    """Return a run's settings with those that the user has named for the run that continues it.

    What followed from the number of steps or from the batch size follows from the new ones.

    Args:
        before: of the run that is continued.
        settings: of the user; what is at its default counts as not named.

    Raises:
        InputError: the user names one that cannot change.
    """
    fixed = {option.name for option in dataclasses.fields(Settings)} - MAY_CHANGE
    if method_named(before.method).adapt is not unchanged:
        fixed.add("rank")  # it is the shape of what was added to the model
    asked = named(settings)
    for name in sorted(fixed & asked.keys()):
        kept = getattr(before, name)
        if asked[name] != in_json(kept):
            raise InputError(
                flag(name),
                expected="the setting of the run that is continued" + ("" if kept is None else f", {kept}"),
                found=str(asked[name]),
                do="Leave it out, or start a new run.",
            )
    # No data: axis and image size are kept, and all that the recipe and the budget have to say is in the settings.
    facts = Facts(device=DeviceDefaults(before.precision, before.state_bits), classes=0, channels=0)
    kept = {option.name: getattr(before, option.name) for option in dataclasses.fields(Settings)}
    kept |= {"recipe": None, "budget": None}
    derived = resolve(Settings(**kept | dict.fromkeys(DERIVED)), facts)
    kept |= {name: None for name in DERIVED if getattr(derived, name) == getattr(before, name)}
    changed = {name: getattr(settings, name) for name in asked if name in MAY_CHANGE}
    after = resolve(Settings(**kept | changed | {"device": settings.device}), facts)
    return dataclasses.replace(after, weights=before.weights)


def datasets_of(config: RunConfig, *, last_is_new: bool = False) -> list[Dataset]:
    """Return the dataset of a run, and after it those that were added by continuing, as they were added.

    Args:
        config: of the run.
        last_is_new: whether the last was not trained on, but has just been named.

    Raises:
        InputError: a folder is gone or has problems, or what was added has other labels or channels than the run.
    """
    earlier = config.added[:-1] if last_is_new else config.added
    for folder in (config.data, *earlier):
        _require_there(Path(folder))
    return [_first(config), *(_added(Path(folder), config) for folder in config.added)]


def joined(first: Dataset, added: Iterable[Dataset], cases: Iterable[str]) -> Dataset:
    """Return some cases of a dataset together with all cases of others; the last that has an image of a case brings it.

    Whoever corrects one image of a patient brings that one alone: the patient's others stay.

    Raises:
        InputError: images of two cases have one name.
    """
    every = [*first.items_of(tuple(cases)), *(item for dataset in added for item in dataset.items)]
    items = sorted({(item.case, item.name): item for item in every}.values(), key=lambda item: item.name)
    names: dict[str, Item] = {}
    for item in items:
        other = names.setdefault(item.name, item)
        if other is not item:
            raise InputError(
                place_of(item.images[0]),
                expected="a name that no image of another case has",
                found=f"that of an image of the case {other.case!r}",
                do="Rename the image and its mask; or give both the same case, so that the newer image counts.",
            )
    return dataclasses.replace(first, items=tuple(items))


def joined_data(
    config: RunConfig, split: Split, console: Console, begun_with: Sequence[Sequence[str]] | None = None
) -> JoinedData:
    """Read and check the data of a run that continues another, and choose its cases.

    Args:
        config: with the folder of new cases as the last that was added.
        split: of the run before, or of this one: its training cases may be among the new ones already.
        console: where progress is shown, and which cases are left out.
        begun_with: where the run has begun, the cases that each folder had then: others are left out.

    Raises:
        InputError: a folder cannot be used, or a new case is among those that the run is validated or tested on.
    """
    first, *added = datasets = datasets_of(config, last_is_new=True)
    if begun_with is not None:
        pairs = zip(datasets, begun_with, strict=True)
        first, *added = datasets = [without_later_cases(dataset, cases, console) for dataset, cases in pairs]
    held_out = {"validation": split.validation, "test": split.test}
    for dataset in added:
        _check_not_held_out(dataset, first, held_out)
    dataset = joined(first, added, (*split.train, *split.validation, *split.test))
    found = survey(dataset, counting(console, "checking images"))
    raise_problems(found.problems)
    require_mappable(config.intensities, dataset.items)
    warn(console, (*(text for each in datasets for text in each.warnings), *found.warnings))
    prints = [fingerprint(each) for each in datasets]
    train = {*split.train, *(case for each in added for case in each.cases)}
    return JoinedData(
        dataset,
        dataclasses.replace(split, train=tuple(sorted(train))),
        fingerprint=_joint(prints),
        fingerprint_before=_joint(prints[:-1]),
        cases=[list(each.cases) for each in datasets],
    )


def _first(config: RunConfig) -> Dataset:
    dataset = read_dataset(Path(config.data), binary=config.settings.binary)
    raise_problems(dataset.problems)
    dataset = select_channels(dataset, config.settings.channels)
    _check_same_kind(dataset, config, "Restore its labels and channels.")
    return dataset


def _require_there(root: Path) -> None:
    if not root.exists():
        raise InputError(
            root,
            expected="the data that the run was trained on",
            found="nothing of this name",
            do="Put the folder back, or train on the new cases alone, with --model and the model.safetensors of the "
            "run.",
        )


def _added(root: Path, config: RunConfig) -> Dataset:
    dataset = read_dataset(root, binary=config.settings.binary)
    raise_problems(dataset.problems)
    dataset = named_as_in_run(dataset, config)
    _check_same_kind(dataset, config, f"Give the folder the {DESCRIPTION} of the run's data, and masks to match.")
    return dataset


def named_as_in_run(dataset: Dataset, config: RunConfig) -> Dataset:
    """Return a dataset with the channels of a run; one that names no labels and channels has the run's, if it may."""
    if dataset.layout != "folder" or (dataset.root / DESCRIPTION).exists():
        return select_channels(dataset, config.settings.channels)
    if len(dataset.channels) == len(config.channels):
        dataset = dataclasses.replace(dataset, channels=config.channels)
    label_maps = not any(item.structures for item in dataset.items)
    if label_maps and set(dataset.labels.values()) <= set(config.labels.values()):
        dataset = dataclasses.replace(dataset, labels=config.labels)
    return dataset


def _check_same_kind(dataset: Dataset, config: RunConfig, do: str) -> None:
    if dataset.labels != config.labels:
        raise InputError(
            dataset.root, expected=f"the labels of the run, {config.labels}", found=str(dataset.labels), do=do
        )
    if dataset.channels != config.channels:
        raise InputError(
            dataset.root,
            expected=f"the channels of the run, {listed(config.channels, 12)}",
            found=listed(dataset.channels, 12),
            do=do,
        )


def _check_not_held_out(new: Dataset, first: Dataset, held_out: dict[str, tuple[str, ...]]) -> None:
    """Raise InputError if a new case is held out, by its name or by the content of an image."""
    for use, cases in held_out.items():
        why = {"test": "be tested on", "validation": "choose its weights by"}[use]
        both = sorted(set(new.cases) & set(cases))
        if both:
            raise InputError(
                new.root,
                expected="cases that the run does not hold out: it would " + why + " what it was trained on",
                found=f"{listed(both)}, {'a ' if len(both) == 1 else ''}{use} case{'s' if len(both) > 1 else ''} of it",
                do="Remove them; if they are other patients, rename them.",
            )
        known = {digest: item for item in first.items_of(cases) for digest in image_digests(item)}
        for item in new.items:
            same = next((known[digest] for digest in image_digests(item) if digest in known), None)
            if same is not None:
                raise InputError(
                    place_of(item.images[0]),
                    expected="images that the run does not hold out: it would " + why + " what it was trained on",
                    found=f"the image of {same.name}, of the {use} case {same.case!r}, under another name",
                    do="Remove it.",
                )


def _joint(fingerprints: Sequence[str]) -> str:
    """Return one fingerprint for several datasets; that of one is its own."""
    if len(fingerprints) == 1:
        return fingerprints[0]
    return hashlib.sha256(json.dumps(fingerprints).encode()).hexdigest()
