"""What the server makes of the sites' answers: which it refuses, their mean or median, and the next weights.

Everything here is a pure function of tensors. Sums are made in float64, site after site in the order given, so that the
same answers give the same bits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medsaga.optim.projection import project_back, sketch_width
from medsaga.optim.shared_basis import Sides

Tensors = Mapping[str, Tensor]
ABSURD = 10.0
"""A change this many times as long as the middle one of all sites is refused."""
MOST_CASES = 100_000
"""A site that says more of itself is refused: it would be the whole mean."""
_FEWEST_TO_COMPARE = 3
_LARGEST_IN_A_SKETCH = 1e15
"""The square of more than 1.8e19 is infinite in float32."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What a site sends after the steps of a round.

    Attributes:
        site: its name.
        cases: that it has trained on; its weight in a mean.
        tensors: by the name of the parameter: the weight itself, its change, or the factor of its change.
        decay: c of a change c W + P N; 1 where all tensors are weights or whole changes.
        sketches: of its last gradient, by name; empty without a shared basis.
        facts: numbers for the record: ``loss``, ``steps``, ``skipped``, ``images``, ``seconds``, ``peak_bytes``; None
            for what is no finite number.
    """

    site: str
    cases: int
    tensors: Tensors
    decay: float
    sketches: Mapping[str, Sides]
    facts: Mapping[str, float | None]


def fault(answer: Answer, expected: Tensors, matrices: Mapping[str, tuple[int, int, int]]) -> str | None:
    """Return in words why an answer cannot be used whatever the others are; None if it can.

    Args:
        answer: of a site.
        expected: tensors of the names and shapes that it should have; none where only sketches are asked for.
        matrices: rows, columns and rank of those that are projected on a shared basis, by name; else none.
    """
    if answer.tensors.keys() != expected.keys():
        missing = len(expected.keys() - answer.tensors.keys())
        return f"{missing} tensors are missing, {len(answer.tensors.keys() - expected.keys())} are unknown"
    for name, tensor in answer.tensors.items():
        if tensor.shape != expected[name].shape:
            return f"{name} has the shape {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
        if not (tensor.is_floating_point() and tensor.isfinite().all()):
            return f"{name} holds numbers that are not finite"
    if not 0 < answer.decay <= 1 or (not matrices and answer.decay != 1):
        return f"its weight decay is {answer.decay:g}, which is none"
    if answer.cases < 1:
        return "it has trained on no case"
    if answer.cases > MOST_CASES:
        return f"it says that it has trained on {answer.cases:,} cases"
    if not expected and not answer.sketches:
        return "there is no sketch of its gradient"
    return _fault_of_sketches(answer.sketches, matrices)


def _fault_of_sketches(sketches: Mapping[str, Sides], matrices: Mapping[str, tuple[int, int, int]]) -> str | None:
    for name, sides in sketches.items():
        if name not in matrices:
            return "it has sketched what is not projected"
        rows, columns, rank = matrices[name]
        for sketch, size, along in zip(sides, (rows, columns), (columns, rows), strict=True):
            if sketch is None:
                continue
            shape = tuple(sketch.shape)
            # The rank is that of the basis, which a small matrix has cut off: its sketch may be wider.
            if len(shape) != 2 or shape[0] != size or not sketch_width(rank, along) <= shape[1] <= along:
                return f"the sketch of {name}, ({rows}, {columns}), has the shape {shape}"
            # Of what is not finite every comparison is false.
            if not (sketch.is_floating_point() and bool((sketch.abs() <= _LARGEST_IN_A_SKETCH).all())):
                return "a sketch of its gradient is not finite"
    return None


def odd_sketches(answers: Sequence[Answer]) -> list[str]:
    """Return the sites whose sketches cannot be added to those of most: they are of other matrices or widths."""
    forms = {
        answer.site: tuple(
            (name, *(None if side is None else tuple(side.shape) for side in sides))
            for name, sides in sorted(answer.sketches.items())
        )
        for answer in answers
        if answer.sketches
    }
    usual = Counter(forms.values()).most_common(1)
    return [site for site, form in forms.items() if form != usual[0][0]]


def fault_of_scores(dice: Sequence[float], counted: Sequence[int], cases: int, labels: int) -> str | None:
    """Return in words why the scores of a site cannot be used; None if they can.

    Args:
        dice: for each label the sum over images.
        counted: for each label in how many images.
        cases: that the site was tested on.
        labels: how many there are.
    """
    if not len(dice) == len(counted) == labels:
        return f"it has scores of {len(dice)} labels instead of {labels}"
    if not 1 <= cases <= MOST_CASES:
        return f"it says that it was tested on {cases:,} cases"
    # Sums come from means that were rounded.
    if not all(0 <= total <= count * (1 + 1e-6) for total, count in zip(dice, counted, strict=True)):
        return "its Dice is not between 0 and 1"
    return None


def loss_text(answer: Answer) -> str:
    """Return the loss of an answer for reading."""
    loss = answer.facts["loss"]
    return "that is no number" if loss is None else f"{loss:.3f}"


def change_norm(answer: Answer, before: Tensors | None) -> float:
    """Return the L2 norm of all that a site has changed.

    Args:
        answer: of a site.
        before: the weights of the round's start, where it has sent weights; None where it has sent changes.
    """
    squares = 0.0
    for name, tensor in answer.tensors.items():
        change = tensor.double() if before is None else tensor.double() - before[name].double()
        squares += float(change.square().sum())
    return math.sqrt(squares)


def absurd(norms: Mapping[str, float], weights_norm: float) -> dict[str, str]:
    """Return the sites whose changes are absurdly large, each with the reason in words.

    Args:
        norms: of the change of each site.
        weights_norm: of all weights that are trained; nobody rewrites them in a round.
    """
    # A site that has made no step says nothing about how long a change is.
    ordered = sorted(norm for norm in norms.values() if norm > 0)
    middle = ordered[(len(ordered) - 1) // 2] if len(ordered) >= _FEWEST_TO_COMPARE else math.inf
    limit = ABSURD * middle
    found = {}
    for site, norm in norms.items():
        if norm > weights_norm:
            found[site] = f"its change is longer than the weights themselves: {norm:.3g} against {weights_norm:.3g}"
        elif norm > limit:
            found[site] = f"its change is {norm / middle:.0f} times as long as that of the site in the middle"
    return found


def mean(answers: Sequence[Answer]) -> tuple[dict[str, Tensor], float]:
    """Return the mean of all tensors and of the decay, weighted by cases (McMahan et al., arXiv 1602.05629)."""
    total = sum(answer.cases for answer in answers)
    shares = [answer.cases / total for answer in answers]
    return {
        name: _weighted([answer.tensors[name] for answer in answers], shares) for name in answers[0].tensors
    }, math.fsum(share * answer.decay for share, answer in zip(shares, answers, strict=True))


def median(answers: Sequence[Answer]) -> tuple[dict[str, Tensor], float]:
    """Return the median of every number, every site alike (Yin et al., arXiv 1803.01498)."""
    assert all(answer.decay == 1 for answer in answers), "factors have no median"
    middle = {}
    for name, first in answers[0].tensors.items():
        ordered = torch.stack([answer.tensors[name].double() for answer in answers]).sort(dim=0).values
        middle[name] = ((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2).to(first.dtype)
    return middle, 1.0


def sum_of_sketches(answers: Sequence[Answer]) -> dict[str, Sides]:
    """Return the sketches of the mean gradient of the sites that have sent some, up to a factor."""
    sent = [answer for answer in answers if answer.sketches]
    if not sent:
        return {}
    shares = [answer.cases / sum(each.cases for each in sent) for answer in sent]

    def summed(name: str, side: int) -> Tensor | None:
        sketches = [answer.sketches[name][side] for answer in sent]
        there = [(share, sketch) for share, sketch in zip(shares, sketches, strict=True) if sketch is not None]
        return _weighted([sketch for _, sketch in there], [share for share, _ in there]) if there else None

    return {name: (summed(name, 0), summed(name, 1)) for name in sent[0].sketches}


def moved(before: Tensors, change: Tensors, decay: float, bases: Mapping[str, Sides]) -> dict[str, Tensor]:
    """Return the weights c W + P N of matrices with a basis, and W + D of the others.

    Args:
        before: W, by name.
        change: N or D, by name.
        decay: c.
        bases: P or Q or both of each matrix that has one.

    Without a change the weights are what they were.
    """
    if not change:
        return dict(before)
    after = {}
    for name, weight in before.items():
        precise = weight.double()
        if name in bases:
            left, right = (None if side is None else side.double() for side in bases[name])
            precise = decay * precise + project_back(change[name].double(), left, right).reshape(weight.shape)
        else:
            precise = precise + change[name].double()
        after[name] = precise.to(weight.dtype)
    return after


def norm(tensors: Tensors) -> float:
    """Return the L2 norm of all tensors together."""
    return math.sqrt(math.fsum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def _weighted(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    total = torch.zeros(tensors[0].shape, dtype=torch.float64)
    for tensor, share in zip(tensors, shares, strict=True):
        total += share * tensor.double()
    return total.to(tensors[0].dtype)
