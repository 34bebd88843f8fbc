"""A newcomer's exercise: what the pages on adding things show is enough, each a file and a line of a table."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import write_toy_dataset
from PIL import Image

import medsaga

# For who writes medsaga, and not for who uses it.
pytestmark = [pytest.mark.exhaustive, pytest.mark.xdist_group("newcomer")]

PAGES = Path(__file__).parents[1] / "docs" / "how-to"
QUICK = ["--steps", "1", "--batch-size", "2", "--image-size", "64", "--device", "cpu"]


def blocks(page: str, kind: str) -> str:
    """Return the only block of a kind in a page."""
    (text,) = re.findall(
        rf"^```{kind}\n(.*?)^```$", (PAGES / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert isinstance(text, str)
    return text


def add(package: Path, page: str, *, module: str, replaces: Sequence[str] = (), behind: str = "") -> None:
    """Do what a page says: write the module, and put its lines into the table beside it.

    Args:
        package: a copy of the package.
        page: in `PAGES`.
        module: the file to write.
        replaces: how lines of the table begin whose place the lines of the page take.
        behind: how the line begins behind which the new line of the table goes, where it takes no place; imports go to
            the top.
    """
    (package / module).write_text(blocks(page, "py"), encoding="utf-8")
    table = (package / module).with_name("__init__.py")
    new = blocks(page, "text").splitlines()
    lines = []
    for line in table.read_text(encoding="utf-8").splitlines():
        start = next((start for start in replaces if line.startswith(start)), None)
        lines.append(line if start is None else next(each for each in new if each.startswith(start)))
        if behind and line.startswith("from __future__"):
            lines += [each for each in new if each.startswith("from ")]
        if behind and line.startswith(behind):
            lines += [each for each in new if not each.startswith("from ")]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package to which an encoder, a format and a method have been added."""
    folder = tmp_path_factory.mktemp("grown")
    package = folder / "medsaga"
    shutil.copytree(Path(medsaga.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    add(package, "add-a-model.md", module="models/encoders/stride16.py", behind="ENCODERS:")
    lines = ["FORMATS:", "from medsaga.data.formats import"]
    add(package, "add-a-format.md", module="data/formats/npy.py", replaces=lines)
    add(package, "add-a-method.md", module="methods/bitfit.py", behind="METHODS:")
    table = package / "methods" / "__init__.py"
    table.write_text(table.read_text().replace("import daeformer,", "import bitfit, daeformer,"), encoding="utf-8")
    return folder


def medsaga_of(folder: Path, commands: Sequence[Sequence[str]]) -> str:
    """Run commands with the grown package, one after the other; return what they printed."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    code = "import json, sys; from medsaga.cli import main; sys.exit(max(map(main, json.loads(sys.argv[1]))))"
    command = [sys.executable, "-c", code, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_a_format_and_a_method_of_ones_own(grown: Path) -> None:
    toy = write_toy_dataset(grown / "toy")
    for kind in ("images", "masks"):
        (grown / "arrays" / kind).mkdir(parents=True)
        for path in (toy / kind).iterdir():
            np.save(grown / "arrays" / kind / f"{path.stem}.npy", np.asarray(Image.open(path)))
    shutil.copy(toy / "dataset.json", grown / "arrays")
    how = ["--model", "stride16", "--method", "bitfit", "--shots", "3", *QUICK]
    # What the two pages ask for the memory of.
    asked = [
        shlex.split(line)[1:]
        for page in ("add-a-model.md", "add-a-method.md")
        for line in blocks(page, "console").splitlines()
        if "medsaga memory" in line
    ]
    assert len(asked) == 2
    commands = [
        ["info", "arrays", "--json"],
        ["train", "arrays", "--out", "run", *how],
        ["predict", "run", "arrays/images", "--out", "predictions"],
        *asked,
    ]
    printed = medsaga_of(grown, commands)
    assert '"labels"' in printed
    assert printed.count("peak of a training step") == 2
    labels = np.load(grown / "predictions" / "img0.npy")
    assert labels.shape == np.load(grown / "arrays" / "images" / "img0.npy").shape
    assert set(np.unique(labels)) <= {0, 1, 2}
