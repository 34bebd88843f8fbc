"""The page on the papers' data: its commands and scripts do what it says, on small files of the same layouts."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medsaga.cli import main
from medsaga.data.dataset import read_dataset
from medsaga.data.layouts import brats, transunet
from medsaga.data.splits import split_cases

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "data-of-the-papers.md").read_text(encoding="utf-8")
BRATS = Path("MICCAI_BraTS2020_TrainingData")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for place in ("Synapse/train_npz", "Synapse/test_vol_h5", "JSRT"):
        Path(place).mkdir(parents=True)
    image, label = rng.random((4, 8, 8), np.float32), np.zeros((4, 8, 8), np.float32)
    np.savez("Synapse/train_npz/case0005_slice000.npz", image=image[0], label=label[0])
    with h5py.File("Synapse/test_vol_h5/case0001.npy.h5", "w") as file:
        file["image"], file["label"] = image, label
    for number in (1, 39, 52, 355):
        folder = BRATS / f"BraTS20_Training_{number:03d}"
        folder.mkdir(parents=True)
        for kind in (*brats.CHANNELS, "seg"):
            voxels = rng.integers(0, 3, (4, 4, 4), dtype=np.uint8)
            name = "W39_1998.09.19_Segm" if (number, kind) == (355, "seg") else f"{folder.name}_{kind}"
            nib.Nifti1Image(voxels, np.eye(4)).to_filename(folder / f"{name}.nii")
    for name in ("JPCLN001", "JPCNN001"):
        rng.integers(0, 4096, (2048, 2048)).astype(">u2").tofile(f"JSRT/{name}.IMG")
        for value, structure in enumerate(("heart", "left lung", "right lung"), start=1):
            Path("chest/masks", structure).mkdir(parents=True, exist_ok=True)
            inside = np.zeros((1024, 1024), np.uint8)
            inside[: 300 * value, 300 * value :] = 255
            Image.fromarray(inside).save(f"chest/masks/{structure}/{name}.gif")


@pytest.mark.usefixtures("downloads")
def test_the_scripts_and_the_first_command_of_each_part_run(capsys: pytest.CaptureFixture[str]) -> None:
    for script in blocks("py"):
        exec(compile(script, "page", "exec"), {})
    commands = [shlex.split(line) for block in blocks("console") for line in block.splitlines()]
    assert [command[:2] for command in commands] == [["medsaga", "info"], ["medsaga", "compare"]] * 3
    for _, verb, *arguments in commands:
        if verb == "info":
            assert main([verb, *arguments, "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["problems"] == []
    assert split_cases(read_dataset(BRATS), shots=None, seed=0, validation=None, fold=0).test == (
        "BraTS20_Training_039",
        "BraTS20_Training_052",
    )
    assert read_dataset(Path("chest")).items[0].header.dtype == np.uint16


def test_the_numbers_of_the_labels_are_those_that_are_read() -> None:
    text = " ".join(PAGE.split())
    labels = [f"{name} {value}" for table in (transunet.LABELS, brats.LABELS) for name, value in table.items() if value]
    assert [label for label in labels if label not in text] == []
