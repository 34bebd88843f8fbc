"""The real size: ViT-B from a file in the official layout, trained for a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from medsaga.cli import main
from medsaga.models.sam import build_sam


def test_trains_from_an_official_file(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    # Our names are those of the official file.
    torch.save(build_sam("vit_b", classes=4, image_size=1024).state_dict(), tmp_path / "sam_vit_b.pth")
    short = ["--image-size", "224", "--steps", "3", "--batch-size", "1", "--shots", "5", "--device", "cpu"]
    arguments = ["train", str(toy), "--out", str(tmp_path / "run"), "--model", str(tmp_path / "sam_vit_b.pth"), *short]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["projected_parameters"] > 80_000_000
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["model"]["architecture"] == "vit_b"
    assert manifest["model"]["layout"] == "official"
