"""The report of a run: one HTML file with numbers, curves and pictures, readable offline and on paper."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medsaga import files, html
from medsaga.evaluation import summary
from medsaga.overlay import Rgb, label_colours

Role = Literal["best", "median", "worst"]
WIDEST_PICTURE = 1800
MOST_POINTS = 600
PROTOCOL_NOTES = {
    "mm": (
        "Protocol mm. Dice and HD95 per image or volume, on its own grid. A label absent from both truth and "
        "prediction is not counted; one absent from either (missed, false positive) scores Dice 0 and has no HD95. "
        "HD95 is the larger of the two directed 95th percentiles of the surface distances."
    ),
    "transunet": (
        "Protocol transunet, only to compare with papers that used this evaluation: it scores a false positive of "
        "an absent label as Dice 1 and HD95 0, a complete miss as HD95 0, and a label absent from both as Dice 0 and "
        "HD95 0; HD95 ignores the spacing."
    ),
}

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
        picture: image, truth and prediction side by side, ``(height, width, 3)`` uint8; see `medsaga.overlay.triptych`.
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
            ``trainable_parameters``, ``projected_parameters``, ``cases_trained_on``; those missing are shown as
            not measured.
        history: lines of ``metrics.jsonl``: ``kind`` is ``step`` (``step``, ``loss``) or ``evaluation`` (``step``,
            ``dice``).
        examples: pictures, in the order in which they are shown.
        manifest: versions, device, seed and fingerprints of the run.
    """
    method, model = settings.get("method", "model"), settings.get("model", "")
    version = manifest.get("versions", {}).get("medsaga", "")
    page = html.page(
        "report.html",
        title=html.text(f"Segmentation report: {method} {model}".strip()),
        subtitle=html.text(summary.title(result)),
        cards=_cards(settings, result, history),
        scores=_scores(result),
        examples=_examples(examples, list(result["dice"])),
        curves=_curves(history) + _loss_note(settings),
        memory=_memory(result),
        cases=_cases(result),
        settings=html.listing(html.flat(settings)),
        manifest=html.listing(html.flat(manifest)),
        version=html.text(f" {version}" if version else ""),
    )
    files.write_text(path, page)


