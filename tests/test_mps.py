"""What Apple's MPS lacks is not asked of it.

No such machine is needed: a memory prediction goes through training and inference on the meta device, by the code that
an accelerator runs, and every operation on it is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from resolved import resolved
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import medsaga
from medsaga.data.letterbox import unletterbox
from medsaga.methods import METHODS
from medsaga.planning import shapes
from medsaga.planning.estimate import predict_memory

ABSENT = re.compile(
    # Not in every release of torch since 2.6 (pytorch issues 77764 and 141287, coverage of MPS).
    r"upsample_bicubic2d|_upsample_\w+_aa|grid_sampler_3d|_linalg_(svd|eigh|eigvals|solve_ex)|linalg_(qr|lstsq)"
)
SVD = re.compile(r"_linalg_svd")
"""`medsaga.optim.projection._svd` sends this one to the CPU; see below."""
BORDER = 1
"""Padding mode of grid_sampler_2d (pytorch issue 125098: unsupported border padding mode)."""


class AsOnMps(TorchDispatchMode):
    """Refuses what MPS lacks, of tensors on the meta device.

    Attributes:
        seen: names of the operations that came by.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, made)) if isinstance(leaf, Tensor) and leaf.is_meta]
        if tensors:
            name = func.overloadpacket.__name__
            self.seen.add(name)
            assert SVD.search(name) or not ABSENT.search(name), name
            for tensor in tensors:  # "Cannot convert a MPS Tensor to float64 dtype"; complex128 is made of it
                assert tensor.dtype not in (torch.float64, torch.complex128), (name, tensor.dtype)
            if name == "grid_sampler_2d":
                assert args[3] != BORDER
        return made


@pytest.mark.parametrize(
    "method",
    [
        # One for each model.
        pytest.param(name, marks=[] if name in ("medsaga", "unet") else pytest.mark.exhaustive)
        for name in METHODS
    ],
)
def test_nothing_that_mps_lacks_is_asked_of_the_device(method: str) -> None:
    settings = resolved(method=method, image_size=64, batch_size=2, micro_batch_size=1, rank=4, augmentation="fewshot")
    # What is remembered is not gone through again: of shapes, and of a number of classes that no other test has.
    shapes.KNOWN.clear()
    with AsOnMps() as mps:
        predict_memory(settings, classes=11, in_channels=3)
    assert "grid_sampler_2d" in mps.seen
    assert mps.seen & {"convolution", "convolution_backward"}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x.double(),
        lambda x: functional.grid_sample(x, x.new_zeros(1, 2, 2, 2), padding_mode="border", align_corners=False),
        lambda x: functional.interpolate(x, size=8, mode="bicubic"),
        lambda x: functional.interpolate(x, size=2, mode="bilinear", antialias=True),
        lambda x: torch.linalg.qr(x),
    ],
)
def test_the_list_is_looked_at(wrong: Any) -> None:
    with AsOnMps(), pytest.raises(AssertionError):
        wrong(torch.empty(1, 1, 4, 4, device="meta"))


def test_decompositions_are_computed_in_one_place_that_goes_to_the_cpu() -> None:
    package = Path(medsaga.__file__).parent
    found = {
        path.relative_to(package).as_posix(): re.findall(r"torch\.linalg\.(?!vector_norm)\w+", path.read_text("utf-8"))
        for path in package.rglob("*.py")
    }
    assert {name: calls for name, calls in found.items() if calls} == {
        "optim/projection.py": ["torch.linalg.svd"],
        # Of tensors that are on the CPU: read from files, and on their way to other sites.
        "deltas/factorise.py": ["torch.linalg.eigvalsh", "torch.linalg.eigh"],
        "optim/shared_basis.py": ["torch.linalg.solve", "torch.linalg.solve"],
    }


@pytest.mark.parametrize(("shape", "content", "side"), [((7, 5), (64, 46), 64), ((90, 33), (64, 23), 16)])
def test_what_left_the_square_is_as_with_border_padding(
    shape: tuple[int, int], content: tuple[int, int], side: int
) -> None:
    maps = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, side, side)))
    scale = side / 64
    rows, columns = (int(np.ceil(extent * scale - 1e-6)) for extent in content)
    axes = [
        2 * (torch.arange(pixels, dtype=torch.float64) + 0.5) * extent * scale / pixels / cropped - 1
        for pixels, extent, cropped in zip(shape, content, (rows, columns), strict=True)
    ]
    points = torch.stack(torch.meshgrid(axes[1], axes[0], indexing="xy"), dim=-1)[None].expand(2, -1, -1, -1)
    expected = functional.grid_sample(maps[..., :rows, :columns], points, padding_mode="border", align_corners=False)
    torch.testing.assert_close(unletterbox(maps, content, 64, shape), expected, rtol=0, atol=1e-12)
