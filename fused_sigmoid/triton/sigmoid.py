"""The works of the sigmoid in Triton, over blocks of operands that are float32 if the tensors are
halves. `dtype` is the tensors'. Depends on Triton, exponential.py and functions/."""

# Kernels get their types from Triton at their launch.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from ..functions.sigmoid import FLOOR_OF_BCE
from .exponential import minus, one_over_one_plus_exp

_FLOOR_OF_BCE = tl.constexpr(FLOOR_OF_BCE)

# Where t is the smaller of sigmoid(x) and 1 - sigmoid(x), and y the output.


@triton.jit
def _value(x, t):
    return tl.where(x < 0, t, 1 - t)


@triton.jit
def _derivative(t, dtype: tl.constexpr):
    return t * (1 - t) if dtype.primitive_bitwidth == 16 else tl.fma(minus(t), t, t)


@triton.jit
def _divisor_of_bce(y, dtype: tl.constexpr):
    """max((1 - y) * y, 1e-12), rounded to `dtype` after each operation as nn.BCELoss rounds it."""
    complement = (1 - y).to(dtype).to(y.dtype)
    product = (complement * y).to(dtype).to(y.dtype)
    floor = tl.full((), _FLOOR_OF_BCE, y.dtype).to(dtype).to(y.dtype)
    return tl.where(product < floor, floor, product)  # lets NaN through


@triton.jit
def value(x, dtype: tl.constexpr):
    return _value(x, one_over_one_plus_exp(x, dtype))


@triton.jit
def value_and_derivative(x, dtype: tl.constexpr):
    t = one_over_one_plus_exp(x, dtype)
    return _value(x, t), _derivative(t, dtype)


@triton.jit
def backward(g, x, dtype: tl.constexpr):
    return g * _derivative(one_over_one_plus_exp(x, dtype), dtype)


@triton.jit
def backward_from_output(g, y, dtype: tl.constexpr):
    return g * (1 - y) * y


@triton.jit
def backward_before_bce(g, y, dtype: tl.constexpr):
    return g * _divisor_of_bce(y, dtype)


@triton.jit
def backward_before_float32_bce(g, y, dtype: tl.constexpr):
    return g * _divisor_of_bce(y, y.dtype)
