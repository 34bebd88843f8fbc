"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import no_more_than
from safetensors.torch import save_file

from medsaga import files
from medsaga.errors import InputError


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    files.write_json(path, {"dice": 1})

    def fail_half_way() -> None:
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert files.read_json(path) == {"dice": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limits")
@pytest.mark.parametrize("writer", ["torch", "safetensors", "python"])
def test_a_full_disk_is_called_one_whoever_writes(tmp_path: Path, writer: str) -> None:
    tensors = {"a": torch.zeros(10**5), "b": torch.zeros(10**5)}

    def write() -> None:
        with files.replacing(tmp_path / "file") as temporary:
            if writer == "safetensors":
                save_file(tensors, temporary)
                return
            with temporary.open("wb") as file:
                if writer == "torch":
                    torch.save(tensors, file)
                else:
                    file.write(bytes(10**6))

    with no_more_than(10**5), pytest.raises(OSError, match="File too large") as caught:
        write()
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_the_temporary_name_keeps_the_suffix(tmp_path: Path) -> None:
    with files.replacing(tmp_path / "deep" / "x.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"1")
    assert (tmp_path / "deep" / "x.nii.gz").read_bytes() == b"1"


def test_nothing_stays_of_a_file_whose_writer_was_killed(tmp_path: Path) -> None:
    """Also not of what safetensors writes under a name of its own."""
    folder = tmp_path / "run"
    folder.mkdir()
    write = "import sys, numpy; from safetensors.numpy import save_file\nwhile True: "
    write += "save_file({'weight': numpy.zeros(10**7)}, sys.argv[1])"
    deadline = time.monotonic() + 60
    while not any(path.name.startswith(".tmp") for path in folder.iterdir()):
        writer = subprocess.Popen([sys.executable, "-c", write, str(folder / "model.safetensors")])
        while all(path.name == "model.safetensors" for path in folder.iterdir()):
            assert time.monotonic() < deadline
            assert writer.poll() is None
        writer.kill()
        writer.wait()
    (folder / ".templates").write_text("the user's")
    (folder / ".tmp").mkdir()
    files.remove_temporary(folder)
    assert {path.name for path in folder.iterdir()} <= {"model.safetensors", ".templates", ".tmp"}


def test_json_never_holds_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "x.json", {"dice": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_sha256_of_known_content(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert files.sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe"])
def test_unreadable_json_is_one_clear_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "split.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"split\.json"):
        files.read_json(path)
