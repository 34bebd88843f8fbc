"""Matrices of linear layers that live as int8 codes and scales only, and are trained all the same.

Q-GaLore (arXiv 2407.08296) trains weights of which no float copy exists. Each row is cut into blocks of 128 columns;
a block has one float32 scale, its largest magnitude / 127, and an entry is worth code * scale. That is 1.03 bytes per
weight. An update is rounded stochastically to the codes: most of it is much smaller than the distance of two codes,
so that rounding to nearest would lose it, while random rounding is right on average.

The whole float matrix exists for the time of one product: in forward, and again in backward. Its gradient is an
ordinary dense tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BLOCK = 128
"""Columns that share a scale: halving it saves a tenth of the error of normal weights and costs 3 % more memory."""
LEVELS = 127
"""Codes run from -127 to 127, so that a block's largest magnitude has a code on either side."""
CHUNK_ELEMENTS = 2**18
"""Elements that are converted at a time, so that float32 temporaries stay at 1 MiB each."""


class Int8Weight(Tensor):
    """An (out, in) matrix that is stored as int8 codes and scales and looks like one of floats.

    ``F.linear`` computes with it, casts (``weight.float()``, ``weight.to(dtype)`` even to its own dtype) give a dense
    tensor and pass gradients through, ``copy_`` rounds to the nearest codes, ``weight.to(device)``, ``detach``,
    ``clone`` and ``torch.equal`` work on what is stored. Any other operation raises NotImplementedError: it would
    need the floats that are not to exist.

    Args:
        codes: (out, in) int8.
        scales: (out, ceil(in / 128)) float32, never negative.
        dtype: what the matrix looks like, and what its gradient is in.

    Raises:
        ValueError: codes and scales do not fit together.
    """

    codes: Tensor
    scales: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Int8Weight:
        """Make a tensor without storage around codes and scales."""
        expected = _scales_shape(codes.shape)
        if codes.dtype != torch.int8 or scales.dtype != torch.float32 or scales.shape != expected:
            raise ValueError(
                f"int8 weight: expected int8 codes and float32 scales {tuple(expected)} for {tuple(codes.shape)}, "
                f"found {codes.dtype} and {scales.dtype} {tuple(scales.shape)}"
            )
        make: Callable[..., Int8Weight] = torch.Tensor._make_wrapper_subclass
        return make(cls, codes.shape, dtype=dtype, device=codes.device)

    def __init__(self, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> None:
        self.codes = codes
        self.scales = scales

    def dequantise(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the dense (out, in) matrix, without gradient, in ``dtype`` or that which it looks like."""
        return _dequantise(self.codes, self.scales, dtype or self.dtype)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Say what it is; its numbers would have to be dequantised."""
        return f"Int8Weight({tuple(self.shape)}, dtype={self.dtype}, device={self.device})"

    def __tensor_flatten__(self) -> tuple[list[str], torch.dtype]:
        """Name the tensors that hold the memory."""
        return ["codes", "scales"], self.dtype

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], dtype: torch.dtype, size: Any, stride: Any) -> Int8Weight:
        """Put together what ``__tensor_flatten__`` took apart."""
        return Int8Weight(inner["codes"], inner["scales"], dtype)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute linear layers without keeping the floats, and make every cast dense."""
        kwargs = kwargs or {}
        if func is F.linear:
            return _linear(*args, **kwargs)
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            # module.to(dtype) does it, and would leave an object with new floats and old codes.
            raise NotImplementedError("an int8 weight cannot become dense in place; use float_state(module)")
        with torch._C.DisableTorchFunctionSubclass():
            if dtype := _cast_to(func, args, kwargs):
                # torch returns a tensor that has the dtype already as it is; here that would be the codes.
                return _Dense.apply(args[0].to(device=_device_of(args, kwargs)), dtype)
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the few operations that make sense on codes."""
        if func not in _OPERATIONS:
            raise NotImplementedError(f"{func} on an int8 weight; use weight.dequantise() where the floats are needed")
        return _OPERATIONS[func](*args, **(kwargs or {}))


def quantise_linears(module: nn.Module) -> int:
    """Replace the weight of every ``nn.Linear`` in a module by an :class:`Int8Weight` of the same dtype.

    Biases stay, and so does what is quantised already. Works under FakeTensorMode. Optimizers must be made after it.

    Returns:
        the number of elements that were quantised.
    """
    elements = 0
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and not isinstance(layer.weight, Int8Weight):
            elements += layer.weight.numel()
            trained = layer.weight.requires_grad
            layer.weight = nn.Parameter(_quantise(layer.weight.detach()), requires_grad=trained)
    return elements


