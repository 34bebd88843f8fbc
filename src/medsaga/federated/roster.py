"""Who takes part: the server greets every node that appears, and lets in those that have what the plan says."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from medsaga import files
from medsaga.data.intensity import Intensity
from medsaga.federated.agreement import agreed_intensities, agreed_symmetries, read_greeting, read_symmetries
from medsaga.federated.client import reason_of
from medsaga.federated.orders import MALFORMED
from medsaga.federated.plan import Plan

AGREED = "agreed.json"
"""In the server's folder: what the sites have agreed on, for those that come later."""
GREETING = "query.hello"
BEGINNING = "query.begin"
ENDING = "query.end"
_PAUSE = 1.0
_AGAIN = 30.0
"""Seconds after which a site that stays out is greeted again: Flower knows it by its key, as the node that it was."""

_TO_COME_BACK = 60.0
"""Seconds in which a site finds a server again that was stopped and goes on."""


@dataclass(eq=False)
class Roster:
    """The sites that take part.

    Args:
        grid: Flower's.
        plan: what all have in common.
        folder: of the server.
        tell: called with what the user should know.
        timeout: seconds for an answer.
    """

    grid: Grid
    plan: Plan
    folder: Path
    tell: Callable[[str], None]
    timeout: float
    _names: dict[int, str] = field(default_factory=dict)
    _turned_away: dict[int, tuple[float, str]] = field(default_factory=dict)
    _proposed: dict[str, tuple[Intensity, ...]] = field(default_factory=dict)
    _begun: set[str] = field(default_factory=set)

    def gather(self, wanted: int, patience: float | None) -> tuple[str, ...]:
        """Wait for sites, and settle with them what they have to agree on.

        Args:
            wanted: how many to wait for.
            patience: seconds after which those that are there are enough, if there is one; None: wait for all.

        Returns:
            the mirrorings that the labels keep at all sites.
        """
        began = time.monotonic()
        while len(self._greeted()) < wanted:
            if self._names and patience is not None and time.monotonic() - began > patience:
                break
            time.sleep(_PAUSE)
        path = self.folder / AGREED
        if not path.exists():
            intensities = self.plan.fixed_intensities() or agreed_intensities(self._proposed)
            files.write_json(path, {"intensities": [vars(each) for each in intensities], "symmetries": None})
        self.nodes()
        if not self._begun.issuperset(self._names.values()):  # it may have been too short a time for all its images
            self.nodes()
        return self.symmetries

    @property
    def symmetries(self) -> tuple[str, ...]:
        """The mirrorings that the labels keep at all sites that have ever begun; none before the first has."""
        return tuple(files.read_json(self.folder / AGREED)["symmetries"] or ())

    def nodes(self) -> dict[str, int]:
        """Return the nodes of the sites that can be reached and have begun, by name; newcomers are greeted first.

        What the labels of newcomers do not keep, `symmetries` has no more.
        """
        there = self._greeted()
        late = {node: name for node, name in there.items() if name not in self._begun}
        if late:
            self._begin(late)
        return {name: node for node, name in there.items() if name in self._begun}

    def end(self, wanted: int) -> None:
        """Tell all sites that it is over.

        Args:
            wanted: how many to wait for, but not long: some may have heard it from a server that was stopped then.
        """
        began = time.monotonic()
        while len(there := self._greeted()) < wanted and time.monotonic() - began < _TO_COME_BACK:
            time.sleep(_PAUSE)
        self._sent(ENDING, {node: ConfigRecord() for node in there})

    def _greeted(self) -> dict[int, str]:
        """Return the names of the nodes that are there and fit the plan."""
        there = set(self.grid.get_node_ids())
        # Who has gone may come back with what was wrong put right.
        self._turned_away = {node: when for node, when in self._turned_away.items() if node in there}
        waiting = {node for node, (when, _) in self._turned_away.items() if time.monotonic() - when < _AGAIN}
        new = there - self._names.keys() - waiting
        for node, content in self._sent(
            GREETING, {node: ConfigRecord({"plan": self.plan.to_json()}) for node in new}
        ).items():
            if isinstance(content, str):
                self._turn_away(node, f"a site does not fit this federation and stays out: {content}")
                continue
            try:
                name, proposed = read_greeting(content, len(self.plan.channels))
            except MALFORMED:
                self._turn_away(node, "a site does not say who it is, as it should, and stays out")
                continue
            # Also while the first is away: it comes back as the node that it was.
            if name in self._names.values():
                self._turn_away(node, f"a second site calls itself {name} and stays out")
                continue
            self._turned_away.pop(node, None)
            self._names[node] = name
            self._proposed[name] = proposed
            self.tell(f"{name} has joined")
        return {node: name for node, name in sorted(self._names.items(), key=lambda each: each[1]) if node in there}

    def _turn_away(self, node: int, why: str) -> None:
        """Leave a node out for now; what is said of it again and again is told once."""
        if self._turned_away.get(node, (0.0, ""))[1] != why:
            self.tell(why)
        self._turned_away[node] = (time.monotonic(), why)

    def _begin(self, nodes: Mapping[int, str]) -> None:
        """Have sites prepare their images; keep of the agreed mirrorings those that the labels of each keep."""
        path = self.folder / AGREED
        agreed = files.read_json(path)
        text = json.dumps(agreed["intensities"])
        found = [] if agreed["symmetries"] is None else [agreed["symmetries"]]
        begun = set()
        for node, content in self._sent(
            BEGINNING, {node: ConfigRecord({"intensities": text}) for node in nodes}
        ).items():
            if isinstance(content, str):
                self.tell(f"{nodes[node]} could not begin: {content}")
                continue
            try:
                found.append(read_symmetries(content))
            except MALFORMED:
                self.tell(f"{nodes[node]} could not begin: its answer is none")
                continue
            begun.add(nodes[node])
        if begun:
            files.write_json(path, agreed | {"symmetries": list(agreed_symmetries(found))})
            self._begun |= begun

    def _sent(self, kind: str, records: Mapping[int, ConfigRecord]) -> dict[int, RecordDict | str]:
        """Send messages; return what came back, the content or what an error says, by node."""
        messages = [
            self.grid.create_message(RecordDict({"server": record}), kind, node, kind.partition(".")[2], self.timeout)
            for node, record in records.items()
        ]
        if not messages:
            return {}
        back: dict[int, RecordDict | str] = {}
        for message in self.grid.send_and_receive(messages, timeout=self.timeout):
            node = message.metadata.src_node_id
            if node not in records:  # Flower's own word that a node is gone; it is asked again
                continue
            back[node] = reason_of(message.error) if message.has_error() else message.content
        return back
