"""The CUDA kernels of the operators that csrc/binary_cross_entropy_autograd.cpp defines: by Triton,
or the extension's formula in ATen operations where Triton is missing. Depends on the extension, the
binary cross entropy and functions/.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from ._extension import extension
from .binary_cross_entropy import REDUCTIONS
from .functions.function import triton_kernels


def loss_kernels() -> ModuleType | None:
    """Those of Triton; None where it is missing, of which the first call warns."""
    if not triton_kernels():
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
    operands, kernels = (input, target, weight, pos_weight), loss_kernels()
    if kernels is None:
        return extension.composed_loss(*operands, reduction, gradient, probability)
    return kernels.forward(*operands, REDUCTIONS[reduction], gradient, probability)


@torch.no_grad()
def _backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: int,
) -> Tensor:
    operands, kernels = (input, target, weight, pos_weight), loss_kernels()
    if kernels is None:
        return extension.composed_loss_gradient(grad, *operands, reduction)
    return kernels.backward(grad, *operands, REDUCTIONS[reduction])


@torch.no_grad()
def _multiply_by_number(tensor: Tensor, number: Tensor) -> None:
    kernels = loss_kernels()
    if kernels is None:
        tensor.mul_(number)
    else:
        kernels.multiply_by_number(tensor, number)


for _suffix, _kernel in (
    ("binary_cross_entropy_with_logits", _forward),
    ("binary_cross_entropy_with_logits_backward", _backward),
    ("multiply_by_number_", _multiply_by_number),
):
    torch.library.impl(f"fused_sigmoid::_{_suffix}", "CUDA", _kernel)