@torch.no_grad()
def store(weight: Int8Weight, values: Tensor, generator: torch.Generator | None) -> None:
    """Write values into an int8 weight, in its own memory, with new scales; all of them, or none if memory runs out.

    Args:
        weight: what is written; its version is counted up, as by any operation in place.
        values: (out, in), finite, of any floating dtype.
        generator: for stochastic rounding, whose mean is the value itself; on the weight's device. None rounds to
            the nearest code.
    """
    assert values.shape == weight.shape, f"{tuple(values.shape)} into {tuple(weight.shape)}"
    rows = values.shape[0] if values.is_meta else _rows_per_chunk(values)
    new_codes, new_scales = torch.empty_like(weight.codes), torch.empty_like(weight.scales)
    for codes, scales, chunk in zip(new_codes.split(rows), new_scales.split(rows), values.split(rows), strict=True):
        _quantise_rows(codes, scales, chunk, generator)
    weight.codes.copy_(new_codes)
    weight.scales.copy_(new_scales)
    torch.autograd.graph.increment_version(weight)


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the state of a module with each int8 weight as two plain tensors, ``<name>.codes`` and ``<name>.scales``.

    The tensors are those of the module, not copies. ``torch.load(..., weights_only=True)`` reads them when saved.
    """
    state: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if isinstance(value, Int8Weight):
            state |= {f"{name}.codes": value.codes, f"{name}.scales": value.scales}
        else:
            state[name] = value
    return state


def load_plain_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy what :func:`plain_state` returned into a module whose linear layers are quantised like those of then.

    Raises:
        RuntimeError: names or shapes are not those of the module, or one of the two is quantised and the other not.
        ValueError: codes and scales do not fit together.
    """
    state = dict(state)
    for name, value in module.state_dict().items():
        stored = (f"{name}.codes", f"{name}.scales")
        if isinstance(value, Int8Weight):
            if name in state:
                raise RuntimeError(f"{name} is a plain tensor in the state and an int8 weight in the module")
            if all(part in state for part in stored):  # else load_state_dict names what is missing
                state[name] = Int8Weight(state.pop(stored[0]), state.pop(stored[1]), value.dtype)
    module.load_state_dict(state)


