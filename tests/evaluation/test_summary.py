"""Means, bootstrap intervals, counts and tables."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from medsaga.evaluation.protocols import LabelScore
from medsaga.evaluation.summary import ItemScores, markdown_table, summarise, table

MISSED = LabelScore(0.0, None, "only_truth", "mm")
FALSE_POSITIVE = LabelScore(0.0, None, "only_prediction", "mm")
ABSENT = LabelScore(None, None, "neither", "mm")


def both(dice: float, hd95: float = 1.0) -> LabelScore:
    return LabelScore(dice, hd95, "both", "mm")


def cohort(dices: dict[str, list[float]]) -> list[ItemScores]:
    """One item per number, of the case that the key names, with one label."""
    return [
        ItemScores(f"{case}-{index}", case, {"liver": both(dice)})
        for case, values in dices.items()
        for index, dice in enumerate(values)
    ]


def test_means_by_hand() -> None:
    items = [
        ItemScores("a", "A", {"liver": both(0.9, 2.0), "spleen": both(0.6, 8.0), "gall": ABSENT}),
        ItemScores("b", "B", {"liver": both(0.7, 4.0), "spleen": MISSED, "gall": ABSENT}),
        ItemScores("c", "C", {"liver": ABSENT, "spleen": FALSE_POSITIVE, "gall": ABSENT}),
    ]
    result = summarise(items, "mm")
    assert result["dice"] == pytest.approx({"liver": 0.8, "spleen": 0.2, "gall": None})
    assert result["hd95"] == pytest.approx({"liver": 3.0, "spleen": 8.0, "gall": None})
    assert result["dice_mean"] == pytest.approx(0.5)
    assert result["hd95_mean"] == pytest.approx(5.5)
    assert result["counts"]["spleen"] == {"both": 1, "only_truth": 1, "only_prediction": 1, "neither": 0}
    assert result["counts"]["gall"] == {"both": 0, "only_truth": 0, "only_prediction": 0, "neither": 3}
    assert result["dice_interval"]["gall"] is None
    assert (result["metric_protocol"], result["hd95_unit"], result["case_count"]) == ("mm", "mm", 3)
    assert result["cases"][1] == {
        "name": "b",
        "case": "B",
        "dice": {"liver": 0.7, "spleen": 0.0, "gall": None},
        "hd95": {"liver": 4.0, "spleen": None, "gall": None},
        "hd95_unit": "mm",
        "state": {"liver": "both", "spleen": "only_truth", "gall": "neither"},
        "dice_mean": 0.35,
    }
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_the_bootstrap_is_a_function_of_the_seed() -> None:
    rng = np.random.default_rng(0)
    items = cohort({f"case{i}": list(rng.uniform(0, 1, 2)) for i in range(12)})
    first = summarise(items, "mm", seed=3)
    assert summarise(items, "mm", seed=3) == first
    assert summarise(items, "mm", seed=4)["dice_mean_interval"] != first["dice_mean_interval"]
    assert summarise(items[::-1], "mm", seed=3)["dice_mean_interval"] == pytest.approx(first["dice_mean_interval"])


def test_the_bootstrap_covers_the_mean_at_the_known_width() -> None:
    """For many independent cases the interval is the mean +- 1.96 standard errors."""
    dices = np.random.default_rng(1).uniform(0.4, 0.9, 400)
    result = summarise(cohort({f"c{i}": [float(dice)] for i, dice in enumerate(dices)}), "mm")
    error = dices.std() / np.sqrt(len(dices))
    expected = [dices.mean() - 1.96 * error, dices.mean() + 1.96 * error]
    assert result["dice_mean_interval"] == pytest.approx(expected, abs=0.15 * error)
    assert result["dice_interval"]["liver"] == result["dice_mean_interval"]


def test_the_bootstrap_draws_whole_cases() -> None:
    """Copies of an image add no evidence when they belong to one case, and much when they are taken for cases."""
    few = {"a": [0.2], "b": [0.5], "c": [0.9], "d": [0.7]}
    copied = {case: values * 25 for case, values in few.items()}
    as_cases = {f"{case}{i}": values for case, values in few.items() for i in range(25)}
    width = {
        name: np.ptp(summarise(cohort(dices), "mm")["dice_mean_interval"])
        for name, dices in {"few": few, "copied": copied, "as_cases": as_cases}.items()
    }
    assert width["copied"] == pytest.approx(width["few"], rel=1e-9)
    assert width["as_cases"] < width["few"] / 3


def test_one_case_has_no_interval() -> None:
    result = summarise(cohort({"only": [0.5, 0.7]}), "mm")
    assert result["dice_mean"] == pytest.approx(0.6)
    assert result["dice_mean_interval"] is None
    assert result["dice_interval"] == {"liver": None}


def test_a_label_of_one_case_has_no_interval_of_its_own() -> None:
    items = [
        ItemScores("a", "A", {"liver": both(0.9), "cyst": both(0.4)}),
        ItemScores("b", "B", {"liver": both(0.8), "cyst": ABSENT}),
        ItemScores("c", "C", {"liver": both(0.7), "cyst": ABSENT}),
    ]
    result = summarise(items, "mm")
    assert result["dice_interval"]["cyst"] is None
    low, high = result["dice_mean_interval"]
    assert 0.4 < low < result["dice_mean"] < high <= 0.9


def test_nothing_counted_anywhere() -> None:
    result = summarise([ItemScores(name, name, {"liver": ABSENT}) for name in "ab"], "mm")
    assert (result["dice_mean"], result["dice_mean_interval"], result["hd95_mean"]) == (None, None, None)
    json.dumps(result, allow_nan=False)
    assert "| liver | - | - | - | 0 | 0 | 0 |" in markdown_table(result)


def test_millimetres_and_pixels_are_not_averaged() -> None:
    items = [
        ItemScores("a", "A", {"liver": both(0.9, 2.0)}),
        ItemScores("b", "B", {"liver": LabelScore(0.9, 40.0, "both", "px")}),
    ]
    result = summarise(items, "mm")
    assert (result["hd95_unit"], result["hd95"], result["hd95_mean"]) == ("mixed", {"liver": None}, None)
    assert [case["hd95_unit"] for case in result["cases"]] == ["mm", "px"]


def example() -> list[ItemScores]:
    return [
        ItemScores("a", "A", {"[red]liver|x": both(0.9, 2.0), "spleen": both(0.6, 8.0)}),
        ItemScores("b", "B", {"[red]liver|x": both(0.7, 4.0), "spleen": MISSED}),
        ItemScores("c", "B", {"[red]liver|x": ABSENT, "spleen": FALSE_POSITIVE}),
    ]


def test_the_table_names_protocol_unit_and_counts() -> None:
    text = io.StringIO()
    Console(file=text, width=100).print(table(summarise(example(), "mm")))
    shown = text.getvalue()
    assert "protocol mm" in shown
    assert "3 images of 2 cases" in shown
    assert "HD95 [mm]" in shown
    assert "[red]liver|x" in shown
    spleen = next(line for line in shown.splitlines() if "spleen" in line)
    cells = [cell.strip() for cell in spleen.strip("│").split("│")]
    assert [cells[0], cells[1], *cells[3:]] == ["spleen", "0.200", "8.00", "3", "1", "1"]


def test_the_markdown_table_has_equal_rows() -> None:
    lines = markdown_table(summarise(example(), "mm")).splitlines()
    assert lines[0] == "Segmentation scores, protocol mm, 3 images of 2 cases"
    rows = lines[2:]
    assert len(rows) == 5
    assert {row.replace("\\|", "").count("|") for row in rows} == {8}
    assert rows[2].startswith("| [red]liver\\|x | 0.800 |")
    assert rows[4].startswith("| mean | 0.500 |")


def test_no_item_leaves_every_number_undefined() -> None:
    result = summarise([], "mm")
    assert (result["dice_mean"], result["dice_mean_interval"], result["hd95_mean"]) == (None, None, None)
    assert result["cases"] == []
    assert table(result).row_count == 1
