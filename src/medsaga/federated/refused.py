"""Settings of a training that a federation decides, or that each site chooses for itself.

The command line shows them as such without loading a model.
"""

from __future__ import annotations

from collections.abc import Mapping

from medsaga.errors import InputError
from medsaga.settings.options import Settings, flag

_LAST_COUNTS = "none: every site's last weights of a round count"
DECIDED_BY_ROUNDS: Mapping[str, str] = {
    "steps": "what --rounds and --local-steps make of it",
    "evaluate_every": _LAST_COUNTS,
    "patience": _LAST_COUNTS,
    "validation_cases": _LAST_COUNTS,
}
"""What is expected of a setting instead of a value."""
_OWN_CASES = "none at the server: each site divides its own cases"
CHOSEN_BY_SITES: Mapping[str, str] = {"shots": _OWN_CASES, "test_cases": _OWN_CASES, "fold": _OWN_CASES}
"""Likewise, where the server is told it."""


def refuse(settings: Settings, what: Mapping[str, str]) -> None:
    """Make sure that settings say nothing of some things.

    Args:
        settings: as they were asked for.
        what: `DECIDED_BY_ROUNDS` or `CHOSEN_BY_SITES`.

    Raises:
        InputError: naming the flag.
    """
    for name, expected in what.items():
        if value := getattr(settings, name):
            raise InputError(flag(name), expected=expected, found=str(value), do="Leave it out.")
