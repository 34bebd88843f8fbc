"""A file in the official layout, trained on from the command line: of a small SAM, and in the real size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from medsaga.cli import main
from medsaga.models.sam import build_sam


@pytest.mark.parametrize(
    ("model", "own_size", "image_size", "projected"),
    [("tiny", 128, 64, 150_000), pytest.param("vit_b", 1024, 112, 80_000_000, marks=pytest.mark.exhaustive)],
)
def test_trains_from_an_official_file(
    model: str,
    own_size: int,
    image_size: int,
    projected: int,
    toy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.manual_seed(0)
    # Our names are those of the official file.
    torch.save(build_sam(model, classes=4, image_size=own_size).state_dict(), tmp_path / "sam.pth")
    short = ["--image-size", str(image_size), "--steps", "2", "--batch-size", "1", "--shots", "5", "--device", "cpu"]
    arguments = ["train", str(toy), "--out", str(tmp_path / "run"), "--model", str(tmp_path / "sam.pth"), *short]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["projected_parameters"] > projected
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["model"]["architecture"] == model
    assert manifest["model"]["layout"] == "official"
