"""The CUDA kernels of the operators that csrc/binary_cross_entropy_autograd.cpp defines: by Triton,
or in ATen operations where Triton is missing. Depends on the binary cross entropy and functions/.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from .binary_cross_entropy import REDUCTIONS, _composed, _widened
from .functions.function import _triton_kernels


def _kernels() -> ModuleType | None:
    """Those of Triton; None where it is missing, of which the first call warns."""
    if not _triton_kernels():
        return None
    from .triton import binary_cross_entropy

    return binary_cross_entropy


@torch.no_grad()
def _forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: int,
    gradient: bool,
    probability: bool,
) -> list[Tensor]:
    operands, name = (input, target, weight, pos_weight), REDUCTIONS[reduction]
    kernels = _kernels()
    if kernels is not None:
        return kernels.forward(*operands, name, gradient, probability)
    results = [_composed(*operands, name)]
    if gradient:
        results.append(_composed_gradient(1 / _divisor(input, name), *operands))
    if probability:
        results.append(torch.sigmoid(input))
    return results


@torch.no_grad()
def _backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: int,
) -> Tensor:
    operands, name = (input, target, weight, pos_weight), REDUCTIONS[reduction]
    kernels = _kernels()
    if kernels is not None:
        return kernels.backward(grad, *operands, name)
    return _composed_gradient(_widened(grad) / _divisor(input, name), *operands)


@torch.no_grad()
def _multiply_by_number(tensor: Tensor, number: Tensor) -> None:
    kernels = _kernels()
    if kernels is not None:
        kernels.multiply_by_number(tensor, number)
    else:
        tensor.mul_(number)


def _divisor(input: Tensor, reduction: str) -> int:
    return max(input.numel(), 1) if reduction == "mean" else 1


def _composed_gradient(
    factor: Tensor | float,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
) -> Tensor:
    """The gradient of the sum of the losses, times a factor. Halves are computed in float32."""
    x, t = _widened(input), _widened(target)
    positive = t if pos_weight is None else pos_weight * t
    # torch.sigmoid(x) is 0 in float32 where exp(x) still is a subnormal number.
    e = torch.exp(-x.abs())
    smaller = e / (1 + e)
    larger, is_negative = 1 - smaller, x < 0
    gradient = (1 - t) * torch.where(is_negative, smaller, larger)
    gradient = gradient - positive * torch.where(is_negative, larger, smaller)
    if weight is not None:
        gradient = weight * gradient
    return (gradient * factor).to(input.dtype)


for _suffix, _kernel in (
    ("binary_cross_entropy_with_logits", _forward),
    ("binary_cross_entropy_with_logits_backward", _backward),
    ("multiply_by_number_", _multiply_by_number),
):
    torch.library.impl(f"fused_sigmoid::_{_suffix}", "CUDA", _kernel)
