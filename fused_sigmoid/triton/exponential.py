"""1 / (1 + exp(|x|)) in Triton, of which functions with an exponential are made. Depends on Triton,
torch and the generated constants. The arithmetic is that of csrc/numerics, with the same roundings,
so that the bits agree."""

# Kernels get their types from Triton at their launch.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .coefficients import CONSTANTS, POWERS, SCALARS

# A Triton kernel sees only globals wrapped in constexpr. The polynomial's coefficients are last.
_LIMIT, _LOG2_E, _ROUND_SHIFT, _LN2_HIGH, _LN2_LOW, _NUMERATOR, _SUMMAND, _EXP = map(
    tl.constexpr, range(len(SCALARS) + 1)
)
_CONSTANTS = tl.constexpr({getattr(tl, dtype): CONSTANTS[dtype] for dtype in CONSTANTS})
_POWERS = tl.constexpr({getattr(tl, dtype): POWERS[dtype] for dtype in POWERS})

# Two instructions of NVIDIA's hardware, a reciprocal and a shuffle, are written out for it. AMD's
# and Triton's interpreter get by without.
_IS_NVIDIA = tl.constexpr(torch.version.hip is None and not triton.knobs.runtime.interpret)


@triton.jit
def constant(x, value: tl.constexpr):
    """The constant in x's type; a bare Python float would enter tl.fma as float32."""
    return tl.full((), value, x.dtype)


@triton.jit
def minus(x):
    return x * -1  # `-x` is 0 - x to Triton, an add; a product by -1 folds into its use


@triton.jit
def chosen(j, entries: tl.constexpr, type: tl.constexpr):
    """The one of eight entries, numbers of a type, that the lowest three bits of j name."""
    bit = (j & 1) != 0
    a = tl.where(bit, tl.full((), entries[1], type), tl.full((), entries[0], type))
    b = tl.where(bit, tl.full((), entries[3], type), tl.full((), entries[2], type))
    c = tl.where(bit, tl.full((), entries[5], type), tl.full((), entries[4], type))
    d = tl.where(bit, tl.full((), entries[7], type), tl.full((), entries[6], type))
    bit = (j & 2) != 0
    return tl.where((j & 4) != 0, tl.where(bit, d, c), tl.where(bit, b, a))


# What $1 is in another lane of a warp: of the eight from a multiple of eight on, the one that the
# lowest three bits of $2 name.
_SHUFFLE = tl.constexpr("shfl.sync.idx.b32 $0, $1, $2, 0x181f, 0xffffffff;")
_SHUFFLE_64 = tl.constexpr("""{
    .reg .b32 low, high, lane;
    mov.b64 {low, high}, $1;
    cvt.u32.u64 lane, $2;
    shfl.sync.idx.b32 low, low, lane, 0x181f, 0xffffffff;
    shfl.sync.idx.b32 high, high, lane, 0x181f, 0xffffffff;
    mov.b64 $0, {low, high};
}""")


@triton.jit
def looked_up(j, entries: tl.constexpr, type: tl.constexpr):
    """The same as ``chosen`` gives.

    On NVIDIA's hardware each lane of a warp has an entry at hand, and a shuffle fetches that of
    another lane: one instruction an element, or two in float64, where the choice by bits takes ten.
    All lanes take part, also those that are masked.
    """
    if _IS_NVIDIA:
        lane = tl.inline_asm_elementwise(
            "mov.u32 $0, %laneid;", "=r", [], dtype=tl.int32, is_pure=True, pack=1
        )
        own = chosen(lane, entries, type)
        if type == tl.int64:
            entry = tl.inline_asm_elementwise(
                _SHUFFLE_64, "=l,l,l", [own, j], dtype=tl.int64, is_pure=False, pack=1
            )
        else:
            entry = tl.inline_asm_elementwise(
                _SHUFFLE, "=r,r,r", [own, j], dtype=tl.int32, is_pure=False, pack=1
            )
    else:
        entry = chosen(j, entries, type)
    return entry