def _cards(settings: Mapping[str, Any], result: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> str:
    interval, distance = result["dice_mean_interval"], result["hd95_mean"]
    trained_on = result.get("cases_trained_on") or settings.get("shots")
    peak, pace = result.get("peak_memory_bytes"), result.get("seconds_per_step")
    steps = sum(line.get("kind") == "step" for line in history)
    trainable, projected = result.get("trainable_parameters"), result.get("projected_parameters")
    entries = [
        (
            "Mean Dice",
            summary.dice_text(result["dice_mean"]),
            f"95 % CI {summary.interval_text(interval)}" if interval else "no interval: one case",
        ),
        (
            "Mean HD95",
            summary.hd95_text(distance) + (f" {result['hd95_unit']}" if distance is not None else ""),
            f"protocol {result['metric_protocol']}",
        ),
        (
            "Trained on",
            html.NOT_MEASURED if not trained_on else f"{trained_on} case{'s' * (trained_on != 1)}",
            f"tested on {result['case_count']}",
        ),
        (
            "Peak memory",
            html.NOT_MEASURED if not peak else html.bytes_text(peak),
            f"image size {settings.get('image_size', '-')} px",
        ),
        (
            "Training time",
            html.NOT_MEASURED if not pace else html.duration_text(pace * steps) if steps else html.duration_text(pace),
            f"{steps} steps of {pace:.2g} s" if pace and steps else "per step",
        ),
        (
            "Trained parameters",
            html.NOT_MEASURED if trainable is None else html.count_text(trainable),
            f"{html.count_text(projected)} with projected gradients" if projected is not None else "",
        ),
    ]
    return html.cards(entries)


def _scores(result: Mapping[str, Any]) -> str:
    head = html.cells("th", [html.text(heading) for heading in summary.headings(result)])
    *labels, mean = [[html.text(cell) for cell in row] for row in summary.rows(result)]
    colours = label_colours(len(labels))
    lines = [
        f"<tr>{html.cells('td', [html.swatch(colour) + row[0], *row[1:]])}</tr>"
        for row, colour in zip(labels, colours, strict=True)
    ]
    lines.append(f'<tr class="mean">{html.cells("td", mean)}</tr>')
    note = PROTOCOL_NOTES.get(result["metric_protocol"], f"Protocol {result['metric_protocol']}.")
    bootstrap = " Intervals: bootstrap over cases; with fewer than about ten cases they are too narrow."
    return html.table(head, lines) + f'<p class="soft small">{html.text(note + bootstrap)}</p>'


def _examples(examples: Sequence[Example], labels: Sequence[str]) -> str:
    if not examples:
        return '<p class="soft">No examples.</p>'
    legend = html.legend(list(zip(labels, label_colours(len(labels)), strict=True)))
    figures = [
        f"<figure><figcaption><b>{html.text(one.role.capitalize())}</b>: {html.text(one.name)}"
        f"{'' if one.case == one.name else html.text(f' (case {one.case})')}, mean Dice {one.dice:.3f}</figcaption>"
        f'<img alt="{html.text(one.name)}: image, truth and prediction side by side" '
        f'src="{html.png(one.picture, WIDEST_PICTURE)}">'
        '<div class="thirds"><span>image</span><span>truth</span><span>prediction</span></div></figure>'
        for one in examples
    ]
    return legend + "".join(figures)


def _loss_note(settings: Mapping[str, Any]) -> str:
    """Say which loss was minimised: there are two Dice losses, and their values do not compare."""
    share = settings.get("dice_weight")
    if share is None:
        return ""
    loss = f"Loss: {1 - share:.3g} cross-entropy + {share:.3g} Dice loss. "
    return f'<p class="soft small">{html.text(loss + DICE_NOTES[settings.get("dice_form", "linear")])}</p>'


def _curves(history: Sequence[Mapping[str, Any]]) -> str:
    """Draw loss and Dice against the step, as an SVG that takes its ink from the page."""
    losses, dices = _series(history, "step", "loss"), _series(history, "evaluation", "dice")
    if not len(losses) and not len(dices):
        return '<p class="soft">No training history.</p>'
    with html.drawing():
        # matplotlib takes a second to import, and nothing else needs it.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 3.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(losses[:, 0], losses[:, 1], color="#2a8fd0", alpha=0.35, linewidth=1)
        left.plot(losses[:, 0], _smooth(losses[:, 1]), color="#2a8fd0", linewidth=1.8)
        left.set(xlabel="step", ylabel="loss", title="Training loss, and its running mean")
        left.set_ylim(bottom=0)
        right.plot(dices[:, 0], dices[:, 1], color="#d55e00", marker="o", markersize=4, linewidth=1.8)
        right.set(xlabel="step", ylabel="Dice", title="Dice while training, in the model's square", ylim=(0, 1))
        for axes in (left, right):
            axes.grid(visible=True, color=html.INK, alpha=0.12)
        return html.svg(figure, "curves")


def _series(history: Sequence[Mapping[str, Any]], kind: str, value: str) -> npt.NDArray[np.float64]:
    """Return finite ``(step, value)`` pairs, ``(points, 2)``, averaged in blocks where there are many."""
    points = [
        (line["step"], line[value])
        for line in history
        if line.get("kind") == kind and line.get(value) is not None and math.isfinite(line[value])
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


def _memory(result: Mapping[str, Any]) -> str:
    peak, breakdown = result.get("peak_memory_bytes"), result.get("memory_breakdown") or {}
    if not peak:
        return f'<p class="soft">Peak memory: {html.NOT_MEASURED}.</p>'
    text = f"<p>Peak of one training step: <b>{html.text(html.bytes_text(peak))}</b></p>"
    total = sum(breakdown.values())
    if not total:
        return f'{text}<p class="soft">Breakdown: {html.NOT_MEASURED}.</p>'
    parts = list(zip(breakdown.items(), label_colours(len(breakdown)), strict=True))
    bar = "".join(
        '<span style="width:{:.3f}%;background:rgb({}, {}, {})"></span>'.format(100 * size / total, *colour)
        for (_, size), colour in parts
    )
    legend = html.legend([(f"{name} {html.bytes_text(size)}", colour) for (name, size), colour in parts])
    return f'{text}<div class="bar">{bar}</div>{legend}'


def _cases(result: Mapping[str, Any]) -> str:
    labels = list(result["dice"])
    head = html.cells("th", ["image", "case", "mean Dice", *(html.text(label) for label in labels)])
    lines = []
    for item in sorted(result["cases"], key=lambda entry: entry["name"]):
        names = [html.text(item["name"]), html.text(item["case"]), summary.dice_text(item["dice_mean"])]
        lines.append(f"<tr>{html.cells('td', [*names, *(_case_score(item, label) for label in labels)])}</tr>")
    return html.table(head, lines) + '<p class="soft small">Dice, and below it HD95.</p>'


def _case_score(item: Mapping[str, Any], label: str) -> str:
    notes = {"only_truth": "missed", "only_prediction": "false positive", "neither": "absent"}
    state, distance = item["state"][label], item["hd95"][label]
    below = "" if distance is None else f'<span class="below">{distance:.2f} {item["hd95_unit"]}</span>'
    if state in notes:
        below += f'<span class="below{" bad" * (state != "neither")}">{notes[state]}</span>'
    return summary.dice_text(item["dice"][label]) + below
