"""How pages are made: data go through jinja2 templates, which escape them, into one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from medsaga.evaluation import summary

if TYPE_CHECKING:
    from jinja2 import Environment

    from medsaga.reports.figures import Colour

MIB = 2**20
NOT_MEASURED = "not measured"
NOTICE = "Research software, not a medical device. Not for diagnosis or treatment."


@dataclass(frozen=True)
class Span:
    """Text of a table's cell that is more than plain.

    Attributes:
        text: not escaped; the template does that.
        kind: classes of ``style.css``.
        colour: of the small square before the text.
        strong: whether it is bold.
    """

    text: str
    kind: str = ""
    colour: Colour | None = None
    strong: bool = False


Content = str | Span | Sequence[str | Span]
"""Of a table's cell."""


@dataclass(frozen=True)
class TableRow:
    """A row of a table; a ``group`` or ``problem`` has one cell that spans the table."""

    cells: Sequence[Content]
    kind: Literal["", "mean", "group", "problem"] = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column holds names; ``timed`` sets its last column, of seconds, apart."""

    head: Sequence[str]
    rows: Sequence[TableRow]
    timed: bool = False


def render(template: str, **data: Any) -> str:
    """Fill a template of ``templates``; text that is no ``Markup`` is escaped, and a missing field is an error."""
    return unicode_text(_environment().get_template(template).render(data))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("medsaga.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {"not_measured": NOT_MEASURED, "notice": NOTICE}
    environment.filters |= {"bytes": bytes_text, "count": count_text, "duration": duration_text, "rgb": rgb_text}
    environment.filters |= {"dice": summary.dice_text, "interval": summary.interval_text, "hd95": summary.hd95_text}
    return environment


def unicode_text(value: object) -> str:
    """Return text that can be written as UTF-8: bytes of file names that are no Unicode become question marks."""
    return str(value).encode("utf-8", "replace").decode("utf-8")


def flat(document: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return a nested document as pairs of dotted name and value."""
    pairs: list[tuple[str, Any]] = []
    for name, value in document.items():
        if isinstance(value, Mapping):
            pairs += flat(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", value))
    return pairs


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


def rgb_text(colour: Colour) -> str:
    """Return a colour for CSS."""
    return "rgb({}, {}, {})".format(*colour)
