"""The report of a run: one HTML file with numbers, curves and pictures, readable offline and on paper."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from medsaga import files
from medsaga.evaluation import summary
from medsaga.overlay import Rgb, label_colours

Role = Literal["best", "median", "worst"]
NOT_MEASURED = "not measured"
WIDEST_PICTURE = 1800
MOST_POINTS = 600
MIB = 2**20
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
# matplotlib knows no "currentColor": curves are drawn in a colour that occurs nowhere else, which is then replaced.
INK = "#010203"


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
    template = resources.files("medsaga").joinpath("templates/report.html").read_text(encoding="utf-8")
    method, model = settings.get("method", "model"), settings.get("model", "")
    version = manifest.get("versions", {}).get("medsaga", "")
    page = Template(template).substitute(
        title=_text(f"Segmentation report: {method} {model}".strip()),
        subtitle=_text(summary.title(result)),
        cards=_cards(settings, result, history),
        scores=_scores(result),
        examples=_examples(examples, list(result["dice"])),
        curves=_curves(history),
        memory=_memory(result),
        cases=_cases(result),
        settings=_listing(settings),
        manifest=_listing(manifest),
        version=_text(f" {version}" if version else ""),
    )
    files.write_text(path, page)


def _text(value: object) -> str:
    """Escape text for HTML; file names that are no valid Unicode show as question marks."""
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"))


def _cards(settings: Mapping[str, Any], result: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> str:
    interval, distance = result["dice_mean_interval"], result["hd95_mean"]
    trained_on = result.get("cases_trained_on") or settings.get("shots")
    peak, pace = result.get("peak_memory_bytes"), result.get("seconds_per_step")
    steps = sum(line.get("kind") == "step" for line in history)
    trainable, projected = result.get("trainable_parameters"), result.get("projected_parameters")
    cards = [
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
            NOT_MEASURED if not trained_on else f"{trained_on} case{'s' * (trained_on != 1)}",
            f"tested on {result['case_count']}",
        ),
        ("Peak memory", NOT_MEASURED if not peak else _bytes(peak), f"image size {settings.get('image_size', '-')} px"),
        (
            "Training time",
            NOT_MEASURED if not pace else _duration(pace * steps) if steps else _duration(pace),
            f"{steps} steps of {pace:.2g} s" if pace and steps else "per step",
        ),
        (
            "Trained parameters",
            NOT_MEASURED if trainable is None else _count(trainable),
            f"{_count(projected)} with projected gradients" if projected is not None else "",
        ),
    ]
    return "".join(
        f'<div class="card{" first" * (index == 0)}"><div class="name">{_text(name)}</div>'
        f'<div class="value">{_text(value)}</div><div class="note">{_text(note)}</div></div>'
        for index, (name, value, note) in enumerate(cards)
    )


def _scores(result: Mapping[str, Any]) -> str:
    head = _cells("th", [_text(heading) for heading in summary.headings(result)])
    *labels, mean = [[_text(cell) for cell in row] for row in summary.rows(result)]
    colours = label_colours(len(labels))
    lines = [
        f"<tr>{_cells('td', [_swatch(colour) + row[0], *row[1:]])}</tr>"
        for row, colour in zip(labels, colours, strict=True)
    ]
    lines.append(f'<tr class="mean">{_cells("td", mean)}</tr>')
    note = PROTOCOL_NOTES.get(result["metric_protocol"], f"Protocol {result['metric_protocol']}.")
    bootstrap = " Intervals: bootstrap over cases; with fewer than about ten cases they are too narrow."
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
        f'<p class="soft small">{_text(note + bootstrap)}</p>'
    )


def _cells(tag: str, cells: Sequence[str]) -> str:
    """Return table cells of already escaped content; the first holds text."""
    return f'<{tag} class="text">{cells[0]}</{tag}>' + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells[1:])


def _swatch(colour: npt.NDArray[np.uint8] | Sequence[int]) -> str:
    return '<span class="swatch" style="background:rgb({}, {}, {})"></span>'.format(*colour)


def _examples(examples: Sequence[Example], labels: Sequence[str]) -> str:
    if not examples:
        return '<p class="soft">No examples.</p>'
    legend = "".join(
        f"<span>{_swatch(colour)}{_text(label)}</span>"
        for label, colour in zip(labels, label_colours(len(labels)), strict=True)
    )
    figures = [
        f"<figure><figcaption><b>{_text(one.role.capitalize())}</b>: {_text(one.name)}"
        f"{'' if one.case == one.name else _text(f' (case {one.case})')}, mean Dice {one.dice:.3f}</figcaption>"
        f'<img alt="{_text(one.name)}: image, truth and prediction side by side" src="{_png(one.picture)}">'
        '<div class="thirds"><span>image</span><span>truth</span><span>prediction</span></div></figure>'
        for one in examples
    ]
    return f'<div class="legend">{legend}</div>{"".join(figures)}'


def _png(picture: Rgb) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((WIDEST_PICTURE, WIDEST_PICTURE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _curves(history: Sequence[Mapping[str, Any]]) -> str:
    """Draw loss and Dice against the step, as an SVG that takes its ink from the page."""
    losses, dices = _series(history, "step", "loss"), _series(history, "evaluation", "dice")
    if not len(losses) and not len(dices):
        return '<p class="soft">No training history.</p>'
    # matplotlib takes a second to import, and nothing else needs it.
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": "medsaga", "font.size": 10}
    style |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    style |= dict.fromkeys(("figure.facecolor", "savefig.facecolor", "axes.facecolor"), "none")
    style |= dict.fromkeys(("axes.spines.top", "axes.spines.right"), False)
    with rc_context(style):
        figure = Figure(figsize=(10, 3.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(losses[:, 0], losses[:, 1], color="#2a8fd0", alpha=0.35, linewidth=1)
        left.plot(losses[:, 0], _smooth(losses[:, 1]), color="#2a8fd0", linewidth=1.8)
        left.set(xlabel="step", ylabel="loss", title="Training loss, and its running mean")
        left.set_ylim(bottom=0)
        right.plot(dices[:, 0], dices[:, 1], color="#d55e00", marker="o", markersize=4, linewidth=1.8)
        right.set(xlabel="step", ylabel="Dice", title="Dice while training, at low resolution", ylim=(0, 1))
        for axes in (left, right):
            axes.grid(visible=True, color=INK, alpha=0.12)
        buffer = io.StringIO()
        FigureCanvasSVG(figure)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawn)


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
        return f'<p class="soft">Peak memory: {NOT_MEASURED}.</p>'
    text = f"<p>Peak of one training step: <b>{_text(_bytes(peak))}</b></p>"
    total = sum(breakdown.values())
    if not total:
        return f'{text}<p class="soft">Breakdown: {NOT_MEASURED}.</p>'
    parts = list(zip(breakdown.items(), label_colours(len(breakdown)), strict=True))
    bar = "".join(
        '<span style="width:{:.3f}%;background:rgb({}, {}, {})"></span>'.format(100 * size / total, *colour)
        for (_, size), colour in parts
    )
    legend = "".join(
        f"<span>{_swatch(colour)}{_text(f'{name} {_bytes(size)}')}</span>" for (name, size), colour in parts
    )
    return f'{text}<div class="bar">{bar}</div><div class="legend">{legend}</div>'


def _cases(result: Mapping[str, Any]) -> str:
    labels = list(result["dice"])
    head = _cells("th", ["image", "case", "mean Dice", *(_text(label) for label in labels)])
    lines = []
    for item in sorted(result["cases"], key=lambda entry: entry["name"]):
        names = [_text(item["name"]), _text(item["case"]), summary.dice_text(item["dice_mean"])]
        lines.append(f"<tr>{_cells('td', [*names, *(_case_score(item, label) for label in labels)])}</tr>")
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
        '<p class="soft small">Dice, and below it HD95.</p>'
    )


def _case_score(item: Mapping[str, Any], label: str) -> str:
    notes = {"only_truth": "missed", "only_prediction": "false positive", "neither": "absent"}
    state, distance = item["state"][label], item["hd95"][label]
    below = "" if distance is None else f'<span class="below">{distance:.2f} {item["hd95_unit"]}</span>'
    if state in notes:
        below += f'<span class="below{" bad" * (state != "neither")}">{notes[state]}</span>'
    return summary.dice_text(item["dice"][label]) + below


def _listing(document: Mapping[str, Any]) -> str:
    """Return a nested document as a table of dotted names and values."""
    rows = "".join(
        f'<tr><td class="text">{_text(name)}</td><td class="text">{_text("-" if value is None else value)}</td></tr>'
        for name, value in _flat(document)
    )
    return f'<div class="wide"><table><tbody>{rows}</tbody></table></div>'


def _flat(document: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in document.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", value))
    return pairs


def _bytes(size: float) -> str:
    return f"{size / MIB:,.0f} MiB" if size >= 10 * MIB else f"{size / MIB:.1f} MiB"


def _count(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number:,}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
