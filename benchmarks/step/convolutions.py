"""What the convolutions of `lite` take on one CPU thread, as torch computes them and as medsaga does.

OMP_NUM_THREADS=1 python -m benchmarks.step.convolutions
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.machine import machine
from benchmarks.runs import described
from medsaga import files
from medsaga.models.convolutions import PixelConvolution, depthwise

ROUNDS, BATCH = 15, 4
DEPTHWISE = ((144, 24, 2), (240, 24, 1), (480, 12, 1), (672, 12, 1), (1152, 6, 1))
"""Channels, side of the result at 192 px, and stride of the 5 x 5 kernels."""
PIXELS = ((16, 96, 96), (40, 240, 24), (240, 40, 24), (112, 672, 12), (1152, 192, 6))
"""Channels of inputs and results, and side."""


def milliseconds(works: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Time calls in turn, round after round; return the median CPU milliseconds of each."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            began = time.process_time()
            work()
            times[name].append(1000 * (time.process_time() - began))
    return {name: round(median(each[1:]), 3) for name, each in times.items()}


def there_and_back(convolve: Callable[..., Tensor], *parts: Tensor) -> Callable[[], Any]:
    """Return a call that convolves and takes all gradients."""
    gradient = torch.randn_like(convolve(*parts))
    return lambda: torch.autograd.grad(convolve(*parts), parts, gradient)


def main() -> None:
    """Do it."""
    described(__doc__).parse_args()
    torch.manual_seed(0)
    records = []
    for channels, side, stride in DEPTHWISE:
        inputs = torch.randn(BATCH, channels, (side - 1) * stride + 5, (side - 1) * stride + 5)
        parts = [inputs.contiguous(memory_format=torch.channels_last), torch.randn(channels, 1, 5, 5)]
        parts = [each.requires_grad_() for each in (*parts, torch.randn(channels))]
        plain = there_and_back(lambda x, k, b, s=stride, c=channels: F.conv2d(x, k, b, s, groups=c), *parts)
        ours = there_and_back(lambda x, k, b, s=stride: depthwise(x, k, b, s), *parts)
        found = milliseconds({"torch": plain, "medsaga": ours})
        records.append({"kind": "depthwise 5 x 5", "channels": channels, "side": side, "stride": stride, **found})
    for wide, narrow, side in PIXELS:
        inputs = torch.randn(BATCH, wide, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
        layer = PixelConvolution(wide, narrow, bias=False)
        plain = there_and_back(F.conv2d, inputs, layer.weight)
        ours = there_and_back(lambda x, k, layer=layer: layer._conv_forward(x, k, None), inputs, layer.weight)
        found = milliseconds({"torch": plain, "medsaga": ours})
        records.append({"kind": "single pixels", "channels": wide, "results": narrow, "side": side, **found})
    files.write_json(Path(__file__).parent / "convolutions.json", {"machine": machine(), "convolutions": records})
    for record in records:
        print(record)


if __name__ == "__main__":
    main()
