"""A layout: whose names tensors have, and how they become ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

State = dict[str, Tensor]

COUNTER = ".num_batches_tracked"
"""How the names of a tensor end that only the training of a batch norm's statistics needs."""
FREQUENCIES = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
"""Our name of the frequencies of the positions."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The names of one kind of files.

    Attributes:
        name: for people: ``official``, ``transformers`` or ``efficientnet``.
        marks: beginnings of names; a file of this kind has one that begins so.
        beginnings: how their names begin, and ours; # is a number. The first that fits counts; others are the same.
        rows: tables, by the names that the first step gives them, of which we have each row under a name of its own,
            in which # is its number.
        copies: second names that a file may have for a tensor, and ours; the tensor may be there under either or both.
        left_out: names of what no segmenter of images computes with; with a dot at their end, beginnings of names; with
            one before them, endings.
        absent: how the names of a model's tensors begin that no file of this kind has.
    """

    name: str
    marks: tuple[str, ...]
    beginnings: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    def is_that_of(self, state: State) -> bool:
        """Whether tensors have these names."""
        return any(name.startswith(self.marks) for name in state)

    def rename(self, state: State) -> State:
        """Return the tensors under our names."""
        kept = {name: tensor for name, tensor in state.items() if not self._is_left_out(name)}
        copies = {ours: kept.pop(theirs) for theirs, ours in self.copies.items() if theirs in kept}
        renamed = copies | {self._own_name(name): tensor for name, tensor in kept.items()}
        for table, row in self.rows.items():
            if table in renamed:
                parts = renamed.pop(table).split(1)
                renamed |= {row.replace("#", str(number)): part for number, part in enumerate(parts)}
        return renamed

    def _is_left_out(self, name: str) -> bool:
        return any(
            name.endswith(part)
            if part.startswith(".")
            else name.startswith(part)
            if part.endswith(".")
            else name == part
            for part in self.left_out
        )

    def _own_name(self, theirs: str) -> str:
        for pattern, ours in self._renames:
            if pattern.match(theirs):
                return pattern.sub(ours, theirs, count=1)
        return theirs

    @cached_property
    def _renames(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(theirs), _replacement(ours)) for theirs, ours in self.beginnings.items()]


def _pattern(theirs: str) -> re.Pattern[str]:
    return re.compile(re.escape(theirs).replace(r"\#", r"(\d+)"))


def _replacement(ours: str) -> str:
    """Refer to the numbers of a pattern in their order."""
    first, *rest = ours.split("#")
    return first + "".join(f"\\{number}{part}" for number, part in enumerate(rest, 1))
