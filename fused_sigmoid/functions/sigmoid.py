"""The sigmoid: the functions that users call, its derivative in ATen operations, and the product
before nn.BCELoss, which no other function has. Depends on torch, the extension and routes.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .._extension import HALVES, KERNEL_DTYPES, extension
from ..routes import check_saved, run
from .function import Function, Operator, alike


def sigmoid(input: Tensor, *, out: Tensor | None = None, saved: str = "auto") -> Tensor:
    """The logistic sigmoid of every element, as ``torch.sigmoid``, with an exact gradient.

    .. math:: σ(x) = 1 / (1 + e^{-x}), \\qquad σ'(x) = σ(x) σ(-x)

    The gradient is computed without the cancellation of ``y * (1 - y)``, so that it keeps its
    relative accuracy where the sigmoid saturates, on both tails. Where the output goes to
    ``torch.nn.BCELoss`` it is that of ``torch.nn.BCEWithLogitsLoss``; see :class:`FusedSigmoid`.

    Args:
        input: a tensor of any shape, strides and device. float64, float32, float16 and bfloat16
            run in the fused kernels on CPU and CUDA; every other kind of tensor that
            ``torch.sigmoid`` takes goes to it.
        out: the tensor to write to, of any strides; resized if its shape differs. No gradient
            is recorded.
        saved: what to keep for the backward pass.

            - ``"derivative"``: σ', computed in the same pass as σ; backward is one product, which
              takes the memory of σ' unless the graph is kept.
            - ``"input"``: the input alone; backward computes σ' again from it. It must not change
              before that.
            - ``"output"``: the output; no more memory than ``nn.Sigmoid``, and its gradient, except
              before ``nn.BCELoss``.
            - ``"auto"``: whichever of the first two is faster for the device, dtype and size, and
              the output. Where that was the input and it was changed in place, the gradient is
              that of ``"output"``, with one warning.

    Returns:
        A tensor of the same shape, and strides as ``torch.sigmoid`` gives; of the default dtype
        for bool and integer input, else of the input's.

    Raises:
        TypeError: ``input`` is not a tensor.
        ValueError: ``saved`` is none of the four.
        NotImplementedError: the dtype or layout has no sigmoid (float8, complex32, sparse COO).
        RuntimeError: ``out`` does not fit (dtype, device, overlapping memory) or requires grad.

    >>> import torch, fused_sigmoid
    >>> x = torch.tensor([-1.0, 0.0, 20.0], requires_grad=True)
    >>> y = fused_sigmoid.sigmoid(x)
    >>> y.sum().backward()
    >>> y
    tensor([0.2689, 0.5000, 1.0000], grad_fn=<...>)
    >>> x.grad
    tensor([1.9661e-01, 2.5000e-01, 2.0612e-09])
    """
    if not is_dynamo_compiling():
        if out is None:
            value = extension.sigmoid(input, saved)
        else:
            check_saved(saved)
            value = extension.sigmoid_out(input, out)
        if value is not None:
            return value
    check_saved(saved)
    return run(FUNCTION, sigmoid, input, saved=saved, out=out)


def sigmoid_(input: Tensor) -> Tensor:
    """:func:`sigmoid` in place, as ``torch.sigmoid_``. If a gradient is recorded the derivative
    is kept for it, since the input is overwritten.

    Raises:
        TypeError, NotImplementedError: as :func:`sigmoid`.
        RuntimeError: ``input`` is a leaf that requires grad, of integer dtype, or overlaps itself.

    >>> import torch, fused_sigmoid
    >>> fused_sigmoid.sigmoid_(torch.tensor([0.0, 1.0]))
    tensor([0.5000, 0.7311])
    """
    if not is_dynamo_compiling():
        value = extension.sigmoid_(input)
        if value is not None:
            return value
    return run(FUNCTION, sigmoid_, input)


def sigmoid_with_derivative(input: Tensor) -> tuple[Tensor, Tensor]:
    """σ(x) and σ'(x) = σ(x) σ(-x) of every element, in one pass over the input.

    Args:
        input: as for :func:`sigmoid`.

    Returns:
        ``(value, derivative)``, two tensors like the one :func:`sigmoid` returns. Both are
        differentiable; the derivative's gradient is σ''(x) = -σ'(x) tanh(x/2).

    Raises:
        TypeError, NotImplementedError: as :func:`sigmoid`.

    >>> import torch, fused_sigmoid
    >>> fused_sigmoid.sigmoid_with_derivative(torch.tensor([0.0, 20.0]))
    (tensor([0.5000, 1.0000]), tensor([2.5000e-01, 2.0612e-09]))
    """
    if not is_dynamo_compiling():
        pair = extension.sigmoid_with_derivative(input)
        if pair is not None:
            return pair
    return run(FUNCTION, sigmoid_with_derivative, input)


def _original_with_derivative(input: Any) -> tuple[Any, Any]:
    # The product with a float negates bool and unsigned integers as well.
    value = torch.sigmoid(input)
    return value, torch.mul(value, torch.sigmoid(torch.mul(input, -1.0)))


def _derivative(wide: Tensor) -> Tensor:
    """σ'(x) = t - t² with t = e / (1 + e) and e = exp(-|x|): no cancellation, since t ≤ 1/2 is the
    smaller of σ(x) and 1 - σ(x)."""
    e = torch.exp(-wide.abs())
    t = e / (1 + e)
    return t - t * t


# The float32 nearest to 1e-12, torch's in every dtype.
FLOOR_OF_BCE = 9.999999960041972e-13


def backward_before_bce(grad: Tensor, output: Tensor, loss_dtype: torch.dtype) -> Tensor:
    """grad · max((1 - y) · y, 1e-12), rounded as nn.BCELoss rounds what it divides by."""
    y = output.to(loss_dtype)
    divisor = torch.clamp_min((1 - y) * y, FLOOR_OF_BCE)
    return (grad.to(loss_dtype) * divisor).to(torch.result_type(grad, output))


def _backward_before_bce_on_gpu(
    function: Function, grad: Tensor, output: Tensor, loss_dtype: torch.dtype
) -> Tensor:
    if loss_dtype not in KERNEL_DTYPES:
        raise NotImplementedError(
            f"sigmoid_backward_before_bce(): the loss has dtype {loss_dtype}; accepted are "
            "float64, float32, float16, bfloat16"
        )
    grad, output = alike(grad, output)
    if loss_dtype == output.dtype:
        kernel = function.kernel("backward_before_bce")
    elif loss_dtype == torch.float32 and output.dtype in HALVES:
        kernel = function.kernel("backward_before_float32_bce")
    else:
        operands = grad.to(loss_dtype), output.to(loss_dtype)
        return _backward_before_bce_on_gpu(function, *operands, loss_dtype).to(output.dtype)
    if kernel is None:
        return backward_before_bce(grad, output, loss_dtype)
    return kernel.run(grad, output)


FUNCTION = Function(
    "sigmoid",
    original=torch.sigmoid,
    original_=torch.sigmoid_,
    original_with_derivative=_original_with_derivative,
    derivative=_derivative,
    backward_from_output=torch.ops.aten.sigmoid_backward,
    operators=(
        Operator("_backward_at_exit", lambda _, grad, input, output, exit: torch.mul(grad, output)),
        Operator(
            "_backward_before_bce",
            lambda _, grad, output, loss_dtype: torch.mul(grad, output),
            _backward_before_bce_on_gpu,
        ),
    ),
)
