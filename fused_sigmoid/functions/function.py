"""What an elementwise function with its derivative is: the type ``Function``, and the works that
follow from it, by Triton's kernels or in ATen operations. Depends on torch and the extension;
Triton's kernels are imported when the first CUDA tensor arrives."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .._extension import HALVES

if TYPE_CHECKING:
    from ..triton.elementwise import Kernel


class Operator(NamedTuple):
    """An operator of ``torch.ops.fused_sigmoid``. Its implementations get the function and then
    the operator's own arguments."""

    suffix: str  # of its name, behind the function's
    fake: Callable[..., Any]  # gives results of the right shapes, strides and dtypes
    cuda: Callable[..., Any] | None = None  # None where the extension composes it of others


@dataclass(eq=False)
class Function:
    """An elementwise function with its exact derivative. Every public function, operator and GPU
    kernel follows from one of these and from the bodies in ``triton/<name>.py``.

    The methods are its works without autograd, in ATen operations, under the names that the
    Triton kernels have: what runs on GPUs without Triton, and in compiled graphs.
    """

    name: str
    # torch's own operation, its form in place, and its pair with a derivative: for tensors of any
    # kind that torch takes.
    original: Callable[..., Tensor]
    original_: Callable[..., Tensor]
    original_with_derivative: Callable[[Tensor], tuple[Tensor, Tensor]]
    # The exact derivative, of an input that is float32 or float64.
    derivative: Callable[[Tensor], Tensor]
    # torch's gradient from the output.
    backward_from_output: Callable[[Tensor, Tensor], Tensor]
    # These are operators of this function alone.
    operators: tuple[Operator, ...] = ()

    def value(self, input: Tensor) -> Tensor:
        # Inductor fuses a single ATen operation, and exported graphs hold it.
        return self.original(input)

    value_of_kept = value

    def value_and_derivative(self, input: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(input), _narrowed(self.derivative(_widened(input)), input)

    def backward(self, grad: Tensor, input: Tensor) -> Tensor:
        return _narrowed(_widened(grad) * self.derivative(_widened(input)), input)

    def backward_from_derivative(self, grad: Tensor, derivative: Tensor) -> Tensor:
        return grad * derivative

    def kernel(self, work: str) -> Kernel | None:
        """The Triton kernel for a work, if there is one."""
        return triton_kernels().get((self.name, work))

    def run(self, work: str, *operands: Tensor) -> Any:
        """A work on a GPU, of operands of one shape and dtype."""
        kernel = self.kernel(work)
        return getattr(self, work)(*operands) if kernel is None else kernel.run(*operands)


def alike(grad: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both with one shape and dtype, on one device, as a kernel takes them."""
    if grad.device != kept.device:
        # torch raises its own error here, unless one is a number on the CPU.
        device = torch.mul(grad, kept).device
        grad, kept = grad.to(device), kept.to(device)
    if grad.shape != kept.shape or grad.dtype != kept.dtype:
        dtype = torch.result_type(grad, kept)
        grad, kept = torch.broadcast_tensors(grad.to(dtype), kept.to(dtype))
    return grad, kept


def _widened(input: Tensor) -> Tensor:
    """Halves are computed in float32 and rounded once."""
    return input.float() if input.dtype in HALVES else input


def _narrowed(wide: Tensor, like: Tensor) -> Tensor:
    """Rounded to the dtype of ``like``. What has it already must not pass through ``to``: compiled
    by torch 2.11, a Function gets no gradient for an output that is an intermediate result too."""
    return wide if wide.dtype == like.dtype else wide.to(like.dtype)


@functools.cache
def triton_kernels() -> dict[tuple[str, str], Kernel]:
    """By function and work; none where Triton is missing."""
    try:
        from ..triton.elementwise import KERNELS
    except Exception as error:  # a broken or another Triton raises anything
        warnings.warn(
            f"fused_sigmoid runs without its GPU kernels, since Triton could not be imported "
            f"({error}). The results are right but slower; install it with: pip install triton",
            stacklevel=2,
        )
        return {}
    return KERNELS
