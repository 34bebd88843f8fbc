"""Published recipes as TOML files of settings. To add one, write the file; its name is what ``--recipe`` takes."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from medsaga.config import Settings
from medsaga.errors import InputError

NOT_OF_A_RECIPE = frozenset(
    {"recipe", "budget", "device", "shots", "test_cases", "seed", "fold", "validation_cases", "channels"}
)
"""Settings of the data, the split and the machine, which belong to a run and not to a publication."""


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    shipped = (Path(entry.name) for entry in resources.files(__name__).iterdir())
    return sorted(path.stem for path in shipped if path.suffix == ".toml")


@cache
def read_recipe(name: str) -> dict[str, Any]:
    """Return the settings of a recipe.

    Args:
        name: of a recipe of the package, or the path of a TOML file.

    Raises:
        InputError: there is no such recipe, or it holds something else than valid settings.
    """
    shipped = name in recipe_names()
    source = resources.files(__name__).joinpath(f"{name}.toml") if shipped else Path(name)
    try:
        values: dict[str, Any] = tomllib.loads(source.read_text(encoding="utf-8"))
        Settings(**values)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, TypeError) as error:
        expected = f"{', '.join(recipe_names())}, or a TOML file of settings"
        raise InputError(f"--recipe {name}", expected=expected, found=str(error), do="Correct the name.") from None
    given_elsewhere = NOT_OF_A_RECIPE & values.keys()
    if given_elsewhere:
        raise InputError(
            f"--recipe {name}",
            expected="settings of the training itself",
            found=", ".join(sorted(given_elsewhere)),
            do="Give these on the command line.",
        )
    return values
