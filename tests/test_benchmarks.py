"""Every benchmark says what it does and how it is called, and measures nothing when it is asked."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IN_ANOTHER_ENVIRONMENT = "benchmarks.peers.nnunet_training"
"""Runs in nnU-Net's own, which is not here."""
SCRIPTS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "benchmarks").rglob("*.py")
    if "\nif __name__ ==" in path.read_text(encoding="utf-8")
)
SCRIPTS.remove(IN_ANOTHER_ENVIRONMENT)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(script, run_name="__main__")
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: ")
    assert f"python -m {script}" in printed
