"""Running operations on meta tensors once per shape: a prediction repeats the same few thousands of times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Made = tuple[torch.Size, tuple[int, ...], torch.dtype]


class _NoKey(Exception):
    """Raised for arguments that do not decide alone over the sizes of a result."""


class OncePerShape(TorchDispatchMode):
    """While active, works out the sizes of each operation's result once for arguments of the same sizes.

    torch's own rules for meta tensors are written in Python and take most of the time of a prediction. An operation
    in place changes no size and does nothing the second time. Views, and all that has to do with tensors that are not
    plain meta tensors, run as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[Any, Made | None] = {}
        self._kinds: dict[Any, int | None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, or make a result like that of the time before."""
        kwargs = kwargs or {}
        if func not in self._kinds:
            self._kinds[func] = _changed_argument(func)
        changed = self._kinds[func]
        if changed is None:
            return func(*args, **kwargs)
        try:
            key = (func, *map(_key, args), *((name, _key(value)) for name, value in kwargs.items()))
        except _NoKey:
            return func(*args, **kwargs)
        if key in self._made:
            made = self._made[key]
            if made is None:
                return args[changed]
            return torch.empty_strided(made[0], made[1], dtype=made[2], device="meta")
        before = _key(args[changed]) if changed >= 0 else None
        result = func(*args, **kwargs)
        if changed >= 0:
            if result is args[changed] and _key(result) == before:
                self._made[key] = None
        elif _is_plain(result):
            self._made[key] = (result.shape, result.stride(), result.dtype)
        return result


def _changed_argument(func: Any) -> int | None:
    """The place of the one argument that an operation changes and returns, -1 if it makes a new tensor, else None."""
    schema = func._schema
    if len(schema.returns) != 1:
        return None
    places = [place for place, argument in enumerate(schema.arguments) if argument.alias_info is not None]
    if not places and schema.returns[0].alias_info is None:
        return -1
    argument = schema.arguments[places[0]]
    alone = len(places) == 1 and argument.alias_info.is_write and not argument.kwarg_only
    return places[0] if alone and schema.returns[0].alias_info is not None else None


def _key(value: Any) -> Any:
    """What an argument has to do with the sizes of a result."""
    if isinstance(value, Tensor):
        if not value.is_meta or type(value) not in (Tensor, torch.nn.Parameter):
            raise _NoKey
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    if isinstance(value, torch.Generator):
        return None
    return type(value), value


def _is_plain(result: Any) -> bool:
    """Whether a result is a tensor that a new one of its sizes can stand for, in memory of its own size."""
    if not isinstance(result, Tensor) or not result.is_meta or type(result) is not Tensor:
        return False
    if result.storage_offset() or 0 in result.shape:
        return False
    extent = 1 + sum((size - 1) * stride for size, stride in zip(result.shape, result.stride(), strict=True))
    return result.untyped_storage().nbytes() == extent * result.element_size()
