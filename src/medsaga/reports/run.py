"""The report of a run: one HTML file with numbers, curves and pictures, readable offline and on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from medsaga import files
from medsaga.colours import label_colours
from medsaga.evaluation import summary
from medsaga.evaluation.protocols import PROTOCOL_NOTES
from medsaga.prediction.overlay import Rgb
from medsaga.reports.environment import Span, Table, TableRow, flat, render
from medsaga.reports.figures import INK, drawing, png, svg

if TYPE_CHECKING:
    from markupsafe import Markup

Role = Literal["best", "median", "worst"]
WIDEST_PICTURE = 1800
MOST_POINTS = 600
COSTS = ("peak_memory_bytes", "seconds_per_step", "trainable_parameters", "projected_parameters", "lora")
"""Of a result; those that were not measured are missing there."""
BOOTSTRAP_NOTE = " Intervals: bootstrap over cases; with fewer than about ten cases they are too narrow."
DICE_NOTES = {
    "linear": "Dice in medsaga's own form: of probabilities, with 1 pixel of smoothing, over the labels in the batch.",
    "squared": (
        "Dice in the form of SAMed's and DAE-Former's public code: sums of squares in the denominator, smoothing 1e-5, "
        "over all labels and the background."
    ),
}


@dataclass(frozen=True, eq=False)
class Example:
    """One image of the report's picture section.

    Attributes:
        name: the item's name.
        case: the case it belongs to.
        dice: its Dice, averaged over labels.
        picture: image, truth and prediction side by side, ``(height, width, 3)`` uint8; see
            `medsaga.prediction.overlay.triptych`.
        role: why it was chosen.
    """

    name: str
    case: str
    dice: float
    picture: Rgb
    role: Role


def choose_examples(scores: Sequence[tuple[str, float]]) -> dict[Role, str]:
    """Choose the best, the median and the worst item by mean Dice; ties go to the first by name.

    Each is another item; with fewer than three items the median, and then the worst, are left out.

    Args:
        scores: item name and mean Dice, in any order.
    """
    ranked = [name for name, _ in sorted(scores, key=lambda entry: (-entry[1], entry[0]))]
    chosen: dict[Role, str] = {}
    if ranked:
        chosen["best"] = ranked[0]
    if len(ranked) > 2:
        chosen["median"] = ranked[len(ranked) // 2]
    if len(ranked) > 1:
        chosen["worst"] = ranked[-1]
    return chosen


def write_report(
    path: Path,
    *,
    settings: Mapping[str, Any],
    result: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    examples: Sequence[Example],
    manifest: Mapping[str, Any],
) -> None:
    """Write the report as one HTML file that loads nothing from anywhere.

    Args:
        path: of the HTML file.
        settings: resolved settings of the run, nested or flat.
        result: what `medsaga.evaluation.summary.summarise` returned, and what the training cost:
            ``peak_memory_bytes``, ``memory_breakdown`` (bytes per category), ``seconds_per_step``,
            ``trainable_parameters``, ``projected_parameters``, ``lora`` (the layers that it updates),
            ``cases_trained_on``; those missing are shown as not measured.
        history: lines of ``metrics.jsonl``: ``kind`` is ``step`` (``step``, ``loss``) or ``evaluation`` (``step``,
            ``dice``).
        examples: pictures, in the order in which they are shown.
        manifest: versions, device, seed and fingerprints of the run.
    """
    method, model = settings.get("method", "model"), settings.get("model", "")
    protocol, labels = result["metric_protocol"], list(result["dice"])
    memory = result.get("memory_breakdown") or {}
    page = render(
        "report.html",
        title=f"Segmentation report: {method} {model}".strip(),
        subtitle=summary.title(result),
        result={**dict.fromkeys(COSTS), **result},
        trained_on=result.get("cases_trained_on") or settings.get("shots"),
        image_size=settings.get("image_size", "-"),
        steps=sum(line.get("kind") == "step" for line in history),
        scores=_scores(result),
        score_note=PROTOCOL_NOTES.get(protocol, f"Protocol {protocol}.") + BOOTSTRAP_NOTE,
        labels=list(zip(labels, label_colours(len(labels)), strict=True)),
        examples=[{**vars(one), "address": png(one.picture, WIDEST_PICTURE)} for one in examples],
        curves=_curves(history),
        loss_note=_loss_note(settings),
        memory=list(zip(memory, memory.values(), label_colours(len(memory)), strict=True)),
        cases=_cases(result),
        settings=flat(settings),
        manifest=flat(manifest),
        version=manifest.get("versions", {}).get("medsaga", ""),
    )
    files.write_text(path, page)


def _scores(result: Mapping[str, Any]) -> Table:
    *labels, mean = summary.rows(result)
    colours = label_colours(len(labels))
    rows = [TableRow([Span(name, colour=colour), *row]) for (name, *row), colour in zip(labels, colours, strict=True)]
    return Table(summary.headings(result), [*rows, TableRow(mean, "mean")])


def _loss_note(settings: Mapping[str, Any]) -> str:
    """Say which loss was minimised: there are two Dice losses, and their values do not compare."""
    share = settings.get("dice_weight")
    if share is None:
        return ""
    loss = f"Loss: {1 - share:.3g} cross-entropy + {share:.3g} Dice loss. "
    return loss + DICE_NOTES[settings.get("dice_form", "linear")]


def _curves(history: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Draw loss and Dice against the step, if there are any."""
    losses, dices = _series(history, "step", "loss"), _series(history, "evaluation", "dice")
    if not len(losses) and not len(dices):
        return None
    with drawing():
        # matplotlib takes a second to import, and nothing else needs it.
        from matplotlib.figure import Figure

        # Margins that suit the labels of both: finding them by drawing twice would take as long as the figure.
        figure = Figure(figsize=(10, 3.3))
        left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.17})
        figure.subplots_adjust(left=0.065, right=0.99, bottom=0.15, top=0.9)
        left.plot(losses[:, 0], losses[:, 1], color="#2a8fd0", alpha=0.35, linewidth=1)
        left.plot(losses[:, 0], _smooth(losses[:, 1]), color="#2a8fd0", linewidth=1.8)
        left.set(xlabel="step", ylabel="loss", title="Training loss, and its running mean")
        left.set_ylim(bottom=0)
        right.plot(dices[:, 0], dices[:, 1], color="#d55e00", marker="o", markersize=4, linewidth=1.8)
        right.set(xlabel="step", ylabel="Dice", title="Dice while training, in the model's square", ylim=(0, 1))
        for axes in (left, right):
            axes.grid(visible=True, color=INK, alpha=0.12)
        return svg(figure, "curves")


