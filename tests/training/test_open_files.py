"""What Windows refuses: removing or replacing a file that is in use. Linux shows such files in the list of mappings."""

from __future__ import annotations

import dataclasses
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import medsaga
from medsaga.errors import InputError
from medsaga.runs.train import train
from medsaga.settings.options import Settings

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, which Linux alone has")


def removed_but_mapped(folder: Path) -> list[str]:
    """Return the mappings of this process into files of a folder that are gone."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if str(folder) in line and line.endswith("(deleted)")]


class Watching(io.StringIO):
    """A terminal that looks at the mappings whenever something is shown on it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.seen: list[str] = []

    def write(self, text: str) -> int:
        self.seen += removed_but_mapped(self.folder)
        return super().write(text)


@on_linux
@pytest.mark.parametrize("method", ["medsaga", "frozen"])
def test_no_prepared_image_is_mapped_when_the_cache_goes(
    toy: Path, tmp_path: Path, quick: Settings, method: str
) -> None:
    screen = Watching(tmp_path / "run")
    settings = dataclasses.replace(quick, method=method, steps=2, validation_cases=1)
    train(toy, tmp_path / "run", settings, console=Console(file=screen, force_terminal=True))
    assert "evaluating" in screen.getvalue()
    assert not (tmp_path / "run" / "cache").exists()
    assert screen.seen == []


@on_linux
def test_nor_when_the_folder_of_a_run_that_cannot_begin_goes(toy: Path, tmp_path: Path, quick: Settings) -> None:
    for mask in (toy / "masks").iterdir():
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(mask)
    # The error remembers the frames that it went through, with all that they hold.
    with pytest.raises(InputError, match="background only") as caught:
        train(toy, tmp_path / "run", quick, console=Console(file=io.StringIO()))
    assert caught.value.__traceback__ is not None
    assert not (tmp_path / "run").exists()
    assert removed_but_mapped(tmp_path / "run") == []


FORBIDDEN = {
    r"\bos\.(kill|fork|getuid|mkfifo|sysconf|statvfs|setsid|killpg|O_DIRECTORY|rename)\b": "differs",
    r"\bsignal\.(SIGKILL|SIGHUP|SIGUSR1|SIGALRM|alarm|setitimer|pause)\b": "does not exist",
    r"^\s*(import|from) (resource|fcntl|pwd|grp|termios)\b": "does not exist",
    r"\bNamedTemporaryFile\b": "cannot be opened a second time",
    r"\b(symlink_to|hardlink_to|os\.symlink|os\.link)\b": "needs an administrator",
    r"['\"]/(dev|proc|tmp)/": "does not exist",
}


ELSEWHERE = {
    'os.kill(pid, signal.SIGINT if os.name == "posix" else signal.SIGTERM)',
    "import fcntl",  # in a try
    "os.link(path.resolve(), link)",  # a hard link, in a try
    "os.killpg(process.pid, signal.SIGKILL)  # and what it has started itself",
}
"""Lines that are not reached on Windows, or do there what they should."""


def test_no_construct_is_used_that_windows_has_not() -> None:
    package = Path(medsaga.__file__).parent
    found = [
        f"{path.relative_to(package)}: {line.strip()} ({why} on Windows)"
        for path in package.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        for pattern, why in FORBIDDEN.items()
        if re.search(pattern, line) and line.strip() not in ELSEWHERE
        if "/dev/fd/" not in line  # for names that Windows does not have
    ]
    assert found == []


def test_every_text_file_is_opened_in_utf_8() -> None:
    """Elsewhere than on Linux the encoding of the system is another."""
    package = Path(medsaga.__file__).parent
    call = re.compile(r"\.(read_text|write_text)\((?!.*encoding=)|\.open\((\"[ra]\")?\)(?!.*encoding)")
    allowed = {"files.py"}  # defines write_text itself
    found = [
        f"{path.name}: {line.strip()}"
        for path in package.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if call.search(line) and "files.write_text" not in line and path.name not in allowed
    ]
    assert found == []