@triton.jit
def power_of_two(shifted, powers: tl.constexpr):
    """2**m, times a factor that is in the table, where the low bits of `shifted` are 8 m: the entry
    that the lowest three bits name, to which those above are added as the exponent."""
    if shifted.dtype == tl.float64:
        bits = shifted.to(tl.int64, bitcast=True)
        power = (looked_up(bits, powers, tl.int64) + (bits << 49)).to(tl.float64, bitcast=True)
    else:
        bits = shifted.to(tl.int32, bitcast=True)
        power = (looked_up(bits, powers, tl.int32) + (bits << 20)).to(tl.float32, bitcast=True)
    return power


@triton.jit
def _reciprocal(x):
    """1 / x to one unit in the last place, in one instruction."""
    return tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def divide(numerator, sum, dtype: tl.constexpr):
    """numerator / sum, rounded to nearest.

    A quotient by the reciprocal and one rounded correction are enough for the numerators and the
    sums that occur in the halves. In float32 the reciprocal is corrected as well, without which up
    to 80 in 2**30 results could differ. So every result is the rounded division's, by reciprocals
    up to two units in the last place off (tests/native/quotient.cpp). In general that division
    takes a branch to a slow path for operands at the ends of the range, past which the compiler
    moves nothing: the elements of a thread would divide one after another.
    """
    if sum.dtype == tl.float64:
        quotient = numerator / sum
    elif _IS_NVIDIA:
        reciprocal = _reciprocal(sum)
        if dtype == tl.float32:
            reciprocal = tl.fma(tl.fma(minus(sum), reciprocal, 1.0), reciprocal, reciprocal)
        quotient = numerator * reciprocal
        quotient = tl.fma(tl.fma(minus(sum), quotient, numerator), reciprocal, quotient)
    else:
        quotient = tl.div_rn(numerator, sum)  # `/` would be the approximate div.full
    return quotient


@triton.jit
def _polynomial(r, constants: tl.constexpr):
    """That of coefficients.h: factored of the second or third degree, else by Horner's rule."""
    degree: tl.constexpr = len(constants) - _EXP
    if degree <= 3:
        w = r + constant(r, constants[_EXP])
        p = tl.fma(w, w, constant(r, constants[_EXP + 1]))
        if degree == 3:
            p = tl.fma(p, r, constant(r, constants[_EXP + 2]))
    else:
        p = constant(r, constants[_EXP + degree - 1])
        for i in tl.static_range(degree - 1):
            p = tl.fma(p, r, constant(r, constants[_EXP + degree - 2 - i]))
    return p


@triton.jit
def one_over_one_plus_exp(x, dtype: tl.constexpr):
    """1 / (1 + exp(|x|)) by Cody-Waite range reduction to eighths of powers of two, a table and a
    minimax polynomial, with the constants of `dtype`, to which the result will be rounded."""
    constants: tl.constexpr = _CONSTANTS[dtype]
    powers: tl.constexpr = _POWERS[dtype]
    limit = constant(x, constants[_LIMIT])
    round_shift = constant(x, constants[_ROUND_SHIFT])
    a = tl.abs(x)
    if x.dtype == tl.float64:
        a = tl.where(a > limit, limit, a)  # lets NaN through; six instructions less than a minimum
    else:
        a = tl.minimum(a, limit, propagate_nan=tl.PropagateNan.ALL)  # in bfloat16 two less
    shifted = tl.fma(a, constant(x, constants[_LOG2_E]), round_shift)
    m = shifted - round_shift
    r = tl.fma(m, minus(constant(x, constants[_LN2_HIGH])), a)
    if constants[_LN2_LOW] != 0:
        r = tl.fma(m, minus(constant(x, constants[_LN2_LOW])), r)
    p = _polynomial(r, constants)
    numerator = constant(x, constants[_NUMERATOR])
    sum = tl.fma(power_of_two(shifted, powers), p, constant(x, constants[_SUMMAND]))
    return divide(numerator, sum, dtype)
