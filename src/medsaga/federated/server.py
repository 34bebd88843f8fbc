"""The rounds: the server sends orders, refuses what cannot be right, brings the changes together, and keeps its state.

After every round the state is written whole; a server that is killed goes on with the round after the last one that is
written. Sites answer an order that comes twice with the same bits, so that nothing depends on when it was killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from flwr.app import RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from medsaga import files
from medsaga.errors import InputError, RunError
from medsaga.federated import averaging
from medsaga.federated.averaging import Answer, loss_text
from medsaga.federated.client import NEEDS_WEIGHTS, reason_of
from medsaga.federated.options import Federation
from medsaga.federated.orders import MALFORMED, Order, Scores, as_arriving, unpack_answer, unpack_scores
from medsaga.federated.wire import rounded, size_of
from medsaga.optim.projection import matrix_shape, sketch_basis
from medsaga.optim.shared_basis import Sides

STATE = "server.pt"
_NO_ANSWER = "it is no answer to an order"


@dataclass(eq=False)
class State:
    """Where the rounds stand.

    Attributes:
        weights: the common ones after the last round, by name, float32.
        ranks: of the projection of each matrix under GaLore in a shared basis, by name.
        round: the last complete one.
        change: by which the weights came out of the round before; see `medsaga.federated.averaging.moved`.
        decay: the same.
        bases: of the next round.
        holds: the last round that each site has answered: it has the start of that one.
        symmetries: that the labels have at all sites.
        history: an entry per round: bytes in both directions, loss and seconds of each site, who was refused and why.
    """

    weights: dict[str, Tensor]
    ranks: dict[str, int] = field(default_factory=dict)
    round: int = 0
    change: dict[str, Tensor] = field(default_factory=dict)
    decay: float = 1.0
    bases: dict[str, Sides] = field(default_factory=dict)
    holds: dict[str, int] = field(default_factory=dict)
    symmetries: tuple[str, ...] = ()
    history: list[dict[str, Any]] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        with files.replacing(folder / STATE) as temporary:
            torch.save({name: getattr(self, name) for name in self.__dataclass_fields__}, temporary)

    @classmethod
    def load(cls, folder: Path) -> State | None:
        """Return what `save` has written; None where nothing is.

        Raises:
            InputError: the file is damaged.
        """
        path = folder / STATE
        if not path.exists():
            return None
        try:
            return cls(**torch.load(path, weights_only=True))
        except Exception as error:  # a damaged archive raises whatever the damage hits first
            found = str(error).splitlines()[0]
            do = "Start again in another --out."
            raise InputError(path, expected="the state of a federation", found=found, do=do) from None


@dataclass(eq=False)
class Rounds:
    """What the server does.

    Args:
        grid: Flower's, over which messages go.
        nodes: gives the number of each site's node that can be reached now, by the site's name.
        federation: how the sites train together.
        state: where the rounds stand; it is changed.
        keep: writes the state; called after every round.
        tell: called with what the user should know, in words.
        timeout: seconds that the sites have for an answer; None for as long as they need.
    """

    grid: Grid
    nodes: Callable[[], Mapping[str, int]]
    federation: Federation
    state: State
    keep: Callable[[State], None]
    tell: Callable[[str], None] = lambda _: None
    timeout: float | None = None

    def run(self) -> None:
        """Make all rounds that are left.

        Raises:
            RunError: fewer sites than wanted have given a usable answer; what the rounds before came to is kept.
        """
        while self.state.round < self.federation.rounds:
            self.round()

    def round(self) -> None:
        """Make the next round.

        Raises:
            RunError: as `run` does.
        """
        state, began = self.state, time.perf_counter()
        number = state.round + 1
        entry: dict[str, Any] = {"round": number, "bytes_down": 0, "bytes_up": 0, "missing": [], "refused": {}}
        if state.ranks and not state.bases:
            sketched = self._usable(self._asked("query.sketch", number, entry), {}, entry)
            state.bases = self._bases(sketched)
            entry["bytes_first_basis"] = entry["bytes_down"] + entry["bytes_up"]
        answers = self._usable(self._asked("train", number, entry), self._expected(), entry)
        before = None if self.federation.exchange == "shared-basis" else state.weights
        norms = {answer.site: averaging.change_norm(answer, before) for answer in answers}
        for site, why in averaging.absurd(norms, averaging.norm(state.weights)).items() if norms else ():
            self._refuse(site, why, entry)
        answers = [answer for answer in answers if answer.site not in entry["refused"]]
        self._require(answers, entry)
        together = averaging.median if self.federation.strategy == "median" else averaging.mean
        tensors, decay = together(answers)
        if before is None:
            # As the sites will have it: all compute the same weights.
            state.change, state.decay = rounded(tensors, self.federation.travelling_bits), decay
            state.weights = averaging.moved(state.weights, state.change, decay, state.bases)
            state.bases = self._bases(answers) or state.bases
        else:
            state.weights = tensors
        for answer in answers:
            entry.setdefault("sites", {})[answer.site] = {
                "cases": answer.cases,
                "change": norms[answer.site],
                **answer.facts,
            }
        entry["seconds"] = time.perf_counter() - began
        state.history.append(entry)
        state.round = number
        self.keep(state)
        losses = ", ".join(f"{answer.site} {loss_text(answer)}" for answer in answers)
        self.tell(f"round {number} of {self.federation.rounds}: loss {losses}")

    def test(self, labels: int) -> tuple[dict[str, Scores], dict[str, str]]:
        """Have every site test the common weights on its own cases.

        Args:
            labels: how many there are, without the background.

        Returns:
            by site: its scores; and why there are none of a site that should have some.
        """
        entry: dict[str, Any] = {"missing": [], "bytes_down": 0, "bytes_up": 0}
        scores, untested = {}, {}
        for site, content in self._asked("evaluate", self.state.round + 1, entry).items():
            try:
                found = unpack_scores(content)
                why = averaging.fault_of_scores(*found, labels)
            except MALFORMED:
                why = _NO_ANSWER
            if why is None:
                scores[site] = found
            else:
                untested[site] = f"refused: {why}"
                self.tell(f"the scores of {site} are refused: {why}")
        return scores, untested | dict.fromkeys(entry["missing"], "it did not answer")

    def _asked(self, kind: str, number: int, entry: dict[str, Any]) -> dict[str, RecordDict]:
        """Send every site its order of a kind; return what has come back in the end, by site in order."""
        nodes = dict(sorted(self.nodes().items()))
        contents, errors = self._exchanged(kind, number, nodes, entry)
        if lost := {site: nodes[site] for site, reason in errors.items() if reason == NEEDS_WEIGHTS}:
            for site in lost:
                self.state.holds.pop(site, None)
            again, errors_again = self._exchanged(kind, number, lost, entry)
            contents, errors = contents | again, {**{s: r for s, r in errors.items() if s not in lost}, **errors_again}
        for site in nodes:
            if site not in contents:
                self.state.holds.pop(site, None)
                reason = errors.get(site) or "no answer in time"
                entry["missing"].append(site)
                self.tell(f"round {number}: {site} is missing: {reason}")
        return {site: contents[site] for site in nodes if site in contents}

    def _exchanged(
        self, kind: str, number: int, nodes: Mapping[str, int], entry: dict[str, Any]
    ) -> tuple[dict[str, RecordDict], dict[str, str]]:
        """Return the contents and the errors that came back, by site."""
        sites = {node: site for site, node in nodes.items()}

        packed: dict[bool, RecordDict] = {}  # sites that have the same weights get the same content, which exists once
        messages = []
        for site, node in nodes.items():
            order = self._order(site, number)
            is_whole = order.weights is not None
            if is_whole not in packed:
                packed[is_whole] = order.pack(self.federation.travelling_bits)
            messages.append(self.grid.create_message(packed[is_whole], kind, node, str(number), self.timeout))
            entry["bytes_down"] += size_of(messages[-1])
        contents: dict[str, RecordDict] = {}
        errors: dict[str, str] = {}
        for message in self.grid.send_and_receive(messages, timeout=self.timeout) if messages else ():
            sender = sites.get(message.metadata.src_node_id)
            if sender is None:  # Flower's own word that a node is gone
                continue
            if message.has_error():
                errors[sender] = reason_of(message.error)
                continue
            entry["bytes_up"] += size_of(message)
            contents[sender] = message.content
        return contents, errors

    def _order(self, site: str, number: int) -> Order:
        """Return the order of a round for a site: what has changed, if it has the start of the round before."""
        state = self.state
        how: dict[str, Any] = {"round": number, "bases": state.bases, "symmetries": state.symmetries}
        if self.federation.exchange != "shared-basis" or state.holds.get(site) != number - 1:
            return Order(**how, weights=state.weights)
        return Order(**how, change=state.change, decay=state.decay)

    def _usable(
        self, contents: Mapping[str, RecordDict], expected: averaging.Tensors, entry: dict[str, Any]
    ) -> list[Answer]:
        """Return the answers that hold what they should, and refuse the others."""
        answers = []
        matrices = {
            name: (*matrix_shape(self.state.weights[name].shape), rank) for name, rank in self.state.ranks.items()
        }
        for site, content in contents.items():
            try:
                answer = unpack_answer(site, content)
                why = averaging.fault(answer, expected, matrices)
            except MALFORMED:
                why = _NO_ANSWER
            if why is not None:
                self._refuse(site, why, entry)
                continue
            # A sketch comes before the round: with it, the site has the start of the round.
            self.state.holds[site] = entry["round"] - (not expected)
            answers.append(answer)
        for site in averaging.odd_sketches(answers):
            self._refuse(site, "its sketches are of other matrices or widths than those of most sites", entry)
        answers = [answer for answer in answers if answer.site not in entry["refused"]]
        self._require(answers, entry)
        return answers

    def _refuse(self, site: str, why: str, entry: dict[str, Any]) -> None:
        entry["refused"][site] = why
        self.tell(f"round {entry['round']}: the answer of {site} is refused: {why}")

    def _require(self, answers: Sequence[Answer], entry: Mapping[str, Any]) -> None:
        least = max(1, self.federation.min_sites)
        if len(answers) < least:
            gone = [*entry["missing"], *(f"{site} (refused: {why})" for site, why in entry["refused"].items())]
            raise RunError(
                f"round {entry['round']}: {len(answers)} usable answers of at least {least}; not there: "
                f"{', '.join(gone) or 'no site has joined'}. The rounds before are kept; the same command goes on."
            )

    def _expected(self) -> dict[str, Tensor]:
        """Return tensors, without values, of the names and shapes that a site's answer should have."""
        expected = {}
        for name, weight in self.state.weights.items():
            shape = tuple(weight.shape)
            if self.federation.exchange == "shared-basis" and name in self.state.bases:
                shape = factor_shape(shape, self.state.bases[name])
            expected[name] = torch.empty(shape, device="meta")
        return expected

    def _bases(self, answers: Sequence[Answer]) -> dict[str, Sides]:
        """Return the bases that the sketches of several sites make, as all will have them."""
        made: dict[str, Sides] = {}
        for name, sketches in averaging.sum_of_sketches(answers).items():
            left, right = (None if each is None else sketch_basis(each, self.state.ranks[name]) for each in sketches)
            made[name] = (left, right)
        return as_arriving(made)


def factor_shape(shape: Sequence[int], bases: Sides) -> tuple[int, ...]:
    """Return the shape of the factor of a weight's change in its bases."""
    left, right = bases
    rows, columns = shape[0], int(torch.Size(shape[1:]).numel())
    return (rows if left is None else left.shape[1], columns if right is None else right.shape[1])
