"""Flower's grid within one process: each message goes straight to its site's app, one site after the other."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping

from flwr.app import DEFAULT_TTL, Context, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run


class InProcessGrid(Grid):
    """A grid without a network.

    Args:
        apps: the app of each node, by the node's number.
        seen: called with every message, orders and answers.
    """

    def __init__(self, apps: Mapping[int, ClientApp], seen: Callable[[Message], None] = lambda _: None) -> None:
        self._apps, self._seen = apps, seen
        self._run = Run.create_empty(0)
        self._contexts = {node: Context(0, node, {}, RecordDict(), {}) for node in apps}
        self._answers: dict[str, Message] = {}
        self._numbers = itertools.count(1)

    def set_run(self, run: Run) -> None:
        """Say which run it is."""
        self._run = run

    @property
    def run(self) -> Run:
        """Which run it is."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message to a node."""
        metadata = Metadata(
            run_id=self._run.run_id,
            message_id=f"{next(self._numbers)}",
            src_node_id=0,
            dst_node_id=dst_node_id,
            reply_to_message_id="",
            group_id=group_id,
            created_at=time.time(),
            ttl=ttl or DEFAULT_TTL,
            message_type=message_type,
        )
        # Flower's own grid does this, too: other messages belong to the task that Flower has started.
        return Message(content=content, metadata=metadata)  # type: ignore[call-overload]

    def get_node_ids(self) -> Iterable[int]:
        """Return the numbers of all nodes."""
        return list(self._apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have messages answered; return what to ask for the answers with."""
        names = []
        for message in messages:
            self._seen(message)
            node = message.metadata.dst_node_id
            answer = self._apps[node](message, self._contexts[node])
            self._seen(answer)
            names.append(message.metadata.message_id)
            self._answers[names[-1]] = answer
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the answers."""
        return [self._answers.pop(name) for name in message_ids]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Have messages answered, one after the other."""
        return [answer for message in messages for answer in self.pull_messages(self.push_messages([message]))]
