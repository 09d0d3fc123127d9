"""The GPU kernels compile, for every dtype, to the machine code that was meant.

No GPU is needed: Triton compiles for the three architectures and brings the disassembler.
"""

from __future__ import annotations

import importlib
import re
from typing import NamedTuple

import pytest
import torch

triton = pytest.importorskip("triton")
triton_kernels = importlib.import_module("fused_sigmoid.triton_kernels")

KERNELS = {kernel.function.__name__: kernel for kernel in triton_kernels.KERNELS}
DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
CAPABILITIES = [80, 90, 100]
THREADS = 32 * triton_kernels.LAUNCH_OPTIONS["num_warps"]
ELEMENTS = triton_kernels.BLOCK_SIZE // THREADS  # of each thread


class Arithmetic(NamedTuple):
    """Operations for one element, in float32."""

    fma: int = 0
    add: int = 0
    mul: int = 0
    div: int = 0


# n shifted, r twice, six steps of the polynomial and the denominator; n and 1 - t; t. Then one fma
# for the derivative, whose kernels need no 1 - t unless they give the value too.
ARITHMETIC = {
    "_sigmoid_kernel": Arithmetic(fma=10, add=2, div=1),
    "_sigmoid_with_derivative_kernel": Arithmetic(fma=11, add=2, div=1),
    "_backward_kernel": Arithmetic(fma=11, add=1, mul=1, div=1),
    "_backward_from_output_kernel": Arithmetic(add=1, mul=2),
    "_backward_from_derivative_kernel": Arithmetic(mul=1),
}
# What changes for another dtype: a polynomial of degree 11, 5 or 4 instead of 6; in the halves ln 2
# in one piece, and the product t (1 - t) for the derivative.
FMA_MORE = {"fp64": 5, "fp32": 0, "fp16": -2, "bf16": -3}


def _expected_arithmetic(name, dtype):
    expected = ARITHMETIC[name]
    if not expected.div:
        return expected
    expected = expected._replace(fma=expected.fma + FMA_MORE[dtype])
    if DTYPES[dtype].itemsize == 2 and name != "_sigmoid_kernel":
        add = expected.add + (name == "_backward_kernel")
        expected = expected._replace(fma=expected.fma - 1, mul=expected.mul + 1, add=add)
    return expected


