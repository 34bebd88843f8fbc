"""Finding and reading files of SAM weights, and the two layouts of names that they come in.

The official release, MedSAM and most fine-tuned files share one layout; transformers has another, which is also ours.
"""

from __future__ import annotations

import contextlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from medsaga.errors import InputError
from medsaga.models.weights.registry import known_as

State = dict[str, Tensor]

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""Where a Hugging Face folder keeps its weights, best first."""

_OFFICIAL_NAMES = {
    "image_encoder.pos_embed": "vision_encoder.pos_embed",
    "image_encoder.patch_embed.proj.": "vision_encoder.patch_embed.projection.",
    "image_encoder.blocks.#.norm1.": "vision_encoder.layers.#.layer_norm1.",
    "image_encoder.blocks.#.norm2.": "vision_encoder.layers.#.layer_norm2.",
    "image_encoder.blocks.": "vision_encoder.layers.",
    "image_encoder.neck.0.": "vision_encoder.neck.conv1.",
    "image_encoder.neck.1.": "vision_encoder.neck.layer_norm1.",
    "image_encoder.neck.2.": "vision_encoder.neck.conv2.",
    "image_encoder.neck.3.": "vision_encoder.neck.layer_norm2.",
    "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (
        "prompt_encoder.shared_embedding.positional_embedding"
    ),
    "prompt_encoder.point_embeddings.": "prompt_encoder.point_embed.",
    "prompt_encoder.mask_downscaling.0.": "prompt_encoder.mask_embed.conv1.",
    "prompt_encoder.mask_downscaling.1.": "prompt_encoder.mask_embed.layer_norm1.",
    "prompt_encoder.mask_downscaling.3.": "prompt_encoder.mask_embed.conv2.",
    "prompt_encoder.mask_downscaling.4.": "prompt_encoder.mask_embed.layer_norm2.",
    "prompt_encoder.mask_downscaling.6.": "prompt_encoder.mask_embed.conv3.",
    "mask_decoder.transformer.layers.#.norm1.": "mask_decoder.transformer.layers.#.layer_norm1.",
    "mask_decoder.transformer.layers.#.norm2.": "mask_decoder.transformer.layers.#.layer_norm2.",
    "mask_decoder.transformer.layers.#.norm3.": "mask_decoder.transformer.layers.#.layer_norm3.",
    "mask_decoder.transformer.layers.#.norm4.": "mask_decoder.transformer.layers.#.layer_norm4.",
    "mask_decoder.transformer.norm_final_attn.": "mask_decoder.transformer.layer_norm_final_attn.",
    "mask_decoder.output_upscaling.0.": "mask_decoder.upscale_conv1.",
    "mask_decoder.output_upscaling.1.": "mask_decoder.upscale_layer_norm.",
    "mask_decoder.output_upscaling.3.": "mask_decoder.upscale_conv2.",
    "mask_decoder.output_hypernetworks_mlps.#.layers.0.": "mask_decoder.output_hypernetworks_mlps.#.proj_in.",
    "mask_decoder.output_hypernetworks_mlps.#.layers.1.": "mask_decoder.output_hypernetworks_mlps.#.layers.0.",
    "mask_decoder.output_hypernetworks_mlps.#.layers.2.": "mask_decoder.output_hypernetworks_mlps.#.proj_out.",
    "mask_decoder.iou_prediction_head.layers.0.": "mask_decoder.iou_prediction_head.proj_in.",
    "mask_decoder.iou_prediction_head.layers.1.": "mask_decoder.iou_prediction_head.layers.0.",
    "mask_decoder.iou_prediction_head.layers.2.": "mask_decoder.iou_prediction_head.proj_out.",
}
"""How names of the official layout begin, and ours; # is a number. The first that fits counts; others are the same."""
_RENAMES = [
    (re.compile(re.escape(official).replace(r"\#", r"(\d+)")), own.replace("#", r"\1"))
    for official, own in _OFFICIAL_NAMES.items()
]
_TRANSFORMERS_COPY = "shared_image_embedding.positional_embedding"
"""transformers' second name for the frequencies of the positional embedding; a file may hold either or both."""


@dataclass(frozen=True)
class SourceFile:
    """A file of weights that has been read.

    Attributes:
        path: the file.
        layout: ``official`` or ``transformers``, the layout it was in.
        state: its tensors under our names.
        metadata: what else a safetensors file says.
    """

    path: Path
    layout: str
    state: State
    metadata: Mapping[str, str]


def read_source(source: str | Path) -> SourceFile:
    """Read the tensors of a source of weights, as in :func:`locate`, without running code that it holds.

    Raises:
        InputError: nothing is there, or it cannot be read.
    """
    path = locate(source)
    raw, metadata = read_safetensors(path) if path.suffix == ".safetensors" else (_read_pickle(path), {})
    if any(name.startswith("image_encoder.") for name in raw):
        return SourceFile(path, "official", {_own_name(name): tensor for name, tensor in raw.items()}, metadata)
    copy = raw.pop(_TRANSFORMERS_COPY, None)
    if copy is not None:
        raw.setdefault("prompt_encoder.shared_embedding.positional_embedding", copy)
    return SourceFile(path, "transformers", raw, metadata)


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
    from huggingface_hub import hf_hub_download
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
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return load_file(path), metadata
    except (SafetensorError, OSError) as error:
        raise InputError(
            path, expected="a whole safetensors file", found=str(error), do="Copy or download it again."
        ) from None


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


def _own_name(official: str) -> str:
    """Translate a name of the official layout to ours."""
    for pattern, own in _RENAMES:
        if pattern.match(official):
            return pattern.sub(own, official, count=1)
    return official
