"""A real federation on this machine: Flower's SuperLink and two SuperNodes, TLS and keys, with deaths on the way."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import write_toy_dataset

from medsaga.cli import main
from medsaga.federated.processes import free_port
from medsaga.federated.server import State
from medsaga.files import read_json
from medsaga.models.weights.loading import load_model

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="looks at sockets in /proc"),
]
MARK = "MEDSAGA_TEST_OF_SOCKETS"
SECONDS = 900
"""At most, on a machine that does other things besides; a quiet one takes less than half of it."""


def start(folder: Path, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Run a verb of ``medsaga federate`` in a process of its own, whose descendants carry a mark."""
    log = (folder / f"{name}.log").open("ab")
    environment = {**os.environ, MARK: str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "medsaga", "federate", *arguments]
    with log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def wait_for(what: Callable[[], bool], deadline: float, *processes: subprocess.Popen[bytes]) -> None:
    """Wait until something is so."""
    while not what():
        assert time.monotonic() < deadline, "it takes too long"
        assert all(process.poll() is None for process in processes), "a process has ended"
        time.sleep(0.1)


def marked(folder: Path) -> Iterator[Path]:
    """Yield the places in /proc of all processes that carry the mark of a folder."""
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with contextlib.suppress(OSError):
                if f"{MARK}={folder}\0".encode() in (place / "environ").read_bytes():
                    yield place


def remote_addresses(folder: Path) -> set[str]:
    """Return the addresses that the marked processes talk to now, over TCP or UDP."""
    inodes = set()
    for place in marked(folder):
        with contextlib.suppress(OSError):
            for descriptor in (place / "fd").iterdir():
                with contextlib.suppress(OSError):
                    inodes.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        path = Path("/proc/net") / table
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[9] in inodes:
                number = fields[2].partition(":")[0]
                words = [struct.pack("=I", int(number[n : n + 8], 16)) for n in range(0, len(number), 8)]
                found.add(socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, b"".join(words)))
    return found - {"0.0.0.0", "::", "127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.fixture
def strangers(tmp_path: Path) -> Iterator[set[str]]:
    """The addresses beyond this machine that a federation in ``tmp_path`` has talked to so far."""
    met: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            met.update(remote_addresses(tmp_path))

    watcher = threading.Thread(target=look)
    watcher.start()
    yield met
    over.set()
    watcher.join()
    for place in marked(tmp_path):  # of a test that has failed
        with contextlib.suppress(OSError):
            os.kill(int(place.name), signal.SIGKILL)


def test_a_site_and_the_server_are_killed_and_come_back_and_a_site_that_differs_stays_out(
    tmp_path: Path, strangers: set[str]
) -> None:
    deadline, port = time.monotonic() + SECONDS, str(free_port())
    assert main(["federate", "keys", "--out", str(tmp_path / "keys"), "--sites", "north,south,west"]) == 0
    assert all((path.stat().st_mode & 0o077) == 0 for path in (tmp_path / "keys").iterdir())
    for seed, name in enumerate(("north", "south")):
        write_toy_dataset(tmp_path / f"{name}_data", images=3 + seed, seed=seed)
    other = write_toy_dataset(tmp_path / "west_data", images=3)
    (other / "dataset.json").write_text('{"labels": {"background": 0, "disc": 1, "rod": 2}}')
    serving = ["serve", str(tmp_path / "north_data" / "dataset.json"), "--out", str(tmp_path / "server")]
    serving += ["--keys", str(tmp_path / "keys"), "--port", port, "--rounds", "2", "--local-steps", "1"]
    serving += ["--sites", "2", "--timeout", "90", "--model", "tiny", "--random-weights"]
    serving += ["--image-size", "32", "--rank", "4"]

    def joined(name: str) -> subprocess.Popen[bytes]:
        joining = ["join", str(tmp_path / f"{name}_data"), "--out", str(tmp_path / name), "--device", "cpu"]
        joining += ["--server", f"127.0.0.1:{port}", "--key", str(tmp_path / "keys" / f"{name}.key")]
        return start(tmp_path, name, *joining, "--ca", str(tmp_path / "keys" / "ca.pem"))

    def said(name: str) -> str:
        path = tmp_path / f"{name}.log"
        return path.read_text() if path.exists() else ""

    server = start(tmp_path, "server", *serving)
    sites = {name: joined(name) for name in ("north", "south")}
    other_site = joined("west")
    wait_for(lambda: "round 1: training" in said("north"), deadline, server, *sites.values())
    sites["north"].kill()
    sites["north"].wait()
    sites["north"] = joined("north")
    wait_for(lambda: "round 1 of 2" in said("server"), deadline, server)
    server.kill()
    server.wait()
    first = State.load(tmp_path / "server")
    assert first is not None
    assert first.round == 1
    server = start(tmp_path, "server", *serving)
    assert server.wait(max(1, deadline - time.monotonic())) == 0, said("server")
    for site in sites.values():
        assert site.wait(max(1, deadline - time.monotonic())) == 0

    assert other_site.wait(max(1, deadline - time.monotonic())) == 2
    assert "labels: expected those of the federation" in said("west")
    assert "stays out" in said("server")
    assert "rod" not in said("server")

    result = read_json(tmp_path / "server" / "result.json")
    one, two = result["history"]
    assert (one["missing"], list(one["sites"])) == (["north"], ["south"])
    assert (two["missing"], list(two["sites"])) == ([], ["north", "south"])
    assert [site["name"] for site in result["sites"]] == ["north", "south"]
    # What the server has is the mean of what the sites have, to the last bit that a mean in float64 leaves.
    last = State.load(tmp_path / "server")
    assert last is not None
    ends = [torch.load(tmp_path / name / "run/rounds/0002/state.pt", weights_only=True)["model"] for name in sites]
    cases = [two["sites"][name]["cases"] for name in sites]
    for name, weight in last.weights.items():
        mean = sum(count / sum(cases) * end[name].double() for count, end in zip(cases, ends, strict=True))
        torch.testing.assert_close(weight, mean.float(), rtol=0, atol=1e-7)
    model = load_model(tmp_path / "server" / "model.safetensors")
    for name, weight in last.weights.items():
        assert torch.equal(model.state_dict()[name], weight)
    assert strangers == set()
