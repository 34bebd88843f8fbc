"""The result of an experiment: Dice at each site, what travelled, and what it took."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from medsaga.federated.options import Federation
from medsaga.federated.orders import Scores
from medsaga.federated.privacy import epsilon_of

GONE = "it was not there"


def result_of(
    labels: Sequence[str],
    scores: Mapping[str, Scores],
    history: Sequence[Mapping[str, Any]],
    *,
    method: str,
    federation: Federation,
    trained_on: Mapping[str, int],
    untested: Mapping[str, str],
) -> dict[str, Any]:
    """Return a document for JSON.

    ``dice_mean`` is the mean over sites, each of which counts alike; of a site, over labels of each label's mean over
    the images in which it is counted. ``dice_worst`` is that of the worst site. ``bytes_per_round`` is the mean over
    the rounds after the first, in both directions and of all sites together; the first round also has the common
    start and, with a shared basis, the first sketches, and stands in ``history``. ``untested`` has the sites that
    have no part in the means, and why.

    Args:
        labels: names, without the background.
        scores: of each site that was tested.
        history: an entry per round; see `medsaga.federated.server.State`.
        method: of the training.
        federation: how the sites train together.
        trained_on: the number of training cases of each site; one that was tested may have trained on none.
        untested: the sites whose test has no usable answer, and why; those that have gone since they trained are added.
    """
    sites: list[dict[str, Any]] = []
    for name, (dice, counted, cases) in scores.items():
        by_label = {
            label: total / count if count else None for label, total, count in zip(labels, dice, counted, strict=True)
        }
        defined = [value for value in by_label.values() if value is not None]
        mean = math.fsum(defined) / len(defined) if defined else None
        trained = trained_on.get(name, 0)
        sites.append({"name": name, "dice_mean": mean, "dice": by_label, "cases": cases, "cases_trained_on": trained})
    means = [site["dice_mean"] for site in sites if site["dice_mean"] is not None]
    later = history[1:] or history
    travelled = [entry["bytes_up"] + entry["bytes_down"] for entry in later]
    peaks = [site["peak_bytes"] or 0 for entry in history for site in entry["sites"].values()]
    result = {
        "method": method,
        "federation": federation.asked(),
        "name": federation.name,
        "dice_mean": math.fsum(means) / len(means) if means else None,
        "dice_worst": min(means, default=None),
        "sites": sites,
        "untested": {name: GONE for name in trained_on if name not in scores} | dict(untested),
        "bytes_per_round": math.fsum(travelled) / len(travelled),
        "bytes_first_round": history[0]["bytes_up"] + history[0]["bytes_down"],
        "peak_memory_bytes": int(max(peaks)),
        "seconds": math.fsum(entry["seconds"] for entry in history),
        "history": list(history),
    }
    if federation.noise is not None:
        result["epsilon"] = epsilon_of(federation.noise, federation.rounds, federation.delta)
    return result
