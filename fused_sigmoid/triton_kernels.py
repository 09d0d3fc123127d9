"""The GPU kernels and their launch: value and derivative of the sigmoid in one pass.

Depends on torch, Triton, the generated constants and formula.py; `ops.py` imports it on the first
GPU tensor. The arithmetic is the one in csrc/numerics, with the same roundings, so that the bits
agree.
"""

# Kernels get their types from Triton at their launch.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl

from . import coefficients
from ._extension import extension
from .formula import FLOOR_OF_BCE, HALVES

if TYPE_CHECKING:
    from torch import Tensor

# One program's elements: 8 a thread, one (halves) or two (float32) 128-bit accesses of each
# operand; 2 of float64, one access. As measured on an H100 (docs/gpu.md): where memory is the bound
# no other size is faster by over 2 %; where it is not, float64, whose elements divide one after
# another, takes three quarters of the time with 2 a thread that it takes with 8.
BLOCK_SIZES = {
    torch.float64: 256,
    torch.float32: 1024,
    torch.float16: 1024,
    torch.bfloat16: 1024,
}
# Without fp fusion off, Triton and ptxas contract products and sums to fma, and the bits part from
# the CPU's.
LAUNCH_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}

# The constants of each dtype in one tuple, the polynomial's degree and its coefficients last. A
# Triton kernel sees only globals wrapped in constexpr.
_NAMES = ("LIMIT", "LOG2_E", "ROUND_SHIFT", "LN2_HIGH", "LN2_LOW", "NUMERATOR", "SUMMAND")
_LIMIT, _LOG2_E, _ROUND_SHIFT, _LN2_HIGH, _LN2_LOW, _NUMERATOR, _SUMMAND, _DEGREE, _EXP = map(
    tl.constexpr, range(len(_NAMES) + 2)
)


def _constants(dtype: str) -> tl.constexpr:
    scalars = [getattr(coefficients, f"{dtype}_{name}") for name in _NAMES]
    exp = getattr(coefficients, f"{dtype}_EXP")
    return tl.constexpr((*scalars, len(exp) - 1, *exp))


# Whether the hardware's reciprocal can be had: on NVIDIA, not on AMD, nor in Triton's interpreter.
_HAS_RECIPROCAL = tl.constexpr(torch.version.hip is None and not triton.knobs.runtime.interpret)

_FLOAT64 = _constants("FLOAT64")
_FLOAT32 = _constants("FLOAT32")
_FLOAT16 = _constants("FLOAT16")
_BFLOAT16 = _constants("BFLOAT16")
_FLOOR_OF_BCE = tl.constexpr(FLOOR_OF_BCE)


@triton.jit
def _constant(x, constants: tl.constexpr, index: tl.constexpr):
    """The constant in x's type; a bare Python float would enter tl.fma as float32."""
    return tl.full((), constants[index], x.dtype)


