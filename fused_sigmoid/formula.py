"""The operations without autograd in ATen operations, exact on both tails like the kernels, under
the names that triton_kernels.py has for its own: for GPUs without Triton. Depends on torch alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
KERNEL_DTYPES = (torch.float64, torch.float32, *HALVES)


def _widened(input: Tensor) -> Tensor:
    """Halves are computed in float32 and rounded once."""
    return input.float() if input.dtype in HALVES else input


def _narrowed(wide: Tensor, like: Tensor) -> Tensor:
    """Rounded to the dtype of ``like``. What has it already must not pass through ``to``: compiled
    by torch 2.11, a Function gets no gradient for an output that is an intermediate result too."""
    return wide if wide.dtype == like.dtype else wide.to(like.dtype)


def _smaller(wide: Tensor) -> Tensor:
    """t = e / (1 + e) with e = exp(-|x|), the smaller of σ(x) and 1 - σ(x)."""
    e = torch.exp(-wide.abs())
    return e / (1 + e)


def _derivative(input: Tensor) -> Tensor:
    """σ'(x) = t - t²: no cancellation, since t ≤ 1/2. In float32 for halves."""
    t = _smaller(_widened(input))
    return t - t * t


def sigmoid(input: Tensor, is_kept: bool = False) -> Tensor:
    # One ATen operation: what Inductor fuses and what exported graphs hold. Whether the input is
    # kept matters to a kernel's cache alone.
    return torch.sigmoid(input)


def sigmoid_out(input: Tensor, out: Tensor) -> None:
    torch.sigmoid(input, out=out)


def sigmoid_with_derivative(input: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(input), _narrowed(_derivative(input), input)


def sigmoid_with_derivative_out(input: Tensor, value: Tensor, derivative: Tensor) -> None:
    for out, result in zip((value, derivative), sigmoid_with_derivative(input), strict=True):
        out.copy_(result)  # after both are known: one may be the input


def sigmoid_backward(grad: Tensor, input: Tensor) -> Tensor:
    return _narrowed(_widened(grad) * _derivative(input), input)


def sigmoid_backward_from_output(grad: Tensor, output: Tensor) -> Tensor:
    return torch.ops.aten.sigmoid_backward(grad, output)


def sigmoid_backward_from_derivative(grad: Tensor, derivative: Tensor) -> Tensor:
    return grad * derivative


# The float32 nearest to 1e-12, torch's in every dtype.
FLOOR_OF_BCE = 9.999999960041972e-13


def sigmoid_backward_before_bce(grad: Tensor, output: Tensor, loss_dtype: torch.dtype) -> Tensor:
    """grad · max((1 - y) · y, 1e-12), rounded as nn.BCELoss rounds what it divides by."""
    y = output.to(loss_dtype)
    divisor = torch.clamp_min((1 - y) * y, FLOOR_OF_BCE)
    return (grad.to(loss_dtype) * divisor).to(torch.result_type(grad, output))
