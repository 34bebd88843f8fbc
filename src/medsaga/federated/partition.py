"""Dividing the cases of a dataset among sites, as hospitals would have them."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from medsaga.data.labels import listed
from medsaga.data.layouts.labelling import CASES
from medsaga.data.names import normal
from medsaga.data.splits import Split, pool_and_test, split_cases
from medsaga.data.survey import Survey
from medsaga.errors import InputError
from medsaga.runs.loading import LoadedData, load_data
from medsaga.settings.options import Settings

FOLDERS = "folder"
"""Asks for a site per sub-folder, each of which is a dataset."""


@dataclass(frozen=True)
class SiteCases:
    """The cases of one site.

    Attributes:
        name: of the site.
        split: which it trains on and which it is tested on.
    """

    name: str
    split: Split


@dataclass(frozen=True, eq=False)
class Partition:
    """A dataset and its sites.

    Attributes:
        loaded: all of it.
        sites: in the order of their names.
    """

    loaded: LoadedData
    sites: tuple[SiteCases, ...]

    @property
    def split(self) -> Split:
        """The cases of all sites together."""
        groups = ([getattr(site.split, group) for site in self.sites] for group in ("train", "validation", "test"))
        return Split(*(tuple(sorted(case for cases in group for case in cases)) for group in groups))

    def of(self, site: SiteCases) -> LoadedData:
        """Return what a site has of the data. The fingerprint is that of all data: the simulation is one."""
        split = site.split
        items = self.loaded.dataset.items_of((*split.train, *split.validation, *split.test))
        dataset = dataclasses.replace(self.loaded.dataset, items=items)
        found = Survey(self.loaded.survey.of(items), (), ())
        return LoadedData(dataset, found, self.loaded.fingerprint)


def divide(data: Path, settings: Settings, console: Console, *, sites: int, by: str | None) -> Partition:
    """Read a dataset and divide its cases among sites.

    Args:
        data: the dataset; with ``by="folder"`` a folder of datasets, one for each site.
        settings: ``seed`` decides over the random division; ``shots`` and ``test_cases`` are those of each site.
        console: where progress is shown.
        sites: how many, where cases are divided at random.
        by: a column of ``cases.csv``, or `FOLDERS`; None for random.

    Raises:
        InputError: the data cannot be used, or a site has too few cases to train and to be tested.
    """
    if by == FOLDERS:
        fixed = None
        loaded, cases_of = _of_folders(data, settings, console)
    else:
        loaded = load_data(data, settings, console)
        fixed = pool_and_test(loaded.dataset, settings.fold or 0)[1]
        cases_of = _at_random(loaded, sites, settings.seed or 0, fixed) if by is None else _by_column(data, by, loaded)
    divided = [
        SiteCases(name, _split(name, cases, loaded, settings, fixed)) for name, cases in sorted(cases_of.items())
    ]
    if len(divided) < 2:
        found = f"{len(divided)}: {listed(list(cases_of))}"
        raise InputError("--sites", expected="at least two sites", found=found, do="Divide the cases in another way.")
    return Partition(loaded, tuple(divided))


def _at_random(loaded: LoadedData, sites: int, seed: int, fixed: tuple[str, ...] | None) -> dict[str, list[str]]:
    """Deal the cases out one by one, in an order that seed and names decide; test cases that are fixed likewise."""
    if sites < 2:
        raise InputError("--sites", expected="at least 2", found=str(sites), do="Give a larger number.")
    cases = sorted(loaded.dataset.cases, key=lambda case: hashlib.sha256(os.fsencode(f"site/{seed}/{case}")).digest())
    test = set(fixed or ())
    dealt: dict[str, list[str]] = {f"site{number + 1}": [] for number in range(sites)}
    names = list(dealt)
    for group in ([case for case in cases if case not in test], [case for case in cases if case in test]):
        for place, case in enumerate(group):
            dealt[names[place % sites]].append(case)
    return dealt


def _by_column(data: Path, column: str, loaded: LoadedData) -> dict[str, list[str]]:
    """Return the cases of each value that a column of ``cases.csv`` has."""
    path = data / CASES
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        do = "Write it, with the columns name and case and one that names the site."
        raise InputError(path, expected="a table of the cases", found=str(error), do=do) from None
    for needed in ("case", column):
        if not rows or needed not in rows[0]:
            found = listed(list(rows[0])) if rows else "no line"
            do = "Name one of its columns, or add it."
            raise InputError(path, expected=f"a column {needed!r}", found=found, do=do)
    site_of: dict[str, str] = {}
    for row in rows:
        case, site = normal(row["case"] or ""), normal(row[column] or "") or "none"
        if site_of.setdefault(case, site) != site:
            found = f"{case!r} in {site_of[case]!r} and in {site!r}"
            raise InputError(path, expected="each case at one site", found=found, do="Correct the column.")
    if absent := [case for case in loaded.dataset.cases if case not in site_of]:
        found = f"none for {listed(absent)}"
        raise InputError(path, expected="a line for each case", found=found, do="Add the lines that are missing.")
    names = _safe_names(path, sorted(set(site_of.values())))
    cases_of: dict[str, list[str]] = defaultdict(list)
    for case in loaded.dataset.cases:
        cases_of[names[site_of[case]]].append(case)
    return dict(cases_of)


def _of_folders(data: Path, settings: Settings, console: Console) -> tuple[LoadedData, dict[str, list[str]]]:
    """Return the datasets of all sub-folders as one, whose names begin with that of the folder."""
    folders = sorted(path for path in data.iterdir() if path.is_dir() and not path.name.startswith("."))
    names = _safe_names(data, [folder.name for folder in folders])
    parts = {names[folder.name]: load_data(folder, settings, console) for folder in folders}
    if not parts:
        do = "Put the dataset of each site into a folder of its own."
        raise InputError(data, expected="a folder for each site", found="none", do=do)
    first = next(iter(parts.values())).dataset
    items, surveys = [], []
    cases_of: dict[str, list[str]] = {}
    for site, loaded in parts.items():
        dataset = loaded.dataset
        for what in ("labels", "channels"):
            ours, theirs = getattr(first, what), getattr(dataset, what)
            if ours != theirs:
                do = f"Make the {what} of all sites the same: dataset.json names them."
                raise InputError(
                    dataset.root, expected=f"the {what} {ours}, as {first.root} has", found=f"{theirs}", do=do
                )
        for found in loaded.survey.items:
            item = found.item
            item = dataclasses.replace(item, name=f"{site}_{item.name}", case=f"{site}_{item.case}")
            items.append(item)
            surveys.append(dataclasses.replace(found, item=item))
        cases_of[site] = [f"{site}_{case}" for case in dataset.cases]
    joined = "/".join(f"{site}:{loaded.fingerprint}" for site, loaded in parts.items())
    order = sorted(range(len(items)), key=lambda place: items[place].name)
    whole = dataclasses.replace(first, root=data, items=tuple(items[place] for place in order), test=())
    survey = Survey(tuple(surveys[place] for place in order), (), ())
    return LoadedData(whole, survey, hashlib.sha256(joined.encode()).hexdigest()), cases_of


def _split(site: str, cases: list[str], loaded: LoadedData, settings: Settings, fixed: tuple[str, ...] | None) -> Split:
    """Divide the cases of a site into those it trains on and those it is tested on."""
    own = set(cases)
    test = None if fixed is None else tuple(case for case in fixed if case in own)
    pool = own - set(fixed or ())
    least = 2 if test is None else 1
    if len(pool) < least or test == ():
        raise InputError(
            site,
            expected="cases to train on and cases to be tested on",
            found=f"{len(pool)} and {len(test or ())}" if test is not None else f"{len(pool)} in all",
            do="Divide the cases among fewer sites.",
        )
    # Without its folder: the folds that lie there have been looked at, and name cases of other sites.
    items = loaded.dataset.items_of(tuple(pool))
    dataset = dataclasses.replace(loaded.dataset, items=items, test=(), root=Path(os.devnull))
    shots = settings.shots if test is None or settings.shots is not None else len(pool)
    drawn = split_cases(
        dataset,
        shots=shots,
        seed=settings.seed or 0,
        validation=0,
        fold=0,
        labels_of={case: labels for case, labels in loaded.survey.labels_of_cases.items() if case in pool},
        test_cases=settings.test_cases if test is None else None,
    )
    return Split(drawn.train, (), drawn.test if test is None else test)


def _safe_names(where: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the names of sites as folders can have them, by the names that the data have.

    Raises:
        InputError: two of them would be one.
    """
    safe = {name: _safe(name) for name in names}
    known: dict[str, str] = {}
    for name, folder in safe.items():
        if (other := known.setdefault(folder.casefold(), name)) != name:
            expected = "names of sites that differ in letters, digits, -, _ and ."
            found = f"{other!r} and {name!r}, which are both {folder!r} then"
            raise InputError(where, expected=expected, found=found, do="Rename one of them.")
    return safe


def _safe(name: str) -> str:
    """Return the name of a site as a folder can have it."""
    kept = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
    return kept.strip(".") or "site"