@triton.jit
def _minus(x):
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
    and the sums that occur: the bits were the correctly rounded division's for every input on an
    H100, and are so under the interpreter for reciprocals two units in the last place off. In
    general that division takes two steps more, and a branch to a slow path for operands at the ends
    of the range, past which the compiler moves nothing: the elements of a thread would divide one
    after another.
    """
    if sum.dtype == tl.float64:
        quotient = numerator / sum
    elif _HAS_RECIPROCAL:
        reciprocal = _reciprocal(sum)
        quotient = numerator * reciprocal
        quotient = tl.fma(tl.fma(_minus(sum), quotient, numerator), reciprocal, quotient)
    else:
        quotient = tl.div_rn(numerator, sum)  # `/` would be the approximate div.full
    return quotient


@triton.jit
def _one_over_one_plus_exp(x, constants: tl.constexpr):
    """1 / (1 + exp(|x|)) by Cody-Waite range reduction and a minimax polynomial."""
    degree: tl.constexpr = constants[_DEGREE]
    limit = _constant(x, constants, _LIMIT)
    round_shift = _constant(x, constants, _ROUND_SHIFT)
    a = tl.abs(x)
    if x.dtype == tl.float64:
        a = tl.where(a > limit, limit, a)  # lets NaN through; six instructions less than a minimum
    else:
        a = tl.minimum(a, limit, propagate_nan=tl.PropagateNan.ALL)  # in bfloat16 two less
    shifted = tl.fma(a, _constant(x, constants, _LOG2_E), round_shift)
    n = shifted - round_shift
    r = tl.fma(n, _minus(_constant(x, constants, _LN2_HIGH)), a)
    if constants[_LN2_LOW] != 0:
        r = tl.fma(n, _minus(_constant(x, constants, _LN2_LOW)), r)
    p = _constant(x, constants, _EXP + degree)
    for i in tl.static_range(degree):
        p = tl.fma(p, r, _constant(x, constants, _EXP + degree - 1 - i))
    numerator = _constant(x, constants, _NUMERATOR)
    sum = tl.fma(p, _from_exponent_field(shifted), _constant(x, constants, _SUMMAND))
    return _quotient(numerator, sum)


@triton.jit
def _smaller_of_value_and_complement(x, dtype: tl.constexpr):
    """t, the smaller of sigmoid(x) and 1 - sigmoid(x), with the constants of `dtype`."""
    if dtype == tl.float64:
        t = _one_over_one_plus_exp(x, _FLOAT64)
    elif dtype == tl.float32:
        t = _one_over_one_plus_exp(x, _FLOAT32)
    elif dtype == tl.float16:
        t = _one_over_one_plus_exp(x, _FLOAT16)
    else:
        t = _one_over_one_plus_exp(x, _BFLOAT16)
    return t


@triton.jit
def _value_from_smaller(x, t):
    return tl.where(x < 0, t, 1 - t)


@triton.jit
def _derivative_from_smaller(t, dtype: tl.constexpr):
    return t * (1 - t) if dtype.primitive_bitwidth == 16 else tl.fma(_minus(t), t, t)


@triton.jit
def _divisor_of_bce(y, dtype: tl.constexpr):
    """max((1 - y) * y, 1e-12), rounded to `dtype` after each operation as nn.BCELoss rounds it."""
    complement = (1 - y).to(dtype).to(y.dtype)
    product = (complement * y).to(dtype).to(y.dtype)
    floor = tl.full((), _FLOOR_OF_BCE, y.dtype).to(dtype).to(y.dtype)
    return tl.where(product < floor, floor, product)  # lets NaN through


@triton.jit
def _start(block_size: tl.constexpr):
    return tl.program_id(0).to(tl.int64) * block_size  # tensors reach past 2**31 elements


@triton.jit
def _remaining(count, block_size: tl.constexpr):
    """How many of this program's elements exist."""
    return tl.minimum(count - _start(block_size), block_size).to(tl.int32)


@triton.jit
def _widened(block):
    """Halves are computed with in float32."""
    return block if block.dtype == tl.float64 else block.to(tl.float32)


@triton.jit
def _load(pointer, mask, block_size: tl.constexpr):
    """This program's block."""
    pointers = pointer + _start(block_size) + tl.arange(0, block_size)
    return _widened(tl.load(pointers, mask=mask))


@triton.jit
def _load_and_keep(pointer, mask, block_size: tl.constexpr):
    """This program's block, which the cache is asked to hold."""
    pointers = pointer + _start(block_size) + tl.arange(0, block_size)
    return _widened(tl.load(pointers, mask=mask, eviction_policy="evict_last"))


@triton.jit
def _load_gradient(grad, mask, block_size: tl.constexpr, is_one: tl.constexpr):
    """The block of a gradient, or the one number that all of it is: y.sum() and y.mean() give such,
    expanded, and to lay it out would take a tensor and two passes more."""
    return _widened(tl.load(grad)) if is_one else _load(grad, mask, block_size)


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
def _sigmoid_block(input, value, mask, block_size: tl.constexpr, is_kept: tl.constexpr):
    # The backward pass reads an input that is kept again, and finds it in the cache if the next
    # layers leave it there: up to 12 % of a step (docs/gpu.md).
    x = _load_and_keep(input, mask, block_size) if is_kept else _load(input, mask, block_size)
    t = _smaller_of_value_and_complement(x, input.dtype.element_ty)
    _store(value, _value_from_smaller(x, t), mask, block_size)


