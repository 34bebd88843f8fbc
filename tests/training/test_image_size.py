"""Runs on fine structures see more pixels, and say so; methods of a comparison see the same."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from medsaga.compare.cells import Cell
from medsaga.compare.grid import settings_of
from medsaga.methods import METHODS
from medsaga.runs.configuration import new_config, note_on_size
from medsaga.runs.loading import LoadedData, load_data, split_of
from medsaga.settings.options import Settings, SharedSettings


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> LoadedData:
    """Images of 128 px with a line that is one pixel wide."""
    root = tmp_path_factory.mktemp("lines")
    for name in ("images", "masks"):
        (root / name).mkdir()
    for number in range(4):
        mask = np.zeros((128, 128), np.uint8)
        mask[:, 20 + number] = 1
        noise = np.random.default_rng(number).integers(0, 50, mask.shape)
        Image.fromarray((noise + 150 * mask).astype(np.uint8)).save(root / "images" / f"{number}.png")
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    return load_data(root, Settings(), Console(file=io.StringIO()))


def test_a_run_on_fine_structures_says_that_it_takes_longer(lines: LoadedData) -> None:
    for given, size in ((Settings(shots=2, test_cases=1), 320), (Settings(shots=2, test_cases=1, image_size=96), 96)):
        used = new_config(given, lines, split_of(lines, given), torch.device("cpu")).settings
        assert used.image_size == size
        note = note_on_size(given, used)
        assert (note is not None) == (size == 320)
        assert note is None or "320 px instead of 192" in note


def test_all_methods_of_a_comparison_see_what_the_first_does(lines: LoadedData) -> None:
    for first in METHODS:
        methods = [first, *(name for name in METHODS if name != first)]
        cells = [Cell("equal", name, 2, 0) for name in methods]
        sizes = {settings_of(cell, SharedSettings(), methods, 1, lines).image_size for cell in cells}
        assert sizes == {224 if first == "daeformer" else 320}
