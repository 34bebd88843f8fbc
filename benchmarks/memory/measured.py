"""The predicted peak of a training step beside the measured one, and the time of a step.

    python -m benchmarks.memory.measured --device cuda --out benchmarks/memory      # on a GPU
    python -m benchmarks.memory.measured --device cpu --out benchmarks/memory       # small settings only

On a GPU the measured peak is the allocator's own, `torch.cuda.max_memory_allocated`; on a CPU it is that of all
tensors. Images are noise: neither memory nor time depends on what they show.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.runs import described
from medsaga import files
from medsaga.data.augment import AUGMENTATIONS
from medsaga.device import choose_device
from medsaga.memory.tracker import device_peak, reset_device_peak
from medsaga.methods import build_model, method_named, new_optimizer
from medsaga.models.precision import set_precision
from medsaga.planning.defaults import DeviceDefaults
from medsaga.planning.estimate import predict_memory
from medsaga.planning.resolve import Facts, resolve
from medsaga.settings.options import ResolvedSettings, Settings
from medsaga.training.loss import Objective
from medsaga.training.scaling import loss_scale_for
from medsaga.training.step import Batch, StepMeter, accumulate, update

CLASSES = 9
STEPS = 12
GPU_SETTINGS: list[dict[str, Any]] = [
    *(
        {"model": "vit_b", "image_size": size, "batch_size": 2, "precision": precision}
        for size in (224, 512, 1024)
        for precision in ("fp32", "bf16", "fp16", "int8")
    ),
    {"model": "vit_b", "image_size": 512, "batch_size": 12, "micro_batch_size": 1, "precision": "bf16"},
    {"model": "vit_b", "image_size": 512, "batch_size": 12, "micro_batch_size": 12, "precision": "bf16"},
    {"model": "vit_b", "image_size": 512, "batch_size": 2, "precision": "bf16", "checkpointing": "none"},
    {"model": "vit_b", "image_size": 512, "batch_size": 2, "precision": "fp32", "method": "full"},
    *({"model": "vit_h", "image_size": 1024, "batch_size": 1, "precision": bits} for bits in ("bf16", "fp16", "int8")),
]
CPU_SETTINGS: list[dict[str, Any]] = [
    *(
        {"model": "tiny", "image_size": size, "batch_size": 4, "precision": precision, "state_bits": bits}
        for size in (128, 256)
        for precision, bits in (("fp32", 32), ("bf16", 32), ("bf16", 8), ("int8", 8))
    ),
    {"model": "tiny", "image_size": 256, "batch_size": 4, "micro_batch_size": 1},
    {"model": "tiny", "image_size": 256, "batch_size": 4, "checkpointing": "blocks"},
    {"model": "tiny", "image_size": 256, "batch_size": 4, "method": "full"},
    {"model": "vit_b", "image_size": 224, "batch_size": 1, "precision": "bf16", "state_bits": 8},
]


def measure(settings: ResolvedSettings, device: torch.device, steps: int) -> dict[str, Any]:
    """Make some training steps and return the predicted and the measured peak, and the median time of a step."""
    predicted = predict_memory(settings, classes=CLASSES, in_channels=3)
    torch.manual_seed(0)
    model = build_model(settings, classes=CLASSES, in_channels=3)
    method_named(settings.method).adapt(model, settings)
    model.checkpoint_blocks = settings.checkpointing == "blocks"
    set_precision(model, settings.precision)
    model.to(device).train()
    optimizer = new_optimizer(model, settings)
    meter = StepMeter(device, first=0, refresh_every=2)
    scale = loss_scale_for(settings.precision)
    reset_device_peak(device)
    seconds = []
    side = settings.image_size
    for step in range(steps):
        images = torch.randint(0, 256, (settings.batch_size, 3, side, side), dtype=torch.uint8)
        labels = torch.randint(0, CLASSES, (settings.batch_size, side, side), dtype=torch.uint8)
        batch = Batch(images, labels, settings.seed, step, AUGMENTATIONS[settings.augmentation])
        began = time.perf_counter()
        with meter.measuring(model, optimizer, batch):
            accumulate(
                model,
                optimizer,
                batch,
                micro_batch_size=settings.micro_batch_size,
                objective=Objective.of(settings),
                scale=scale,
                meter=meter,
            )
            update(optimizer, max_gradient_norm=settings.max_gradient_norm, scale=scale)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    optimizer.close()
    measured = device_peak(device) or meter.tracker.peak_bytes
    return {
        "predicted_mib": predicted.peak_bytes / 2**20,
        "measured_mib": measured / 2**20,
        "predicted_to_measured": predicted.peak_bytes / measured,
        "seconds_per_step": median(seconds[2:]) if len(seconds) > 2 else None,
    }


def main() -> None:
    """Do it."""
    parser = described(__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    on_gpu = device.type == "cuda"
    defaults = DeviceDefaults("bf16", 8) if on_gpu else DeviceDefaults("fp32", 32)
    facts = Facts(device=defaults, classes=CLASSES, channels=3)
    rows = []
    for given in GPU_SETTINGS if on_gpu else CPU_SETTINGS:
        # A change of subspace after every second step, so that few steps show all that a run does.
        settings = resolve(Settings(**given, refresh_every=2), facts)
        try:
            numbers = measure(settings, device, STEPS if on_gpu else 2)
        except torch.OutOfMemoryError as error:
            numbers = {"out_of_memory": str(error).splitlines()[0]}
        rows.append({"settings": given, **numbers})
        print(given, {name: value for name, value in numbers.items() if value is not None}, flush=True)
    name = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    document = {"device": name, "torch": torch.__version__, "rows": rows}
    files.write_json(arguments.out / f"measured_{device.type}.json", document)


if __name__ == "__main__":
    main()
