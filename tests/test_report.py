"""The HTML report: numbers, pictures, escaping, and that it loads nothing."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from medsaga.evaluation.protocols import LabelScore
from medsaga.evaluation.summary import ItemScores, summarise
from medsaga.reports.environment import render
from medsaga.reports.run import WIDEST_PICTURE, Example, choose_examples, write_report

MIB = 2**20
COST = {
    "peak_memory_bytes": 980 * MIB,
    "memory_breakdown": {"weights": 176 * MIB, "gradients": 4 * MIB, "activations": 800 * MIB},
    "seconds_per_step": 1.5,
    "trainable_parameters": 91_234_567,
    "projected_parameters": 84_000_000,
    "cases_trained_on": 4,
}
SETTINGS = {"method": "medsaga", "model": "vit_b", "image_size": 512, "encoder_lr": None, "nested": {"rank": 64}}
MANIFEST = {"versions": {"medsaga": "1.2.3", "torch": "2.13.0"}, "model": {"sha256": "abc123"}}
HISTORY = [
    *({"kind": "step", "step": step, "loss": 1 / step, "seconds": 1.5} for step in range(1, 101)),
    *({"kind": "evaluation", "step": step, "dice": step / 200} for step in range(20, 101, 20)),
]
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Elements, text and the addresses that a browser would load; fails on tags that do not match."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(source)
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "srcset")]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data + "\n"


def scores(liver: str = "liver") -> dict[str, Any]:
    return summarise(
        [
            ItemScores("scan1", "P1", {liver: LabelScore(0.8125, 3.25, "both", "mm")}),
            ItemScores("scan2", "P2", {liver: LabelScore(0.0, None, "only_truth", "mm")}),
            ItemScores("scan3", "P3", {liver: LabelScore(None, None, "neither", "mm")}),
        ],
        "mm",
    )


def report(path: Path, **changes: Any) -> str:
    picture = np.full((40, 130, 3), 90, dtype=np.uint8)
    arguments: dict[str, Any] = {
        "settings": SETTINGS,
        "result": {**scores(), **COST},
        "history": HISTORY,
        "examples": [Example("scan1", "P1", 0.8125, picture, "best"), Example("scan2", "P2", 0.0, picture, "worst")],
        "manifest": MANIFEST,
    }
    write_report(path, **{**arguments, **changes})
    return path.read_text(encoding="utf-8")


def test_the_numbers_are_there(tmp_path: Path) -> None:
    page = Page(report(tmp_path / "report.html"))
    for expected in (
        "medsaga vit_b",
        "protocol mm",
        "0.406",
        "3.25 mm",
        "4 cases",
        "980 MiB",
        "100 steps of 1.5 s",
        "91.23 M",
        "84.00 M with projected gradients",
        "HD95 [mm]",
        "missed",
        "absent",
        "weights 176 MiB",
        "nested.rank",
        "versions.torch",
        "abc123",
        "Made with medsaga 1.2.3",
        "Research software, not a medical device",
    ):
        assert expected in page.text, expected


@pytest.mark.parametrize("layers", ["queries and values", "pointwise convolutions"])
def test_it_says_what_lora_updates(tmp_path: Path, layers: str) -> None:
    page = Page(
        report(tmp_path / "report.html", result={**scores(), **COST, "projected_parameters": 0, "lora": layers})
    )
    assert f"LoRA on {layers}" in page.text
    assert "projected gradients" not in page.text


@pytest.mark.parametrize(("form", "said"), [("linear", "medsaga's own form"), ("squared", "smoothing 1e-5")])
def test_it_says_which_dice_was_trained_with(tmp_path: Path, form: str, said: str) -> None:
    page = Page(report(tmp_path / "report.html", settings={**SETTINGS, "dice_weight": 0.6, "dice_form": form}))
    assert "Loss: 0.4 cross-entropy + 0.6 Dice loss." in page.text
    assert said in page.text


def test_it_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    source = report(tmp_path / "report.html")
    page = Page(source)
    assert page.tags.count("img") == 2
    assert page.tags.count("svg") == 1
    assert page.loads
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.loads)
    assert "http:" not in source
    assert "https:" not in source
    assert "@import" not in source
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_the_curves_take_their_ink_from_the_page(tmp_path: Path) -> None:
    """Black axes would vanish on a dark page, and a white background would glare."""
    svg = report(tmp_path / "report.html").partition("<svg")[2].partition("</svg>")[0]
    assert svg.count("currentColor") > 10
    assert "#ffffff" not in svg
    assert "#010203" not in svg


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    assert report(tmp_path / "a.html") == report(tmp_path / "b.html")


def test_names_from_files_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"><img src=http://evil.example/a.png onerror=x>$cards &amp;"
    result = {**scores(evil), **COST, "memory_breakdown": {evil: 5}, "metric_protocol": evil}
    result["cases"][0].update(name=evil, case=evil)
    example = Example(evil, evil + "2", 0.5, np.zeros((8, 24, 3), dtype=np.uint8), "best")
    source = report(
        tmp_path / "report.html",
        settings={evil: evil, "method": evil, "model": evil},
        result=result,
        examples=[example],
        manifest={"versions": {"medsaga": evil}, evil: [evil]},
    )
    page = Page(source)
    assert "script" not in page.tags
    assert page.tags.count("img") == 1
    assert "<script" not in source
    assert page.text.count(evil) >= 10


def test_names_that_are_no_unicode_are_shown_all_the_same(tmp_path: Path) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    result = {**scores(name), **COST}
    assert "caf?" in Page(report(tmp_path / "report.html", result=result)).text


def test_the_pictures_come_back_and_huge_ones_are_reduced(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (30, 90, 3), dtype=np.uint8)
    huge = np.zeros((900, 2 * WIDEST_PICTURE, 3), dtype=np.uint8)
    examples = [Example("a", "a", 0.9, small, "best"), Example("b", "b", 0.1, huge, "worst")]
    loads = [address for address in Page(report(tmp_path / "r.html", examples=examples)).loads if address[0] != "#"]
    decoded = [Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))) for address in loads]
    np.testing.assert_array_equal(np.asarray(decoded[0]), small)
    assert decoded[1].size == (WIDEST_PICTURE, 450)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    page = Page(report(tmp_path / "report.html", settings={}, result=scores(), history=[], examples=[], manifest={}))
    assert page.text.count("not measured") == 5
    assert "No training history." in page.text
    assert "No examples." in page.text


def test_one_case_and_nothing_counted(tmp_path: Path) -> None:
    result = summarise([ItemScores("a", "A", {"liver": LabelScore(None, None, "neither", "px")})], "transunet")
    page = Page(report(tmp_path / "report.html", result={**result, "peak_memory_bytes": 5 * MIB}))
    assert "no interval: one case" in page.text
    assert "protocol transunet" in page.text
    assert "5.0 MiB" in page.text


def test_without_a_test_case_there_are_no_empty_tables(tmp_path: Path) -> None:
    page = Page(report(tmp_path / "report.html", result={**summarise([], "mm"), **COST}, examples=[]))
    assert "no case was held out to test on" in page.text
    for absent in ("one case", "Scores per label", "Examples", "Scores per image"):
        assert absent not in page.text
    assert "Training" in page.text


@pytest.mark.parametrize("history", [HISTORY[:1], HISTORY[-1:], [{"kind": "step", "step": 1, "loss": float("nan")}]])
def test_short_and_non_finite_histories_are_drawn(tmp_path: Path, history: list[dict[str, Any]]) -> None:
    assert "Memory" in Page(report(tmp_path / "report.html", history=history)).text


def test_long_histories_stay_small(tmp_path: Path) -> None:
    long = [{"kind": "step", "step": step, "loss": 1 + step % 7} for step in range(30_000)]
    assert len(report(tmp_path / "report.html", history=long)) < 200_000


def test_a_field_that_nobody_gave_is_an_error_and_no_gap() -> None:
    with pytest.raises(UndefinedError, match="title"):
        render("base.html", cards=[], subtitle="", version="")


def test_best_median_and_worst() -> None:
    scores = [("d", 0.1), ("a", 0.9), ("c", 0.5), ("b", 0.7), ("e", 0.6)]
    assert choose_examples(scores) == {"best": "a", "median": "e", "worst": "d"}
    assert choose_examples([("b", 0.5), ("a", 0.5), ("c", 0.5)]) == {"best": "a", "median": "b", "worst": "c"}
    assert choose_examples([("a", 0.2), ("b", 0.4)]) == {"best": "b", "worst": "a"}
    assert choose_examples([("a", 0.2)]) == {"best": "a"}
    assert choose_examples([]) == {}
