"""What one look at all files finds, before anything is trained: also in the files that training does not touch."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from rich.console import Console

from medsaga.data.dataset import read_dataset
from medsaga.data.intensity import Intensity, choose_intensity, require_mappable
from medsaga.data.splits import Split
from medsaga.data.survey import survey
from medsaga.errors import InputError
from medsaga.runs.loading import load_data, unseen_labels
from medsaga.settings.options import Settings


def write(root: Path, images: list[npt.NDArray[np.integer]], masks: list[npt.NDArray[np.integer]]) -> Path:
    for name, arrays in (("images", images), ("masks", masks)):
        (root / name).mkdir(parents=True)
        for n, array in enumerate(arrays):
            Image.fromarray(array).save(root / name / f"p{n:02}.png")
    (root / "dataset.json").write_text('{"labels": {"background": 0, "a": 1, "b": 2}}')
    return root


def noise(seed: int, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[np.integer]:
    return np.random.default_rng(seed).integers(0, 200, (20, 16)).astype(dtype)


def labelled(value: int) -> npt.NDArray[np.uint8]:
    mask = np.zeros((20, 16), np.uint8)
    mask[4:9, 3:8] = value
    return mask


def test_one_deep_image_among_8_bit_ones_is_named_and_all_are_scaled_alike(tmp_path: Path) -> None:
    images = [*(noise(n) for n in range(3)), noise(3, np.uint16) * 16]
    dataset = read_dataset(write(tmp_path, images, [labelled(1), labelled(2)] * 2))
    found = survey(dataset)
    assert found.problems == ()
    (warning,) = found.warnings
    assert "p03.png (uint16)" in warning
    training = found.of(dataset.items[:2])
    assert choose_intensity(dataset, training, "auto", None)[0].kind == "percentile"
    with pytest.raises(InputError, match=r"p03\.png: expected 8-bit values"):
        choose_intensity(dataset, training, "identity", None)
    with pytest.raises(InputError, match=r"p03\.png: expected 8-bit values"):
        require_mappable([Intensity("identity", 0, 255)], dataset.items)
    require_mappable([Intensity("percentile")], dataset.items)


def test_one_black_image_among_many_is_said_and_used(tmp_path: Path) -> None:
    images = [noise(n) for n in range(12)]
    images[5] = np.zeros((20, 16), np.uint8)
    found = survey(read_dataset(write(tmp_path / "many", images, [labelled(1 + n % 2) for n in range(12)])))
    assert found.problems == ()
    (warning,) = found.warnings
    assert "p05.png: the value 0 everywhere" in warning
    few = survey(read_dataset(write(tmp_path / "few", images[4:8], [labelled(1), labelled(2)] * 2)))
    assert ["p01.png: expected an image; found the value 0 everywhere" in str(each) for each in few.problems] == [True]
    empty = survey(read_dataset(write(tmp_path / "empty", images[4:8], [labelled(n) for n in (1, 0, 2, 1)])))
    assert empty.problems == ()
    assert len(empty.warnings) == 1


def test_a_label_that_no_training_case_holds_is_said(tmp_path: Path) -> None:
    root = write(tmp_path, [noise(n) for n in range(4)], [labelled(value) for value in (1, 1, 2, 0)])
    checked = load_data(root, Settings(), Console(file=io.StringIO()))
    assert checked.survey.labels_of_cases == {"p00": {0, 1}, "p01": {0, 1}, "p02": {0, 2}, "p03": {0}}
    (warning,) = unseen_labels(checked, Split(train=("p00", "p03"), validation=(), test=("p01", "p02")))
    assert "no training case holds b" in warning
    assert unseen_labels(checked, Split(train=("p00", "p02"), validation=(), test=("p01",))) == ()


def test_warnings_are_printed_once_where_a_run_is_checked(tmp_path: Path) -> None:
    screen = io.StringIO()
    root = write(tmp_path, [noise(0), noise(1, np.uint16)], [labelled(1), labelled(1)])
    load_data(root, Settings(), Console(file=screen, width=1000))
    said = screen.getvalue()
    assert said.count("warning: ") == 2
    assert said.count("images of different depth") == said.count("no mask holds b") == 1


def test_an_unknown_label_of_a_case_that_is_only_tested_on_is_found(tmp_path: Path) -> None:
    root = write(tmp_path, [noise(n) for n in range(3)], [labelled(1), labelled(2), labelled(7)])
    with pytest.raises(InputError, match=r"p02\.png: expected the labels .* found the values 7"):
        load_data(root, Settings(shots=1), Console(file=io.StringIO()))