@triton.jit(do_not_specialize=["count"])
def _sigmoid_kernel(input, value, count: tl.int64, block_size: tl.constexpr, is_kept: tl.constexpr):
    remaining = _remaining(count, block_size)
    if remaining >= block_size:
        _sigmoid_block(input, value, None, block_size, is_kept)
    else:
        mask = tl.arange(0, block_size) < remaining
        _sigmoid_block(input, value, mask, block_size, is_kept)


@triton.jit
def _sigmoid_with_derivative_block(input, value, derivative, mask, block_size: tl.constexpr):
    x = _load(input, mask, block_size)
    dtype: tl.constexpr = input.dtype.element_ty
    t = _smaller_of_value_and_complement(x, dtype)
    _store(value, _value_from_smaller(x, t), mask, block_size)
    _store(derivative, _derivative_from_smaller(t, dtype), mask, block_size)


@triton.jit(do_not_specialize=["count"])
def _sigmoid_with_derivative_kernel(
    input, value, derivative, count: tl.int64, block_size: tl.constexpr
):
    remaining = _remaining(count, block_size)
    if remaining >= block_size:
        _sigmoid_with_derivative_block(input, value, derivative, None, block_size)
    else:
        mask = tl.arange(0, block_size) < remaining
        _sigmoid_with_derivative_block(input, value, derivative, mask, block_size)


@triton.jit
def _backward_block(grad, input, grad_input, mask, block_size: tl.constexpr, is_one: tl.constexpr):
    x = _load(input, mask, block_size)
    g = _load_gradient(grad, mask, block_size, is_one)
    dtype: tl.constexpr = input.dtype.element_ty
    derivative = _derivative_from_smaller(_smaller_of_value_and_complement(x, dtype), dtype)
    _store(grad_input, g * derivative, mask, block_size)


@triton.jit
def _backward_from_output_block(
    grad, output, grad_input, mask, block_size: tl.constexpr, is_one: tl.constexpr
):
    y = _load(output, mask, block_size)
    g = _load_gradient(grad, mask, block_size, is_one)
    _store(grad_input, g * (1 - y) * y, mask, block_size)


@triton.jit
def _backward_from_derivative_block(
    grad, derivative, grad_input, mask, block_size: tl.constexpr, is_one: tl.constexpr
):
    d = _load(derivative, mask, block_size)
    g = _load_gradient(grad, mask, block_size, is_one)
    _store(grad_input, g * d, mask, block_size)


@triton.jit
def _backward_before_bce_block(
    grad, output, grad_input, mask, block_size: tl.constexpr, is_rounded: tl.constexpr
):
    y = _load(output, mask, block_size)
    g = _load(grad, mask, block_size)
    dtype: tl.constexpr = output.dtype.element_ty if is_rounded else y.dtype
    _store(grad_input, g * _divisor_of_bce(y, dtype), mask, block_size)


@triton.jit(do_not_specialize=["count"])
def _backward_kernel(
    grad, input, grad_input, count: tl.int64, block_size: tl.constexpr, is_one: tl.constexpr
):
    remaining = _remaining(count, block_size)
    if remaining >= block_size:
        _backward_block(grad, input, grad_input, None, block_size, is_one)
    else:
        mask = tl.arange(0, block_size) < remaining
        _backward_block(grad, input, grad_input, mask, block_size, is_one)


@triton.jit(do_not_specialize=["count"])
def _backward_from_output_kernel(
    grad, output, grad_input, count: tl.int64, block_size: tl.constexpr, is_one: tl.constexpr
):
    remaining = _remaining(count, block_size)
    if remaining >= block_size:
        _backward_from_output_block(grad, output, grad_input, None, block_size, is_one)
    else:
        mask = tl.arange(0, block_size) < remaining
        _backward_from_output_block(grad, output, grad_input, mask, block_size, is_one)


@triton.jit(do_not_specialize=["count"])
def _backward_from_derivative_kernel(
    grad, derivative, grad_input, count: tl.int64, block_size: tl.constexpr, is_one: tl.constexpr
):
    remaining = _remaining(count, block_size)
    if remaining >= block_size:
        _backward_from_derivative_block(grad, derivative, grad_input, None, block_size, is_one)
    else:
        mask = tl.arange(0, block_size) < remaining
        _backward_from_derivative_block(grad, derivative, grad_input, mask, block_size, is_one)


