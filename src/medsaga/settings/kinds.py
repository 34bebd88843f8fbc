"""Whether values that were read from a file are of the types of the settings that they are for."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from medsaga.settings.options import Settings

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def require_kinds(values: Mapping[str, Any], of: type[Settings]) -> None:
    """Check the types of settings.

    Args:
        values: by name. What TOML has as an array is a tuple here.
        of: the class whose fields they are for; it has all of the names.

    Raises:
        TypeError: a value is of another type than its setting.
    """
    hints = get_type_hints(of)
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise TypeError(f"{name} = {value!r}, which is not {_said(hints[name])}")


def _fits(value: object, hint: Any) -> bool:
    origin, among = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in among)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in among)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        wanted = among[:1] * len(value) if among[-1] is Ellipsis else among
        return len(value) == len(wanted) and all(map(_fits, value, wanted))
    return type(value) is hint or (hint is float and type(value) is int)


def _said(hint: Any) -> str:
    origin, among = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(str, among))
    if origin in (Union, UnionType):
        return " or ".join(_said(each) for each in among if each is not NoneType)
    if origin is tuple:
        return f"a list of {_said(among[0]).removeprefix('a ')}s"
    return _NAMES.get(hint, str(hint))
