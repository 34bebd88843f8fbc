"""From a delta file and its base to the model of the run."""

from __future__ import annotations

from pathlib import Path

from medsaga.deltas.base import state_of
from medsaga.deltas.file import check_against, read_delta, restored
from medsaga.memory.meta import on_meta
from medsaga.methods import build_model
from medsaga.models.base import SegmentationModel
from medsaga.settings.run_config import RunConfig


def load_delta(path: Path, base: str | None = None) -> tuple[SegmentationModel, RunConfig]:
    """Put what a delta file says onto its base, tensor by tensor, so that there is never more than one model.

    Args:
        path: of the file.
        base: a source of the base weights, as ``--model`` takes it; by default they are found by their SHA-256.

    Returns:
        the model in float32 on the CPU, of which LoRA's updates are a part of the weights, and the configuration.

    Raises:
        InputError: the file cannot be used, or the base is not there.
    """
    delta, tensors = read_delta(path)
    config = delta.config
    with on_meta():
        model = build_model(config.settings, classes=len(config.labels), in_channels=config.in_channels)
    check_against(path, delta, tensors, model.state_dict())
    state = state_of(delta.base, config, path, base)
    for name in state:
        # Tensors that stay mapped would keep the file open.
        state[name] = restored(name, state[name], delta, tensors).clone()
    model.load_state_dict(state, assign=True)
    model.make_constants()
    model.symmetries = delta.symmetries
    return model, config
