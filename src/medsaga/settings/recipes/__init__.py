"""Published recipes as TOML files of settings. To add one, write the file; its name is what ``--recipe`` takes."""

from __future__ import annotations

import dataclasses
import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from medsaga.errors import InputError
from medsaga.settings.kinds import require_kinds
from medsaga.settings.options import Settings

NOT_OF_A_RECIPE = frozenset(
    {"recipe", "budget", "device", "shots", "test_cases", "seed", "fold", "validation_cases", "channels", "binary"}
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
        document = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        expected = f"{', '.join(recipe_names())}, or a TOML file of settings"
        raise InputError(f"--recipe {name}", expected=expected, found=str(error), do="Correct the name.") from None
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
    }
    known = {setting.name for setting in dataclasses.fields(Settings)}
    try:
        if unknown := sorted(values.keys() - known):
            raise TypeError(f"{', '.join(map(ascii, unknown))}, which no setting is called")
        require_kinds(values, Settings)
    except TypeError as error:
        do = "Correct the file: settings are called and written as in config.toml of a run."
        raise InputError(f"--recipe {name}", expected="settings", found=str(error), do=do) from None
    Settings(**values)
    given_elsewhere = NOT_OF_A_RECIPE & values.keys()
    if given_elsewhere:
        raise InputError(
            f"--recipe {name}",
            expected="settings of the training itself",
            found=", ".join(sorted(given_elsewhere)),
            do="Give these on the command line.",
        )
    return values
