"""What the server asks of a site and what it is told: the content of Flower's messages, and nothing else travels.

A site sends tensors named as the model's parameters, and the numbers of `FACTS` and `SCORES`. There is no place for
names of cases, for paths or for images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from medsaga.federated.averaging import Answer, Tensors
from medsaga.federated.wire import from_record, to_record
from medsaga.optim.shared_basis import Sides

FACTS = ("cases", "decay", "loss", "steps", "skipped", "images", "seconds", "peak_bytes")
"""The numbers in an answer to a training order."""
SCORES = ("dice", "counted", "cases")
"""The numbers in an answer to a test order; see `Scores`."""
Scores = tuple[list[float], list[int], int]
"""For each label the sum of Dice and in how many images it is counted; and the number of cases."""
MALFORMED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What reading a message raises that is none of ours."""
_SIDES = ("#left", "#right")
_SKETCH_BITS = 16
"""A sketch and the basis made of it only choose a subspace: the change in it is exact all the same."""


@dataclass(frozen=True, eq=False)
class Order:
    """What a site starts a round from, or is tested with.

    Attributes:
        round: from 1. Its start is the common weights after the round before.
        weights: of the start, by name; None for a site that has the start of the round before and is told the change.
        change: from the start of the round before to this one; see `medsaga.federated.averaging.moved`.
        decay: the same.
        bases: of this round.
        symmetries: that the labels have at all sites.
    """

    round: int
    weights: Tensors | None = None
    change: Tensors = field(default_factory=dict)
    decay: float = 1.0
    bases: Mapping[str, Sides] = field(default_factory=dict)
    symmetries: tuple[str, ...] = ()

    def pack(self, bits: int) -> RecordDict:
        """Return it as the content of a message."""
        config = ConfigRecord({"round": self.round, "decay": self.decay, "symmetries": list(self.symmetries)})
        content = RecordDict({"order": config})
        if self.weights is not None:
            # The common start of all is whole, whatever the changes that follow are rounded to.
            content["weights"] = to_record(self.weights, 32)
        else:
            content["change"] = to_record(self.change, bits)
        if self.bases:
            content["bases"] = _pack_sides(self.bases)
        return content

    @classmethod
    def unpack(cls, content: RecordDict) -> Order:
        """Return the order that a message holds."""
        config = cast(ConfigRecord, content["order"])
        weights = content.get("weights")
        return cls(
            round=int(cast(int, config["round"])),
            weights=None if weights is None else from_record(cast(ArrayRecord, weights)),
            change=from_record(cast(ArrayRecord, content["change"])) if "change" in content else {},
            decay=float(cast(float, config["decay"])),
            bases=_unpack_sides(content.get("bases")),
            symmetries=tuple(cast(list[str], config["symmetries"])),
        )


def pack_answer(answer: Answer, bits: int) -> RecordDict:
    """Return a site's answer as the content of a message; the site's name stays behind."""
    facts = {"cases": answer.cases, "decay": answer.decay, **answer.facts}
    # Flower has numbers alone in such a record.
    numbers = {name: math.nan if (value := facts[name]) is None else float(value) for name in FACTS}
    content = RecordDict({"facts": MetricRecord({**numbers})})
    if answer.tensors:
        content["tensors"] = to_record(answer.tensors, bits)
    if answer.sketches:
        content["sketches"] = _pack_sides(answer.sketches)
    return content


def unpack_answer(site: str, content: RecordDict) -> Answer:
    """Return the answer of a site.

    Raises:
        MALFORMED: it is none.
    """
    numbers = cast(Mapping[str, float], content["facts"])
    given = {name: float(numbers[name]) for name in FACTS}
    cases, decay = given.pop("cases"), given.pop("decay")
    return Answer(
        site=site,
        cases=int(cases),
        tensors=from_record(cast(ArrayRecord, content["tensors"])) if "tensors" in content else {},
        decay=decay,
        sketches=_unpack_sides(content.get("sketches")),
        facts={name: value if math.isfinite(value) else None for name, value in given.items()},
    )


def unpack_scores(content: RecordDict) -> Scores:
    """Return the scores of a site.

    Raises:
        MALFORMED: these are none.
    """
    values = cast(Mapping[str, Any], content["scores"])
    dice, counted, cases = (values[name] for name in SCORES)
    return [float(each) for each in dice], [int(each) for each in counted], int(cases)


def _pack_sides(by_name: Mapping[str, Sides]) -> ArrayRecord:
    tensors: dict[str, Tensor] = {}
    for name, sides in by_name.items():
        tensors |= {name + end: side for end, side in zip(_SIDES, sides, strict=True) if side is not None}
    return to_record(tensors, _SKETCH_BITS)


def _unpack_sides(record: Any) -> dict[str, Sides]:
    if record is None:
        return {}
    tensors = from_record(record)
    names = dict.fromkeys(name.rpartition("#")[0] for name in tensors)
    return {name: (tensors.get(name + _SIDES[0]), tensors.get(name + _SIDES[1])) for name in names}


def as_arriving(bases: Mapping[str, Sides]) -> dict[str, Sides]:
    """Return bases as the sites will have them: the server computes with the same."""
    return _unpack_sides(_pack_sides(bases))