def _series(history: Sequence[Mapping[str, Any]], kind: str, value: str) -> npt.NDArray[np.float64]:
    """Return finite ``(step, value)`` pairs, ``(points, 2)``, averaged in blocks where there are many."""
    points = [
        (line["step"], line[value]) for line in history if line.get("kind") == kind and line.get(value) is not None
    ]
    block = max(1, -(-len(points) // MOST_POINTS))
    blocks = [np.mean(points[start : start + block], axis=0) for start in range(0, len(points), block)]
    return np.array(blocks, dtype=np.float64).reshape(-1, 2)


def _smooth(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return a centred running mean over about a twentieth of the points."""
    half = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    start, stop = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[stop] - sums[start]) / (stop - start)


def _cases(result: Mapping[str, Any]) -> Table:
    labels = list(result["dice"])
    rows = []
    for item in sorted(result["cases"], key=lambda entry: entry["name"]):
        scores = [_case_score(item, label) for label in labels]
        rows.append(TableRow([item["name"], item["case"], summary.dice_text(item["dice_mean"]), *scores]))
    return Table(["image", "case", "mean Dice", *labels], rows)


def _case_score(item: Mapping[str, Any], label: str) -> list[str | Span]:
    notes = {"only_truth": "missed", "only_prediction": "false positive", "neither": "absent"}
    state, distance = item["state"][label], item["hd95"][label]
    spans: list[str | Span] = [summary.dice_text(item["dice"][label])]
    if distance is not None:
        spans.append(Span(f"{distance:.2f} {item['hd95_unit']}", "below"))
    if state in notes:
        spans.append(Span(notes[state], "below" if state == "neither" else "below bad"))
    return spans
