"""The tracker counts the bytes that can be worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from medsaga.memory.tracker import TensorTracker, is_out_of_memory


def _step(tracker: TensorTracker, model: nn.Module, inputs: torch.Tensor) -> None:
    tracker.assign(model.parameters(), "weights")
    with tracker:
        tracker.phase = "activations"
        loss = model(inputs).sum()
        tracker.phase = "temporary"
        loss.backward()
        tracker.assign([p.grad for p in model.parameters()], "gradients")


def test_counts_weights_activations_and_gradients_by_hand() -> None:
    model = nn.Sequential(nn.Linear(100, 1000, bias=False), nn.ReLU(), nn.Linear(1000, 10, bias=False))
    tracker = TensorTracker()
    _step(tracker, model, torch.randn(64, 100))
    weights = 4 * (100 * 1000 + 1000 * 10)
    hidden = 4 * 64 * 1000
    assert tracker.breakdown["weights"] == weights
    assert sum(tracker.breakdown.values()) == tracker.peak_bytes
    # At the peak the gradient of the hidden layer and of a weight matrix live beside the saved activation.
    assert weights + 2 * hidden <= tracker.peak_bytes <= 2 * weights + 3 * hidden + 4 * 64 * 10 * 2


def test_views_count_once_and_freed_storages_not_at_all() -> None:
    tracker = TensorTracker()
    with tracker:
        kept = torch.zeros(1000)
        views = [kept.view(10, 100), kept[::2]]
        for _ in range(5):
            torch.zeros(1000)
    assert tracker.peak_bytes == 8000
    del views


def test_fake_tensors_are_counted_like_real_ones() -> None:
    def measure() -> dict[str, int]:
        model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 8))
        tracker = TensorTracker()
        _step(tracker, model, torch.randn(32, 64))
        return tracker.breakdown

    with FakeTensorMode():
        fake = measure()
    assert fake == measure()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate",
            True,
        ),
        ("[enforce fail at alloc_cpu.cpp:80] . DefaultCPUAllocator: not enough memory: you tried to allocate", True),
        ("MPS backend out of memory (MPS allocated: 17.8 GB)", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("std::bad_alloc", True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`", False),
        ("The size of tensor a (3) must match the size of tensor b (4) at non-singleton dimension 1", False),
    ],
)
def test_running_out_of_memory_is_known_by_what_libraries_say(said: str, expected: bool) -> None:
    assert is_out_of_memory(RuntimeError(said)) == expected
    assert not is_out_of_memory(ValueError(said))
