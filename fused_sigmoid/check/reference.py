"""What ``check`` takes for true: σ, σ', σ'' and the loss in float64 on the device, in NumPy's long
double and in mpmath, and errors against them. Depends on torch, NumPy and mpmath; on no kernel."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Protocol

import mpmath
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LongDouble = NDArray[np.longdouble]

LONG_DOUBLE_BITS = int(np.finfo(np.longdouble).nmant) + 1
# 11 more than float64 has, as on x86: its errors show to 1/1000 ulp. Some platforms have no more
# than float64.
LONG_DOUBLE_BITS_NEEDED = 64
DIGITS = 100

# exp(-700) is far below every float32, and not yet where exp in float64 is slow: 30 ns in place of
# 0.4 ns an element, as soon as results are not normal.
LARGEST_EXPONENT = 700.0


class Reference(Protocol):
    """One function over a chunk of inputs, whose results it judges."""

    @property
    def name(self) -> str:
        """ "value", "derivative", "second derivative", "loss" or "loss gradient"."""

    @property
    def rounded(self) -> Tensor:
        """The nearest number of the results' dtype, ties to even."""

    def error(self, result: Tensor) -> Tensor:
        """|result - exact| in float64: in ulp of the result's dtype, where the ulp of subnormals
        is the smallest of them; of the second derivative, as a part of it (at least of the
        smallest normal number). NaN where either is NaN."""


@dataclass(frozen=True)
class Float64Reference:
    """In float64, for results of 32 and 16 bits."""

    name: str
    exact: Tensor
    ulp: Tensor
    rounded: Tensor

    def error(self, result: Tensor) -> Tensor:
        return result.double().sub_(self.exact).abs_().div_(self.ulp)


@dataclass(frozen=True)
class LongDoubleReference:
    """In NumPy's long double, for results of float64."""

    name: str
    exact: LongDouble
    unit: LongDouble
    rounded: Tensor

    def error(self, result: Tensor) -> Tensor:
        with np.errstate(over="ignore", invalid="ignore"):  # of results that are far off
            error = np.abs(result.numpy().astype(np.longdouble) - self.exact) / self.unit
            return torch.from_numpy(np.asarray(error, np.float64))


def long_double_is_narrow() -> bool:
    """Whether long double is too coarse to judge float64, so that mpmath has to."""
    return LONG_DOUBLE_BITS < LONG_DOUBLE_BITS_NEEDED


def first_order(magnitude: Tensor) -> dict[tuple[str, int], Reference]:
    """σ(x) = 1 / (1 + exp(-x)) and σ'(x) = σ(x) σ(-x) for x = ±magnitude.

    Args:
        magnitude: numbers without a sign, infinity and NaN; float64 (on the CPU), float32,
            float16 or bfloat16.

    Returns:
        References by name and sign of x; that of σ', which is even, is one and the same.
    """
    references: tuple[Reference, ...]
    names = ("value", "value", "derivative")
    if magnitude.dtype == torch.float64:
        references = tuple(map(_long_double, names, _in_long_double(magnitude)))
    else:
        exact = _in_float64(magnitude)
        references = tuple(
            _float64(*pair, magnitude.dtype) for pair in zip(names, exact, strict=True)
        )
    value, complement, derivative = references
    return {
        ("value", 1): value,
        ("value", -1): complement,
        ("derivative", 1): derivative,
        ("derivative", -1): derivative,
    }


def second_order(magnitude: Tensor) -> dict[tuple[str, int], Reference]:
    """σ''(x) = -σ'(x) tanh(x / 2) for x = ±magnitude, float64 on the CPU."""
    _, _, derivative = _in_long_double(magnitude)
    second = derivative * np.tanh(magnitude.numpy().astype(np.longdouble) / 2)
    unit = np.maximum(second, np.longdouble(torch.finfo(torch.float64).smallest_normal))
    references: dict[tuple[str, int], Reference] = {}
    for sign in (1, -1):
        rounded = torch.from_numpy(np.asarray(-sign * second, np.float64))
        references["second derivative", sign] = LongDoubleReference(
            "second derivative", -sign * second, unit, rounded
        )
    return references


