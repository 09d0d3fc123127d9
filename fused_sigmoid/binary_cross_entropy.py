"""The binary cross entropy of logits: the public function, and its formula in ATen operations for
what the kernels do not take. Depends on torch, the extension and routes.py.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import handle_torch_function, has_torch_function

from ._extension import HALVES, KERNEL_DTYPES, extension
from .routes import has_own_rules

# By torch's numbers.
REDUCTIONS = ("none", "mean", "sum")


@overload
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
    return_probability: Literal[False] = False,
    size_average: None = None,
    reduce: None = None,
) -> Tensor: ...


@overload
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
    return_probability: Literal[True],
    size_average: None = None,
    reduce: None = None,
) -> tuple[Tensor, Tensor]: ...


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
    return_probability: bool = False,
    size_average: None = None,
    reduce: None = None,
) -> Any:
    """The binary cross entropy of logits x with targets t, as
    ``torch.nn.functional.binary_cross_entropy_with_logits``, exact on both tails.

    .. math:: l = w ((1 - t) \\log(1 + e^x) + p t \\log(1 + e^{-x})), \\qquad
              dl/dx = w ((1 - t) σ(x) - p t σ(-x))

    torch forms the loss as ``(1 - t) * x - logsigmoid(x)``, so that a confident negative costs
    nothing: 0 from x = -14.6 down in float32, from -4.2 in bfloat16. Here no term is the difference
    of two others. Loss, probability and gradient come of one pass over the logits. A sum or mean is
    formed in float64, rounded once, and the same for any number of threads.

    Args:
        input: logits of any shape, strides and device; float64, float32, float16 and bfloat16 run
            in the fused kernels on CPU and CUDA.
        target: of the shape of ``input`` and a floating dtype; within [0, 1], unless wanted
            otherwise.
        weight: w, of a shape that broadcasts to that of ``input``; 1 by default.
        pos_weight: p, of a shape that broadcasts to that of ``input``; 1 by default.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        return_probability: whether to return σ(x) as well, of the same pass.
        size_average, reduce: torch's names for ``reduction`` before there was that; not accepted.

    Returns:
        The loss, of the dtype of ``target``: one number, or with ``reduction="none"`` one for each
        element. With ``return_probability`` a tuple of it and σ(x), which no gradient goes through.
        Every other order and kind of derivative is that of the formula, also by ``target``,
        ``weight`` and ``pos_weight``.

    Raises:
        TypeError: an operand is not a tensor, or ``size_average`` or ``reduce`` is given.
        ValueError: the shapes of ``input`` and ``target`` differ, or ``reduction`` is none of the
            three.
        RuntimeError: a weight does not broadcast, or ``target`` is not of a floating dtype.

    If a gradient is recorded the forward pass writes it, and the backward pass returns that tensor,
    multiplied in place if the incoming gradient is not 1. Beside it logits, targets and weights are
    held on to, for second derivatives, as torch holds on to them; a first gradient does not need
    them, and they may change. In float16 the backward pass computes the gradient of a mean, or of
    weighted losses, instead, so that a scaled loss does not underflow.

    >>> import torch, fused_sigmoid
    >>> x = torch.tensor([-20.0, 20.0], requires_grad=True)
    >>> loss = fused_sigmoid.binary_cross_entropy_with_logits(x, torch.tensor([0.0, 1.0]))
    >>> loss.backward()
    >>> loss, x.grad
    (tensor(2.0612e-09, grad_fn=<...>), tensor([ 1.0306e-09, -1.0306e-09]))
    """
    refuse_legacy(size_average, reduce)
    if not is_dynamo_compiling():
        result = extension.binary_cross_entropy_with_logits(
            input, target, weight, pos_weight, reduction, return_probability
        )
        if result is not None:
            return result
    return _run(input, target, weight, pos_weight, reduction, return_probability)


def refuse_legacy(size_average: Any, reduce: Any) -> None:
    """TypeError if one of torch's two old names for the reduction is given."""
    if size_average is None and reduce is None:
        return
    wanted = torch.nn._reduction.legacy_get_string(size_average, reduce, emit_warning=False)
    raise TypeError(
        f"arguments 'size_average' and 'reduce' are not accepted: write reduction={wanted!r}"
    )


