"""What the README promises is shown: every such sentence has its row in docs/promises.md, with a test or a benchmark.

A sentence promises something if it holds a number or one of the words of `WORDS`. Blocks of code, headings, pictures
and links' addresses are no sentences; each row of a table is one. Digits in a name are no number: see `NAMES`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "promises.md"

WORDS = re.compile(r"\b(never|always|any|bitwise|exact|exactly|same bits)\b", re.IGNORECASE)
NUMBERS = re.compile(
    r"\d|\b(two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|hundreds?|thousands?|half|twice)\b",
    re.IGNORECASE,
)
NAMES = re.compile(
    r"`[^`]*`"  # code: a file, an option with its value
    r"|\b[A-Za-z][A-Za-z_-]*\d[\w.-]*"  # int8, HD95, ViT-B16, Apache-2.0, hc18_fetal_us
    r"|\b\d-D\b|\bSAM \d(\.\d)?|\barXiv \d+\.\d+|\bPython \d\.\d+"
    r"|\b\d+\.\d+\.\d+\b"  # a version
)
TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
VALUE = re.compile(r"(benchmarks/[\w./]+\.json):(.+?)(?: ([*/]) (\d+))? = ([+-]?[\d.,]*\d)")
FILE = re.compile(r"benchmarks/[\w./]+")


def blocks(markdown: str) -> Iterator[str]:
    """Yield the paragraphs, items of lists and rows of tables, each on a line of its own."""
    text = re.sub(r"^```.*?^```$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        begins = line.startswith(("|", "- ", "#")) or not line.strip()
        if begins and lines:
            yield " ".join(lines)
            lines = []
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("| ").split("|")]
            if any(cell.strip("-: ") for cell in cells):
                yield " · ".join(cell for cell in cells if cell)
        elif line.strip() and not line.startswith("#"):
            lines.append(line.strip().removeprefix("- "))


def sentences(markdown: str) -> Iterator[str]:
    """Yield the sentences, with their emphasis and code, without pictures and addresses."""
    for block in blocks(markdown):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", re.sub(r"!\[[^]]*\]\([^)]*\)", "", block))
        yield from (each for each in re.split(r"(?<=[.!?])[*_]*\s+(?=[A-Z*`(\"])", text.strip()) if each)


def plain(sentence: str) -> str:
    """Return a sentence as it is read: without emphasis and backticks."""
    return re.sub(r"[*`]", "", sentence).strip()


def promises(markdown: str) -> list[str]:
    """Return the sentences that promise something, in their order."""
    found = []
    for sentence in sentences(markdown):
        text = NAMES.sub("", sentence)
        if NUMBERS.search(text) or WORDS.search(text):
            found.append(plain(sentence))
    return found


def table(markdown: str, heading: str) -> list[list[str]]:
    """Return the cells of the rows below the table's heading, which is that of its first column."""
    _, _, below = markdown.partition(f"\n| {heading} |")
    rows = [line.strip("| ").split(" | ") for line in below.split("\n\n")[0].splitlines()[2:]]
    assert rows, heading
    return rows


def what_is_wrong(sentence: str, evidence: str) -> str | None:
    """Return in words why something named as evidence shows nothing of a sentence, or None."""
    if test := TEST.fullmatch(evidence):
        path = ROOT / test[1]
        there = path.is_file() and re.search(rf"^(async )?def {test[2]}\(", path.read_text("utf-8"), re.MULTILINE)
        return None if there and test[2].startswith("test_") else "no such test"
    if value := VALUE.fullmatch(evidence):
        name, keys, sign, factor, shown = value.groups()
        number = read(ROOT / name, keys) * (Decimal(factor) if sign == "*" else 1 / Decimal(factor or 1))
        digits = shown.replace(",", "")
        place = Decimal(1).scaleb(-len(digits.partition(".")[2]))
        if not re.search(rf"(?<![\d.,]){re.escape(shown)}(?![.,]?\d)", sentence):
            return f"the sentence does not say {shown}"
        # A number is said well if it is the file's, rounded to the digits that are said.
        return None if abs(number - Decimal(digits)) * 2 <= place else f"the record says {number}"
    return None if FILE.fullmatch(evidence) and (ROOT / evidence).is_file() else "no such file"


