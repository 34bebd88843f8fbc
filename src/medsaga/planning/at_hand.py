"""``--model auto``: the best weights that are on this machine, for the memory of the device and for the data.

On a CPU these are always the ``starter``: any other model would take hours for what it does in minutes. On an
accelerator they are the first of a fixed order that fits its free memory, or the budget. The order is that of the
models' sizes and years; which is best on which medical images has not been measured with the published weights.
"""

from __future__ import annotations

from collections.abc import Iterator

from medsaga.models.weights.registry import STARTER, KnownWeights, known_weights

AUTO = "auto"
BEST_FIRST = (
    "sam2.1_hiera_large",
    "vit_h",
    "sam2.1_hiera_base_plus",
    "vit_l",
    "sam2.1_hiera_small",
    "vit_b",
    "sam2.1_hiera_tiny",
    "mobile_sam",
)
"""Architectures, those first that are preferred where memory allows."""


def candidates(*, accelerator: bool) -> list[str]:
    """Return the names of weights that are at hand, the preferred ones first; the starter is the last.

    Args:
        accelerator: whether the run is on one; on a CPU, only the starter is quick enough.
    """
    there = [known.name for known in _by_preference() if known.path.is_file()] if accelerator else []
    return [*there, STARTER]


def advice(chosen: str) -> str | None:
    """Return a line on weights that would have been preferred to the chosen ones, had they been at hand; or None.

    Args:
        chosen: name of the weights that an accelerator's run starts from.
    """
    if chosen != STARTER:
        return None
    missing = [known.name for known in _by_preference() if not known.path.is_file()]
    if not missing:
        return None
    return (
        f"SAM's own weights are not on this machine; of those, {missing[0]} would have been tried first: "
        f"medsaga weights fetch {missing[0]}"
    )


def _by_preference() -> Iterator[KnownWeights]:
    for architecture in BEST_FIRST:
        yield from (known for known in known_weights().values() if known.architecture == architecture)
