"""The one GPU kernel, which runs every work of every elementwise function, and its launch.

Depends on torch, Triton, the files of the functions beside this one, and the extension, which knows
how tensors lie and launches what was compiled. functions/ imports it on the first GPU tensor.
"""

# Kernels get their types from Triton at their launch.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import contextlib
import enum
import threading
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl

from .._extension import extension

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
    """The blocks of a call over `count` elements."""
    return next(blocks for blocks in BLOCKS[dtype] if count <= blocks.most)


# With fp fusion on, Triton and ptxas contract products and sums to fma, and the bits part from the
# CPU's.
LAUNCH_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


# What a kernel reads: an input; an input that is kept for the backward pass; and from _GRADIENT on
# two operands, a gradient and what was kept. The gradient of y.sum() and y.mean() is one number,
# expanded, and to lay it out would take a tensor and two passes more.
_INPUT, _KEPT_INPUT, _GRADIENT, _NUMBER = map(tl.constexpr, range(4))


@triton.jit
def _start(block_size: tl.constexpr):
    return tl.program_id(0).to(tl.int64) * block_size  # tensors reach past 2**31 elements


# A tensor without gaps is placed by its pointer alone. Rows are placed by their columns as well, by
# factor and shift of the division by these (Divisor in csrc/gpu_launch.cpp), and by the strides
# from row to row and from column to column. A tensor that `is_wide` may be read and written 16
# bytes at a time: it begins at a multiple of them, as does each row, whose columns are neighbours.


@triton.jit
def _pointers(placed, is_wide: tl.constexpr, block_size: tl.constexpr):
    """To this program's block of a tensor."""
    if len(placed) == 1:
        pointers = placed[0] + _start(block_size) + tl.arange(0, block_size)
    else:
        tensor, columns, factor, shift, row_stride, column_stride = placed
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
def _load(placed, mask, operands, is_wide: tl.constexpr, block_size: tl.constexpr):
    """Reads a block of an operand; halves become float32, in which their results are computed."""
    if operands == _NUMBER:
        block = tl.load(placed[0])
    else:
        # The backward pass reads an input that is kept again, and finds it in the cache if the next
        # layers leave it there: up to 12 % of a step (docs/gpu.md).
        policy: tl.constexpr = "evict_last" if operands == _KEPT_INPUT else ""
        pointers = _pointers(placed, is_wide, block_size)
        block = tl.load(pointers, mask=mask, eviction_policy=policy)
    return block if block.dtype == tl.float64 else block.to(tl.float32)


@triton.jit
def _store(placed, block, mask, is_wide: tl.constexpr, block_size: tl.constexpr):
    """Writes a block, rounded once to the tensor's dtype."""
    block = block.to(placed[0].dtype.element_ty)
    pointers = _pointers(placed, is_wide, block_size)
    tl.store(pointers, block, mask=mask)


# The two functions below get constants of the compilation, in front of the mask and the count.


@triton.jit
def _run_block(body, operands, wide, block_size, mask, first, second, third):
    """The body's results for this program's block, of one operand or two, written behind them."""
    dtype: tl.constexpr = first[0].dtype.element_ty
    if operands >= _GRADIENT:
        kept = _load(second, mask, _GRADIENT, wide & 2, block_size)
        g = _load(first, mask, operands, wide & 1, block_size)
        _store(third, body(g, kept, dtype), mask, wide & 4, block_size)
    else:
        x = _load(first, mask, operands, wide & 1, block_size)
        if third[0] is None:
            _store(second, body(x, dtype), mask, wide & 2, block_size)
        else:
            value, derivative = body(x, dtype)
            _store(second, value, mask, wide & 2, block_size)
            _store(third, derivative, mask, wide & 4, block_size)


# One branch, to a block without a mask or, at the end of the tensor, with one. A mask everywhere
# would make every access as narrow as the count is odd: one element wide. A branch in _load and
# _store alone would leave the tail's predicates in every block: 400 instructions to the end of the
# float32 forward for compute capability 9.0, against 322 (8 elements a thread).


@triton.jit
def _run(body, operands, wide, block_size, count, first, second, third):
    remaining = tl.minimum(count - _start(block_size), block_size).to(tl.int32)
    if remaining >= block_size:
        _run_block(body, operands, wide, block_size, None, first, second, third)
    else:
        mask = tl.arange(0, block_size) < remaining
        _run_block(body, operands, wide, block_size, mask, first, second, third)


# The kernel has two forms, for tensors without gaps and for rows. Bit i of `wide` says that the
# i-th tensor, operands first, is read or written 16 bytes at a time.


def _name(specialization) -> str:
    """The name of a compiled kernel in profilers: of the first kernel that has its body."""
    body = specialization.constants["body"]
    return "fused_" + next(kernel.name for kernel in KERNELS.values() if kernel.body is body)


