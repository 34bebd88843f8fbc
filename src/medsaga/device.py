"""Which device a run uses."""

from __future__ import annotations

import torch

from medsaga.errors import InputError
from medsaga.planning.defaults import DeviceDefaults

GPU = DeviceDefaults("bf16", 8)
OLDER_GPU = DeviceDefaults("fp16", 8)


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


def defaults_for(device: torch.device) -> DeviceDefaults:
    """Return the settings that suit a device when the user leaves them open.

    On a GPU memory is scarce and half precision fast; GPUs before Ampere have float16 only. On CPUs and MPS float32
    is the safe choice, and rounding the optimizer's state would cost more time than its memory is worth.
    """
    if device.type != "cuda":
        return DeviceDefaults("fp32", 32)
    with torch.cuda.device(device):
        return GPU if torch.cuda.is_bf16_supported(including_emulation=False) else OLDER_GPU


def planned_defaults(name: str) -> DeviceDefaults:
    """Return the settings that suit a device of another machine too: ``cuda`` where there is none is a GPU with bf16.

    Raises:
        InputError: the name is unknown.
    """
    if name.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        return GPU
    return defaults_for(choose_device(name))
