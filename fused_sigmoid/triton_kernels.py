"""The GPU kernels and their launch: value and derivative of the sigmoid in one pass.

Depends on torch, Triton, the generated constants, formula.py, and the extension, which knows how
tensors lie and launches what was compiled; `ops.py` imports it on the first GPU tensor. The
arithmetic is the one in csrc/numerics, with the same roundings, so that the bits agree.
"""

# Kernels get their types from Triton at their launch.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import contextlib
import enum
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


class Blocks(NamedTuple):
    """How many elements a program has, in calls of `fewest` to `most`."""

    fewest: int
    most: int
    size: int


def _blocks(small: int, large: int) -> tuple[Blocks, Blocks]:
    return Blocks(0, 2**16, small), Blocks(2**16 + 1, 2**63 - 1, large)


# As measured on an H100 (docs/gpu.md). Large counts: 8 elements a thread, which are one (halves) or
# two (float32) accesses of 16 bytes to each tensor; no other size is faster by over 2 %. A thread's
# elements of float64 divide one after another: it has 2, which takes three quarters of the time of
# 8 where memory is not the bound. Small counts take up to 5 % less time in smaller blocks, of which
# more multiprocessors have one.
BLOCKS = {
    torch.float64: _blocks(128, 256),
    torch.float32: _blocks(256, 1024),
    torch.float16: _blocks(256, 1024),
    torch.bfloat16: _blocks(256, 1024),
}


def blocks_for(dtype: torch.dtype, count: int) -> Blocks:
    """Those of a call over `count` elements."""
    return next(blocks for blocks in BLOCKS[dtype] if count <= blocks.most)


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
def _widened(block):
    """Halves are computed with in float32."""
    return block if block.dtype == tl.float64 else block.to(tl.float32)


# What the kernels compute of a block: of the input, or of the gradient and what was kept for the
# backward pass, widened. `dtype` is the tensors'.


@triton.jit
def _value(x, dtype: tl.constexpr):
    return _value_from_smaller(x, _smaller_of_value_and_complement(x, dtype))


@triton.jit
def _value_and_derivative(x, dtype: tl.constexpr):
    t = _smaller_of_value_and_complement(x, dtype)
    return _value_from_smaller(x, t), _derivative_from_smaller(t, dtype)


@triton.jit
def _gradient(g, x, dtype: tl.constexpr):
    return g * _derivative_from_smaller(_smaller_of_value_and_complement(x, dtype), dtype)


@triton.jit
def _gradient_from_output(g, y, dtype: tl.constexpr):
    return g * (1 - y) * y


@triton.jit
def _gradient_from_derivative(g, d, dtype: tl.constexpr):
    return g * d


@triton.jit
def _gradient_before_bce(g, y, dtype: tl.constexpr):
    return g * _divisor_of_bce(y, dtype)


@triton.jit
def _gradient_before_float32_bce(g, y, dtype: tl.constexpr):
    return g * _divisor_of_bce(y, y.dtype)


# How a kernel reads its first operand: as the others; asking the cache to hold it; or as the one
# number that all of it is. y.sum() and y.mean() give such a gradient, expanded, and to lay it out
# would take a tensor and two passes more.
_PLAINLY, _TO_KEEP, _AS_ONE = map(tl.constexpr, range(3))


@triton.jit
def _start(block_size: tl.constexpr):
    return tl.program_id(0).to(tl.int64) * block_size  # tensors reach past 2**31 elements


@triton.jit
def _remaining(count, block_size: tl.constexpr):
    """How many of this program's elements exist."""
    return tl.minimum(count - _start(block_size), block_size).to(tl.int32)


# Where a tensor is: its pointer, the columns of its rows, factor and shift of the division by them
# (Divisor in csrc/gpu.cpp), and its strides from row to row and from column to column; all None but
# the pointer if it has no gaps. One that `is_wide` may be read and written 16 bytes at a time: it
# begins at a multiple of them, as does each of its rows, in which the columns lie side by side.


