"""Put the numbers of the judgement into the tables of the pages that show them.

    python -m benchmarks.starter.pages

Tables alone: what the text around them says of a number is for whoever reads it again. ``tests/test_promises.py`` finds
a sentence of the README that the record no longer shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from benchmarks.compare.run import SHOTS
from benchmarks.runs import described
from benchmarks.starter.judge import ASKED, Record, daggers, dice, means
from medsaga import files

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
RECORD = "judgement.json"
NAMES = {
    "spider_lumbar_mr": "vertebra, disc, canal, MR",
    "kvasir_seg_polyp": "polyp, colonoscopy",
    "dsb2018_nuclei": "nuclei, light microscopy",
    "hc18_fetal_us": "fetal head, ultrasound",
    "axondeepseg_sem": "axon and myelin, electron microscopy",
}
ONE, FEW, MOST = ASKED
README_COLUMNS = (
    ((ONE, "starter", "0"),),
    ((FEW, "starter", "0"),),
    ((FEW, "U-Net", "0"),),
    ((MOST, "starter", "0"), (MOST, "starter", "1")),
    ((MOST, "U-Net", "0"),),
    ((MOST, "random", "0"), (MOST, "random", "1")),
)
"""Of each column its runs: cases asked for, contender, seed."""
METHOD_COLUMNS = ("starter", "full", "samed", "U-Net", "frozen", "random")
"""Of ``choose-a-method.md``, with the most cases and seed 0."""
NONE = "-"


class Numbers:
    """The Dice of runs as pages show it: two digits, with the judge's dagger behind it.

    Args:
        records: the runs of the judgement.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self._dice, self._means, self._dagger = dice(records), means(records), daggers(records)

    def of(self, dataset: str | None, asked: str, contender: str, seed: str) -> tuple[str, str] | None:
        """Return a number without its dagger, and with it; of all datasets their mean; None where there is none."""
        if dataset is None:
            found: Any = self._means.get(seed, {}).get(asked, {}).get(contender)
        else:
            found = self._dice[dataset].get(asked, {}).get(contender, {}).get(seed)
        if found is None:
            return None
        sets = tuple(SHOTS) if dataset is None else (dataset,)
        return f"{found:.2f}", f"{found:.2f}{self._dagger(contender, sets, asked, seed)}"


def readme_rows(numbers: Numbers) -> list[tuple[list[str], list[str]]]:
    """Return the rows of the README's table, each with the places in the record that show its numbers."""
    rows = []
    for dataset in (*SHOTS, None):
        cells, shown = [_name(dataset)], []
        for runs in README_COLUMNS:
            texts = []
            for asked, contender, seed in runs:
                if (number := numbers.of(dataset, asked, contender, seed)) is not None:
                    bare, marked = number
                    texts.append(marked)
                    way = f"means/{seed}/{asked}/{contender}"
                    if dataset is not None:
                        way = f"dice/{dataset}/{asked}/{contender}/{seed}"
                    shown.append(f"benchmarks/starter/{RECORD}:{way} = {bare}")
            cells.append(", ".join(texts) or NONE)
        rows.append((cells, shown))
    return rows


def _name(dataset: str | None) -> str:
    if dataset is None:
        return "mean"
    most = SHOTS[dataset][-1]
    fewer = "" if most == int(MOST) else f", {most} cases for {MOST}"
    return f"{NAMES[dataset]} ({dataset}{fewer})"


def rows_of_methods(numbers: Numbers) -> list[list[str]]:
    """Return the rows of the table of ``choose-a-method.md``."""
    rows = []
    for dataset in (*SHOTS, None):
        found = [numbers.of(dataset, MOST, contender, "0") for contender in METHOD_COLUMNS]
        name = "mean" if dataset is None else NAMES[dataset]
        rows.append([name, *(NONE if number is None else number[1] for number in found)])
    return rows


def line(cells: Iterable[str]) -> str:
    """Return a row in Markdown."""
    return f"| {' | '.join(cells)} |"


def replace(page: Path, first: str, lines: Sequence[str], *, to_the_end: bool = True) -> None:
    """Put lines in the place of those of a table from the one that begins as ``first`` does.

    Args:
        page: has one such line.
        first: how it begins.
        lines: the new ones.
        to_the_end: whether all that follow in the table go; else as many as come.
    """
    before = page.read_text(encoding="utf-8").splitlines()
    (at,) = (number for number, each in enumerate(before) if each.startswith(first))
    table = list(takewhile(lambda each: each.startswith("|"), before[at:]))
    end = at + (len(table) if to_the_end else len(lines))
    files.write_text(page, "\n".join([*before[:at], *lines, *before[end:]]) + "\n")


def main() -> None:
    """Do it."""
    described(__doc__).parse_args()
    numbers = Numbers(files.read_json(HERE / RECORD)["runs"])
    rows = readme_rows(numbers)
    name = next(iter(NAMES.values()))
    replace(ROOT / "README.md", f"| {name}", [line(cells) for cells, _ in rows])
    shown = [line((" · ".join(cells), ", ".join(f"`{each}`" for each in places))) for cells, places in rows]
    replace(ROOT / "docs" / "promises.md", f"| {name}", shown, to_the_end=False)
    replace(ROOT / "docs" / "how-to" / "choose-a-method.md", f"| {name}", list(map(line, rows_of_methods(numbers))))
    for table in (HERE / "judgement.md").read_text(encoding="utf-8").split("\n\n"):
        lines = table.splitlines()
        replace(HERE / "README.md", lines[0], lines)


if __name__ == "__main__":
    main()
