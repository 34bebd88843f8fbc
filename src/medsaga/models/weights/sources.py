"""Finding and reading files of weights."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from medsaga.errors import InputError
from medsaga.models.weights.names import State, layout_of
from medsaga.models.weights.registry import known_as

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""Where a Hugging Face folder keeps its weights, best first."""


@dataclass(frozen=True)
class SourceFile:
    """A file of weights that has been read.

    Attributes:
        path: the file.
        layout: ``official``, ``transformers`` or ``efficientnet``: whose names its tensors had.
        state: its tensors under our names.
        metadata: what else a safetensors file says.
        absent: how the names of a model's tensors begin that no file of this layout has.
    """

    path: Path
    layout: str
    state: State
    metadata: Mapping[str, str]
    absent: tuple[str, ...] = ()


def read_source(source: str | Path) -> SourceFile:
    """Read the tensors of a source of weights, as in :func:`locate`, without running code that it holds.

    Raises:
        InputError: nothing is there, or it cannot be read.
    """
    path = locate(source)
    raw, metadata = read_safetensors(path) if path.suffix == ".safetensors" else (_read_pickle(path), {})
    layout = layout_of(raw)
    return SourceFile(path, layout.name, layout.rename(raw), metadata, layout.absent)


def locate(source: str | Path) -> Path:
    """Return the file that holds the weights.

    Args:
        source: the name of known weights, such as ``starter``; a file; a folder that transformers saved; or a hub id,
            which is downloaded once. The first of these that it is counts.

    Raises:
        InputError: it is none, or not there.
    """
    known = known_as(source)
    if known is not None:
        return known.located()
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        for name in HUB_FILES:
            if (path / name).is_file():
                return path / name
        raise InputError(
            source,
            expected=" or ".join(HUB_FILES),
            found="a folder without either",
            do="Name a folder that transformers saved, or a file of weights.",
        )
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)) and path.suffix not in (".pth", ".pt", ".safetensors"):
        return _download(str(source))
    raise InputError(
        source,
        expected="a file or folder of weights, a hub id, the name of an architecture, or one of `medsaga weights list`",
        found="nothing of that name",
        do="Check the path; without the internet, copy the file to this machine and name it.",
    )


def _download(hub_id: str) -> Path:
    """Return the file of weights of a model on the Hugging Face hub, from the local cache when it is there."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise InputError(
            hub_id,
            expected="a local path, or the package huggingface_hub, which downloads models from the Hugging Face hub",
            found="a hub id, and no such package",
            do="pip install 'medsaga[hub]'; or download the model elsewhere and name its folder.",
        ) from None
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    for name in HUB_FILES:
        with contextlib.suppress(EntryNotFoundError, HFValidationError):
            return Path(hf_hub_download(hub_id, name, local_files_only=True))
    problems = []
    for name in HUB_FILES:
        try:
            return Path(hf_hub_download(hub_id, name))
        except LocalEntryNotFoundError:
            problems.append("no connection, and nothing in the cache")
            break  # a second file would only wait through the same retries
        except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
            problems.append(f"{type(error).__name__} for {name}")
    raise InputError(
        hub_id,
        expected="a local path, or a model on the Hugging Face hub that can be reached",
        found="; ".join(problems),
        do="Check the name. On a machine without internet, download the model elsewhere and name its folder.",
    )


def read_safetensors(path: Path) -> tuple[State, Mapping[str, str]]:
    """Return tensors and metadata of a safetensors file."""
    try:
        with _in_utf_8(path) as name:
            with safe_open(name, framework="pt") as file:
                metadata = file.metadata() or {}
            return load_file(name), metadata
    except (SafetensorError, OSError) as error:
        raise InputError(
            path, expected="a whole safetensors file", found=str(error), do="Copy or download it again."
        ) from None


@contextlib.contextmanager
def _in_utf_8(path: Path) -> Iterator[str]:
    """Yield a name of a file that safetensors takes, which knows names in UTF-8 only."""
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError:
        # Only on systems with descriptors as files are there such names.
        with path.open("rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield os.fspath(path)


def _read_pickle(path: Path) -> State:
    """Return the tensors of a PyTorch file without running any code in it."""
    try:
        # Only files in the zip format can be mapped; the tensors of others are read at once.
        return _unwrap(torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)))
    except Exception as error:  # a damaged archive raises whatever the damage hits first
        # In a whole archive the pickle itself is whole, so that what torch refuses there is code.
        if isinstance(error, pickle.UnpicklingError) and ("GLOBAL" in str(error) or zipfile.is_zipfile(path)):
            raise InputError(
                path,
                expected="tensors only",
                found="pickled Python objects, which could run any code",
                do="Ask its author for the state dict alone, or for a .safetensors file.",
            ) from None
        raise InputError(
            path,
            expected="a whole PyTorch file",
            found="a damaged file, or one of another kind",
            do="Copy or download it again and compare its SHA-256.",
        ) from None


def _unwrap(content: Any) -> State:
    """Take the state dict out of a training checkpoint, and the prefix of data-parallel training off its names."""
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        return {}
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    return {name.removeprefix("module."): value for name, value in tensors.items()}