def loss(magnitude: Tensor) -> dict[tuple[str, int], Reference]:
    """The binary cross entropy log(1 + exp(x)) of a target of 0 and its gradient σ(x) for
    x = ±magnitude; arguments and results as those of :func:`first_order`."""
    names = ("loss", "loss", "loss gradient", "loss gradient")
    signs = (1, -1, 1, -1)
    references: tuple[Reference, ...]
    if magnitude.dtype == torch.float64:
        references = tuple(map(_long_double, names, _loss_in_long_double(magnitude)))
    else:
        exact = _loss_in_float64(magnitude)
        references = tuple(
            _float64(*pair, magnitude.dtype) for pair in zip(names, exact, strict=True)
        )
    return dict(zip(zip(names, signs, strict=True), references, strict=True))


def _exponential(magnitude: Tensor) -> Tensor:
    return magnitude.double().neg_().clamp_(min=-LARGEST_EXPONENT).exp_()


def _in_float64(magnitude: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    e = _exponential(magnitude)
    value = (e + 1).reciprocal_()
    complement = e.mul_(value)
    return value, complement, complement * value


def _loss_in_float64(magnitude: Tensor) -> tuple[Tensor, ...]:
    e = _exponential(magnitude)
    value = (e + 1).reciprocal_()
    complement = e * value
    rest = e.log1p_()
    return rest + magnitude, rest, value, complement


def _in_long_double(magnitude: Tensor) -> tuple[LongDouble, LongDouble, LongDouble]:
    e: LongDouble = np.exp(-magnitude.numpy().astype(np.longdouble))
    value: LongDouble = 1 / (1 + e)
    return value, e / (1 + e), e / (1 + e) ** 2


def _loss_in_long_double(magnitude: Tensor) -> tuple[LongDouble, ...]:
    wide = magnitude.numpy().astype(np.longdouble)
    e: LongDouble = np.exp(-wide)
    rest = np.log1p(e)
    return wide + rest, rest, 1 / (1 + e), e / (1 + e)


def _float64(name: str, exact: Tensor, dtype: torch.dtype) -> Float64Reference:
    info = torch.finfo(dtype)
    # The exponent field alone is the power of two below.
    power = (exact.view(torch.int64) & 0x7FF0_0000_0000_0000).view(torch.float64)
    ulp = power.clamp_(info.smallest_normal, info.max).mul_(info.eps)
    if dtype == torch.float32:
        return Float64Reference(name, exact, ulp, exact.float())
    # torch rounds float64 to a half twice, by way of float32.
    rounded = (exact / ulp).round_().mul_(ulp).to(dtype)
    return Float64Reference(name, exact, ulp, rounded)


def _long_double(name: str, exact: LongDouble) -> LongDoubleReference:
    finite = np.where(np.isfinite(exact), exact, 0)
    exponent = np.where(finite == 0, -1021, np.maximum(np.frexp(finite)[1], -1021))
    ulp = np.ldexp(np.longdouble(1), exponent - 53)
    return LongDoubleReference(name, exact, ulp, torch.from_numpy(np.asarray(exact, np.float64)))


def exact_error(name: str, x: float, result: float) -> float:
    """The error of one float64 result, as :meth:`Reference.error` measures it, from mpmath at 100
    digits; NaN where either is NaN."""
    exact, unit = _in_mpmath(name, x)
    with mpmath.workdps(DIGITS):
        return float(abs(mpmath.mpf(result) - exact) / unit)


# All instruction sets have the same worst inputs, when all is well.
@functools.lru_cache(maxsize=100_000)
def _in_mpmath(name: str, x: float) -> tuple[Any, Any]:
    with mpmath.workdps(DIGITS):
        wide = mpmath.mpf(x)
        e = mpmath.exp(-abs(wide))
        derivative = e / (1 + e) ** 2
        if name == "second derivative":
            exact = -derivative * mpmath.tanh(wide / 2)
            return exact, max(abs(exact), mpmath.ldexp(1, -1022))
        value = (e if x < 0 else 1) / (1 + e)
        exact = {
            "value": value,
            "derivative": derivative,
            "loss": mpmath.log1p(e) + (wide if x > 0 else 0),
            "loss gradient": value,
        }[name]
        exponent = mpmath.frexp(exact)[1] if exact and mpmath.isfinite(exact) else -1021
        return exact, mpmath.ldexp(1, max(int(exponent), -1021) - 53)
