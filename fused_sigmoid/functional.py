"""The functions users call. Each tries the kernels first and else takes the formula, or torch's
own operation where the input has no formula of ours (complex, integer, quantized, sparse, ...)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.overrides import handle_torch_function, has_torch_function

from . import formula
from ._extension import extension

if torch.__version__.startswith("2.11."):
    # Dynamo of torch 2.11 takes the function for True in every compilation (pytorch#176347).
    def is_exporting() -> bool:
        return torch.compiler._is_exporting_flag

else:
    from torch.compiler import is_exporting

SAVED = ("auto", "derivative", "input", "output")

ACCEPTED = (
    "accepted are strided tensors of float64, float32, float16, bfloat16, complex128, complex64, "
    "bool and integers"
)


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
    if has_torch_function((input, out)):
        arguments = {"saved": saved} if out is None else {"saved": saved, "out": out}
        return _overridden(sigmoid, torch.sigmoid, input, arguments)
    _check(input, "sigmoid")
    check_saved(saved)
    if out is not None:
        return _torch(torch.sigmoid, input, out=out)
    if not _has_formula(input):
        return _torch(torch.sigmoid, input)
    if _is_eager():
        value = extension.followed_sigmoid(input, saved)
        return torch.sigmoid(input) if value is None else value
    if _is_plain():
        return torch.sigmoid(input)
    return torch.ops.fused_sigmoid.sigmoid(input, saved=saved)


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
    if has_torch_function((input,)):
        return _overridden(sigmoid_, torch.sigmoid_, input, {})
    _check(input, "sigmoid_")
    if not _has_formula(input) or _is_plain():
        return _torch(torch.sigmoid_, input)
    if _is_eager():
        value = extension.followed_sigmoid_(input)
        return torch.sigmoid_(input) if value is None else value
    # Of a copy, since the input is changed before the backward pass.
    return input.copy_(torch.ops.fused_sigmoid.sigmoid(input.clone()))


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
    if has_torch_function((input,)):
        return _overridden(sigmoid_with_derivative, _torch_pair, input, {})
    _check(input, "sigmoid_with_derivative")
    if not _has_formula(input):
        return _torch(_torch_pair, input)
    if _is_eager():
        pair = extension.followed_sigmoid_with_derivative(input)
        return formula.sigmoid_with_derivative(input) if pair is None else pair
    if _is_plain():
        return formula.sigmoid_with_derivative(input)
    return torch.ops.fused_sigmoid.sigmoid_with_derivative(input)


def check_saved(saved: object) -> None:
    """ValueError, worded like the extension's own, unless ``saved`` is one of the four."""
    if saved not in SAVED:
        accepted = ", ".join(map(repr, SAVED))
        raise ValueError(f"argument 'saved' is {saved!r}; accepted are {accepted}")


def _check(input: object, name: str) -> None:
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}(): argument 'input' must be Tensor, not {type(input).__name__}")


def _has_formula(input: Tensor) -> bool:
    # The jagged layout is strided data inside; mkldnn, quantized and sparse tensors are not. The
    # older nested tensors call themselves strided, and have no sigmoid.
    if input.dtype not in formula.KERNEL_DTYPES:
        return False
    return input.layout == torch.jagged or (input.layout == torch.strided and not input.is_nested)


def _is_plain() -> bool:
    """Whether the graph being made is to hold ATen's own operation."""
    # Exported and traced graphs are for inference, and other tools read them.
    if is_exporting() if is_compiling() else torch.jit.is_tracing():  # type: ignore[attr-defined]
        return True
    return is_compiling() and not torch.is_grad_enabled()


def _is_eager() -> bool:
    """Whether the extension's node serves: it composes the value of ATen operations where a
    dispatch mode or a subclass has to see them, and keeps the same as it does without."""
    return not (is_compiling() or torch.jit.is_tracing() or transforms())  # type: ignore[attr-defined]


def transforms() -> list[Any]:
    """The types of the active ``torch.func`` transforms, the outermost first."""
    return [level.key() for level in torch._C._functorch.get_interpreter_stack() or ()]


def _torch(function: Callable[..., Any], input: Tensor, **arguments: Any) -> Any:
    """torch's own operation; of an input that it rejects, a message that says what is accepted."""
    try:
        return function(input, **arguments)
    except (NotImplementedError, RuntimeError) as error:
        supported = input.layout == torch.strided and not input.is_quantized
        if (supported and not isinstance(error, NotImplementedError)) or is_compiling():
            raise
        # Not the input, then, but out, or that forward-mode AD follows one of them.
        if _has_formula(input):
            raise
        kind = f"{'nested, ' if input.is_nested else ''}layout {input.layout}, dtype {input.dtype}"
        raise type(error)(f"sigmoid(): argument 'input' has {kind}; {ACCEPTED}") from error


def _torch_pair(input: Any) -> tuple[Any, Any]:
    """For what has no kernel: complex, integers and the rest."""
    # The product with a float negates bool and unsigned integers as well.
    value = torch.sigmoid(input)
    return value, torch.mul(value, torch.sigmoid(torch.mul(input, -1.0)))


def _overridden(
    function: Callable[..., Any],
    torch_function: Callable[..., Any],
    input: Any,
    arguments: dict[str, Any],
) -> Any:
    """For active torch function modes, and arguments that override ``__torch_function__``."""
    relevant = (input, arguments.get("out"))
    # Of the types with rules of their own, torch.fx's records any function: with torch's in the
    # graph, a traced model would train with torch's gradient.
    if any(map(has_own_rules, relevant)) and not isinstance(input, torch.fx.Proxy):
        arguments.pop("saved", None)
        return torch_function(input, **arguments)
    return handle_torch_function(function, relevant, input, **arguments)


def has_own_rules(argument: Any) -> bool:
    """Whether its type has a ``__torch_function__`` of its own. Such knows torch's functions, not
    ours; a type that inherits or disables it takes ours, and so do jagged tensors."""
    rules = getattr(type(argument), "__torch_function__", None)
    if rules is None or rules is torch._C._disabled_torch_function_impl:
        return False
    if getattr(argument, "layout", None) is torch.jagged:
        return False
    inherited = Tensor.__torch_function__.__func__  # type: ignore[attr-defined]
    return getattr(rules, "__func__", None) is not inherited
