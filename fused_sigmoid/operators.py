"""The Python side of the operators ``torch.ops.fused_sigmoid``: fake kernels, batching rules and
CUDA kernels. csrc/operators.cpp has their schemas, CPU kernels and autograd. Depends on functions/.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ._extension import KERNEL_DTYPES
from .functions import FUNCTIONS
from .functions.function import Function, Operator, alike

# Fake kernels: shapes, strides and dtypes are those that ATen's operations give.


def _fake_value(function: Function, input: Tensor, *, saved: str = "auto") -> Tensor:
    return function.original(input)


def _fake_pair(function: Function, input: Tensor) -> tuple[Tensor, Tensor]:
    return function.original(input), function.original(input)


def _fake_write(function: Function, input: Tensor, *outs: Tensor) -> None:
    for out in outs:
        function.original(input, out=out)


def _fake_backward(function: Function, grad: Tensor, kept: Tensor) -> Tensor:
    return torch.mul(grad, kept)


# CUDA kernels.


def _real(function: Function, input: Tensor) -> Tensor:
    """Bool and integers become the default dtype, as torch converts them."""
    if input.dtype in KERNEL_DTYPES:
        return input
    if input.is_floating_point() or input.is_complex():
        raise NotImplementedError(
            f"{function.name}(): argument 'input' has dtype {input.dtype}; accepted are float64, "
            "float32, float16, bfloat16, bool and integers"
        )
    return input.to(torch.get_default_dtype())


def _value(function: Function, input: Tensor, *, saved: str = "auto") -> Tensor:
    work = "value_of_kept" if saved == "input" else "value"
    return function.run(work, _real(function, input))


def _pair(function: Function, input: Tensor) -> tuple[Tensor, Tensor]:
    return function.run("value_and_derivative", _real(function, input))


def _write(work: str, function: Function, input: Tensor, *outs: Tensor) -> None:
    real, memory = _real(function, input), [out.untyped_storage().data_ptr() for out in outs]
    # A kernel may write to its input, but to no other tensor in the input's memory.
    fits = len(set(memory)) == len(outs) and all(
        (out.shape, out.dtype, out.device) == (real.shape, real.dtype, real.device)
        and (out is real or place != real.untyped_storage().data_ptr())
        for out, place in zip(outs, memory, strict=True)
    )
    kernel = function.kernel(work) if fits else None
    if kernel is not None and kernel.write(real, *outs):
        return
    results = function.run(work, real)
    for out, result in zip(outs, results if len(outs) > 1 else (results,), strict=True):
        if not fits:
            # torch resizes, converts and raises its own errors.
            function.original(input, out=out)
        out.copy_(result)


def _backward(work: str, function: Function, grad: Tensor, kept: Tensor) -> Tensor:
    return function.run(work, *alike(grad, kept))


# Batching rules: an elementwise operator only has to bring the batch dimensions together.


def _batched(
    operator: Any, _: Any, in_dims: tuple[int | None, ...], *arguments: Any, **options: Any
) -> tuple[Any, Any]:
    # A dtype, which comes last, has no dimensions.
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    others = arguments[len(tensors) :]
    dims = in_dims[: len(tensors)]
    ranks = [t.dim() - (d is not None) for t, d in zip(tensors, dims, strict=True)]
    rank = max(ranks)
    # A gradient's operator looks for the node of what was kept, which comes last and is no view.
    at = dims[-1] if dims[-1] is not None and min(ranks) == rank else 0
    batched = (_batch_at(at, t, d, rank) for t, d in zip(tensors, dims, strict=True))
    result = operator(*batched, *others, **options)
    return result, {0: None, 1: at, 2: (at, at)}[len(operator.default._schema.returns)]


def _batch_at(at: int, tensor: Tensor, batch_dim: int | None, rank: int) -> Tensor:
    """The batch dimension brought to ``at``, or of size 1 without one. It is 0 if there are fewer
    than ``rank`` others: these are filled up behind it."""
    if batch_dim is None:
        tensor = tensor.unsqueeze(at)
    elif batch_dim != at:
        tensor = tensor.movedim(batch_dim, at)
    missing = rank + 1 - tensor.dim()
    if missing == 0:
        return tensor
    return tensor.reshape(tensor.shape[:1] + (1,) * missing + tensor.shape[1:])


# The operators that every function has.
OPERATORS = (
    Operator("", _fake_value, _value),
    Operator("_out", _fake_write, partial(_write, "value")),
    Operator("_with_derivative", _fake_pair, _pair),
    Operator("_with_derivative_out", _fake_write, partial(_write, "value_and_derivative")),
    *(
        Operator(f"_{work}", _fake_backward, partial(_backward, work))
        for work in ("backward", "backward_from_output", "backward_from_derivative")
    ),
)


def _register(function: Function, operator: Operator) -> None:
    name = function.name + operator.suffix
    qualified, overloads = f"fused_sigmoid::{name}", getattr(torch.ops.fused_sigmoid, name)
    torch.library.register_fake(qualified, partial(operator.fake, function))
    if operator.cuda is not None:
        torch.library.impl(qualified, "CUDA", partial(operator.cuda, function))
        torch.library.register_vmap(qualified, partial(_batched, overloads))


for _function in FUNCTIONS:
    for _operator in (*OPERATORS, *_function.operators):
        _register(_function, _operator)
