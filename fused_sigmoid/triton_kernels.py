"""The GPU kernels and their launch: value and derivative of the sigmoid in one pass.

Depends on torch, Triton and the generated constants; `ops.py` imports it on the first GPU tensor.
The arithmetic is the one in csrc/numerics, operation for operation, so that the bits agree.
"""

# Kernels get their types from Triton at their launch.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl

from . import coefficients

if TYPE_CHECKING:
    from torch import Tensor

# One program's elements, and its warps: 8 elements a thread, one (halves) to four (float64) 128-bit
# accesses. A starting point from reading machine code; no measurement chose it yet.
BLOCK_SIZE = 1024
# Without fp fusion off, Triton and ptxas contract products and sums to fma, and the bits part from
# the CPU's.
LAUNCH_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}

# A Triton kernel sees only globals wrapped in constexpr.
_FLOAT32_LIMIT = tl.constexpr(coefficients.FLOAT32_LIMIT)
_FLOAT32_LOG2_E = tl.constexpr(coefficients.FLOAT32_LOG2_E)
_FLOAT32_LN2_HIGH = tl.constexpr(coefficients.FLOAT32_LN2_HIGH)
_FLOAT32_LN2_LOW = tl.constexpr(coefficients.FLOAT32_LN2_LOW)
_FLOAT32_ROUND_SHIFT = tl.constexpr(coefficients.FLOAT32_ROUND_SHIFT)
_FLOAT32_EXP = tl.constexpr(coefficients.FLOAT32_EXP)
_FLOAT32_DEGREE = tl.constexpr(len(coefficients.FLOAT32_EXP) - 1)
_FLOAT64_LIMIT = tl.constexpr(coefficients.FLOAT64_LIMIT)
_FLOAT64_LOG2_E = tl.constexpr(coefficients.FLOAT64_LOG2_E)
_FLOAT64_LN2_HIGH = tl.constexpr(coefficients.FLOAT64_LN2_HIGH)
_FLOAT64_LN2_LOW = tl.constexpr(coefficients.FLOAT64_LN2_LOW)
_FLOAT64_ROUND_SHIFT = tl.constexpr(coefficients.FLOAT64_ROUND_SHIFT)
_FLOAT64_EXP = tl.constexpr(coefficients.FLOAT64_EXP)
_FLOAT64_DEGREE = tl.constexpr(len(coefficients.FLOAT64_EXP) - 1)


@triton.jit
def _constant(like, float32: tl.constexpr, float64: tl.constexpr):
    """The constant of `like`'s type; a bare Python float would enter tl.fma as float32."""
    return tl.full((), float64 if like.dtype == tl.float64 else float32, like.dtype)


@triton.jit
def _polynomial(r, terms: tl.constexpr, degree: tl.constexpr):
    p = tl.full((), terms[degree], r.dtype)
    for i in tl.static_range(degree):
        p = tl.fma(p, r, tl.full((), terms[degree - 1 - i], r.dtype))
    return p


@triton.jit
def _minus(x):
    return x * -1  # `-x` is 0 - x to Triton, an add; a product by -1 folds into its use


