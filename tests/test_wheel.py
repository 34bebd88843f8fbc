"""What is released: the wheel holds the package and nothing else, and its version is the newest of the changelog."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MOST_BYTES = 13_000_000
"""Twelve of them are the weights that come with the package."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip builds it, without its isolated environment."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.iterdir()
    return path


def test_it_holds_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    source = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src/medsaga").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    about = f"medsaga-{PROJECT['version']}.dist-info"
    described = {
        f"{about}/{name}"
        for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "licenses/NOTICE")
    }
    assert names == source | described
    # What is read at run time is no module, and would be missed on the user's machine first.
    assert {Path(name).suffix for name in source} == {
        *(".py", ".typed", ".html", ".css", ".js", ".svg", ".json", ".toml", ".safetensors")
    }
    assert wheel.stat().st_size < MOST_BYTES


def test_it_says_what_it_needs(wheel: Path) -> None:
    about = f"medsaga-{PROJECT['version']}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read(f"{about}/METADATA").decode())
        entries = archive.read(f"{about}/entry_points.txt").decode()
    assert (metadata["Name"], metadata["Version"]) == ("medsaga", PROJECT["version"])
    assert set(metadata.get_all("Provides-Extra") or ()) == PROJECT["optional-dependencies"].keys()
    needed = [each for each in metadata.get_all("Requires-Dist") or () if "extra ==" not in each]
    assert {re.split(r"[<>=]", each)[0].lower() for each in needed} == {
        re.split(r"[<>=]", each)[0].lower() for each in PROJECT["dependencies"]
    }
    assert "medsaga = medsaga.__main__:run" in entries


def test_the_newest_entry_of_the_changelog_is_the_version() -> None:
    entries = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    released = [entry.partition(" - ") for entry in entries if entry != "Unreleased"]
    assert released[0][0] == PROJECT["version"]
    dates = [date for _, _, date in released]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for date in dates)
    assert dates == sorted(dates, reverse=True)
