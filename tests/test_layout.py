"""The rooms of the package: what imports what, and that nobody imports upwards."""

from __future__ import annotations

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import medsaga

SOURCE = Path(medsaga.__file__).parent
GROUND = ("errors", "files", "colours", "progress", "device", "run_folder")
"""The modules at the top of the package, which every room may use."""
ROOMS = (
    "memory",
    "data",
    "settings",
    "models",
    "optim",
    "distributed",
    "methods",
    "deltas",
    "training",
    "evaluation",
    "prediction",
    "planning",
    "reports",
    "runs",
    "compare",
    "suggest",
    "federated",
    "app",
    "cli",
)
"""From the lowest to the highest: a room imports from those before it."""


def imports() -> dict[tuple[str, str], set[str]]:
    """Return for each pair of rooms the modules of the first that import from the second."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for path in SOURCE.rglob("*.py"):
        own = path.relative_to(SOURCE).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "medsaga":
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.startswith("medsaga.")]
            for name in names:
                there = name.split(".")[1]
                if there != own[0]:
                    found[own[0], there].add(".".join(own))
    return found


def test_every_module_has_its_place() -> None:
    top = {path.stem for path in SOURCE.glob("*.py")}
    assert top == {"__init__", "__main__", *GROUND}
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(ROOMS)


def test_no_room_imports_from_a_higher_one() -> None:
    order = [*GROUND, *ROOMS]
    upwards = {
        f"{importer} -> {imported}: {', '.join(sorted(modules))}"
        for (importer, imported), modules in imports().items()
        if importer in order and imported in order and order.index(imported) > order.index(importer)
    }
    assert upwards == set()


def test_the_imports_are_seen() -> None:
    assert "prepare" in {name.rpartition(".")[2] for name in imports()["runs", "planning"]}


def test_modules_fit_on_a_few_screens() -> None:
    lines = {
        path.relative_to(SOURCE).as_posix(): len(path.read_text("utf-8").splitlines()) for path in SOURCE.rglob("*.py")
    }
    assert {name: count for name, count in lines.items() if count > 400} == {}


def inside_data() -> dict[str, set[str]]:
    """Return for each package and each module at the top of ``data/`` which of the others it imports from."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in (SOURCE / "data").rglob("*.py"):
        own = path.relative_to(SOURCE / "data").with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("medsaga.data"):
                for alias in node.names:
                    there = f"{node.module}.{alias.name}".split(".")[2]
                    if there != own:
                        found[own].add(there)
    return found


def test_data_has_no_circle_and_its_types_need_nothing_of_it() -> None:
    graph = inside_data()
    # Raises CycleError, which names the circle; imports for type checkers count, too.
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("types") < order.index("dicom") < order.index("layouts")
    assert order.index("types") < order.index("formats") < order.index("layouts")
    assert "types" not in graph
