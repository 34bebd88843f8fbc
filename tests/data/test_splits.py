"""Splits: cases are whole, k shots are nested, labels come early, folds are honoured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsaga.data.splits import Split, split_cases
from medsaga.data.types import Dataset, Grid, Header, Item
from medsaga.errors import InputError

HEADER = Header(Grid((4, 4)), 1, np.dtype(np.uint8))


def dataset_of(cases: int, root: Path = Path("nowhere"), items_per_case: int = 2) -> Dataset:
    items = tuple(
        Item(f"c{case:02d}_{index}", f"c{case:02d}", (Path("x"),), (), HEADER)
        for case in range(cases)
        for index in range(items_per_case)
    )
    return Dataset(root, "folder", {"background": 0, "x": 1}, ("channel_0",), items)


def split(dataset: Dataset, **changes: Any) -> Split:
    return split_cases(dataset, **{"shots": None, "seed": 0, "validation": None, "fold": 0, **changes})


@settings(max_examples=60, deadline=None)
@given(cases=st.integers(1, 30), seed=st.integers(0, 2**63), data=st.data())
def test_every_case_is_on_one_side_and_counts_are_as_asked(cases: int, seed: int, data: st.DataObject) -> None:
    dataset = dataset_of(cases)
    shots = data.draw(st.none() | st.integers(1, cases))
    result = split(dataset, seed=seed, shots=shots)
    everything = [*result.train, *result.validation, *result.test]
    assert sorted(everything) == list(dataset.cases)
    assert len(set(everything)) == len(everything)
    labelled = len(result.train) + len(result.validation)
    if shots is not None:
        assert labelled == shots
    else:
        assert abs(labelled - 0.8 * cases) <= 1
        assert (len(result.test) > 0) == (cases > 1)
    assert len(result.validation) == (labelled // 5 if labelled >= 10 else 0)
    assert result.train


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), data=st.data())
def test_fewer_shots_are_among_more_shots(seed: int, data: st.DataObject) -> None:
    dataset = dataset_of(12)
    labels = st.frozensets(st.integers(0, 6))
    labels_of = data.draw(st.none() | st.fixed_dictionaries(dict.fromkeys(dataset.cases, labels)))
    previous: set[str] = set()
    for shots in range(1, 13):
        drawn = set(split(dataset, shots=shots, seed=seed, validation=0, labels_of=labels_of).train)
        assert len(drawn) == shots
        assert previous < drawn
        previous = drawn


def test_the_draw_depends_on_the_seed_and_on_nothing_else() -> None:
    dataset = dataset_of(10)
    assert split(dataset, shots=3, seed=5) == split(dataset, shots=3, seed=5)
    assert len({split(dataset, shots=3, seed=seed).train for seed in range(20)}) > 10
    firsts = [split(dataset, shots=1, seed=seed).train[0] for seed in range(500)]
    counts = np.unique(firsts, return_counts=True)[1]
    assert len(counts) == 10
    assert counts.max() < 90  # 50 each are expected; 90 is 6 standard deviations away


def test_labels_appear_as_early_as_they_can() -> None:
    dataset = dataset_of(10)
    labels_of = dict.fromkeys(dataset.cases, frozenset({0, 1}))
    labels_of["c03"] = frozenset({0, 1, 2, 3})
    labels_of["c07"] = frozenset({0, 4})
    for seed in range(20):
        assert split(dataset, shots=1, seed=seed, labels_of=labels_of).train == ("c03",)
        assert split(dataset, shots=2, seed=seed, labels_of=labels_of).train == ("c03", "c07")
    thirds = {split(dataset, shots=3, seed=seed, labels_of=labels_of).train for seed in range(20)}
    assert len(thirds) > 3


def test_validation_cases_are_taken_from_the_labelled_ones() -> None:
    dataset = dataset_of(10)
    with_validation = split(dataset, shots=4, validation=1)
    without = split(dataset, shots=4, validation=0)
    assert set(with_validation.train) | set(with_validation.validation) == set(without.train)
    assert len(with_validation.validation) == 1
    assert with_validation.test == without.test


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": 0}, r"--shots: expected 1 to 6 cases; found 0"),
        ({"shots": -1}, r"--shots: expected 1 to 6 cases; found -1"),
        ({"shots": 7}, r"--shots: expected 1 to 6 cases; found 7"),
        ({"shots": 2, "validation": 2}, r"--validation-cases: expected 0 to 1 cases; found 2"),
        ({"validation": -1}, r"--validation-cases: expected 0 to 4 cases; found -1"),
        ({"fold": 1}, r"--fold: expected a file splits_final\.json"),
    ],
)
def test_impossible_counts_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        split(dataset_of(6), **changes)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), data=st.data())
def test_so_many_test_cases_are_the_same_for_all_numbers_of_shots(seed: int, data: st.DataObject) -> None:
    dataset = dataset_of(12)
    labels = st.frozensets(st.integers(0, 6))
    labels_of = data.draw(st.none() | st.fixed_dictionaries(dict.fromkeys(dataset.cases, labels)))
    tested = data.draw(st.integers(1, 11))
    everything = split(dataset, seed=seed, labels_of=labels_of, test_cases=tested)
    assert len(everything.test) == tested
    assert sorted(everything.train + everything.validation + everything.test) == list(dataset.cases)
    for shots in range(1, 13 - tested):
        result = split(dataset, seed=seed, labels_of=labels_of, shots=shots, test_cases=tested)
        assert result.test == everything.test
        # The draw itself is that without the option.
        without = split(dataset, seed=seed, labels_of=labels_of, shots=shots)
        assert (result.train, result.validation) == (without.train, without.validation)
        assert set(result.test) <= set(without.test)


@pytest.mark.parametrize(
    ("shots", "tested", "found"),
    [(5, 2, "2 beside 5"), (None, 6, "6 beside 1"), (3, 0, "0 beside 3"), (7, 1, "1 beside 7")],
)
def test_more_test_cases_than_there_are_left_are_refused(shots: int | None, tested: int, found: str) -> None:
    message = rf"--test-cases: expected at least 1, .* at most the 6 cases; found {found}"
    with pytest.raises(InputError, match=message):
        split(dataset_of(6), shots=shots, test_cases=tested)


def test_all_cases_as_shots_leave_no_test() -> None:
    assert split(dataset_of(3), shots=3).test == ()
    with pytest.raises(InputError, match="at least one case"):
        split(dataset_of(0))


def with_folds(root: Path, folds: Any) -> Dataset:
    text = folds if isinstance(folds, str) else json.dumps(folds)
    (root / "splits_final.json").write_text(text)
    return dataset_of(8, root)


FOLDS = [
    {"train": ["c00", "c01", "c02", "c03"], "val": ["c04", "c05"]},
    {"train": ["c04", "c05", "c06"], "val": ["c00"]},
]


def test_folds_are_honoured(tmp_path: Path) -> None:
    dataset = with_folds(tmp_path, FOLDS)
    assert split(dataset) == Split(("c00", "c01", "c02", "c03"), (), ("c04", "c05"))
    assert split(dataset, fold=1) == Split(("c04", "c05", "c06"), (), ("c00",))
    for seed in range(5):
        drawn = split(dataset, fold=1, shots=2, seed=seed)
        assert set(drawn.train) < {"c04", "c05", "c06"}
        assert drawn.test == ("c00",)


@pytest.mark.parametrize(
    ("folds", "changes", "message"),
    [
        (FOLDS, {"fold": 2}, "--fold: expected 0 to 1"),
        (FOLDS, {"fold": -1}, "--fold: expected 0 to 1"),
        (FOLDS, {"shots": 5}, "--shots: expected 1 to 4"),
        (FOLDS, {"test_cases": 1}, r"--test-cases: .*found 2 that are fixed by splits_final\.json"),
        ([{"train": ["c00", "../x"], "val": ["y"]}], {}, r"splits_final\.json: .*found '\.\./x' and 1 more"),
        ([{"train": ["c00"], "val": ["c00"]}], {}, "'c00' in train and in val"),
        ([{"train": [], "val": ["c00"]}], {}, "at least one case"),
        ([{"train": ["c00"]}], {}, "a list of folds"),
        ([{"train": [0], "val": []}], {}, "a list of folds"),
        ([], {}, "a list of folds"),
        ({"train": []}, {}, "a list of folds"),
        ("[{", {}, "expected JSON"),
    ],
)
def test_folds_that_do_not_fit_are_refused(tmp_path: Path, folds: Any, changes: dict[str, Any], message: str) -> None:
    dataset = with_folds(tmp_path, folds)
    with pytest.raises(InputError, match=message):
        split(dataset, **changes)


def test_a_split_survives_json() -> None:
    result = split(dataset_of(20), shots=12)
    assert result.validation
    assert Split.from_json(json.loads(json.dumps(result.to_json()))) == result
