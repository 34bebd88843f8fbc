"""The benchmark against peers: their images are the run's own, their costs count all processes. nnU-Net is not run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.peers.costs import CommandFailedError, Cost, run_counted, tree_of
from benchmarks.peers.exchange import score, task_of, write_raw
from benchmarks.peers.nnunet import DATASET, NnUNet
from benchmarks.peers.run import Trained, peer_record, table
from medsaga.errors import InputError

LABELS = {"background": 0, "disc": 2, "canal": 5}
"""With gaps, which nnU-Net does not take."""
SPLIT = {"train": ["p0"], "validation": ["p1"], "test": ["p2"]}
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")


def _dataset(root: Path, *, colour: bool) -> Path:
    """Make three cases, of which the first has two images."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    random = np.random.default_rng(0)
    names = {"a": "p0", "b": "p0", "c": "p1", "d": "p2"}
    for name in names:
        pixels = random.integers(0, 256, (12, 17, 3) if colour else (12, 17), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
        Image.fromarray(_mask()).save(root / "masks" / f"{name}.png")
    (root / "cases.csv").write_text("name,case\n" + "".join(f"{name},{case}\n" for name, case in names.items()))
    (root / "dataset.json").write_text(json.dumps({"labels": LABELS}))
    return root


def _mask() -> np.ndarray[Any, np.dtype[np.uint8]]:
    mask = np.zeros((12, 17), np.uint8)
    mask[2:5, 3:9], mask[7:10, 10:15] = 2, 5
    return mask


@pytest.mark.parametrize("colour", [False, True])
def test_a_peer_gets_the_labelled_cases_of_the_run_and_no_mask_of_the_others(tmp_path: Path, colour: bool) -> None:
    data = _dataset(tmp_path / "data", colour=colour)
    write_raw(task_of(data, SPLIT), tmp_path / "raw")
    written = sorted(path.relative_to(tmp_path / "raw").as_posix() for path in (tmp_path / "raw").rglob("*.png"))
    images = [f"imagesTr/{name}_0000.png" for name in "abc"]
    assert written == ["imagesTr/a_0000.png", "imagesTr/b_0000.png", "imagesTr/c_0000.png", "imagesTs/d_0000.png"] + [
        f"labelsTr/{name}.png" for name in "abc"
    ]
    document = json.loads((tmp_path / "raw" / "dataset.json").read_text())
    assert document["labels"] == {"background": 0, "disc": 1, "canal": 2}
    assert len(document["channel_names"]) == (3 if colour else 1)
    with Image.open(data / "images" / "a.png") as before, Image.open(tmp_path / "raw" / images[0]) as after:
        np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
    with Image.open(tmp_path / "raw" / "labelsTr" / "a.png") as labels:
        np.testing.assert_array_equal(np.array([0, 2, 5])[np.asarray(labels)], _mask())


def test_predictions_of_class_indices_are_scored_as_label_values(tmp_path: Path) -> None:
    task = task_of(_dataset(tmp_path / "data", colour=False), SPLIT)
    found = np.where(_mask() == 2, 1, 0).astype(np.uint8)
    Image.fromarray(found).save(tmp_path / "d.png")
    result = score(task, tmp_path)
    assert result["dice"] == {"disc": 1.0, "canal": 0.0}
    assert result["case_count"] == 1


@on_linux
def test_what_children_and_their_children_take_is_counted(tmp_path: Path) -> None:
    work = "import time\nwhile time.process_time() < 0.5: pass\n"
    both = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {work!r}], check=True)\n{work}"
    cost = run_counted([sys.executable, "-c", both], log=tmp_path / "log.txt")
    assert cost.cpu_seconds > 0.95
    assert cost.wall_seconds > 0.95
    assert cost.peak_memory_bytes > 2**20


@on_linux
def test_a_command_that_fails_says_so_with_what_it_printed(tmp_path: Path) -> None:
    with pytest.raises(CommandFailedError, match=r"(?s)ended with 3; .*no room"):
        run_counted([sys.executable, "-c", "print('no room'); raise SystemExit(3)"], log=tmp_path / "log.txt")


def test_descendants_are_found_whatever_the_order_of_the_pairs() -> None:
    assert tree_of(5, [(9, 7), (7, 5), (6, 1), (8, 5), (5, 1)]) == {5, 7, 8, 9}


def test_costs_one_after_the_other_add_up_but_for_the_peak() -> None:
    assert Cost(1.0, 2.0, 300) + Cost(4.0, 8.0, 200) == Cost(5.0, 10.0, 300)


def test_a_peer_gets_the_seconds_that_medsaga_took_times_ten_and_is_asked_once(tmp_path: Path) -> None:
    data = _dataset(tmp_path / "data", colour=False)
    own = {"split": SPLIT, "shots": 2, "seed": 7, "train": {"cpu_seconds": 30.0}}
    asked = []

    def peer(task: Any, home: Path, cpu_seconds: float, out: Path, seed: int) -> Trained:
        asked.append((cpu_seconds, seed))
        out.mkdir()
        for item in task.test:
            Image.fromarray(np.zeros((12, 17), np.uint8)).save(out / f"{item.name}.png")
        return Trained(Cost(299.0, 310.0, 2**30), Cost(4.0, 5.0, 2**20), {"steps": 12})

    for _ in range(2):
        record = peer_record(data, tmp_path / "runs" / "one", "monai_x10", own, peer, 10)
    assert asked == [(300.0, 7)]
    assert record["cpu_seconds_allowed"] == 300.0
    assert record["dice_mean"] == 0.0
    rows = table([record]).splitlines()
    assert len(rows) == 3
    assert rows[2] == ("| data | 2 | monai_x10 | 1 | 0.000 | disc 0.000, canal 0.000 | 12 | 5.0 | 5.2 | 1024 | 4.00 |")


def test_an_environment_without_nnu_net_is_said(tmp_path: Path) -> None:
    peer = NnUNet(tmp_path / "bin" / "python", tmp_path)
    assert DATASET.startswith("Dataset001_")
    with pytest.raises(InputError, match="--nnunet-python"):
        peer.prepare()