def read(path: Path, keys: str) -> Decimal:
    """Return the number in a JSON file at the end of a way of keys and places in lists, with slashes between."""
    found = json.loads(path.read_text("utf-8"), parse_float=Decimal)
    for key in keys.split("/"):
        found = found[int(key) if isinstance(found, list) else key]
    return Decimal(found)


def evidence_of(row: list[str]) -> list[str]:
    return re.findall(r"`([^`]+)`", row[1])


def test_every_promise_has_its_row_and_every_row_its_promise() -> None:
    said = promises(README.read_text("utf-8"))
    listed = [row[0] for row in table(PAGE.read_text("utf-8"), "the README says")]
    assert [sentence for sentence in said if sentence not in listed] == []
    assert [sentence for sentence in listed if sentence not in said] == []
    assert len(listed) == len(set(listed))


def test_what_shows_it_is_there_and_says_the_same() -> None:
    wrong: dict[str, str] = {}
    for row in table(PAGE.read_text("utf-8"), "the README says"):
        assert evidence_of(row), row[0]
        wrong |= {each: why for each in evidence_of(row) if (why := what_is_wrong(row[0], each)) is not None}
    assert wrong == {}


def test_every_benchmark_has_the_command_of_its_readme() -> None:
    page = PAGE.read_text("utf-8")
    named = {
        each.partition(":")[0]
        for row in table(page, "the README says")
        for each in evidence_of(row)
        if each.startswith("benchmarks/")
    }
    commands = {row[0].strip("`"): row[1].strip("`") for row in table(page, "benchmark")}
    assert commands.keys() == named
    for file, command in commands.items():
        assert command in (ROOT / file).with_name("README.md").read_text("utf-8"), file
        module = re.search(r"python -m ([\w.]+)", command)
        assert module is None or (ROOT / f"{module[1].replace('.', '/')}.py").is_file(), command


EXAMPLE = """\
# Never a heading

Reads int8, HD95 and SAM 2.1 in 3-D (arXiv 2407.15042, version 0.1.0). It takes `--budget 4GB`, and **nothing
else**. *It never fails.* [Half of it](any/2) is
exact.

```
always 3
```

- any item
- runs on `two` cores, twice
- says nothing

| | Dice, 95 % |
|---|---|
| **any** | 0.53 |
| anything | none |
"""


def test_a_number_and_a_word_are_told_from_names() -> None:
    assert promises(EXAMPLE) == [
        "It never fails.",
        "Half of it is exact.",
        "any item",
        "runs on two cores, twice",
        "Dice, 95 %",
        "any · 0.53",
    ]


@pytest.mark.parametrize(
    ("evidence", "wrong"),
    [
        ("tests/test_promises.py::test_a_number_and_a_word_are_told_from_names", False),
        ("tests/test_promises.py::test_nothing", True),
        ("tests/test_nothing.py::test_nothing", True),
        ("tests/test_promises.py::promises", True),
        ("benchmarks/memory/lean.json", False),
        ("benchmarks/memory/nothing.json", True),
        ("benchmarks/memory/lean.json:rank = 64", False),
        ("benchmarks/memory/lean.json:rank / 1000 = 0.06", False),
        ("benchmarks/memory/lean.json:rank / 1000 = 0.07", True),
        ("benchmarks/memory/lean.json:rank * 100 = 6,400", False),
        ("benchmarks/memory/lean.json:classes = 64", True),
        ("benchmarks/memory/lean.json:classes = 9", True),
        ("the tests", True),
    ],
)
def test_evidence_that_shows_nothing_is_found(evidence: str, wrong: bool) -> None:
    sentence = "Rank 64 is 0.06, or 0.07, or 6,400, and not 99."
    assert (what_is_wrong(sentence, evidence) is not None) == wrong
