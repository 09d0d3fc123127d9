"""The operations in ATen operations: exact tails like the kernels, for every device, tensor
subclass and transform that ATen supports, and fusible by Inductor. Depends on torch alone.

The first part holds the operations without autograd, under the names that triton_kernels.py has
for its own; the second the autograd Functions made of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._extension import extension

HALVES = (torch.float16, torch.bfloat16)


def _widened(input: Tensor) -> Tensor:
    """Halves are computed in float32 and rounded once."""
    return input.float() if input.dtype in HALVES else input


def _narrowed(wide: Tensor, like: Tensor) -> Tensor:
    """Rounded to the dtype of ``like``. What has it already must not pass through ``to``: compiled
    by torch 2.11, a Function gets no gradient for an output that is an intermediate result too."""
    return wide if wide.dtype == like.dtype else wide.to(like.dtype)


def _smaller(wide: Tensor) -> Tensor:
    """t = e / (1 + e) with e = exp(-|x|), the smaller of σ(x) and 1 - σ(x)."""
    # Whoever differentiates these operations needs a derivative at 0, which |x| has not; the others
    # need the cheaper operation.
    magnitude = torch.where(wide < 0, -wide, wide) if torch.is_grad_enabled() else wide.abs()
    e = torch.exp(-magnitude)
    return e / (1 + e)


def _derivative(input: Tensor) -> Tensor:
    """σ'(x) = t - t²: no cancellation, since t ≤ 1/2. In float32 for halves."""
    t = _smaller(_widened(input))
    return t - t * t


def sigmoid(input: Tensor) -> Tensor:
    # One ATen operation: what Inductor fuses and what exported graphs hold.
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


def second_derivative_product(grad: Tensor, input: Tensor) -> Tensor:
    """grad · σ''(x) = -grad · σ'(x) · tanh(x/2), exact on both tails and at 0."""
    wide = _widened(input)
    return _narrowed(_widened(grad) * _derivative(input) * torch.tanh(wide * -0.5), input)


# Compiled, nobody looks at versions: what a Function keeps is a copy, which a change of the input
# in place leaves as it is. A compiler fuses it.


class Sigmoid(torch.autograd.Function):
    """For torch.compile where a gradient is recorded: Dynamo refuses a Function that has a ``jvp``.
    Composed, so that a compiled backward that computes σ(x) again shares its exponential, and since
    Dynamo differentiates the operations of ``forward`` inside the torch.func transforms."""

    plain = staticmethod(sigmoid)

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return composed_sigmoid(input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0].clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return sigmoid_backward(grad, input)


class SigmoidWithDerivative(torch.autograd.Function):
    """The pair for torch.compile."""

    plain = staticmethod(sigmoid_with_derivative)

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor) -> tuple[Tensor, Tensor]:
        return composed_sigmoid_with_derivative(input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0].clone())

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor, grad_derivative: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        second = second_derivative_product(grad_derivative, input)
        return sigmoid_backward(grad_value, input) + second


class TransformableSigmoidBackward(torch.autograd.Function):
    """grad · σ'(x), differentiable to every order in reverse and forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, input: Tensor) -> Tensor:
        return sigmoid_backward(grad, input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor]:
        grad, input = ctx.saved_tensors
        return (
            TransformableSigmoidBackward.apply(outer, input),
            _transformable_second(outer * grad, input),
        )

    @staticmethod
    def jvp(ctx: Any, tangent_grad: Tensor, tangent_input: Tensor) -> Tensor:
        grad, input = ctx.saved_tensors
        along_grad: Tensor = TransformableSigmoidBackward.apply(tangent_grad, input)
        return along_grad + _transformable_second(grad * tangent_input, input)


def _transformable_second(grad: Tensor, input: Tensor) -> Tensor:
    first: Tensor = TransformableSigmoidBackward.apply(grad, input)
    return first * torch.tanh(input * -0.5)


def composed_sigmoid(input: Tensor) -> Tensor:
    """σ in operations whose own derivatives keep both tails, to every order and in every mode.
    For nested forward-mode transforms: in the ``jvp`` of an autograd Function, ATen operations
    have no tangents of the outer levels (torch 2.13), which would silently become zero. And for
    ``torch.func.functionalize``, which has no rule for autograd Functions."""
    wide = _widened(input)
    t = _smaller(wide)
    return _narrowed(torch.where(wide < 0, t, 1 - t), input)


def composed_sigmoid_with_derivative(input: Tensor) -> tuple[Tensor, Tensor]:
    wide = _widened(input)
    t = _smaller(wide)
    value = torch.where(wide < 0, t, 1 - t)
    return _narrowed(value, input), _narrowed(t - t * t, input)


class TransformableSigmoid(Sigmoid):
    """For torch.func transforms."""

    composed = staticmethod(composed_sigmoid)

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        # At the bottom of a stack of transforms stands a plain tensor: the kernel's own value.
        value = extension.sigmoid(input, "output")
        return sigmoid(input) if value is None else value

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        grad_input: Tensor = TransformableSigmoidBackward.apply(grad, input)
        return grad_input

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return TransformableSigmoid.backward(ctx, tangent)


class TransformableSigmoidWithDerivative(torch.autograd.Function):
    """The pair for torch.func transforms."""

    composed = staticmethod(composed_sigmoid_with_derivative)

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor) -> tuple[Tensor, Tensor]:
        pair = extension.sigmoid_with_derivative(input)
        return sigmoid_with_derivative(input) if pair is None else pair

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        # The zeros made for an output without a gradient would be plain tensors, which distributed
        # ones do not mix with.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(
        ctx: Any, grad_value: Tensor | None, grad_derivative: Tensor | None
    ) -> Tensor | None:
        (input,) = ctx.saved_tensors
        first: Tensor | None = None
        if grad_value is not None:
            first = TransformableSigmoidBackward.apply(grad_value, input)
        if grad_derivative is None:
            return first
        second = _transformable_second(grad_derivative, input)
        return second if first is None else first + second

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, Tensor]:
        (input,) = ctx.saved_tensors
        first: Tensor = TransformableSigmoidBackward.apply(tangent, input)
        return first, _transformable_second(tangent, input)
