"""Which cases a run trains on, which it watches, and which it is tested on.

A case (patient, animal, examination) is never divided, and k shots are k cases.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medsaga.data.names import normal
from medsaga.data.types import Dataset
from medsaga.errors import InputError

_LEAST_CASES_TO_VALIDATE = 10
SPLITS_NAME = "splits_final.json"


@dataclass(frozen=True)
class Split:
    """The names of the cases, each in one group only and sorted.

    Attributes:
        train: the weights are fitted on these.
        validation: labelled cases that choose the checkpoint; taken from those that would be trained on.
        test: the others, which nothing is fitted to or chosen by.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def to_json(self) -> dict[str, list[str]]:
        """Return the split as a JSON document."""
        return {group: list(cases) for group, cases in asdict(self).items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Sequence[str]]) -> Split:
        """Return the split that `to_json` described."""
        return cls(*(tuple(map(normal, document[group])) for group in ("train", "validation", "test")))


def split_cases(
    dataset: Dataset,
    *,
    shots: int | None,
    seed: int,
    validation: int | None,
    fold: int,
    labels_of: Mapping[str, frozenset[int]] | None = None,
    test_cases: int | None = None,
) -> Split:
    """Draw the cases of a run.

    Cases are drawn from all cases that the dataset does not keep for the test, or from the ``train`` list of a fold
    where ``splits_final.json`` gives folds; its ``val`` list is the test set then. The draw is nested: with one seed,
    k shots are among the k+1 shots.

    Args:
        dataset: usable, from `medsaga.data.dataset.read_dataset`.
        shots: how many cases are labelled; None takes all where the test cases are fixed, else four fifths.
        seed: of the draw.
        validation: how many of the labelled cases choose the checkpoint instead of being trained on; None takes a
            fifth, rounded down, of 10 or more.
        fold: which fold of ``splits_final.json``.
        labels_of: label values of each case. With it, cases that show labels not yet seen are drawn first.
        test_cases: test on the last so many cases of the draw only, which with one seed are the same for every
            number of shots; None tests on all that are not drawn.

    Returns:
        The split. ``test`` is empty when the shots take every case.

    Raises:
        InputError: more shots, validation or test cases than there are cases, folds that do not fit the dataset, or
            ``test_cases`` where folds or the dataset fix them.
    """
    pool, test = pool_and_test(dataset, fold)
    if not pool:
        where, do = dataset.root, "Add labelled cases."
        raise InputError(where, expected="at least one case to train on", found="none", do=do)
    order = _drawn(pool, seed, labels_of or {})
    if test_cases is not None:
        _check_test_cases(dataset, test_cases, test, len(order), max(1, shots or 1))
        order, test = order[:-test_cases], tuple(order[-test_cases:])
    if shots is None:
        # Of two or more cases at least one is left for the test.
        labelled = len(order) if test is not None else max(1, min(round(0.8 * len(order)), len(order) - 1))
    else:
        _check_count("--shots", shots, 1, len(order), "case", "Choose fewer shots, or add labelled cases.")
        labelled = shots
    drawn, others = order[:labelled], order[labelled:]
    if validation is None:
        validation = labelled // 5 if labelled >= _LEAST_CASES_TO_VALIDATE else 0
    _check_count(
        "--validation-cases", validation, 0, labelled - 1, "case", "They are taken from the cases to train on."
    )
    return Split(
        train=tuple(sorted(drawn[: labelled - validation])),
        validation=tuple(sorted(drawn[labelled - validation :])),
        test=tuple(sorted(others if test is None else test)),
    )


def pool_and_test(dataset: Dataset, fold: int) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Return the cases to draw from, and the test cases where the layout or a file of folds fixes them."""
    path = dataset.root / SPLITS_NAME
    if dataset.test and path.exists():
        raise InputError(
            path,
            expected="no folds beside test cases that the dataset's layout fixes",
            found="a file of folds",
            do="Remove the file.",
        )
    if not path.exists():
        if fold != 0:
            raise InputError(
                "--fold",
                expected=f"a file {SPLITS_NAME} in the dataset",
                found="none",
                do="Add the file, or draw cases with --shots and --seed.",
            )
        if dataset.test:
            return tuple(case for case in dataset.cases if case not in dataset.test), dataset.test
        return dataset.cases, None
    folds = _read_folds(path)
    if not 0 <= fold < len(folds):
        found = str(fold)
        raise InputError("--fold", expected=f"0 to {len(folds) - 1}, as {path} has", found=found, do="Choose one.")
    pool, test = (tuple(dict.fromkeys(map(normal, folds[fold][key]))) for key in ("train", "val"))
    known = set(dataset.cases)
    unknown = [case for case in (*pool, *test) if case not in known]
    if unknown:
        raise InputError(
            path,
            expected="names of cases of this dataset",
            found=f"{unknown[0]!r}" + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""),
            do="Correct the names, or add the cases.",
        )
    both = sorted(set(pool) & set(test))
    if both:
        found = f"{both[0]!r} in train and in val"
        raise InputError(path, expected="each case on one side", found=found, do="Correct the fold.")
    return pool, test


def _read_folds(path: Path) -> list[dict[str, list[str]]]:
    try:
        folds = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(path, expected="JSON", found=str(error), do="Correct or remove the file.") from error
    if not (isinstance(folds, list) and folds and all(_is_fold(each) for each in folds)):
        raise InputError(
            path,
            expected='a list of folds such as {"train": ["a", "b"], "val": ["c"]}',
            found="something else",
            do="Correct or remove the file.",
        )
    return folds


def _is_fold(document: Any) -> bool:
    return isinstance(document, dict) and all(
        isinstance(document.get(key), list) and all(isinstance(case, str) for case in document[key])
        for key in ("train", "val")
    )


def _drawn(pool: Iterable[str], seed: int, labels_of: Mapping[str, frozenset[int]]) -> list[str]:
    """Return the cases in the order in which they are drawn.

    The order is that of a hash of seed and name, so it depends on no library's random numbers, and adding a case
    to a dataset leaves the order of the others as it was. While labels are missing, the case that adds most of
    them comes first.
    """
    waiting = sorted(pool, key=lambda case: hashlib.sha256(os.fsencode(f"{seed}/{case}")).digest())
    drawn: list[str] = []
    missing = frozenset[int]().union(*(labels_of.get(case, frozenset()) for case in waiting))
    while missing:
        best = max(waiting, key=lambda case: len(missing & labels_of.get(case, frozenset())))
        missing -= labels_of[best]
        waiting.remove(best)
        drawn.append(best)
    return drawn + waiting


def _check_test_cases(dataset: Dataset, test_cases: int, fixed: tuple[str, ...] | None, cases: int, shots: int) -> None:
    if fixed is not None:
        raise InputError(
            "--test-cases",
            expected="a dataset that leaves the test cases open",
            found=f"{len(fixed)} that are fixed by {'its layout' if dataset.test else SPLITS_NAME}",
            do="Leave it out: they are the same for every number of shots.",
        )
    if test_cases < 1 or test_cases + shots > cases:
        raise InputError(
            "--test-cases",
            expected=f"at least 1, and together with the shots at most the {cases} cases",
            found=f"{test_cases} beside {shots}",
            do="Choose fewer of one of them, or add labelled cases.",
        )


def _check_count(flag: str, count: int, least: int, most: int, noun: str, do: str) -> None:
    if not least <= count <= most:
        expected = f"{least} to {most} {noun}s" if most >= least else f"at least {least} {noun}"
        raise InputError(flag, expected=expected, found=str(count), do=do)
