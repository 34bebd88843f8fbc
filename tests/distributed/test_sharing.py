"""Processes share the images to segment and the runs of a comparison, and what is written is what one would write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import group_work
import pytest
from conftest import write_toy_dataset
from processes import together

from medsaga.distributed.group import ALONE

pytestmark = pytest.mark.xdist_group("processes")


def test_a_folder_is_segmented_in_shares(trained_toy: Path, tmp_path: Path) -> None:
    run, images = trained_toy / "run", trained_toy / "data" / "images"
    expected = group_work.predict_together(ALONE, run, images, tmp_path / "alone")
    first, second = together(2, tmp_path, group_work.predict_together, run, images, tmp_path / "shared")
    assert first == expected
    assert second == []
    alone, shared = ({path.name: path for path in (tmp_path / name).iterdir()} for name in ("alone", "shared"))
    assert shared.keys() == alone.keys()
    for name in (*expected, "confidence.csv"):
        assert shared[name].read_bytes() == alone[name].read_bytes()
    for name in ("measurements.csv", "predictions.jsonl"):  # in the order in which they were made
        lines = [sorted(path[name].read_text().splitlines()) for path in (alone, shared)]
        assert lines[0][1:] == lines[1][1:] or name == "predictions.jsonl"
        assert {line for line in lines[0] if "png" in line} == {line for line in lines[1] if "png" in line}


@pytest.mark.exhaustive
def test_a_test_in_shares_has_the_scores_of_one(trained_toy: Path, tmp_path: Path) -> None:
    data = write_toy_dataset(tmp_path / "other", images=5, seed=3)
    expected = group_work.evaluate_together(ALONE, trained_toy / "run", data)
    for each in together(2, tmp_path, group_work.evaluate_together, trained_toy / "run", data):
        assert each == expected


@pytest.mark.exhaustive
def test_each_run_of_a_comparison_is_made_by_one_process(toy: Path, tmp_path: Path) -> None:
    def scores(documents: list[dict[str, Any]]) -> list[Any]:
        return [(document["cell"]["method"], document["result"]["dice"]) for document in documents]

    expected = scores(group_work.compare_together(ALONE, toy, tmp_path / "alone"))
    for each in together(2, tmp_path, group_work.compare_together, toy, tmp_path / "shared"):
        assert not isinstance(each, Exception), each
        assert scores(each) == expected
    assert (tmp_path / "shared" / "index.html").exists()
    assert [method for method, _ in expected] == ["medsaga", "unet"]
