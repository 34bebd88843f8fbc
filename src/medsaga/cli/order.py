"""Positional arguments that stand apart, brought together.

The parser gives a positional argument of several values, such as the images of ``medsaga predict``, the words up to the
next option, and refuses those behind it. To a user ``suggest RUN --n 1 FOLDER`` is the same as ``suggest RUN FOLDER
--n 1``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from tyro.conf import Positional

_POSITIONAL = get_args(Positional[str])[1:]
"""What `Positional` adds to a type."""


def positionals_first(words: Sequence[str], verb: type) -> list[str]:
    """Return the words of a command line with its positional arguments before its options, each in their order.

    Args:
        words: what follows the name of the verb.
        verb: its dataclass.

    Returns:
        the words as they are if an option among them is not known, so that the parser names it.
    """
    takes = _options_of(verb)
    positionals: list[str] = []
    options: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":  # by custom everything behind it is positional
            return [*positionals, *options, word, *rest]
        if not word.startswith("-"):
            positionals.append(word)
            continue
        name, equals, _ = word.partition("=")
        count = takes.get(name.replace("_", "-"))
        if count is None:
            return list(words)
        options.append(word)
        while count and rest and not equals and (count == 1 or not rest[0].startswith("-")):
            options.append(rest.pop(0))
            count -= 1
    return [*positionals, *options]


def _options_of(kind: Any) -> dict[str, int]:
    """Return how many words each option takes behind it: none, one, or -1 for all up to the next option."""
    takes = {"--help": 0, "-h": 0}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        plain, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if any(note in notes for note in _POSITIONAL):
            continue
        if dataclasses.is_dataclass(plain):
            takes |= _options_of(plain)
            continue
        several = any(get_origin(each) is tuple for each in (plain, *get_args(plain)))
        takes[f"--{name.replace('_', '-')}"] = 0 if plain is bool else -1 if several else 1
    return takes