every_kernel = pytest.mark.parametrize("name", KERNELS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_capability = pytest.mark.parametrize("capability", CAPABILITIES)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compiles a kernel as its launch does, once, and never finds it in a user's cache."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    seen = {}

    def compile_once(name, dtype, capability, aligned=True, count="i32"):
        key = (name, dtype, capability, aligned, count)
        if key not in seen:
            kernel = KERNELS[name]
            arguments = kernel.function.arg_names
            pointers = arguments[: kernel.reads + kernel.writes]
            assert arguments == [*pointers, "count", "block_size"]
            source = ASTSource(
                kernel.function,
                {**dict.fromkeys(pointers, f"*{dtype}"), "count": count, "block_size": "constexpr"},
                {"block_size": triton_kernels.BLOCK_SIZE},
                {(i,): [["tt.divisibility", 16]] for i in range(len(pointers)) if aligned},
            )
            target = GPUTarget("cuda", capability, 32)
            options = dict(triton_kernels.LAUNCH_OPTIONS)
            seen[key] = triton.compile(source, target=target, options=options)
        return seen[key].asm

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield compile_once


def _instructions(ptx):
    """The PTX without declarations, comments and debug information."""
    body = ptx[ptx.index("{") : ptx.index("$L__func_end0")]
    return re.findall(r"^\s*(?:@!?%p\d+ )?([a-z]\S*(?:[ \t].*)?;)", body, re.MULTILINE)


def _widths(ptx, kind):
    """The bits of each global access of one thread."""
    accesses = re.findall(rf"{kind}\.global\S*?(?:\.v(\d))?\.b(\d+)", ptx)
    return [int(vector or 1) * int(bits) for vector, bits in accesses]


def _arithmetic(ptx):
    """How often each float operation occurs, packed pairs as two."""
    counts = dict.fromkeys(Arithmetic._fields, 0)
    for line in _instructions(ptx):
        found = re.match(r"(fma|add|sub|mul|div)\.rn\.f(?:32|64)(x2)?\s", line)
        if found:
            name = "add" if found[1] == "sub" else found[1]
            counts[name] += 2 if found[2] else 1
    return Arithmetic(**counts)


@every_kernel
@every_dtype
@every_capability
def test_whole_blocks_are_read_and_written_128_bits_at_a_time(compiled, name, dtype, capability):
    ptx = compiled(name, dtype, capability)["ptx"]
    kernel, bits = KERNELS[name], 8 * DTYPES[dtype].itemsize
    for kind, tensors in (("ld", kernel.reads), ("st", kernel.writes)):
        widths = _widths(ptx, kind)
        whole = [width for width in widths if width >= 128]
        assert sum(whole) == tensors * ELEMENTS * bits
        # The rest is the masked end of the tensor, element by element.
        assert sorted(widths) == [bits] * (tensors * ELEMENTS) + sorted(whole)


@every_kernel
@every_dtype
@every_capability
def test_arithmetic_is_exactly_the_intended_and_rounds_to_nearest(
    compiled, name, dtype, capability
):
    ptx = compiled(name, dtype, capability)["ptx"]
    # Flushed subnormals, approximate divisions and functions, memory of a thread's own.
    assert not re.search(r"\.ftz|\.approx|\.full|\.local", ptx)
    if dtype != "fp64":
        assert not re.search(r"\.f64", ptx)
    expected = _expected_arithmetic(name, dtype)
    if name == "_backward_from_derivative_kernel" and DTYPES[dtype].itemsize == 2:
        # One product of halves, rounded once, is the same in their own type.
        assert re.search(r"(mul|fma)\.rn\.(bf16|f16)", ptx)
        return
    paths = 2  # with and without a mask
    assert _arithmetic(ptx) == Arithmetic(*(paths * ELEMENTS * count for count in expected))


@every_kernel
@every_dtype
def test_halves_are_rounded_to_nearest_even(compiled, name, dtype):
    ptx = compiled(name, dtype, 90)["ptx"]
    conversions = set(re.findall(r"cvt\.(\S+?)\.b?f16(?:x2)?\.f32", ptx))
    expected = DTYPES[dtype].itemsize == 2 and name != "_backward_from_derivative_kernel"
    assert conversions == ({"rn"} if expected else set())


@every_kernel
@every_dtype
def test_unaligned_tensors_are_read_and_written_by_elements(compiled, name, dtype):
    ptx = compiled(name, dtype, 90, aligned=False)["ptx"]
    assert set(_widths(ptx, "ld") + _widths(ptx, "st")) == {8 * DTYPES[dtype].itemsize}


@every_kernel
@pytest.mark.parametrize("count", ["i32", "i64"])
def test_offsets_have_64_bits(compiled, name, count):
    ttir = compiled(name, "bf16", 90, count=count)["ttir"]
    programs = re.findall(r"(%\w+) = tt\.get_program_id", ttir)
    assert programs
    for program in programs:
        uses = re.findall(rf"^.*[ (]{program}\b(?! =).*$", ttir, re.MULTILINE)
        assert uses
        assert all("arith.extsi" in use and "i32 to i64" in use for use in uses)


@every_kernel
@every_dtype
def test_machine_code_keeps_everything_in_registers(compiled, name, dtype):
    assert not re.search(r"\b(LDL|STL)\b", compiled(name, dtype, 90)["sass"])


# Instructions for one element of a whole block, the calls of division's rare path included. At
# the 3 TB/s of an H100's memory about 70 are free for a float32 forward and 105 for the pair, 35
# and 52 in the halves; seen are 33, 35, 34, 7, 5 in float32 and up to 33, 36, 36, 10, 4 in them.
INSTRUCTIONS = {
    "_sigmoid_kernel": 35,
    "_sigmoid_with_derivative_kernel": 38,
    "_backward_kernel": 38,
    "_backward_from_output_kernel": 12,
    "_backward_from_derivative_kernel": 6,
}


@every_kernel
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_instructions_per_element(compiled, name, dtype):
    sass = compiled(name, dtype, 90)["sass"]
    instructions = [line for line in sass.splitlines() if ";" in line]
    end = next(i for i, line in enumerate(instructions) if re.search(r"\tEXIT", line))
    whole_block = instructions[: end + 1]
    assert any("LDG.E.128" in line for line in whole_block)
    assert len(whole_block) <= ELEMENTS * INSTRUCTIONS[name]
