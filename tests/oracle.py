"""What the tests take for true: the sigmoid and its derivatives in NumPy's long double, correctly
rounded to a tensor's dtype, distances in units of the last place, and in what a result has to be
like torch's. Depends on NumPy and torch; on nothing of the package under test."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# 64 bits of significand on x86: 11 more than float64, so that its errors show to 1/1000 ulp.
LongDouble = NDArray[np.longdouble]

BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}
DTYPES = tuple(BITS)
HALVES = (torch.float16, torch.bfloat16)


def exact(tensor: Tensor) -> LongDouble:
    """The tensor's elements, unrounded."""
    tensor = tensor.detach()
    # NumPy has no bfloat16; float32 holds every one.
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    with np.errstate(invalid="ignore"):  # signalling NaN are among the bit patterns
        return np.asarray(tensor.numpy().astype(np.longdouble))


def value(x: LongDouble) -> LongDouble:
    """σ(x) = 1 / (1 + exp(-x)), in the form that can't overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def derivative(x: LongDouble) -> LongDouble:
    """σ'(x) = e / (1 + e)² with e = exp(-|x|)."""
    e = np.exp(-np.abs(x))
    return e / (1 + e) ** 2


def cross_entropy(x: LongDouble, t: LongDouble) -> tuple[LongDouble, LongDouble]:
    """(1 - t) log(1 + exp(x)) + t log(1 + exp(-x)) and its derivative by x, of terms that do not
    cancel where t is 0 or 1."""
    with np.errstate(all="ignore"):
        e = np.exp(-np.abs(x))
        side = np.where(x < 0, t, 1 - t)
        linear = np.where((side == 0) & np.isinf(x), 0, side * np.abs(x))
        smaller = e / (1 + e)
        up = np.where(x < 0, smaller, 1 - smaller)
        down = np.where(x < 0, 1 - smaller, smaller)
        return linear + np.log1p(e), (1 - t) * up - t * down


def second_derivative(x: LongDouble) -> LongDouble:
    """σ''(x) = -σ'(x) tanh(x / 2)."""
    return -derivative(x) * np.tanh(x / 2)


def third_derivative(x: LongDouble) -> LongDouble:
    """σ'''(x) = σ'(x) (1 - 6 σ'(x))."""
    first = derivative(x)
    return first * (1 - 6 * first)


def ulp(reference: LongDouble, dtype: torch.dtype) -> LongDouble:
    """The distance between neighbours of ``dtype`` around each reference; among subnormals that
    is the smallest subnormal."""
    info = torch.finfo(dtype)
    _, precision = np.frexp(np.longdouble(info.eps))
    _, lowest = np.frexp(np.longdouble(info.smallest_normal))
    finite = np.where(np.isfinite(reference), reference, 0)
    _, exponent = np.frexp(finite)
    exponent = np.where(finite == 0, lowest, np.maximum(exponent, lowest))
    return np.ldexp(np.longdouble(1), exponent + precision - 2)


def rounded(reference: LongDouble, dtype: torch.dtype) -> Tensor:
    """The reference rounded once, to nearest and ties to even. A chain of conversions, such as
    torch's from float64 to float16 by way of float32, would round twice."""
    place = ulp(reference, dtype)
    # Exact in float64, since now exact in dtype.
    return torch.from_numpy(np.asarray(np.rint(reference / place) * place, np.float64)).to(dtype)


def error_in_ulp(result: Tensor, reference: LongDouble) -> LongDouble:
    """|result - reference| in ulp of the result's dtype; 0 where both are NaN, NaN where one is."""
    got = exact(result)
    error = np.abs(got - reference) / ulp(reference, result.dtype)
    return np.where(np.isnan(got) & np.isnan(reference), 0, error)


def largest_error_in_ulp(result: Tensor, reference: LongDouble) -> float:
    """NaN if a NaN stands on one side only, so that no bound holds."""
    assert tuple(result.shape) == reference.shape
    return float(np.max(error_in_ulp(result, reference), initial=0))


def bits(tensor: Tensor) -> Tensor:
    """The bit patterns, with one pattern for every NaN."""
    tensor = tensor.detach().contiguous()
    return torch.where(tensor.isnan(), torch.nan, tensor).view(BITS[tensor.dtype])


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def every_half(dtype: torch.dtype) -> Tensor:
    """All 65,536 bit patterns of a 16-bit dtype."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def every_finite_half(dtype: torch.dtype) -> Tensor:
    patterns = every_half(dtype)
    return patterns[patterns.isfinite()]


def float32_patterns(start: int, stop: int, step: int) -> Tensor:
    """The float32 numbers whose bit patterns are ``range(start, stop, step)``, below 2³²."""
    unsigned = torch.arange(start, stop, step, dtype=torch.int64)
    return unsigned.to(torch.int32).view(torch.float32)


def both_tails(count: int, dtype: torch.dtype) -> Tensor:
    """``count`` reproducible numbers: most where the sigmoid bends, the others out to where its
    derivative vanishes in ``dtype``, on both sides."""
    generator = torch.Generator().manual_seed(count)
    reach = {torch.float64: 750, torch.float32: 106, torch.bfloat16: 94, torch.float16: 18}[dtype]
    near = torch.randn(count, generator=generator, dtype=torch.float64) * 4
    far = (torch.rand(count, generator=generator, dtype=torch.float64) * 2 - 1) * reach
    take_far = torch.rand(count, generator=generator) < 0.3
    return torch.where(take_far, far, near).to(dtype)


def description(tensor: Tensor) -> tuple[Any, ...]:
    """All but the numbers in which a result has to be like torch's."""
    strides = tensor.stride() if tensor.layout == torch.strided else None
    return (
        type(tensor),
        tensor.dtype,
        tensor.shape,
        strides,
        tensor.layout,
        tensor.device,
        tensor.requires_grad,
        tensor.is_conj(),
        tensor.is_neg(),
        tensor.is_quantized,
    )
