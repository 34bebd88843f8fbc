"""What is taken along is what the folder's labels mean, whole, and tells what is missing."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import labels_in
from page_server import page
from PIL import Image

from medsaga import run_folder
from medsaga.app.export import EXPORTS, delta_command, export_labels
from medsaga.app.project import Project
from medsaga.app.results import PREDICTIONS
from medsaga.errors import InputError


def save(path: Path, *values: int) -> None:
    """Write a label map of 64 x 48 pixels that holds some values, and 0."""
    labels = np.zeros((48, 64), np.uint8)
    for place, value in enumerate(values):
        labels[10 * place : 10 * place + 8, :8] = value
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(labels).save(path)


@pytest.fixture
def predicted(trained_toy: Path, toy: Path) -> tuple[Path, Path]:
    """A dataset, and a run of it for the labels ``disc`` (1) and ``bar`` (2) that has segmented two images."""
    run = toy / "runs" / "run1"
    run.mkdir(parents=True)
    for name in (run_folder.CONFIG, run_folder.SPLIT):
        shutil.copy(trained_toy / "run" / name, run / name)
    for name in ("img0", "img1"):
        save(run / PREDICTIONS / f"{name}.png", 2)
    return toy, run


def name_labels(root: Path, **values: int) -> None:
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **values}}))


def test_a_prediction_keeps_its_values_when_the_folder_gets_other_labels(
    predicted: tuple[Path, Path], tmp_path: Path
) -> None:
    root, run = predicted
    with page(root, tmp_path) as client:
        place = f"{client.key('img0')}/labels?plane=image&index=0&run={client.get('/api/runs').json['runs'][0]['id']}"
        assert set(client.get(f"/api/cases/{place}").body) == {0, 2}
        # In values 0, 2, 5 the bar has the index 1.
        for mask in (root / "masks").iterdir():
            mask.unlink()
        name_labels(root, bar=2, stone=5)
        client.post("/api/open", {"path": str(root)})
        assert set(client.get(f"/api/cases/{place}").body) == {0, 1}
        name_labels(root, disc=1)
        client.post("/api/open", {"path": str(root)})
        refused = client.get(f"/api/cases/{place}")
        assert refused.status == 422
        assert b"2 (bar)" in refused.body
    name_labels(root, bar=2, stone=5)
    folder = export_labels(Project(root), "png", run).folder
    assert np.unique(labels_in(folder / "img0.png")).tolist() == [0, 2]
    name_labels(root, disc=1)
    with pytest.raises(InputError, match=r"2 \(bar\)"):
        export_labels(Project(root), "png", run)


def test_a_label_map_that_cannot_be_written_is_named_and_the_others_are_there(
    predicted: tuple[Path, Path], tmp_path: Path
) -> None:
    root, run = predicted
    name_labels(root, disc=1)
    save(run / PREDICTIONS / "img1.png", 1)
    save(root / "masks" / "img3.png", 1)
    with page(root, tmp_path) as client:
        key = client.get("/api/runs").json["runs"][0]["id"]
        answer = client.post("/api/export", {"what": "labels", "format": "png", "run": key}).json
        assert [path.name for path in Path(answer["folder"]).iterdir()] == ["img1.png"]
        assert answer["files"] == 1
        (said,) = answer["left_out"]
        assert said.startswith("img0")
        # Of the masks only one has no label that was taken away.
        answer = client.post("/api/export", {"what": "labels", "format": "png"}).json
        assert [path.name for path in Path(answer["folder"]).iterdir()] == ["img3.png"]
        assert len(answer["left_out"]) == 5
        for mask in (root / "masks").iterdir():
            save(mask, 7)
        client.post("/api/open", {"path": str(root)})
        before = sorted((root / EXPORTS).iterdir())
        assert client.post("/api/export", {"what": "labels", "format": "png"}).status == 422
    assert sorted((root / EXPORTS).iterdir()) == before


def test_an_export_that_stops_leaves_no_folder(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    project = Project(toy)
    monkeypatch.setattr("medsaga.app.export.write_labels", full)
    with pytest.raises(OSError, match="No space"):
        export_labels(project, "png", None)
    assert list((toy / EXPORTS).iterdir()) == []


def test_two_exports_at_once_have_a_folder_each(predicted: tuple[Path, Path]) -> None:
    root, run = predicted
    project = Project(root)
    with ThreadPoolExecutor(2) as pool:
        masks, labels = pool.map(lambda of: export_labels(project, "png", of), (None, run))
    assert [len(list(each.folder.iterdir())) for each in (masks, labels)] == [6, 2]


def test_a_delta_that_waits_for_its_turn_shares_no_folder_with_masks(predicted: tuple[Path, Path]) -> None:
    root, run = predicted
    (run / run_folder.MODEL).touch()
    project = Project(root)
    _, _, _, file, _ = delta_command(project, run)
    masks = export_labels(project, "png", None).folder
    assert Path(file).parent != masks
    assert Path(file).parent.parent == masks.parent
