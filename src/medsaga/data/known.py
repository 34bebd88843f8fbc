"""Knowing images again: which cases of a dataset a run has met before, by what their files hold and by their names.

What counts is the content of the image files. An image that was saved again, with another compression for instance, is
another file and is not known again by it; a copy under another name is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from medsaga.data.sources import files_of
from medsaga.data.splits import Split
from medsaga.data.types import Item
from medsaga.files import sha256

Digests = dict[str, list[str]]
"""SHA-256 of every image file of a case, in hexadecimal and sorted; by the case's name."""


def image_digests(item: Item) -> list[str]:
    """Return the SHA-256 of each image file of an item."""
    return [sha256(file) for source in item.images for file in files_of(source)]


def digests_of_cases(items: Iterable[Item]) -> Digests:
    """Return the digests of all cases that some items belong to. Files are read in pieces."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for item in items:
        found[item.case].update(image_digests(item))
    return {case: sorted(digests) for case, digests in sorted(found.items())}


def images_on_both_sides(split: Split, digests: Digests) -> list[tuple[str, str]]:
    """Return pairs of a case that is trained on or chosen by and a test case that have an image in common."""
    tested = {digest: case for case in split.test for digest in digests[case]}
    pairs = {
        (case, tested[digest])
        for case in (*split.train, *split.validation)
        for digest in digests[case]
        if digest in tested
    }
    return sorted(pairs)


@dataclass(frozen=True)
class Met:
    """What a run knows of the cases of some data. A case with one image that it knows is one that it knows.

    Attributes:
        seen: cases that the run was trained on, or whose Dice chose its weights.
        held_out: its test cases.
        unused: cases of its dataset that it did not use.
        namesakes: cases with the name of one that it has seen and with other images.
        by_name: whether only the names could be compared.
    """

    seen: tuple[str, ...]
    held_out: tuple[str, ...]
    unused: tuple[str, ...]
    namesakes: tuple[str, ...]
    by_name: bool


def recognise(items: Collection[Item], split: Split, recorded: Mapping[str, Collection[str]] | None) -> Met:
    """Say which cases a run has met.

    Args:
        items: of the data in question.
        split: of the run.
        recorded: `digests_of_cases` of the run's dataset; None where it was not recorded: names have to do then.
    """
    seen_names = {*split.train, *split.validation}
    if recorded is None:
        here: Mapping[str, Collection[str]] = {item.case: [item.case] for item in items}
        recorded, by_name = {case: [case] for case in (*seen_names, *split.test)}, True
    else:
        here, by_name = digests_of_cases(items), False
    seen = {digest for case, digests in recorded.items() if case in seen_names for digest in digests}
    tested = {digest for case, digests in recorded.items() if case in split.test for digest in digests}
    others = {digest for digests in recorded.values() for digest in digests}

    def among(known: set[str], left_out: Collection[str] = ()) -> tuple[str, ...]:
        return tuple(case for case, found in sorted(here.items()) if case not in left_out and known & {*found})

    known_as_seen = among(seen)
    held_out = among(tested, known_as_seen)
    unused = among(others, {*known_as_seen, *held_out})
    namesakes = sorted(seen_names & here.keys() - {*known_as_seen})
    return Met(known_as_seen, held_out, unused, tuple(namesakes), by_name)