@triton.jit
def _pointers(placed, is_wide: tl.constexpr, block_size: tl.constexpr):
    """To this program's block of a tensor."""
    tensor, columns, factor, shift, row_stride, column_stride = placed
    if columns is None:
        pointers = tensor + _start(block_size) + tl.arange(0, block_size)
    else:
        place = (_start(block_size) + tl.arange(0, block_size)).to(tl.uint32)
        row = (tl.umulhi(place, factor.to(tl.uint32)) + place) >> shift.to(tl.uint32)
        column = place - row * columns.to(tl.uint32)
        if is_wide:
            unit: tl.constexpr = 128 // tensor.dtype.element_ty.primitive_bitwidth
            row = tl.max_constancy(row, unit)
            column = tl.max_contiguous(tl.multiple_of(column, unit), unit)
            offsets = row.to(tl.int64) * row_stride + column.to(tl.int64)
        else:
            offsets = row.to(tl.int64) * row_stride + column.to(tl.int64) * column_stride
        pointers = tensor + offsets
    if is_wide:
        pointers = tl.multiple_of(pointers, 16)
    return pointers


@triton.jit
def _load(placed, mask, how: tl.constexpr, is_wide: tl.constexpr, block_size: tl.constexpr):
    if how == _AS_ONE:
        block = tl.load(placed[0])
    elif how == _TO_KEEP:
        # The backward pass reads an input that is kept again, and finds it in the cache if the next
        # layers leave it there: up to 12 % of a step (docs/gpu.md).
        pointers = _pointers(placed, is_wide, block_size)
        block = tl.load(pointers, mask=mask, eviction_policy="evict_last")
    else:
        pointers = _pointers(placed, is_wide, block_size)
        block = tl.load(pointers, mask=mask)
    return _widened(block)


@triton.jit
def _store(placed, block, mask, is_wide: tl.constexpr, block_size: tl.constexpr):
    """Writes a block, rounded once to the tensor's dtype."""
    block = block.to(placed[0].dtype.element_ty)
    pointers = _pointers(placed, is_wide, block_size)
    tl.store(pointers, block, mask=mask)


@triton.jit
def _run_block(
    function: tl.constexpr,
    reads: tl.constexpr,
    how: tl.constexpr,
    wide: tl.constexpr,
    block_size: tl.constexpr,
    mask,
    first,
    second,
    third,
):
    """The function of this program's block of one operand or two, into the results behind them."""
    dtype: tl.constexpr = first[0].dtype.element_ty
    if reads == 2:
        kept = _load(second, mask, _PLAINLY, wide & 2, block_size)
        g = _load(first, mask, how, wide & 1, block_size)
        _store(third, function(g, kept, dtype), mask, wide & 4, block_size)
    else:
        x = _load(first, mask, how, wide & 1, block_size)
        if third[0] is None:
            _store(second, function(x, dtype), mask, wide & 2, block_size)
        else:
            value, derivative = function(x, dtype)
            _store(second, value, mask, wide & 2, block_size)
            _store(third, derivative, mask, wide & 4, block_size)


# One branch, to a block without a mask or, at the end of the tensor, with one. A mask everywhere
# would make every access as narrow as the count is odd: one element wide. A branch in _load and
# _store alone would leave the tail's predicates in every block: 400 instructions to the end of the
# float32 forward for compute capability 9.0, against 322 (8 elements a thread).


@triton.jit
def _run(
    function: tl.constexpr,
    reads: tl.constexpr,
    how: tl.constexpr,
    wide: tl.constexpr,
    block_size: tl.constexpr,
    count,
    first,
    second,
    third,
):
    remaining = _remaining(count, block_size)
    if remaining >= block_size:
        _run_block(function, reads, how, wide, block_size, None, first, second, third)
    else:
        mask = tl.arange(0, block_size) < remaining
        _run_block(function, reads, how, wide, block_size, mask, first, second, third)


# Two kernels run the functions. Bit i of `wide` says that the i-th tensor, operands first, is read
# or written 16 bytes at a time.


def _name(specialization) -> str:
    """As profilers show a compiled kernel."""
    return f"fused_sigmoid{specialization.constants['function'].__name__}"


@triton.jit(do_not_specialize=["first", "second", "third", "count"], repr=_name)
def _dense_kernel(
    first,
    second,
    third,
    count: tl.int64,
    function: tl.constexpr,
    reads: tl.constexpr,
    how: tl.constexpr,
    wide: tl.constexpr,
    block_size: tl.constexpr,
):
    """Over tensors without gaps, all in one order."""
    first = first, None, None, None, None, None
    second = second, None, None, None, None, None
    third = third, None, None, None, None, None
    _run(function, reads, how, wide, block_size, count, first, second, third)


