"""Whether the weights of all processes are the same bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medsaga.distributed.group import Group
from medsaga.errors import RunError
from medsaga.models.int8 import plain_state

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def require_same_weights(group: Group, model: nn.Module) -> None:
    """Compare a fingerprint of each weight over the processes.

    Raises:
        RunError: they differ; the message names the first such weight, and the processes.
    """
    if group.size == 1:
        return
    state = plain_state(model)
    prints = group.gather(torch.stack([fingerprint(tensor).cpu() for tensor in state.values()]))
    differs = (prints != prints[0]).any(0)
    if differs.any():
        place = int(differs.int().argmax())
        others = ", ".join(str(rank) for rank in range(group.size) if prints[rank, place] != prints[0, place])
        error = RunError(
            f"the weights of the processes have become different: {list(state)[place]} of process {others} is not that "
            "of process 0. Use devices of one kind and the same versions on all machines, and go on with --resume."
        )
        raise group.told_once(error)


@torch.no_grad()
def fingerprint(tensor: Tensor) -> Tensor:
    """Return a number, int64 on the tensor's device, that other bits, or the same in another order, change.

    Each word of the tensor's memory counts with the odd number of its place, modulo 2^64.
    """
    words = tensor.contiguous().flatten().view(_WORDS[tensor.itemsize]).long()
    return (words * (2 * torch.arange(words.numel(), device=tensor.device) + 1)).sum()
