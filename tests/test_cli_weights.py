"""`medsaga weights`: fetching from a server on this machine, what verify refuses, conversion to the same numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from medsaga.cli import main
from medsaga.models.sam import KClassSam, build_sam
from medsaga.models.weights import registry
from medsaga.models.weights.costs import training_costs
from medsaga.models.weights.loading import load_pretrained, save_model
from medsaga.models.weights.registry import KnownWeights, weights_named
from medsaga.models.weights.sources import read_source

CONTENT = bytes(range(256)) * 20_000
NAME = "sam_vit_b_01ec64"


class Server(http.server.ThreadingHTTPServer):
    """Serves ``content`` under /file; ``cut`` ends the connection early, ``ranges`` says if parts can be asked for."""

    content = CONTENT
    cut: int | None = None
    ranges = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that hung up: some tests make it do so."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        """Answer as a file server does."""
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "http://example.org/file")
            self.end_headers()
            return
        if self.path != "/file":
            self.send_error(404)
            return
        first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        part = self.server.content[first:]
        if first and not part:
            self.send_error(416)
            return
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[: self.server.cut])

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    """A file server on this machine."""
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KnownWeights:
    """Known weights whose file is what the server serves; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = dataclasses.replace(weights_named(NAME), sha256=hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(registry, "known_weights", lambda: {NAME: weights})
    return weights


def fetch(server: Server, path: str = "/file") -> int:
    return main(["weights", "fetch", NAME, "--url", server.url + path])


def test_fetched_once_and_whole(server: Server, known: KnownWeights, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(server) == 0
    assert capsys.readouterr().out.strip() == str(known.path)
    assert known.path.read_bytes() == CONTENT
    assert [path.name for path in known.path.parent.iterdir()] == [known.file]
    assert fetch(server) == 0
    assert server.asked == [None], "what is there is not fetched again"
    known.path.write_bytes(CONTENT[:-1])
    assert fetch(server) == 0
    assert known.path.read_bytes() == CONTENT


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_was_cut_off_goes_on(
    server: Server, known: KnownWeights, ranges: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    server.cut = 3_000_000
    assert fetch(server) == 1
    assert "goes on from there" in capsys.readouterr().err
    assert not known.path.exists()
    server.cut, server.ranges = None, ranges
    assert fetch(server) == 0
    assert server.asked == [None, "bytes=3000000-"]
    assert known.path.read_bytes() == CONTENT


def test_a_download_that_only_lacked_its_name_is_finished(server: Server, known: KnownWeights) -> None:
    known.path.parent.mkdir(parents=True)
    known.path.with_name(known.file + ".part").write_bytes(CONTENT)
    assert fetch(server) == 0
    assert known.path.read_bytes() == CONTENT


def test_another_file_is_refused_and_removed(
    server: Server, known: KnownWeights, capsys: pytest.CaptureFixture[str]
) -> None:
    server.content = b"<html>Please log in to the hospital's proxy</html>"
    assert fetch(server) == 1
    message = capsys.readouterr().err
    assert known.sha256 in message
    assert hashlib.sha256(server.content).hexdigest() in message
    assert list(known.path.parent.iterdir()) == []


def test_without_a_connection_the_message_says_what_to_do_by_hand(
    known: KnownWeights, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server() as closed:
        url = closed.url
    assert main(["weights", "fetch", NAME, "--url", f"{url}/file"]) == 1
    message = capsys.readouterr().err
    assert known.url is not None
    for said in ("refused", known.url, str(known.path), f"medsaga weights verify {NAME}"):
        assert said in message
    assert "Traceback" not in message


def test_a_server_without_the_file(server: Server, known: KnownWeights, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(server, "/nothing") == 1
    assert "404" in capsys.readouterr().err


def test_a_full_disk_is_noticed_before_it_is_full(
    server: Server, known: KnownWeights, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(Path(__file__).parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert fetch(server) == 1
    assert "free disk" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://example.org/x.pth", "file:///etc/hostname", "ftp://127.0.0.1/x", "x.pth"])
def test_only_https_is_spoken(known: KnownWeights, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "fetch", NAME, "--url", url]) == 2
    assert "https://" in capsys.readouterr().err


def test_nor_does_a_server_lead_away_from_it(server: Server, known: KnownWeights) -> None:
    assert fetch(server, "/elsewhere") == 2
    assert not known.path.exists()


def test_names_that_are_not_known_and_those_that_need_no_fetching(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "fetch", "medsam"]) == 2
    assert main(["weights", "fetch", "starter"]) == 0
    assert capsys.readouterr().out.strip() == str(weights_named("starter").path)


def test_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["weights", "list", "--json"]) == 0
    documents = json.loads(capsys.readouterr().out)
    assert [(known["name"], known["status"]) for known in documents] == [
        ("starter", "packaged"),
        ("mobile_sam_vit_t", "not fetched"),
        ("sam2.1_hiera_tiny_092824", "not fetched"),
        ("sam2.1_hiera_small_092824", "not fetched"),
        ("sam2.1_hiera_base_plus_092824", "not fetched"),
        ("sam_vit_b_01ec64", "not fetched"),
        ("sam2.1_hiera_large_092824", "not fetched"),
        ("sam_vit_l_0b3195", "not fetched"),
        ("sam_vit_h_4b8939", "not fetched"),
    ]
    place = weights_named(NAME).path
    place.parent.mkdir(parents=True)
    place.touch()
    assert main(["weights", "list"]) == 0
    table = capsys.readouterr().out
    lines = table.splitlines()
    assert max(len(line) for line in lines) <= 100
    for known in documents:
        (line,) = (line for line in lines if line.startswith(known["name"]))
        # The architecture is said where the name does not begin with it.
        assert known["architecture"] in line
        peaks = [round(known[f"peak_memory_bytes_{side}px"] / 2**20) for side in (512, 1024)]
        assert " ".join(map(str, [known["megabytes"], *peaks])) in " ".join(line.split())
        assert f"{known['parameters'] / 1e6:.1f}" in line
        assert known["licence"] in line
    assert main(["weights", "list", NAME, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "fetched"
    assert main(["weights", "list", "starter"]) == 0
    detail = capsys.readouterr().out
    for source in weights_named("starter").data:
        for said in (source.name, source.licence_url, source.authors, source.changes):
            assert said in detail


@pytest.mark.parametrize("width", [60, 76, 80, 99, 100, 140])
def test_the_list_leaves_out_nothing_of_names_and_numbers(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["weights", "list"]) == 0
    said = re.sub("\x1b[^m]*m", "", capsys.readouterr().out)
    table = said.partition("\nparam.")[0].splitlines()
    assert max(map(len, table)) <= max(76, width)
    assert "\N{HORIZONTAL ELLIPSIS}" not in said
    for known in map(registry.describe, registry.known_weights().values()):
        (line,) = (line for line in table if line.startswith(known["name"]))
        peaks = [round(known[f"peak_memory_bytes_{side}px"] / 2**20) for side in (512, 1024)]
        numbers = [f"{known['parameters'] / 1e6:.1f}", str(known["megabytes"]), *map(str, peaks)]
        assert " ".join(numbers) in " ".join(line.split())
        assert known["status"] in line
        assert (known["licence"] in line) == (width >= 100)
    assert ("licence of all: Apache-2.0\n" in said) == (width < 100)


def test_the_page_which_sam_has_the_numbers_of_the_list() -> None:
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "which-sam.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")
    ]
    assert {row[0] for row in rows} == training_costs().keys() - {"tiny"}
    for name, weights, licence, *numbers in rows:
        cost = training_costs()[name]
        time = "not measured" if cost.relative_step_time is None else f"{cost.relative_step_time:.2f}"
        peaks = [f"{size / 2**20:.0f}" for size in (cost.peak_memory_bytes_512px, cost.peak_memory_bytes_1024px)]
        assert numbers == [f"{cost.parameters / 1e6:.1f}", *peaks, time], name
        known = registry.known_weights().get(weights)
        if known is not None:
            assert (known.architecture, known.licence) == (name, licence)


@pytest.fixture(scope="module")
def model() -> KClassSam:
    """A model with SAM's number of masks."""
    torch.manual_seed(3)
    return build_sam("tiny", classes=4, image_size=64)


@pytest.fixture
def official(model: KClassSam, tmp_path: Path) -> Path:
    """Its weights in a file like the published ones."""
    torch.save(model.state_dict(), tmp_path / "official.pth")
    return tmp_path / "official.pth"


def test_verify_describes_what_would_load(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "verify", str(official), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["sha256"] == hashlib.sha256(official.read_bytes()).hexdigest()
    assert document["release"] is None
    assert (document["layout"], document["architecture"], document["image_size"]) == ("official", "tiny", 64)
    assert main(["weights", "verify", "starter"]) == 0
    said = capsys.readouterr().out
    assert weights_named("starter").sha256 in said
    assert weights_named("starter").release in said


def test_verify_fails_just_where_loading_does(
    model: KClassSam, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cut, nan, less = (tmp_path / f"{name}.safetensors" for name in ("cut", "nan", "less"))
    spoilt = state["mask_decoder.mask_tokens.weight"].clone()
    spoilt[1, 2] = float("nan")
    save_file(state | {"mask_decoder.mask_tokens.weight": spoilt}, nan)
    save_file({name: tensor for name, tensor in state.items() if name != "mask_decoder.iou_token.weight"}, less)
    save_model(cut, model)
    cut.write_bytes(cut.read_bytes()[:-100])
    expected = {cut: "whole safetensors", nan: "mask_decoder.mask_tokens.weight", less: "1 missing"}
    for path, message in expected.items():
        assert main(["weights", "verify", str(path)]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.out == ""
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            load_pretrained(model, path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items()), "nothing was loaded"


def test_converted_weights_are_the_same_weights(model: KClassSam, official: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "own.safetensors"
    assert main(["weights", "convert", str(official), str(out)]) == 0
    converted = load_file(out)
    assert converted.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, converted[name]) for name, tensor in model.state_dict().items())
    other = build_sam("tiny", classes=4, image_size=64)
    load_pretrained(other, out)
    assert all(torch.equal(tensor, converted[name]) for name, tensor in other.state_dict().items())


def test_half_is_half_but_for_the_frequencies(model: KClassSam, official: Path, tmp_path: Path) -> None:
    out = tmp_path / "half.safetensors"
    assert main(["weights", "convert", str(official), str(out), "--half"]) == 0
    assert 0.49 < out.stat().st_size / official.stat().st_size < 0.52
    for name, tensor in read_source(out).state.items():
        whole = model.state_dict()[name]
        assert torch.equal(tensor, whole if "gaussian" in name else whole.half())


def test_convert_refuses_to_overwrite_other_suffixes_and_what_half_cannot_hold(
    model: KClassSam, official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there.safetensors"
    there.write_bytes(b"mine")
    assert main(["weights", "convert", str(official), str(there)]) == 2
    assert there.read_bytes() == b"mine"
    assert main(["weights", "convert", str(official), str(tmp_path / "out.pth")]) == 2
    large = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    large["image_encoder.neck.0.weight"] *= 1e8
    save_file(large, tmp_path / "large.safetensors")
    capsys.readouterr()
    arguments = ["weights", "convert", str(tmp_path / "large.safetensors"), str(tmp_path / "out.safetensors")]
    assert main([*arguments, "--half"]) == 2
    assert "image_encoder.neck.0.weight" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
    assert main(arguments) == 0