@triton.jit
def _power_of_two(exponent):
    """2**exponent, for exponents of normal numbers; bits above the exponent field fall off."""
    if exponent.dtype == tl.int64:
        power = ((exponent + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        power = ((exponent + 127) << 23).to(tl.float32, bitcast=True)
    return power


@triton.jit
def _exp_negative_abs(x):
    """exp(-|x|) by Cody-Waite range reduction and a minimax polynomial."""
    limit = _constant(x, _FLOAT32_LIMIT, _FLOAT64_LIMIT)
    log2_e = _constant(x, _FLOAT32_LOG2_E, _FLOAT64_LOG2_E)
    ln2_high = _constant(x, _FLOAT32_LN2_HIGH, _FLOAT64_LN2_HIGH)
    ln2_low = _constant(x, _FLOAT32_LN2_LOW, _FLOAT64_LN2_LOW)
    round_shift = _constant(x, _FLOAT32_ROUND_SHIFT, _FLOAT64_ROUND_SHIFT)

    a = tl.abs(x)
    a = tl.where(a > limit, limit, a)  # not tl.minimum: this comparison lets NaN through
    m = tl.fma(a, -log2_e, round_shift)
    n = m - round_shift
    r = tl.fma(n, -ln2_high, _minus(a))
    r = tl.fma(n, -ln2_low, r)
    # The low bits of m hold n; the bits of round_shift above them fall off in _power_of_two.
    # Two steps, since 2**n may be subnormal, and only the second product may round.
    if x.dtype == tl.float64:
        n_bits = m.to(tl.int64, bitcast=True)
        p = _polynomial(r, _FLOAT64_EXP, _FLOAT64_DEGREE)
    else:
        n_bits = m.to(tl.int32, bitcast=True)
        p = _polynomial(r, _FLOAT32_EXP, _FLOAT32_DEGREE)
    half = n_bits >> 1
    return p * _power_of_two(half) * _power_of_two(n_bits - half)


@triton.jit
def _smaller_of_value_and_complement(x):
    """t, the smaller of sigmoid(x) and 1 - sigmoid(x)."""
    e = _exp_negative_abs(x)
    # In float32 `/` is the approximate div.full, and div_rn knows float32 alone.
    return e / (1 + e) if x.dtype == tl.float64 else tl.div_rn(e, 1 + e)


@triton.jit
def _value_from_smaller(x, t):
    return tl.where(x < 0, t, 1 - t)


@triton.jit
def _derivative_from_smaller(t):
    return tl.fma(_minus(t), t, t)


@triton.jit
def _start(block_size: tl.constexpr):
    return tl.program_id(0).to(tl.int64) * block_size  # tensors reach past 2**31 elements


@triton.jit
def _remaining(count, block_size: tl.constexpr):
    """How many of this program's elements exist."""
    return tl.minimum(count - _start(block_size), block_size).to(tl.int32)


@triton.jit
def _load(pointer, mask, block_size: tl.constexpr):
    """This program's block, halves widened to float32."""
    block = tl.load(pointer + _start(block_size) + tl.arange(0, block_size), mask=mask)
    return block if block.dtype == tl.float64 else block.to(tl.float32)


@triton.jit
def _store(pointer, block, mask, block_size: tl.constexpr):
    """Writes this program's block, rounded once to the tensor's dtype."""
    block = block.to(pointer.dtype.element_ty)
    tl.store(pointer + _start(block_size) + tl.arange(0, block_size), block, mask=mask)


# Each kernel branches once, to its block without a mask or, at the end of the tensor, with one. A
# mask everywhere would make every access as narrow as the count is odd: one element wide. A branch
# in _load and _store alone would leave the tail's predicates in every block: 400 instructions to
# the end of the float32 forward for compute capability 9.0, against 322 (8 elements a thread).


@triton.jit
def _sigmoid_block(input, value, mask, block_size: tl.constexpr):
    x = _load(input, mask, block_size)
    _store(value, _value_from_smaller(x, _smaller_of_value_and_complement(x)), mask, block_size)


@triton.jit(do_not_specialize=["count"])
def _sigmoid_kernel(input, value, count, block_size: tl.constexpr):
    remaining = _remaining(count, block_size)
    if remaining >= block_size:
        _sigmoid_block(input, value, None, block_size)
    else:
        _sigmoid_block(input, value, tl.arange(0, block_size) < remaining, block_size)


@triton.jit
def _sigmoid_with_derivative_block(input, value, derivative, mask, block_size: tl.constexpr):
    x = _load(input, mask, block_size)
    t = _smaller_of_value_and_complement(x)
    _store(value, _value_from_smaller(x, t), mask, block_size)
    _store(derivative, _derivative_from_smaller(t), mask, block_size)


@triton.jit(do_not_specialize=["count"])
def _sigmoid_with_derivative_kernel(input, value, derivative, count, block_size: tl.constexpr):
    remaining = _remaining(count, block_size)
    if remaining >= block_size:
        _sigmoid_with_derivative_block(input, value, derivative, None, block_size)
    else:
        mask = tl.arange(0, block_size) < remaining
        _sigmoid_with_derivative_block(input, value, derivative, mask, block_size)


@triton.jit
def _backward_block(grad, input, grad_input, mask, block_size: tl.constexpr):
    x = _load(input, mask, block_size)
    derivative = _derivative_from_smaller(_smaller_of_value_and_complement(x))
    _store(grad_input, _load(grad, mask, block_size) * derivative, mask, block_size)


@triton.jit(do_not_specialize=["count"])
def _backward_kernel(grad, input, grad_input, count, block_size: tl.constexpr):
    remaining = _remaining(count, block_size)
    if remaining >= block_size:
        _backward_block(grad, input, grad_input, None, block_size)
    else:
        _backward_block(grad, input, grad_input, tl.arange(0, block_size) < remaining, block_size)


@triton.jit
def _backward_from_output_block(grad, output, grad_input, mask, block_size: tl.constexpr):
    y = _load(output, mask, block_size)
    _store(grad_input, _load(grad, mask, block_size) * (1 - y) * y, mask, block_size)


@triton.jit(do_not_specialize=["count"])
def _backward_from_output_kernel(grad, output, grad_input, count, block_size: tl.constexpr):
    remaining = _remaining(count, block_size)
    if remaining >= block_size:
        _backward_from_output_block(grad, output, grad_input, None, block_size)
    else:
        mask = tl.arange(0, block_size) < remaining
        _backward_from_output_block(grad, output, grad_input, mask, block_size)


@triton.jit
def _backward_from_derivative_block(grad, derivative, grad_input, mask, block_size: tl.constexpr):
    product = _load(grad, mask, block_size) * _load(derivative, mask, block_size)
    _store(grad_input, product, mask, block_size)


@triton.jit(do_not_specialize=["count"])
def _backward_from_derivative_kernel(grad, derivative, grad_input, count, block_size: tl.constexpr):
    remaining = _remaining(count, block_size)
    if remaining >= block_size:
        _backward_from_derivative_block(grad, derivative, grad_input, None, block_size)
    else:
        mask = tl.arange(0, block_size) < remaining
        _backward_from_derivative_block(grad, derivative, grad_input, mask, block_size)


class Kernel(NamedTuple):
    """A kernel over `reads` operands and `writes` results of one dtype and one dense layout.

    Its arguments are their pointers in that order, the count of elements, and the size of a block.
    """

    function: Any
    reads: int
    writes: int


SIGMOID = Kernel(_sigmoid_kernel, 1, 1)
SIGMOID_WITH_DERIVATIVE = Kernel(_sigmoid_with_derivative_kernel, 1, 2)
BACKWARD = Kernel(_backward_kernel, 2, 1)
BACKWARD_FROM_OUTPUT = Kernel(_backward_from_output_kernel, 2, 1)
BACKWARD_FROM_DERIVATIVE = Kernel(_backward_from_derivative_kernel, 2, 1)
KERNELS = (
    SIGMOID,
    SIGMOID_WITH_DERIVATIVE,
    BACKWARD,
    BACKWARD_FROM_OUTPUT,
    BACKWARD_FROM_DERIVATIVE,
)


def _launch(kernel: Kernel, tensors: tuple[Tensor, ...]) -> None:
    """Runs `kernel` over tensors of one dense layout, on their device and its current stream."""
    count = tensors[0].numel()
    if count == 0:
        return
    device = tensors[0].get_device()  # -1 on the CPU, where only Triton's interpreter runs
    elsewhere = device >= 0 and device != torch.cuda.current_device()
    grid = (triton.cdiv(count, BLOCK_SIZE),)
    with torch.cuda.device(device) if elsewhere else contextlib.nullcontext():
        kernel.function[grid](*tensors, count, block_size=BLOCK_SIZE, **LAUNCH_OPTIONS)


def _empty_like(tensor: Tensor, **options: Any) -> Tensor:
    """An empty dense tensor with the strides that torch.sigmoid gives its result."""
    # A contiguous tensor may have any stride where it has one element; the result has the usual.
    contiguous = tensor.is_contiguous()
    layout = torch.contiguous_format if contiguous else torch.preserve_format
    return torch.empty_like(tensor, memory_format=layout, **options)


def _same_layout(tensor: Tensor, dense: Tensor) -> bool:
    """Whether one flat index means one element in both; `dense` has neither gaps nor overlap."""
    return tensor.stride() == dense.stride() or (tensor.is_contiguous() and dense.is_contiguous())


def _laid_out(tensor: Tensor, dense: Tensor) -> Tensor:
    """`tensor` itself where it lies in memory as `dense` does, else a copy that does."""
    return tensor if _same_layout(tensor, dense) else torch.empty_like(dense).copy_(tensor)


def _results(kernel: Kernel, *operands: Tensor) -> tuple[Tensor, ...]:
    """Fresh results with the layout of the last operand, made dense."""
    results = tuple(_empty_like(operands[-1]) for _ in range(kernel.writes))
    _launch(kernel, (*(_laid_out(operand, results[0]) for operand in operands), *results))
    return results


def sigmoid(input: Tensor) -> Tensor:
    """σ(x)."""
    (value,) = _results(SIGMOID, input)
    return value


def sigmoid_out(input: Tensor, out: Tensor) -> None:
    """σ(x) into `out`, of the shape and dtype of `input`; `input` itself for in place."""
    dense = _empty_like(input, device="meta")
    if _same_layout(input, dense) and _same_layout(out, dense):
        _launch(SIGMOID, (input, out))
    else:
        out.copy_(sigmoid(input))


def sigmoid_with_derivative(input: Tensor) -> tuple[Tensor, Tensor]:
    """σ(x) and σ'(x) in one pass."""
    value, derivative = _results(SIGMOID_WITH_DERIVATIVE, input)
    return value, derivative


def sigmoid_backward(grad: Tensor, input: Tensor) -> Tensor:
    """grad · σ'(x), from x."""
    (grad_input,) = _results(BACKWARD, grad, input)
    return grad_input


def sigmoid_backward_from_output(grad: Tensor, output: Tensor) -> Tensor:
    """grad · (1 - y) · y, rounded as PyTorch rounds it."""
    (grad_input,) = _results(BACKWARD_FROM_OUTPUT, grad, output)
    return grad_input


def sigmoid_backward_from_derivative(grad: Tensor, derivative: Tensor) -> Tensor:
    """grad · σ', from the stored σ'."""
    (grad_input,) = _results(BACKWARD_FROM_DERIVATIVE, grad, derivative)
    return grad_input
