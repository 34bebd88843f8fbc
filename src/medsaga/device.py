"""Which device a run uses."""

from __future__ import annotations

import torch

from medsaga.errors import InputError


def choose_device(name: str = "auto") -> torch.device:
    """Return the device for ``auto`` (CUDA, else Apple MPS, else the CPU) or for a name such as ``cuda:1``.

    Raises:
        InputError: the name is unknown or this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    usable = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not usable.get(device.type, False):
        here = [kind for kind, there in {**usable, "cuda": torch.cuda.is_available()}.items() if there]
        raise InputError(
            "--device", expected=f"a device of this machine ({', '.join(here)})", found=name, do="Name one, or auto."
        )
    return device


def kind_of_device(name: str) -> str:
    """Return ``cpu``, ``cuda`` or ``mps`` for the name of a device of this machine or another one."""
    return choose_device().type if name == "auto" else name.partition(":")[0]


def free_memory(device: torch.device) -> int | None:
    """Return the free memory of an accelerator in bytes; None for a CPU, and for MPS, which shares the host's."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


def release_cached_memory() -> None:
    """Give memory of freed tensors, which the accelerator's allocator keeps, back to the accelerator."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
