"""Finding and reading files of weights: what is refused, and how the message helps."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file

from medsaga.errors import InputError
from medsaga.models.weights.sources import read_safetensors, read_source

TENSOR = torch.arange(6.0).view(2, 3)
OFFICIAL = {"image_encoder.blocks.10.mlp.lin1.weight": TENSOR}
OWN = "image_encoder.blocks.10.mlp.lin1.weight"
THEIRS = "vision_encoder.layers.10.mlp.lin1.weight"


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        """Say how to "restore" this object."""
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("wrapped", [OFFICIAL, {"model": OFFICIAL, "epoch": 3}, {"state_dict": OFFICIAL}])
@pytest.mark.parametrize("zipped", [True, False])
def test_training_checkpoints_are_unwrapped(tmp_path: Path, wrapped: dict[str, object], zipped: bool) -> None:
    torch.save(wrapped, tmp_path / "medsam.pth", _use_new_zipfile_serialization=zipped)
    file = read_source(tmp_path / "medsam.pth")
    assert (file.path, file.layout, list(file.state)) == (tmp_path / "medsam.pth", "official", [OWN])
    assert torch.equal(file.state[OWN], TENSOR)


def test_the_prefix_of_data_parallel_training_goes(tmp_path: Path) -> None:
    torch.save({f"module.{name}": tensor for name, tensor in OFFICIAL.items()}, tmp_path / "weights.pth")
    assert list(read_source(tmp_path / "weights.pth").state) == [OWN]


@pytest.mark.parametrize("layout", [OFFICIAL, {THEIRS: TENSOR}])
def test_safetensors_come_in_either_layout(tmp_path: Path, layout: dict[str, torch.Tensor]) -> None:
    save_file(layout, tmp_path / "weights.safetensors")
    assert list(read_source(tmp_path / "weights.safetensors").state) == [OWN]


def test_code_in_a_file_is_refused_and_never_runs(tmp_path: Path) -> None:
    torch.save({"model": OFFICIAL, "hook": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="could run any code"):
        read_source(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_truncated_files_are_named(tmp_path: Path, name: str, kept: float) -> None:
    path = tmp_path / name
    content = {"image_encoder.x": torch.zeros(500)}
    if path.suffix == ".pth":
        torch.save(content, path)
    else:
        save_file(content, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(InputError, match=name):
        read_source(path)


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_text("<html>404</html>")
    with pytest.raises(InputError, match=r"weights\.pth.*whole PyTorch file"):
        read_source(tmp_path / "weights.pth")


def test_missing_files_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing of that name"):
        read_source(tmp_path / "absent.pth")
    with pytest.raises(InputError, match=r"model\.safetensors or pytorch_model\.bin"):
        read_source(tmp_path)
    with pytest.raises(InputError, match=r"absent\.safetensors"):
        read_safetensors(tmp_path / "absent.safetensors")


def test_a_folder_gives_its_safetensors_first(tmp_path: Path) -> None:
    torch.save({THEIRS: TENSOR + 1}, tmp_path / "pytorch_model.bin")
    assert torch.equal(read_source(tmp_path).state[OWN], TENSOR + 1)
    save_file({THEIRS: TENSOR}, tmp_path / "model.safetensors")
    assert torch.equal(read_source(str(tmp_path)).state[OWN], TENSOR)


def test_a_hub_id_is_fetched_and_older_models_have_only_a_bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({THEIRS: TENSOR}, tmp_path / "pytorch_model.bin")
    asked = []

    def download(repo_id: str, filename: str, local_files_only: bool = False) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError(filename)
        asked.append((repo_id, filename))
        if not (tmp_path / filename).exists():
            raise EntryNotFoundError(filename)
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert read_source("facebook/sam-vit-base").path == tmp_path / "pytorch_model.bin"
    assert asked == [("facebook/sam-vit-base", name) for name in ("model.safetensors", "pytorch_model.bin")]


def test_a_hub_id_without_the_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"facebook/sam-vit-base.*pip install 'medsaga\[hub\]'"):
        read_source("facebook/sam-vit-base")


def test_no_connection_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo_id: str, filename: str, local_files_only: bool = False) -> str:
        asked.append((filename, local_files_only))
        raise LocalEntryNotFoundError(filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(InputError, match="no connection"):
        read_source("facebook/sam-vit-base")
    assert asked == [("model.safetensors", True), ("pytorch_model.bin", True), ("model.safetensors", False)]


def test_a_hub_id_without_internet_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"facebook/sam-vit-base.*without internet"):
        read_source("facebook/sam-vit-base")
