"""The Python side of the operators ``torch.ops.fused_sigmoid``, whose schemas, CPU kernels and
autograd are registered in csrc/ops.cpp: fake kernels, batching rules, CUDA kernels."""

from __future__ import annotations

import functools
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import _extension as _extension  # defines the operators
from . import formula

# Fake kernels: shapes, strides and dtypes are those of ATen's own sigmoid.


@torch.library.register_fake("fused_sigmoid::sigmoid")
def _(input: Tensor, *, saved: str = "auto") -> Tensor:
    return torch.sigmoid(input)


@torch.library.register_fake("fused_sigmoid::sigmoid_out")
def _(input: Tensor, out: Tensor) -> None:
    torch.sigmoid(input, out=out)


@torch.library.register_fake("fused_sigmoid::sigmoid_with_derivative")
def _(input: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(input), torch.sigmoid(input)


@torch.library.register_fake("fused_sigmoid::sigmoid_with_derivative_out")
def _(input: Tensor, value: Tensor, derivative: Tensor) -> None:
    torch.sigmoid(input, out=value)
    torch.sigmoid(input, out=derivative)


@torch.library.register_fake("fused_sigmoid::sigmoid_backward")
@torch.library.register_fake("fused_sigmoid::sigmoid_backward_from_output")
@torch.library.register_fake("fused_sigmoid::sigmoid_backward_from_derivative")
def _(grad: Tensor, other: Tensor) -> Tensor:
    return torch.mul(grad, other)


@torch.library.register_fake("fused_sigmoid::sigmoid_backward_at_exit")
def _(grad: Tensor, input: Tensor | None, output: Tensor, exit: int) -> Tensor:
    return torch.mul(grad, output)


@torch.library.register_fake("fused_sigmoid::sigmoid_backward_before_bce")
def _(grad: Tensor, output: Tensor, loss_dtype: torch.dtype) -> Tensor:
    return torch.mul(grad, output)


# Batching rules: an elementwise operator only has to bring the batch dimensions together.


def _register_batching(name: str) -> None:
    operator = getattr(torch.ops.fused_sigmoid, name)
    outputs = len(operator.default._schema.returns)

    def rule(
        _: Any, in_dims: tuple[int | None, ...], *arguments: Any, **options: Any
    ) -> tuple[Any, Any]:
        # A dtype, which comes last, has no dimensions.
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        others = arguments[len(tensors) :]
        dims = in_dims[: len(tensors)]
        rank = max(t.dim() - (d is not None) for t, d in zip(tensors, dims, strict=True))
        batched = (_batch_first(t, d, rank) for t, d in zip(tensors, dims, strict=True))
        result = operator(*batched, *others, **options)
        return result, {0: None, 1: 0, 2: (0, 0)}[outputs]

    torch.library.register_vmap(f"fused_sigmoid::{name}", rule)


def _batch_first(tensor: Tensor, batch_dim: int | None, rank: int) -> Tensor:
    """The batch dimension first, or of size 1 without one, then exactly ``rank`` dimensions."""
    tensor = tensor.unsqueeze(0) if batch_dim is None else tensor.movedim(batch_dim, 0)
    return tensor.reshape(tensor.shape[:1] + (1,) * (rank + 1 - tensor.dim()) + tensor.shape[1:])


for _name in (
    "sigmoid",
    "sigmoid_out",
    "sigmoid_with_derivative",
    "sigmoid_with_derivative_out",
    "sigmoid_backward",
    "sigmoid_backward_from_output",
    "sigmoid_backward_from_derivative",
    "sigmoid_backward_before_bce",
):
    _register_batching(_name)


# CUDA kernels. Triton is imported when the first CUDA tensor arrives.


@functools.cache
def cuda_kernels() -> ModuleType:
    """The module with the CUDA kernels: Triton's, or the formula where Triton is missing."""
    try:
        from . import triton_kernels
    except Exception as error:  # a broken or another Triton raises anything
        warnings.warn(
            f"fused_sigmoid runs without its GPU kernels, since Triton could not be imported "
            f"({error}). The results are right but slower; install it with: pip install triton",
            stacklevel=2,
        )
        return formula
    return triton_kernels


def _real(input: Tensor) -> Tensor:
    """Bool and integers become the default dtype, as in torch.sigmoid."""
    if input.dtype in formula.KERNEL_DTYPES:
        return input
    if input.is_floating_point() or input.is_complex():
        raise NotImplementedError(
            f"sigmoid(): argument 'input' has dtype {input.dtype}; accepted are float64, float32, "
            "float16, bfloat16, bool and integers"
        )
    return input.to(torch.get_default_dtype())


def _fits(out: Tensor, input: Tensor) -> bool:
    """Whether a kernel may write to ``out`` while it reads ``input``; to an expanded one never."""
    if out.shape != input.shape or out.dtype != input.dtype or out.device != input.device:
        return False
    if not _share_memory(out, input):
        return all(
            stride or size == 1 for size, stride in zip(out.shape, out.stride(), strict=True)
        )
    return out.data_ptr() == input.data_ptr() and out.stride() == input.stride()


def _share_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _write(out: Tensor, value: Tensor, input: Tensor) -> None:
    """For an ``out`` that does not fit: torch's own resizing, conversion and errors."""
    torch.sigmoid(input, out=out)
    out.copy_(value)


@torch.library.impl("fused_sigmoid::sigmoid", "CUDA")
def _(input: Tensor, *, saved: str = "auto") -> Tensor:
    return cuda_kernels().sigmoid(_real(input), is_kept=saved == "input")


@torch.library.impl("fused_sigmoid::sigmoid_out", "CUDA")
def _(input: Tensor, out: Tensor) -> None:
    real = _real(input)
    if _fits(out, real):
        cuda_kernels().sigmoid_out(real, out)
    else:
        _write(out, cuda_kernels().sigmoid(real), input)


@torch.library.impl("fused_sigmoid::sigmoid_with_derivative", "CUDA")
def _(input: Tensor) -> tuple[Tensor, Tensor]:
    return cuda_kernels().sigmoid_with_derivative(_real(input))


@torch.library.impl("fused_sigmoid::sigmoid_with_derivative_out", "CUDA")
def _(input: Tensor, value: Tensor, derivative: Tensor) -> None:
    real = _real(input)
    if _fits(value, real) and _fits(derivative, real) and not _share_memory(value, derivative):
        cuda_kernels().sigmoid_with_derivative_out(real, value, derivative)
    else:
        new_value, new_derivative = cuda_kernels().sigmoid_with_derivative(real)
        _write(derivative, new_derivative, input)
        _write(value, new_value, input)


def _alike(grad: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both with one shape and dtype, on one device."""
    if grad.device != other.device:
        # torch's own error; or one is a number on the CPU, which it takes beside any device.
        device = torch.mul(grad, other).device
        grad, other = grad.to(device), other.to(device)
    if grad.shape != other.shape or grad.dtype != other.dtype:
        dtype = torch.result_type(grad, other)
        grad, other = torch.broadcast_tensors(grad.to(dtype), other.to(dtype))
    return grad, other


def _register_backward(name: str) -> None:
    def backward(grad: Tensor, other: Tensor) -> Tensor:
        return getattr(cuda_kernels(), name)(*_alike(grad, other))

    torch.library.impl(f"fused_sigmoid::{name}", "CUDA", backward)


for _name in (
    "sigmoid_backward",
    "sigmoid_backward_from_output",
    "sigmoid_backward_from_derivative",
):
    _register_backward(_name)


@torch.library.impl("fused_sigmoid::sigmoid_backward_before_bce", "CUDA")
def _(grad: Tensor, output: Tensor, loss_dtype: torch.dtype) -> Tensor:
    if loss_dtype not in formula.KERNEL_DTYPES:
        raise NotImplementedError(
            f"sigmoid_backward_before_bce(): the loss has dtype {loss_dtype}; accepted are "
            "float64, float32, float16, bfloat16"
        )
    return cuda_kernels().sigmoid_backward_before_bce(*_alike(grad, output), loss_dtype)