@triton.jit(do_not_specialize=["count"])
def _backward_before_bce_kernel(
    grad, output, grad_input, count: tl.int64, block_size: tl.constexpr, is_rounded: tl.constexpr
):
    remaining = _remaining(count, block_size)
    if remaining >= block_size:
        _backward_before_bce_block(grad, output, grad_input, None, block_size, is_rounded)
    else:
        mask = tl.arange(0, block_size) < remaining
        _backward_before_bce_block(grad, output, grad_input, mask, block_size, is_rounded)


class Kernel(NamedTuple):
    """A kernel over `reads` operands and `writes` results of one dtype and one dense layout.

    The arguments of its function are their pointers in that order, the count of elements and, when
    it is compiled, the size of a block and its constants. The extension knows it by its number.
    `of_one` is the same for a gradient that is one number.
    """

    name: str
    number: int
    reads: int
    writes: int
    function: Any
    constants: dict[str, bool]
    of_one: Kernel | None = None


def _backward(number: int, name: str, function: Any) -> Kernel:
    of_one = Kernel(f"{name}_of_one", number + 3, 2, 1, function, {"is_one": True})
    return Kernel(name, number, 2, 1, function, {"is_one": False}, of_one)


SIGMOID = Kernel("sigmoid", 0, 1, 1, _sigmoid_kernel, {"is_kept": False})
SIGMOID_OF_KEPT = Kernel("sigmoid_of_kept", 10, 1, 1, _sigmoid_kernel, {"is_kept": True})
SIGMOID_WITH_DERIVATIVE = Kernel(
    "sigmoid_with_derivative", 1, 1, 2, _sigmoid_with_derivative_kernel, {}
)
BACKWARD = _backward(2, "backward", _backward_kernel)
BACKWARD_FROM_OUTPUT = _backward(3, "backward_from_output", _backward_from_output_kernel)
BACKWARD_FROM_DERIVATIVE = _backward(
    4, "backward_from_derivative", _backward_from_derivative_kernel
)
BACKWARD_BEFORE_BCE = Kernel(
    "backward_before_bce", 8, 2, 1, _backward_before_bce_kernel, {"is_rounded": True}
)
BACKWARD_BEFORE_FLOAT32_BCE = Kernel(
    "backward_before_float32_bce", 9, 2, 1, _backward_before_bce_kernel, {"is_rounded": False}
)
KERNELS = (
    SIGMOID,
    SIGMOID_OF_KEPT,
    SIGMOID_WITH_DERIVATIVE,
    BACKWARD,
    BACKWARD_FROM_OUTPUT,
    BACKWARD_FROM_DERIVATIVE,
    BACKWARD_BEFORE_BCE,
    BACKWARD_BEFORE_FLOAT32_BCE,
)


# The first launch of a kernel is Triton's, which compiles it or finds it in its cache on disk. Then
# the extension has its handle and launches it by itself: Triton's own path costs the host several
# times what the launch does.

# What was compiled: (kernel's number, device, dtype, alignment) -> the compiled kernel, which must
# live as long as its handle is in use, and why the extension does not launch it, or "".
_Key = tuple[int, int, torch.dtype, int]
_compiled: dict[_Key, tuple[Any, str]] = {}
_compiling = threading.Lock()


def _launch(kernel: Kernel, tensors: tuple[Tensor, ...]) -> None:
    """Runs `kernel` over tensors of one dense layout, on their device and its current stream."""
    if tensors[-1].numel() == 0:
        return
    if not tensors[0].is_cuda:  # only under Triton's interpreter
        _launch_by_triton(kernel, tensors)
        return
    if extension.launch_gpu_kernel(kernel.number, *tensors):
        return
    key = _key(kernel, tensors)
    if key in _compiled:  # which the extension has refused, or Triton's hooks are to see
        _launch_by_triton(kernel, tensors)
        return
    with _compiling:  # threads that wait here find it compiled
        if extension.launch_gpu_kernel(kernel.number, *tensors):
            return
        compiled = _launch_by_triton(kernel, tensors)
        _compiled[key] = compiled, _hand_over(kernel, key, compiled)


