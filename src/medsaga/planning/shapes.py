"""Running operations on meta tensors once per shape: predictions repeat the same few thousands of times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NEW = -1
"""In place of an argument's number: the operation makes new tensors and changes none."""
NOTHING = -2
"""The operation changes the tensors of a list and returns nothing."""
Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]
_KINDS: dict[Any, int | None] = {}
"""What is known of each operation; see `_changed_argument`."""
KNOWN: dict[Any, tuple[Layout | None, ...]] = {}
"""The layouts of results by `_key`, for the whole process: the predictions of a plan differ in a setting or two."""
_MOST = 100_000
"""Entries, of about 1 KB, at which all is forgotten."""


class OncePerShape(TorchDispatchMode):
    """While active, works out the sizes of each operation's results once for arguments of the same sizes.

    torch's own rules for meta tensors are written in Python and take most of the time of a prediction. An operation
    in place changes no size, and does nothing the second time. Views run as they are, and so does all that has to do
    with other tensors than plain meta tensors.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, or make results like those of the time before."""
        kwargs = kwargs or {}
        if func not in _KINDS:
            _KINDS[func] = _changed_argument(func)
        changed = _KINDS[func]
        asked = (func, torch.get_default_dtype(), *args, *kwargs.items())
        key = None if changed is None else _key(asked)
        if key is None:
            return func(*args, **kwargs)
        known = KNOWN.get(key)
        if known is None:
            result = func(*args, **kwargs)
            # An operation in place may change the size of its argument, and a few views do not say that they are.
            as_declared = _key(asked) == key if changed != NEW else _is_new(result, args)
            layouts = _layouts(tuple(result) if isinstance(result, list | tuple) else (result,))
            if layouts and as_declared:
                if len(KNOWN) >= _MOST:
                    KNOWN.clear()
                KNOWN[key] = layouts
            return result
        if changed != NEW:
            return None if changed == NOTHING else args[changed]
        made = tuple([layout and torch.empty_strided(*layout[:2], dtype=layout[2], device="meta") for layout in known])
        if isinstance(func._schema.returns[0].type, torch.ListType):
            return list(made)
        return made if len(func._schema.returns) > 1 else made[0]


def _changed_argument(func: Any) -> int | None:
    """The number of the one argument that is changed and returned, `NEW` or `NOTHING`; None for others, like views."""
    schema = func._schema
    aliased = [number for number, argument in enumerate(schema.arguments) if argument.alias_info is not None]
    if not aliased and all(result.alias_info is None for result in schema.returns):
        return NEW
    if len(aliased) != 1 or len(schema.returns) > 1:
        return None
    argument = schema.arguments[aliased[0]]
    if not argument.alias_info.is_write or argument.kwarg_only:
        return None
    return aliased[0] if schema.returns else NOTHING


def _key(value: Any) -> Any:
    """What an argument has to do with the sizes of results; None if it holds a tensor that is no plain meta tensor."""
    if isinstance(value, Tensor):
        plain = value.is_meta and type(value) in (Tensor, torch.nn.Parameter)
        return (value.shape, value.stride(), value.dtype) if plain else None
    if isinstance(value, list | tuple):
        keys = tuple([_key(entry) for entry in value])
        return None if None in keys else keys
    if isinstance(value, torch.Generator):
        return torch.Generator
    return type(value), value


def _is_new(result: Any, args: Any) -> bool:
    """Whether results share no memory with each other or with arguments, as those of ``_unsafe_view`` do."""
    storages = [leaf.untyped_storage()._cdata for leaf in tree_leaves((result, args)) if isinstance(leaf, Tensor)]
    made = sum(isinstance(leaf, Tensor) for leaf in tree_leaves(result))
    return all(storages.count(storage) == 1 for storage in storages[:made])


def _layouts(results: tuple[Any, ...]) -> tuple[Layout | None, ...]:
    """The layouts of results, if new tensors can stand for all of them, each in memory of its own size; else none."""
    layouts: list[Layout | None] = []
    for result in results:
        if result is None:  # a gradient that is not needed
            layouts.append(None)
            continue
        if not isinstance(result, Tensor) or _key(result) is None or result.storage_offset():
            return ()
        reach = [(size - 1) * stride for size, stride in zip(result.shape, result.stride(), strict=True)]
        elements = 1 + sum(reach) if result.numel() else 0
        if result.untyped_storage().nbytes() != elements * result.element_size():
            return ()
        layouts.append((result.shape, result.stride(), result.dtype))
    return tuple(layouts)
