"""What processes tell each other: sums of the same bits, results in order, and errors that all hear of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import group_work
import pytest
import torch
from processes import together

from medsaga.distributed.group import ALONE, FailedElsewhereError
from medsaga.distributed.same_weights import fingerprint
from medsaga.errors import InputError

pytestmark = pytest.mark.xdist_group("processes")


def test_three_processes_add_gather_and_share(tmp_path: Path) -> None:
    all_of = together(3, tmp_path, group_work.everything)
    for rank, each in enumerate(all_of):
        assert not isinstance(each, Exception), each
        expected: dict[str, Any] = {
            "sums": [[6.0] * 5, [60.0] * 3],
            "large": True,
            "bits": all_of[0]["bits"],
            "copied": [1.0, 1.0],
            "gathered": [[0], [10], [20]],
            "dealt": [0, 1, 2, 3, 4, 5, 6],
            "any": (True, False),
            "once": "made by 0",
            "rank": rank,
        }
        assert each == expected
    assert all_of[0]["rank"] == 0


def test_what_process_0_cannot_do_ends_the_others_silently_with_its_exit_code(tmp_path: Path) -> None:
    first, *others = together(3, tmp_path, group_work.failing_once)
    assert isinstance(first, InputError)
    for other in others:
        assert isinstance(other, FailedElsewhereError)
        assert (str(other), other.exit_code) == ("", 2)


@pytest.mark.parametrize(("count", "size"), [(4, 3), (12, 12), (7, 2)])
def test_shares_are_all_there_is_once_and_as_even_as_can_be(count: int, size: int) -> None:
    shares = []
    for rank in range(size):
        group = type("Some", (type(ALONE),), {"rank": rank, "size": size})()
        shares.append(group.share(count))
    assert [place for share in shares for place in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_fingerprint_tells_one_bit_and_the_order() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    swapped, other = values.clone(), values.clone()
    swapped[:2] = values[:2].flip(0)
    other.view(torch.int32)[500] ^= 1
    prints = {int(fingerprint(each)) for each in (values, swapped, other, values.bfloat16(), values[:0])}
    assert len(prints) == 5
    assert int(fingerprint(values)) == int(fingerprint(values.clone().view(10, 100)))
