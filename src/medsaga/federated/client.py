"""The app of a site: Flower hands it the server's messages, and it answers each with weights, counts and Dice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from medsaga.federated.averaging import Answer
from medsaga.federated.orders import SCORES, Order, pack_answer
from medsaga.federated.worker import MissingStartError
from medsaga.memory.tracker import is_out_of_memory

NEEDS_WEIGHTS = "the site needs all weights"
OUT_OF_MEMORY = "out of memory"
FAILED = "failed; the site's own log says why"
MISMATCH = "its labels, channels, model, weights, version or folder differ; the site itself says which"
_SENTENCES = (NEEDS_WEIGHTS, OUT_OF_MEMORY, FAILED, MISMATCH)
"""All that an error says."""
_CODE = 2
"""Flower's for an app that has raised an error."""


class Site(Protocol):
    """Who does the work; see `medsaga.federated.worker.Worker`.

    Attributes:
        bits: of each number that travels.
    """

    bits: int

    def sketch(self, order: Order) -> Answer:
        """Sketch a gradient."""

    def train(self, order: Order) -> Answer:
        """Make the steps of a round."""

    def scores(self, order: Order) -> tuple[list[float], list[int], int]:
        """Test: for each label the sum of Dice and in how many images it is counted; and the number of cases."""


def client_app(site_of: Callable[[Context], Site], failed: Callable[[Exception], None]) -> ClientApp:
    """Return the app of a site.

    Args:
        site_of: gives the site for an order.
        failed: is told what has gone wrong. The server is not: what an error says may name files and cases. What it
            raises itself leaves the app; that of a hospital raises nothing.
    """
    app = ClientApp()

    @app.query("sketch")
    def sketch(message: Message, context: Context) -> Message:
        def sketched() -> RecordDict:
            site = site_of(context)
            return pack_answer(site.sketch(Order.unpack(message.content)), site.bits)

        return answered(message, sketched, failed)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def trained() -> RecordDict:
            site = site_of(context)
            return pack_answer(site.train(Order.unpack(message.content)), site.bits)

        return answered(message, trained, failed)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        def scored() -> RecordDict:
            dice, counted, cases = site_of(context).scores(Order.unpack(message.content))
            values = (dice, [float(count) for count in counted], float(cases))
            return RecordDict({"scores": MetricRecord(dict(zip(SCORES, values, strict=True)))})

        return answered(message, scored, failed)

    return app


def answered(message: Message, work: Callable[[], RecordDict], failed: Callable[[Exception], None]) -> Message:
    """Return the answer to a message: the content that work makes, or an error of few words of our own."""
    try:
        return Message(work(), reply_to=message)
    except MissingStartError:
        reason = NEEDS_WEIGHTS
    except Exception as error:
        failed(error)
        reason = OUT_OF_MEMORY if is_out_of_memory(error) else FAILED
    return Message(Error(_CODE, reason), reply_to=message)


def reason_of(error: Error) -> str:
    """Return what an error from a site says, if it is a sentence of ours: another text may name files and cases."""
    return error.reason if error.reason in _SENTENCES else "failed"