def float_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the state of a module on the CPU, int8 weights as dense tensors of the dtype they look like.

    They are dequantised there, so that the accelerator never holds the floats.
    """
    state = {name: value.detach().cpu() for name, value in module.state_dict().items()}
    return {name: value.dequantise() if isinstance(value, Int8Weight) else value for name, value in state.items()}


class _Linear(torch.autograd.Function):
    """A linear layer that keeps its input and the codes for backward, and dequantises in both directions."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Int8Weight, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs if ctx.needs_input_grad[1] else None, weight)
        return F.linear(inputs, weight.dequantise(inputs.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        grad_input = grad_weight = grad_bias = None
        rows = grad_output.reshape(-1, grad_output.shape[-1])
        if needs_input:
            # In one expression, so that the floats are gone before the gradient of the weight is made.
            grad_input = (rows @ weight.dequantise(grad_output.dtype)).view(*grad_output.shape[:-1], -1)
        if needs_weight:
            columns = inputs.reshape(-1, inputs.shape[-1]).to(grad_output.dtype)
            grad_weight = (rows.T @ columns).to(weight.dtype)
        if needs_bias:
            grad_bias = rows.sum(0)
        return grad_input, grad_weight, grad_bias


class _Dense(torch.autograd.Function):
    """A cast to floats."""

    @staticmethod
    def forward(ctx: Any, weight: Int8Weight, dtype: torch.dtype) -> Tensor:
        ctx.dtype = weight.dtype
        return weight.dequantise(dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output.to(ctx.dtype), None


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not isinstance(weight, Int8Weight) or isinstance(input, Int8Weight):
        raise NotImplementedError("F.linear takes an int8 weight as its weight only")
    result: Tensor = _Linear.apply(input, weight, bias)
    return result


_CASTS = {Tensor.float: torch.float32, Tensor.double: torch.float64, Tensor.half: torch.float16}
_CASTS[Tensor.bfloat16] = torch.bfloat16


def _cast_to(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.dtype | None:
    """The dtype that a cast names, or None where no cast is asked for."""
    if func is Tensor.to:
        named = (value for value in (*args[1:], *kwargs.values()) if isinstance(value, torch.dtype))
        return next(named, None)
    return _CASTS.get(func)


def _device_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The device that ``Tensor.to`` names besides a dtype, or that of the tensor."""
    named = (value for value in (*args[1:], *kwargs.values()) if isinstance(value, str | int | torch.device))
    return next((value for value in named if not isinstance(value, bool)), args[0].device)


def _dequantise(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    dense = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    if codes.is_meta:  # no values to compute, and a model has thousands of chunks
        return dense
    rows = _rows_per_chunk(codes)
    for chunk, *stored in zip(dense.split(rows), codes.split(rows), scales.split(rows), strict=True):
        for floats, whole, scale in _blocks(stored[1], chunk, stored[0]):
            torch.mul(whole, scale, out=floats)  # in float32, so that all dtypes hold the same numbers
    return dense


def _quantise(values: Tensor) -> Int8Weight:
    """The nearest int8 weight to a dense (out, in) matrix."""
    codes = torch.empty(values.shape, dtype=torch.int8, device=values.device)
    scales = torch.empty(_scales_shape(values.shape), dtype=torch.float32, device=values.device)
    weight = Int8Weight(codes, scales, values.dtype)
    store(weight, values, None)
    return weight


def _quantise_rows(codes: Tensor, scales: Tensor, values: Tensor, generator: torch.Generator | None) -> None:
    for block_codes, block, scale in _blocks(scales, codes, values):
        scale.copy_(torch.linalg.vector_norm(block, ord=torch.inf, dim=-1, keepdim=True)).div_(LEVELS)
        # A block of zeros has the scale 0.
        exact = block / scale.clamp(min=torch.finfo(torch.float32).tiny)
        if generator is None:
            exact.round_()
        else:
            exact.add_(torch.rand(exact.shape, generator=generator, dtype=exact.dtype, device=exact.device)).floor_()
        block_codes.copy_(exact.clamp_(-LEVELS, LEVELS))


def _blocks(scales: Tensor, *matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """See matrices (rows, columns) as blocks (rows, blocks, 128), each with its scales (rows, blocks, 1).

    Yields views: one for the full blocks, one for the shorter last blocks, as there are.
    """
    columns = matrices[0].shape[1]
    full = columns // BLOCK
    if full:
        views = (matrix[:, : full * BLOCK].unflatten(1, (full, BLOCK)) for matrix in matrices)
        yield *views, scales[:, :full].unsqueeze(-1)
    if columns % BLOCK:
        yield *(matrix[:, full * BLOCK :].unsqueeze(1) for matrix in matrices), scales[:, full:].unsqueeze(-1)


def _scales_shape(shape: torch.Size) -> torch.Size:
    return torch.Size((shape[0], -(-shape[1] // BLOCK)))


def _rows_per_chunk(matrix: Tensor) -> int:
    return max(1, CHUNK_ELEMENTS // max(1, matrix.shape[1]))


def _cast_or_move(
    weight: Int8Weight, *, dtype: torch.dtype | None = None, device: Any = None, non_blocking: bool = False, **_: Any
) -> Tensor:
    """``aten._to_copy``: ``weight.to(device)``, for which torch names the weight's own dtype too, or a cast to another.

    What else it names (layout, memory format) has one meaning here.
    """
    codes = weight.codes.to(device or weight.device, non_blocking=non_blocking)
    scales = weight.scales.to(device or weight.device, non_blocking=non_blocking)
    if dtype is None or dtype == weight.dtype:
        return Int8Weight(codes, scales, weight.dtype)
    return _dequantise(codes, scales, dtype)


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """``aten.copy_``: exact between two int8 weights, else to the nearest codes or from the floats."""
    if not isinstance(target, Int8Weight):
        assert isinstance(source, Int8Weight)
        return target.copy_(source.dequantise().to(target.device), non_blocking)
    if isinstance(source, Int8Weight) and source.shape == target.shape:
        target.codes.copy_(source.codes, non_blocking)
        target.scales.copy_(source.scales, non_blocking)
    elif isinstance(source, Int8Weight):
        raise NotImplementedError("copy_ between int8 weights of different shapes")
    else:
        store(target, source.to(target.device).expand(target.shape), None)
    return target


def _equal(one: Tensor, other: Tensor) -> bool:
    """``aten.equal``: the same codes and scales."""
    if not (isinstance(one, Int8Weight) and isinstance(other, Int8Weight)):
        raise NotImplementedError("torch.equal of an int8 weight and a dense tensor")
    return torch.equal(one.codes, other.codes) and torch.equal(one.scales, other.scales)


_OPERATIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.detach.default: lambda weight: Int8Weight(weight.codes, weight.scales, weight.dtype),
    torch.ops.aten.clone.default: lambda weight, **_: Int8Weight(
        weight.codes.clone(), weight.scales.clone(), weight.dtype
    ),
    torch.ops.aten._to_copy.default: _cast_or_move,
    torch.ops.aten.copy_.default: _copy,
    torch.ops.aten.equal.default: _equal,
}
