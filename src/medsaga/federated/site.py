"""A site as its app sees it: the worker that trains, and the test on the site's own cases."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from medsaga import files
from medsaga.federated.averaging import Answer, loss_text
from medsaga.federated.options import Federation
from medsaga.federated.orders import Order, Scores
from medsaga.federated.worker import Worker
from medsaga.models.base import SegmentationModel
from medsaga.prediction.segmenter import Segmenter
from medsaga.runs.evaluate import evaluate_run
from medsaga.runs.plan import Run


class LocalSite:
    """A site on this machine; its own result and report are written into its run folder.

    Args:
        run: see `medsaga.federated.worker.Worker`.
        federation: how the sites train together.
        console: where progress is shown.
        say: called with what the site does, in words.

    Attributes:
        bits: of each number that travels.
    """

    def __init__(
        self, run: Run, federation: Federation, console: Console, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._run, self._console, self._say = run, console, say
        self._worker = Worker(run, federation)
        self.bits = federation.travelling_bits

    @property
    def model(self) -> SegmentationModel:
        """The model that is trained here."""
        return self._run.model

    def sketch(self, order: Order) -> Answer:
        """Sketch a gradient."""
        with files.one_at_a_time(self._run.folder):
            return self._worker.sketch(order)

    def train(self, order: Order) -> Answer:
        """Make the steps of a round."""
        self._say(f"round {order.round}: training")
        # Of two orders that come at once, the second must see what the first was answered.
        with files.one_at_a_time(self._run.folder):
            answer = self._worker.train(order)
        self._say(f"round {order.round}: loss {loss_text(answer)}")
        return answer

    def scores(self, order: Order) -> Scores:
        """Test the weights of an order."""
        model = self._worker.take(order)
        return scores_of(self._run, Segmenter(model, self._run.config, self._run.device), self._console)


def scores_of(run: Run, segmenter: Segmenter, console: Console) -> Scores:
    """Test a model on the cases that a site holds out."""
    result = evaluate_run(run.folder, dataset=run.dataset, segmenter=segmenter, console=console)
    counted = [sum(item["dice"][label] is not None for item in result["cases"]) for label in result["dice"]]
    sums = [(dice or 0.0) * count for dice, count in zip(result["dice"].values(), counted, strict=True)]
    return sums, counted, result["case_count"]
