"""What a federation is compared with: each site alone, and all cases in one place."""

from __future__ import annotations

import contextlib
from statistics import median
from typing import Any

from rich.console import Console

from medsaga import run_folder
from medsaga.federated.experiment import Experiment
from medsaga.federated.orders import Scores
from medsaga.federated.site import scores_of
from medsaga.methods import loading
from medsaga.models.weights.loading import load_model
from medsaga.prediction.segmenter import Segmenter
from medsaga.run_folder import read_metrics
from medsaga.runs.plan import Run
from medsaga.runs.train import fit

Outcome = tuple[dict[str, Scores], list[dict[str, Any]]]
"""The scores of each site, and one entry for the history: nothing has travelled."""


def alone(experiment: Experiment, console: Console) -> Outcome:
    """Train each site on its own cases alone, as many steps as in all rounds, and test it on its own."""
    scores, sites = {}, {}
    for name, run in experiment.runs.items():
        console.print(f"{name} alone", markup=False)
        own = experiment.afresh(run)
        scores[name] = _trained(own, [own], console)[0]
        sites[name] = _costs(own)
    return scores, [_entry(sites)]


def pooled(experiment: Experiment, console: Console) -> Outcome:
    """Train on the cases of all sites, as many steps as one site makes in all rounds, and test at each site."""
    console.print("all cases in one place", markup=False)
    runs = list(experiment.runs.values())
    whole = experiment.pooled_run(console)
    with contextlib.closing(whole.train), contextlib.closing(whole.monitor):
        scores = _trained(whole, runs, console)
    whole.remove_cache()
    return dict(zip(experiment.runs, scores, strict=True)), [_entry({"all": _costs(whole)})]


def _trained(run: Run, tested: list[Run], console: Console) -> list[Scores]:
    """Train, and return the scores of the test cases of some sites."""
    fit(run, console)
    model = load_model(run.folder / run_folder.MODEL, loading(run.config.settings))
    segmenter = Segmenter(model, run.config, run.device)
    return [scores_of(each, segmenter, console) for each in tested]


def _entry(sites: dict[str, dict[str, Any]]) -> dict[str, Any]:
    seconds = sum(site["seconds"] for site in sites.values())
    nothing = {"bytes_up": 0, "bytes_down": 0, "missing": [], "refused": {}}
    return {"round": 1, **nothing, "sites": sites, "seconds": seconds}


def _costs(run: Run) -> dict[str, Any]:
    lines = read_metrics(run.folder)
    steps = [line for line in lines if line["kind"] == "step"]
    losses = [line["loss"] for line in steps[-10:] if line["loss"] is not None]
    peaks = [line["peak_memory_bytes"] for line in lines if line["kind"] == "evaluation"]
    return {
        "cases": len(run.split.train),
        "loss": median(losses) if losses else None,
        "steps": len(steps),
        "seconds": sum(line["seconds"] for line in steps),
        "peak_bytes": max(peaks, default=0),
    }