@triton.jit(
    do_not_specialize=[
        *("first", "second", "third", "count", "columns", "factor", "shift"),
        *("first_row", "first_column", "second_row", "second_column", "third_row", "third_column"),
    ],
    repr=_name,
)
def _rows_kernel(
    first,
    second,
    third,
    count: tl.int64,
    columns: tl.int64,
    factor: tl.int64,
    shift: tl.int64,
    first_row: tl.int64,
    first_column: tl.int64,
    second_row: tl.int64,
    second_column: tl.int64,
    third_row: tl.int64,
    third_column: tl.int64,
    function: tl.constexpr,
    reads: tl.constexpr,
    how: tl.constexpr,
    wide: tl.constexpr,
    block_size: tl.constexpr,
):
    """Over less than 2**31 elements in rows."""
    first = first, columns, factor, shift, first_row, first_column
    second = second, columns, factor, shift, second_row, second_column
    third = third, columns, factor, shift, third_row, third_column
    _run(function, reads, how, wide, block_size, count, first, second, third)


class Layout(enum.IntEnum):
    """How the tensors of a call lie beside one another, by the extension's numbers."""

    DENSE = 0  # without gaps, all in one order
    OF_ONE = 1  # likewise, but for a gradient that is one number
    ROWS = 2  # of two dimensions at the most, each with strides of its own


class Kernel(NamedTuple):
    """A function over `reads` operands and `writes` results of one dtype and shape, and whether the
    cache is to keep the operand. The extension knows it by its number."""

    name: str
    number: int
    reads: int
    writes: int
    function: Any
    is_kept: bool = False

    def compiled_for(self, layout: Layout, wide: int) -> tuple[Any, dict[str, Any]]:
        """Triton's function, and its constants but for the size of a block."""
        how = _AS_ONE if layout == Layout.OF_ONE else _TO_KEEP if self.is_kept else _PLAINLY
        constants = {
            "function": self.function,
            "reads": self.reads,
            "how": how.value,
            "wide": wide,
        }
        return _rows_kernel if layout == Layout.ROWS else _dense_kernel, constants


SIGMOID = Kernel("sigmoid", 0, 1, 1, _value)
SIGMOID_WITH_DERIVATIVE = Kernel("sigmoid_with_derivative", 1, 1, 2, _value_and_derivative)
BACKWARD = Kernel("backward", 2, 2, 1, _gradient)
BACKWARD_FROM_OUTPUT = Kernel("backward_from_output", 3, 2, 1, _gradient_from_output)
BACKWARD_FROM_DERIVATIVE = Kernel("backward_from_derivative", 4, 2, 1, _gradient_from_derivative)
BACKWARD_BEFORE_BCE = Kernel("backward_before_bce", 5, 2, 1, _gradient_before_bce)
BACKWARD_BEFORE_FLOAT32_BCE = Kernel(
    "backward_before_float32_bce", 6, 2, 1, _gradient_before_float32_bce
)
SIGMOID_OF_KEPT = Kernel("sigmoid_of_kept", 7, 1, 1, _value, is_kept=True)
KERNELS = (
    SIGMOID,
    SIGMOID_WITH_DERIVATIVE,
    BACKWARD,
    BACKWARD_FROM_OUTPUT,
    BACKWARD_FROM_DERIVATIVE,
    BACKWARD_BEFORE_BCE,
    BACKWARD_BEFORE_FLOAT32_BCE,
    SIGMOID_OF_KEPT,
)


# The first launch of a kernel is Triton's, which compiles it or finds it in its cache on disk. Then
# the extension has its handle and launches it by itself: Triton's own path costs the host several
# times what the launch does.

# What was compiled: (kernel's number, layout, device, dtype, wide, block size) -> the compiled
# kernel, which must live as long as its handle is in use, and why the extension does not launch it,
# or "".
_Key = tuple[int, int, int, torch.dtype, int, int]
_compiled: dict[_Key, tuple[Any, str]] = {}
_compiling = threading.Lock()


class Call(NamedTuple):
    """What a kernel is compiled for besides the dtype, and gets behind its tensors, as the
    extension finds it: the count and, in rows, what _rows_kernel takes."""

    layout: Layout
    wide: int
    numbers: tuple[int, ...]


def _call(kernel: Kernel, tensors: tuple[Tensor, ...]) -> Call | None:
    """None if the tensors lie in no layout that a kernel has."""
    found = extension.gpu_call(kernel.number, *tensors)
    return found and Call(Layout(found[0]), *found[1:])


