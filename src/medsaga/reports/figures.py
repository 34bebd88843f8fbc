"""Pictures and matplotlib's figures inside a page."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from medsaga.prediction.overlay import Rgb

if TYPE_CHECKING:
    from markupsafe import Markup

Colour = npt.NDArray[np.uint8] | Sequence[int]
"""Red, green and blue, 0 to 255."""

# matplotlib knows no "currentColor": figures are drawn in a colour that occurs nowhere else, which is then replaced.
INK = "#010203"
# The same for what must stand out from the page, such as the rim of a point.
PAPER = "#fdfcfb"


def png(picture: Rgb, widest: int) -> str:
    """Return a picture as the address of an image, reduced to at most ``widest`` pixels a side."""
    image = Image.fromarray(picture)
    image.thumbnail((widest, widest))
    buffer = io.BytesIO()
    # Pillow's `optimize` would take ten times as long, for a fifth of the bytes.
    image.save(buffer, format="PNG")
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


def svg(figure: Any, name: str) -> Markup:
    """Return a matplotlib figure made in `drawing` as an SVG that takes its ink and paper from the page.

    Args:
        figure: a `matplotlib.figure.Figure`.
        name: distinguishes the figures of one page: it begins every id.
    """
    from markupsafe import Markup
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    FigureCanvasSVG(figure)
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    drawn = re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawn)
    # matplotlib escapes the text that it draws.
    return Markup(re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", drawn))
