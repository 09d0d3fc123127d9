"""1 / (1 + exp(|x|)) in Triton, of which functions with an exponential are made. Depends on Triton,
torch and the generated constants. The arithmetic is that of csrc/numerics, with the same roundings,
so that the bits agree."""

# Kernels get their types from Triton at their launch.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .coefficients import CONSTANTS, SCALARS

# A Triton kernel sees only globals wrapped in constexpr. The polynomial's coefficients are last.
_LIMIT, _LOG2_E, _ROUND_SHIFT, _LN2_HIGH, _LN2_LOW, _NUMERATOR, _SUMMAND, _EXP = map(
    tl.constexpr, range(len(SCALARS) + 1)
)
_CONSTANTS = tl.constexpr({getattr(tl, dtype): CONSTANTS[dtype] for dtype in CONSTANTS})

# NVIDIA's hardware has a reciprocal for Triton; AMD's and Triton's interpreter have none.
_HAS_RECIPROCAL = tl.constexpr(torch.version.hip is None and not triton.knobs.runtime.interpret)


@triton.jit
def _constant(x, value: tl.constexpr):
    """The constant in x's type; a bare Python float would enter tl.fma as float32."""
    return tl.full((), value, x.dtype)


@triton.jit
def minus(x):
    return x * -1  # `-x` is 0 - x to Triton, an add; a product by -1 folds into its use


@triton.jit
def _from_exponent_field(shifted):
    """The number whose exponent field is the low bits of `shifted`; the others fall off."""
    if shifted.dtype == tl.float64:
        number = (shifted.to(tl.int64, bitcast=True) << 52).to(tl.float64, bitcast=True)
    else:
        number = (shifted.to(tl.int32, bitcast=True) << 23).to(tl.float32, bitcast=True)
    return number


@triton.jit
def _reciprocal(x):
    """1 / x to one unit in the last place, in one instruction."""
    return tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def _quotient(numerator, sum):
    """numerator / sum, rounded to nearest.

    In float32 a quotient by the reciprocal and one rounded correction are enough for the numerators
    and the sums that occur: it gave the results of the rounded division for every input on an H100,
    and gives them by reciprocals up to two units in the last place off (tests/native/quotient.cpp).
    In general that division takes two steps more, and a branch to a slow path for operands at the
    ends of the range, past which the compiler moves nothing: the elements of a thread would divide
    one after another.
    """
    if sum.dtype == tl.float64:
        quotient = numerator / sum
    elif _HAS_RECIPROCAL:
        reciprocal = _reciprocal(sum)
        quotient = numerator * reciprocal
        quotient = tl.fma(tl.fma(minus(sum), quotient, numerator), reciprocal, quotient)
    else:
        quotient = tl.div_rn(numerator, sum)  # `/` would be the approximate div.full
    return quotient


@triton.jit
def one_over_one_plus_exp(x, dtype: tl.constexpr):
    """1 / (1 + exp(|x|)) by Cody-Waite range reduction and a minimax polynomial, with the constants
    of `dtype`, to which the result will be rounded."""
    constants: tl.constexpr = _CONSTANTS[dtype]
    degree: tl.constexpr = len(constants) - _EXP - 1
    limit = _constant(x, constants[_LIMIT])
    round_shift = _constant(x, constants[_ROUND_SHIFT])
    a = tl.abs(x)
    if x.dtype == tl.float64:
        a = tl.where(a > limit, limit, a)  # lets NaN through; six instructions less than a minimum
    else:
        a = tl.minimum(a, limit, propagate_nan=tl.PropagateNan.ALL)  # in bfloat16 two less
    shifted = tl.fma(a, _constant(x, constants[_LOG2_E]), round_shift)
    n = shifted - round_shift
    r = tl.fma(n, minus(_constant(x, constants[_LN2_HIGH])), a)
    if constants[_LN2_LOW] != 0:
        r = tl.fma(n, minus(_constant(x, constants[_LN2_LOW])), r)
    p = _constant(x, constants[_EXP + degree])
    for i in tl.static_range(degree):
        p = tl.fma(p, r, _constant(x, constants[_EXP + degree - 1 - i]))
    numerator = _constant(x, constants[_NUMERATOR])
    sum = tl.fma(p, _from_exponent_field(shifted), _constant(x, constants[_SUMMAND]))
    return _quotient(numerator, sum)