@triton.jit(do_not_specialize=["first", "second", "third", "count"], repr=_name)
def _dense_kernel(
    first,
    second,
    third,
    count: tl.int64,
    body: tl.constexpr,
    operands: tl.constexpr,
    wide: tl.constexpr,
    block_size: tl.constexpr,
):
    """Over tensors without gaps, all in one order."""
    _run(body, operands, wide, block_size, count, (first,), (second,), (third,))


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
    body: tl.constexpr,
    operands: tl.constexpr,
    wide: tl.constexpr,
    block_size: tl.constexpr,
):
    """Over less than 2**31 elements in rows."""
    first = first, columns, factor, shift, first_row, first_column
    second = second, columns, factor, shift, second_row, second_column
    third = third, columns, factor, shift, third_row, third_column
    _run(body, operands, wide, block_size, count, first, second, third)


class Layout(enum.IntEnum):
    """How the tensors of a call lie beside one another, by the extension's numbers."""

    DENSE = 0  # They have no gaps and lie in one order.
    OF_ONE = 1  # So do all but the gradient, which is one number.
    ROWS = 2  # They have two dimensions at the most, each tensor with strides of its own.


class Kernel(NamedTuple):
    """A work of a function, over operands and results of one dtype and shape. The extension knows
    it by its number."""

    function: str
    work: str
    number: int
    reads: int
    writes: int
    body: Any

    @property
    def name(self) -> str:
        return f"{self.function}_{self.work}"

    def compiled_for(self, layout: Layout, wide: int) -> tuple[Any, dict[str, Any]]:
        """Triton's function, and its constants but for the size of a block."""
        if self.reads == 2:
            operands = _NUMBER if layout == Layout.OF_ONE else _GRADIENT
        else:
            operands = _KEPT_INPUT if self.work == "value_of_kept" else _INPUT
        constants = {"body": self.body, "operands": operands.value, "wide": wide}
        return _rows_kernel if layout == Layout.ROWS else _dense_kernel, constants

    def run(self, *operands: Tensor) -> Any:
        """The result, fresh and without gaps, or a tuple of results."""
        results = tuple(extension.empty_gpu_output(operands) for _ in range(self.writes))
        if not self.write(*operands, *results):
            like = results[0]
            laid_out = (
                each if each.stride() == like.stride() else torch.empty_like(like).copy_(each)
                for each in operands
            )
            self.write(*laid_out, *results)
        return results[0] if self.writes == 1 else results

    def write(self, *tensors: Tensor) -> bool:
        """Computes the last tensors from the first, on their device and its current stream, if they
        lie in a layout that the kernel has; says whether they do."""
        if tensors[-1].numel() == 0 or extension.launch_gpu_kernel(self.number, tensors):
            return True
        call = call_of(self, tensors)
        if call is None:
            return False
        key = _key(self, tensors, call)
        if not tensors[0].is_cuda or key in _compiled:
            # Triton's interpreter runs it, or the extension refused it, or hooks are to see it.
            launch_by_triton(self, tensors, call)
            return True
        with _compiling:  # threads that wait here find it compiled
            if not extension.launch_gpu_kernel(self.number, tensors):
                compiled = launch_by_triton(self, tensors, call)
                _compiled[key] = compiled, _hand_over(self, tensors, call, compiled)
        return True


@triton.jit
def _product(g, derivative, dtype: tl.constexpr):
    return g * derivative


def _kernels_of(function: str, index: int) -> Iterator[Kernel]:
    """One for each body in the function's file, and two whose bodies are known without."""
    bodies = vars(import_module(f"{__package__}.{function}"))
    bodies = bodies | {"backward_from_derivative": _product, "value_of_kept": bodies["value"]}
    works = extension.works()
    for number, (work, reads, writes) in enumerate(works, index * len(works)):
        if work in bodies:
            yield Kernel(function, work, number, reads, writes, bodies[work])


# By function and work.
KERNELS = {
    (function, kernel.work): kernel
    for index, function in enumerate(extension.functions())
    for kernel in _kernels_of(function, index)
}


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


def call_of(kernel: Kernel, tensors: tuple[Tensor, ...]) -> Call | None:
    """None if the tensors lie in no layout that a kernel has."""
    found = extension.gpu_call(kernel.number, tensors)
    return found and Call(Layout(found[0]), *found[1:])


def _key(kernel: Kernel, tensors: tuple[Tensor, ...], call: Call) -> _Key:
    device, dtype = tensors[0].get_device(), tensors[0].dtype
    size = blocks_for(dtype, call.numbers[0]).size
    return kernel.number, call.layout, device, dtype, call.wide, size


def launch_by_triton(kernel: Kernel, tensors: tuple[Tensor, ...], call: Call) -> Any:
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