def _run(
    input: Any,
    target: Any,
    weight: Any,
    pos_weight: Any,
    reduction: str,
    return_probability: bool,
) -> Any:
    tensors = (input, target, weight, pos_weight)
    if has_torch_function(tensors):
        return _handed_over(tensors, reduction, return_probability)
    for name, tensor in zip(("input", "target", "weight", "pos_weight"), tensors, strict=True):
        is_left_out = tensor is None and name in ("weight", "pos_weight")
        if not is_left_out and not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise TypeError(
                f"binary_cross_entropy_with_logits(): argument {name!r} must be Tensor, not {kind}"
            )
    if reduction not in REDUCTIONS:
        raise ValueError(f"{reduction} is not a valid value for reduction")
    if target.size() != input.size():
        raise ValueError(
            f"Target size ({target.size()}) must be the same as input size ({input.size()})"
        )
    if any(map(_is_half, tensors)) and _is_under_autocast(input.device.type):
        # Autocast has torch's loss run in float32.
        widened = [each.float() if _is_half(each) else each for each in tensors]
        input, target, weight, pos_weight = widened
        return binary_cross_entropy_with_logits(  # type: ignore[call-overload]
            input,
            target,
            weight,
            pos_weight=pos_weight,
            reduction=reduction,
            return_probability=return_probability,
        )
    is_known = all(each.dtype in KERNEL_DTYPES and _is_dense(each) for each in (input, target))
    if is_known and not any(each is not None and each.is_complex() for each in tensors):
        loss = composed_loss(input, target, weight, pos_weight, reduction)
    else:
        loss = _original(tensors, reduction)
    return _with_probability(loss, input) if return_probability else loss


def _handed_over(tensors: tuple[Any, ...], reduction: str, return_probability: bool) -> Any:
    input, target, weight, pos_weight = tensors
    # A type with rules of its own knows torch's functions, and not ours.
    if not isinstance(input, torch.fx.Proxy) and any(map(has_own_rules, tensors)):
        loss = _original(tensors, reduction)
        return _with_probability(loss, input) if return_probability else loss
    public: Any = binary_cross_entropy_with_logits
    return handle_torch_function(
        public,
        tensors,
        input,
        target,
        weight,
        pos_weight=pos_weight,
        reduction=reduction,
        return_probability=return_probability,
    )


def _with_probability(loss: Any, input: Any) -> tuple[Any, Any]:
    return loss, torch.sigmoid(input).detach()


def _original(tensors: tuple[Any, ...], reduction: str) -> Any:
    input, target, weight, pos_weight = tensors
    return torch.nn.functional.binary_cross_entropy_with_logits(
        input, target, weight, pos_weight=pos_weight, reduction=reduction
    )


def _is_half(tensor: Any) -> bool:
    return tensor is not None and tensor.dtype in HALVES


def _is_under_autocast(device: str) -> bool:
    # Torch 2.11 cannot compile the question whether there is an autocast for a device.
    exists = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)
    return exists and torch.is_autocast_enabled(device)


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_nested


def composed_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
) -> Tensor:
    """The loss in ATen operations, by which its derivatives of every order keep both tails. Halves
    are computed in float32 and rounded once.

    ``Composed`` in csrc/binary_cross_entropy_autograd.cpp is the same for the node and for
    operators; this is the form that compilers and exports trace."""
    dtype = torch.promote_types(torch.promote_types(input.dtype, target.dtype), torch.float32)
    x, t = input.to(dtype), target.to(dtype)
    # The selections have a derivative for all x, where abs() and max() have none at 0.
    is_negative = x < 0
    magnitude = torch.where(is_negative, -x, x)
    rest = torch.log1p(torch.exp(-magnitude))
    positive = t
    if pos_weight is not None:
        positive = pos_weight * t
        rest = (1 - t + positive) * rest
    side = torch.where(is_negative, positive, 1 - t)
    # A target of 0 or 1 on the right side of an infinite logit costs nothing.
    costs_nothing = torch.isinf(magnitude) & (side == 0)
    loss = side * torch.where(costs_nothing, 0, magnitude) + rest
    if weight is not None:
        loss = weight * loss
    if loss.shape != input.shape:
        raise RuntimeError(
            f"output with shape {list(input.shape)} doesn't match the broadcast shape "
            f"{list(loss.shape)}"
        )
    if reduction != "none":
        loss = loss.mean() if reduction == "mean" else loss.sum()
    return loss.to(target.dtype)
