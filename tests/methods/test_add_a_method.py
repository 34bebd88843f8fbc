"""The page that says how to add a method is right: its file and its line are enough."""

from __future__ import annotations

import re
import shlex
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from conftest import write_toy_dataset

from medsaga import methods
from medsaga.cli import main
from medsaga.planning.defaults import DEFAULTS

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "add-a-method.md").read_text(encoding="utf-8")


def _block(kind: str) -> str:
    (text,) = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert isinstance(text, str)
    return text


@pytest.mark.exhaustive
def test_the_page_on_adding_a_method_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy_dataset(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    quick: dict[str, Any] = {"steps": 1, "batch_size": 2, "image_size": 64}
    for name, value in quick.items():
        monkeypatch.setitem(DEFAULTS, name, value)
    module = types.ModuleType("medsaga.methods.bitfit")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(_block("py"), "bitfit.py", "exec"), module.__dict__)
    line: dict[str, Any] = eval("{" + _block("text") + "}", {"bitfit": module})
    for name, method in line.items():
        monkeypatch.setitem(methods.METHODS, name, method)
    for command in _block("console").splitlines():
        program, *arguments = shlex.split(command)
        assert program == "medsaga"
        assert main(arguments) == 0, command
    table = (tmp_path / "comparison" / "results.md").read_text()
    assert "bitfit" in table
    assert "failed" not in table
