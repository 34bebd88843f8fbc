"""What the docs show is run: every shell and Python block of every page, in order, in a folder with toy data."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from conftest import write_toy_dataset

from medsaga.cli import main
from medsaga.methods import METHODS
from medsaga.planning.defaults import DEFAULTS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FIRST = ("README", "tutorial")
"""What a newcomer runs first."""
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _runnable(page: Path) -> list[tuple[str, str]]:
    return [(kind, text) for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if "make " not in text]


def _commands(text: str) -> list[list[str]]:
    """The arguments of each command of a block."""
    lines = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").strip().splitlines()]
    assert all(line[0] == "medsaga" for line in lines), text
    return [line[1:] for line in lines]


def _pages() -> list[Any]:
    """The pages with something to run: the first ones of a newcomer; the others are `exhaustive`."""
    marks = {True: [], False: [pytest.mark.exhaustive]}
    return [pytest.param(page, id=page.stem, marks=marks[page.stem in FIRST]) for page in PAGES if _runnable(page)]


def _cut(arguments: list[str]) -> list[str]:
    """Leave a comparison one method, one number of cases and one seed, a federation one step, and all one process."""
    verb, *options = arguments
    kept = []
    for name, value in itertools.pairwise(["", *options]):
        match verb, name:
            case "compare", "--methods":
                assert set(value.split(",")) <= METHODS.keys()
                kept.append(value.split(",")[0])
            case "compare", "--shots":
                kept.append(value.split(",")[0])
            case (_, "--seeds" | "--devices") | ("federate", "--rounds" | "--local-steps"):
                kept.append("1")
            case _:
                kept.append(value)
    return [verb, *kept]


@pytest.mark.parametrize("page", _pages())
def test_every_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy_dataset(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    # The commands are the docs'; only the length of the run, the size of the images and what `_cut` says are cut down.
    quick: dict[str, Any] = {"steps": 1, "batch_size": 2, "image_size": 64}
    for name, value in quick.items():
        monkeypatch.setitem(DEFAULTS, name, value)
    for kind, text in _runnable(page):
        if kind == "python":
            exec(compile(text, page.name, "exec"), {})
            continue
        for arguments in _commands(text):
            assert main(_cut(arguments)) == 0, arguments


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_and_to_files_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


def test_every_setting_and_verb_is_in_the_help_and_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    verbs = [
        "demo",
        "app",
        "info",
        "suggest",
        "train",
        "evaluate",
        "predict",
        "export",
        "continue",
        "compare",
        "memory",
    ]
    verbs += [f"weights {verb}" for verb in ("list", "fetch", "verify", "convert")]
    verbs += [f"federate {verb}" for verb in ("simulate", "keys", "serve", "join")]
    for verb in verbs:
        with pytest.raises(SystemExit) as stopped:
            main([*verb.split(), "--help"])
        assert stopped.value.code == 0
        assert "--debug" in capsys.readouterr().out
        assert f"`medsaga {verb}" in reference