def _launch_by_triton(kernel: Kernel, tensors: tuple[Tensor, ...]) -> Any:
    count, device = tensors[-1].numel(), tensors[0].get_device()
    elsewhere = device >= 0 and device != torch.cuda.current_device()
    block_size = BLOCK_SIZES[tensors[-1].dtype]
    grid = (triton.cdiv(count, block_size),)
    with torch.cuda.device(device) if elsewhere else contextlib.nullcontext():
        return kernel.function[grid](
            *tensors, count, block_size=block_size, **kernel.constants, **LAUNCH_OPTIONS
        )


def _key(kernel: Kernel, tensors: tuple[Tensor, ...]) -> _Key:
    # Triton compiles apart for pointers that are and that are not divisible by 16.
    aligned = sum((t.data_ptr() % 16 == 0) << i for i, t in enumerate(tensors))
    return kernel.number, tensors[0].get_device(), tensors[0].dtype, aligned


def _hand_over(kernel: Kernel, key: _Key, compiled: Any) -> str:
    """Lets the extension launch it from now on. Returns why it does not, or ""."""
    try:
        metadata, runtime = compiled.metadata, triton.knobs.runtime
        needs = {
            "shared memory": metadata.shared,
            "scratch memory": metadata.global_scratch_size or metadata.profile_scratch_size,
            "a cluster": metadata.num_ctas != 1,
            "launch attributes": metadata.launch_cooperative_grid or metadata.launch_pdl,
            f"a launch for {metadata.target.backend}": metadata.target.backend != "cuda",
        }
        if any(needs.values()):
            return "the compiled kernel needs " + next(name for name in needs if needs[name])
        hooks = (
            runtime.launch_enter_hook.calls,
            runtime.launch_exit_hook.calls,
            kernel.function.pre_run_hooks,
        )
        threads = metadata.target.warp_size * metadata.num_warps
        # As on the device it was compiled for: the extension notes its context.
        with torch.cuda.device(key[1]):
            return extension.add_gpu_kernel(
                *key, compiled.function, BLOCK_SIZES[key[2]], threads, hooks
            )
    except (AttributeError, TypeError) as error:
        return f"Triton {triton.__version__} is not as expected: {error}"


def launcher() -> str:
    """Who launches the kernels compiled so far, in words for ``python -m fused_sigmoid info``."""
    reasons = sorted({reason for _, reason in _compiled.values() if reason})
    return f"Triton ({'; '.join(reasons)})" if reasons else "the extension"


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
    grad = operands[0]
    if kernel.of_one and grad.numel() > 1 and not any(grad.stride()):
        kernel, operands = kernel.of_one, (grad.as_strided((1,), (1,)), *operands[1:])
        _launch(kernel, (operands[0], _laid_out(operands[1], results[0]), *results))
        return results
    _launch(kernel, (*(_laid_out(operand, results[0]) for operand in operands), *results))
    return results


def sigmoid(input: Tensor, is_kept: bool = False) -> Tensor:
    """σ(x), of an input that is kept for the backward pass or not."""
    (value,) = _results(SIGMOID_OF_KEPT if is_kept else SIGMOID, input)
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


def sigmoid_with_derivative_out(input: Tensor, value: Tensor, derivative: Tensor) -> None:
    """σ(x) and σ'(x) into tensors of the shape and dtype of `input`, one of which may be it."""
    dense = _empty_like(input, device="meta")
    if all(_same_layout(tensor, dense) for tensor in (input, value, derivative)):
        _launch(SIGMOID_WITH_DERIVATIVE, (input, value, derivative))
    else:
        for out, result in zip((value, derivative), sigmoid_with_derivative(input), strict=True):
            out.copy_(result)


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


def sigmoid_backward_before_bce(grad: Tensor, output: Tensor, loss_dtype: torch.dtype) -> Tensor:
    """grad · max((1 - y) · y, 1e-12), rounded as nn.BCELoss in `loss_dtype` rounds its divisor."""
    if loss_dtype == output.dtype:
        kernel = BACKWARD_BEFORE_BCE
    elif loss_dtype == torch.float32 and output.dtype in HALVES:
        kernel = BACKWARD_BEFORE_FLOAT32_BCE
    else:
        operands = grad.to(loss_dtype), output.to(loss_dtype)
        return sigmoid_backward_before_bce(*operands, loss_dtype).to(output.dtype)
    (grad_input,) = _results(kernel, grad, output)
    return grad_input
