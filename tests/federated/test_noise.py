"""What a site sends with noise leaves it once: the difference of two answers with one noise would have none."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from federation import QUIET, together

from medsaga.errors import RunError
from medsaga.federated.options import Federation
from medsaga.federated.orders import Order
from medsaga.federated.site import LocalSite
from medsaga.federated.worker import Worker


def test_a_round_has_one_noise_and_one_start(toy: Path, tmp_path: Path) -> None:
    """Two answers with one noise would tell the difference of two changes exactly."""
    federation = Federation(rounds=2, local_steps=1, clip=1e-3, noise=0.01)
    with together(toy, tmp_path / "out", federation, sites=2) as run:
        run.rounds.run()
        site = Worker(run.experiment.runs["site1"], federation)
        weights = {name: weight.clone() for name, weight in run.state.weights.items()}
        for number in (-1, 0, 1, 2, 3):
            with pytest.raises(RunError, match=f"round {number} of 2 from other weights"):
                site.train(Order(number, weights))
        # The same round again, as after an answer that got lost, has the same answer, whatever else is ordered.
        other = Worker(dataclasses.replace(run.experiment.runs["site1"], folder=tmp_path / "fresh"), federation)
        shutil.copytree(run.experiment.runs["site1"].folder, tmp_path / "fresh")
        shutil.rmtree(tmp_path / "fresh" / "rounds")
        first = other.train(Order(1, weights))
        changed = {name: weight + 1 for name, weight in weights.items()}
        with pytest.raises(RunError, match="from other weights"):
            other.train(Order(1, changed))
        with pytest.raises(RunError, match="asks for a sketch"):
            other.sketch(Order(2, changed))
        second = other.train(Order(1, weights, symmetries=("up-down",)))
        assert all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())
        assert (second.cases, second.facts) == (first.cases, first.facts)
        # After the next round none before it is worked out again: it would start from another state.
        other.train(Order(2, changed))
        with pytest.raises(RunError, match="out of its turn"):
            other.train(Order(1, weights))


def test_two_orders_at_once_are_answered_one_after_the_other(toy: Path, tmp_path: Path) -> None:
    """Each would have found no answer of the other, and both would have left with one noise."""
    federation = Federation(rounds=1, local_steps=1, clip=1e-3, noise=0.01)
    with together(toy, tmp_path / "out", federation, sites=2) as run:
        weights = run.state.weights
        starts = [weights, {name: weight + 1 for name, weight in weights.items()}]

        def trained(start: Mapping[str, torch.Tensor]) -> bool:
            own = dataclasses.replace(run.experiment.runs["site1"], model=copy.deepcopy(run.experiment.model))
            try:
                LocalSite(own, federation, QUIET).train(Order(1, start))
            except RunError:
                return False
            return True

        with ThreadPoolExecutor(2) as both:
            assert sorted(both.map(trained, starts)) == [False, True]
