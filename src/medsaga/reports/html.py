"""What the pages share: escaping, tables, colours, pictures and figures inside one HTML file that loads nothing."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from medsaga.prediction.overlay import Rgb

MIB = 2**20
NOT_MEASURED = "not measured"
Colour = npt.NDArray[np.uint8] | Sequence[int]
"""Red, green and blue, 0 to 255."""

# matplotlib knows no "currentColor": figures are drawn in a colour that occurs nowhere else, which is then replaced.
INK = "#010203"
# The same for what must stand out from the page, such as the rim of a point.
PAPER = "#fdfcfb"


def page(template: str, **fields: str) -> str:
    """Fill a template of ``templates`` with already escaped fields; ``style.css`` is its field ``style``."""
    folder = resources.files("medsaga.reports").joinpath("templates")
    style = folder.joinpath("style.css").read_text(encoding="utf-8")
    return Template(folder.joinpath(template).read_text(encoding="utf-8")).substitute(fields, style=style)


def text(value: object) -> str:
    """Escape text for HTML; file names that are no valid Unicode show as question marks."""
    return html.escape(unicode_text(value))


def unicode_text(value: object) -> str:
    """Return text that can be written as UTF-8: bytes of file names that are no Unicode become question marks."""
    return str(value).encode("utf-8", "replace").decode("utf-8")


def cells(tag: str, contents: Sequence[str]) -> str:
    """Return table cells of already escaped content; the first holds text."""
    return f'<{tag} class="text">{contents[0]}</{tag}>' + "".join(f"<{tag}>{cell}</{tag}>" for cell in contents[1:])


def table(head: str, lines: Sequence[str]) -> str:
    """Return a table that scrolls where the page is too narrow, from cells of its head and rows (``<tr>``)."""
    top = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(lines)}</tbody></table></div>'


def listing(pairs: Sequence[tuple[str, Any]]) -> str:
    """Return names and values as a table of two columns; None shows as a dash."""
    return table(
        "",
        [
            f'<tr><td class="text">{text(name)}</td><td class="text">{text("-" if value is None else value)}</td></tr>'
            for name, value in pairs
        ],
    )


def flat(document: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return a nested document as pairs of dotted name and value."""
    pairs: list[tuple[str, Any]] = []
    for name, value in document.items():
        if isinstance(value, Mapping):
            pairs += flat(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", value))
    return pairs


def cards(entries: Sequence[tuple[str, object, object]]) -> str:
    """Return name, value and note of the few numbers that come first on a page."""
    return "".join(
        f'<div class="card{" first" * (index == 0)}"><div class="name">{text(name)}</div>'
        f'<div class="value">{text(value)}</div><div class="note">{text(note)}</div></div>'
        for index, (name, value, note) in enumerate(entries)
    )


def swatch(colour: Colour) -> str:
    """Return a small square of a colour."""
    return '<span class="swatch" style="background:rgb({}, {}, {})"></span>'.format(*colour)


def legend(entries: Sequence[tuple[str, Colour]]) -> str:
    """Return names beside their colours."""
    names = "".join(f"<span>{swatch(colour)}{text(name)}</span>" for name, colour in entries)
    return f'<div class="legend">{names}</div>'


def png(picture: Rgb, widest: int) -> str:
    """Return a picture as the address of an image, reduced to at most ``widest`` pixels a side."""
    image = Image.fromarray(picture)
    image.thumbnail((widest, widest))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@contextmanager
def drawing() -> Iterator[None]:
    """Within it, matplotlib's figures are drawn for `svg`: without background, in the page's ink, plain text."""
    # matplotlib takes a second to import, and nothing else needs it.
    from matplotlib import rc_context

    style: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": "medsaga", "font.size": 10}
    style |= {"text.parse_math": False, "axes.titlesize": 11}
    style |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    style |= dict.fromkeys(("figure.facecolor", "savefig.facecolor", "axes.facecolor"), "none")
    style |= dict.fromkeys(("axes.spines.top", "axes.spines.right"), False)
    with rc_context(style):
        yield


def svg(figure: Any, name: str) -> str:
    """Return a matplotlib figure made in `drawing` as an SVG that takes its ink and paper from the page.

    Args:
        figure: a `matplotlib.figure.Figure`.
        name: distinguishes the figures of one page: it begins every id.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    FigureCanvasSVG(figure)
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    drawn = re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawn)
    return re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", drawn)


def bytes_text(size: float) -> str:
    """Return a size for reading, in MiB."""
    return f"{size / MIB:,.0f} MiB" if size >= 10 * MIB else f"{size / MIB:.1f} MiB"


def count_text(number: int) -> str:
    """Return a number of parameters for reading."""
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number:,}"


def duration_text(seconds: float) -> str:
    """Return a duration for reading."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