def _launch(kernel: Kernel, tensors: tuple[Tensor, ...]) -> bool:
    """Runs `kernel` on the tensors' device and its current stream, if they lie in a layout that it
    has; says whether they do."""
    if tensors[-1].numel() == 0 or extension.launch_gpu_kernel(kernel.number, *tensors):
        return True
    call = _call(kernel, tensors)
    if call is None:
        return False
    key = _key(kernel, tensors, call)
    if not tensors[0].is_cuda or key in _compiled:
        # Under Triton's interpreter; or the extension refused it, or Triton's hooks are to see it.
        _launch_by_triton(kernel, tensors, call)
        return True
    with _compiling:  # threads that wait here find it compiled
        if not extension.launch_gpu_kernel(kernel.number, *tensors):
            compiled = _launch_by_triton(kernel, tensors, call)
            _compiled[key] = compiled, _hand_over(kernel, tensors, call, compiled)
    return True


def _key(kernel: Kernel, tensors: tuple[Tensor, ...], call: Call) -> _Key:
    device, dtype = tensors[0].get_device(), tensors[0].dtype
    size = blocks_for(dtype, call.numbers[0]).size
    return kernel.number, call.layout, device, dtype, call.wide, size


def _launch_by_triton(kernel: Kernel, tensors: tuple[Tensor, ...], call: Call) -> Any:
    count, device = call.numbers[0], tensors[-1].get_device()
    elsewhere = device >= 0 and device != torch.cuda.current_device()
    block_size = blocks_for(tensors[-1].dtype, count).size
    function, constants = kernel.compiled_for(call.layout, call.wide)
    launch = function[(triton.cdiv(count, block_size),)]
    first, second, third = (*tensors, None)[:3]
    with torch.cuda.device(device) if elsewhere else contextlib.nullcontext():
        return launch(
            *(first, second, third, *call.numbers),
            **constants,
            block_size=block_size,
            **LAUNCH_OPTIONS,
        )


def _hand_over(kernel: Kernel, tensors: tuple[Tensor, ...], call: Call, compiled: Any) -> str:
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
        function, _ = kernel.compiled_for(call.layout, call.wide)
        hooks = (
            runtime.launch_enter_hook.calls,
            runtime.launch_exit_hook.calls,
            function.pre_run_hooks,
        )
        threads = metadata.target.warp_size * metadata.num_warps
        number, layout, device, dtype, wide, _ = _key(kernel, tensors, call)
        blocks = blocks_for(dtype, call.numbers[0])
        # As on the device it was compiled for: the extension notes its context.
        with torch.cuda.device(device):
            return extension.add_gpu_kernel(
                *(number, layout, device, dtype, wide, compiled.function),
                *(blocks.size, blocks.fewest, blocks.most, threads, hooks),
            )
    except (AttributeError, TypeError) as error:
        return f"Triton {triton.__version__} is not as expected: {error}"


def launcher() -> str:
    """Who launches the kernels compiled so far, in words for ``python -m fused_sigmoid info``."""
    reasons = sorted({reason for _, reason in _compiled.values() if reason})
    return f"Triton ({'; '.join(reasons)})" if reasons else "the extension"


def _laid_out(tensor: Tensor, dense: Tensor) -> Tensor:
    """`tensor` itself where it lies in memory as `dense` does, else a copy that does."""
    is_alike = tensor.stride() == dense.stride()
    return tensor if is_alike else torch.empty_like(dense).copy_(tensor)


def _results(kernel: Kernel, *operands: Tensor) -> tuple[Tensor, ...]:
    """Fresh results, without gaps."""
    results = tuple(extension.empty_gpu_result(*operands) for _ in range(kernel.writes))
    if not _launch(kernel, (*operands, *results)):
        _launch(kernel, (*(_laid_out(operand, results[0]) for operand in operands), *results))
    return results


def sigmoid(input: Tensor, is_kept: bool = False) -> Tensor:
    """σ(x), of an input that is kept for the backward pass or not."""
    (value,) = _results(SIGMOID_OF_KEPT if is_kept else SIGMOID, input)
    return value


def sigmoid_out(input: Tensor, out: Tensor) -> None:
    """σ(x) into `out`, of the shape and dtype of `input`; `input` itself for in place."""
    if not _launch(SIGMOID, (input, out)):
        out.copy_(sigmoid(input))


def sigmoid_with_derivative(input: Tensor) -> tuple[Tensor, Tensor]:
    """σ(x) and σ'(x) in one pass."""
    value, derivative = _results(SIGMOID_WITH_DERIVATIVE, input)
    return value, derivative


def sigmoid_with_derivative_out(input: Tensor, value: Tensor, derivative: Tensor) -> None:
    """σ(x) and σ'(x) into tensors of the shape and dtype of `input`, one of which may be it."""
    if not _launch(SIGMOID_WITH_DERIVATIVE, (input, value, derivative)):
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
