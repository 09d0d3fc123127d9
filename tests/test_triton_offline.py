"""The GPU kernels compile, for every dtype, to the machine code that was meant.

No GPU is needed: Triton compiles for three architectures of NVIDIA and two of AMD, and brings the
disassembler of the former.
"""

from __future__ import annotations

import importlib
import itertools
import re
from typing import NamedTuple

import pytest
import torch

from tests import parameters, private_kernels

triton = pytest.importorskip("triton")
elementwise = importlib.import_module("fused_sigmoid.triton.elementwise")
static = importlib.import_module("tools.static")

# The sigmoid's by their works; those of all functions have a test of their own.
KERNELS = {
    work: kernel
    for (function, work), kernel in elementwise.KERNELS.items()
    if function == "sigmoid"
}
BACKWARD = [name for name, kernel in KERNELS.items() if kernel.reads == 2]
DENSE, OF_ONE, ROWS = elementwise.Layout
DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16")}
CAPABILITIES = [80, 90, 100]


class Arithmetic(NamedTuple):
    """Operations for one element, in float32."""

    fma: int = 0
    add: int = 0
    mul: int = 0
    div: int = 0


# Of fma m shifted, r twice, two of the polynomial and the denominator, of additions m, one of the
# polynomial and 1 - t; t. Then one fma for the derivative, whose kernels need no 1 - t unless they
# give the value too.
ARITHMETIC = {
    "value": Arithmetic(fma=6, add=3, div=1),
    "value_of_kept": Arithmetic(fma=6, add=3, div=1),
    "value_and_derivative": Arithmetic(fma=7, add=3, div=1),
    "backward": Arithmetic(fma=7, add=2, mul=1, div=1),
    "backward_from_output": Arithmetic(add=1, mul=2),
    "backward_from_derivative": Arithmetic(mul=1),
    "backward_before_bce": Arithmetic(add=1, mul=2),
    "backward_before_float32_bce": Arithmetic(add=1, mul=2),
}
# What a quotient by the hardware's reciprocal is made of: in float32, where that is corrected, and
# in the halves.
QUOTIENT = {"float32": Arithmetic(fma=4, mul=1)} | dict.fromkeys(
    ("float16", "bfloat16"), Arithmetic(fma=2, mul=1)
)
RECIPROCAL = "rcp.approx.ftz.f32"
# What looks an entry of the table up, once a number or, in float64, once for each half of it.
SHUFFLE = "shfl.sync.idx.b32"
# What changes for another dtype: by Horner's rule a polynomial of degree 7; in the halves ln 2 in
# one piece, and the product t (1 - t) for the derivative; a degree less in bfloat16.
FMA_MORE = {"float64": 5, "float32": 0, "float16": -1, "bfloat16": -2}


def _expected_arithmetic(name, dtype):
    expected = ARITHMETIC[name]
    if not expected.div:
        return expected
    expected = expected._replace(fma=expected.fma + FMA_MORE[dtype])
    if dtype == "float64":
        expected = expected._replace(add=expected.add - 1)
    else:
        expected = expected._replace(
            fma=expected.fma + QUOTIENT[dtype].fma, mul=expected.mul + QUOTIENT[dtype].mul, div=0
        )
    if DTYPES[dtype].itemsize == 2 and name not in ("value", "value_of_kept"):
        add = expected.add + (name == "backward")
        expected = expected._replace(fma=expected.fma - 1, mul=expected.mul + 1, add=add)
    return expected


every_kernel = pytest.mark.parametrize("name", KERNELS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def _is_one_of_two(name, dtype):
    """One kernel that computes and one that reads two tensors, in a wide dtype and in a half."""
    return name in ("value_and_derivative", "backward") and dtype in ("float32", "bfloat16")


def every_compiled(*dtypes):
    """Each kernel for each architecture, but for others than the H100's those two alone."""
    chosen = parameters.chosen(
        itertools.product(KERNELS, dtypes, CAPABILITIES),
        lambda name, dtype, capability: capability == 90 or _is_one_of_two(name, dtype),
    )
    return pytest.mark.parametrize(("name", "dtype", "capability"), chosen)


# Where a layout makes the difference, one wide dtype and one half stand for all.
every_kernel_and_dtype = pytest.mark.parametrize(
    ("name", "dtype"),
    parameters.chosen(
        itertools.product(KERNELS, DTYPES), lambda _, dtype: dtype in ("float32", "bfloat16")
    ),
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compiles a kernel as its launch does, once, and never finds it in a user's cache."""
    seen = {}

    def compile_once(name, dtype, capability, layout=DENSE, wide=None, function="sigmoid"):
        key = (function, name, dtype, capability, layout, wide)
        if key not in seen:
            kernel = elementwise.KERNELS[function, name]
            seen[key] = static.compile_kernel(kernel, dtype, capability, layout, wide)
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


@every_compiled(*DTYPES)
def test_whole_blocks_are_read_and_written_128_bits_at_a_time(compiled, name, dtype, capability):
    ptx = compiled(name, dtype, capability)["ptx"]
    kernel, bits = KERNELS[name], 8 * DTYPES[dtype].itemsize
    for kind, tensors in (("ld", kernel.reads), ("st", kernel.writes)):
        widths = _widths(ptx, kind)
        whole = [width for width in widths if width >= 128]
        assert sum(whole) == tensors * static.elements(dtype) * bits
        # The rest is the masked end of the tensor, element by element.
        assert sorted(widths) == [bits] * (tensors * static.elements(dtype)) + sorted(whole)


@every_compiled(*DTYPES)
def test_arithmetic_is_exactly_the_intended_and_rounds_to_nearest(
    compiled, name, dtype, capability
):
    ptx = compiled(name, dtype, capability)["ptx"]
    paths = 2  # with and without a mask
    # The one approximate instruction; neither its operand nor its result is ever subnormal.
    divides = ARITHMETIC[name].div and dtype != "float64"
    assert ptx.count(RECIPROCAL) == (paths * static.elements(dtype) if divides else 0)
    looked_up = (2 if dtype == "float64" else 1) if ARITHMETIC[name].div else 0
    assert ptx.count(SHUFFLE) == paths * static.elements(dtype) * looked_up
    # Flushed subnormals, approximate divisions and functions, memory of a thread's own.
    assert not re.search(r"\.ftz|\.approx|\.full|\.local", ptx.replace(RECIPROCAL, ""))
    if dtype != "float64":
        assert not re.search(r"\.f64", ptx)
    expected = _expected_arithmetic(name, dtype)
    if name == "backward_from_derivative" and DTYPES[dtype].itemsize == 2:
        # One product of halves, rounded once, is the same in their own type.
        assert re.search(r"(mul|fma)\.rn\.(bf16|f16)", ptx)
        return
    if name == "backward_before_bce" and DTYPES[dtype].itemsize == 2:
        # What is rounded to a half is computed in one, where the compiler sees that it may be: the
        # divisor's difference and product.
        in_halves = re.findall(r"(?:fma|sub|mul)\.rn\.b?f16(x2)?\s", ptx)
        found = sum(2 if pair else 1 for pair in in_halves) + sum(_arithmetic(ptx))
        assert found == paths * static.elements(dtype) * sum(expected)
        return
    assert _arithmetic(ptx) == Arithmetic(
        *(paths * static.elements(dtype) * count for count in expected)
    )


@every_kernel
@every_dtype
def test_halves_are_rounded_to_nearest_even(compiled, name, dtype):
    ptx = compiled(name, dtype, 90)["ptx"]
    conversions = set(re.findall(r"cvt\.(\S+?)\.b?f16(?:x2)?\.f32", ptx))
    expected = DTYPES[dtype].itemsize == 2 and name != "backward_from_derivative"
    assert conversions == ({"rn"} if expected else set())


@every_kernel_and_dtype
def test_unaligned_tensors_are_read_and_written_by_elements(compiled, name, dtype):
    ptx = compiled(name, dtype, 90, wide=0)["ptx"]
    assert set(_widths(ptx, "ld") + _widths(ptx, "st")) == {8 * DTYPES[dtype].itemsize}


@every_kernel
def test_offsets_have_64_bits(compiled, name):
    ttir = compiled(name, "bfloat16", 90)["ttir"]
    programs = re.findall(r"(%\w+) = tt\.get_program_id", ttir)
    assert programs
    for program in programs:
        uses = re.findall(rf"^.*[ (]{program}\b(?! =).*$", ttir, re.MULTILINE)
        assert uses
        assert all("arith.extsi" in use and "i32 to i64" in use for use in uses)


@every_kernel
def test_places_in_rows_have_32_bits_and_offsets_64(compiled, name):
    ttir = compiled(name, "bfloat16", 90, ROWS)["ttir"]
    assert "mulhiui" in ttir
    for operation in ("mulhiui", "shrui"):
        assert set(re.findall(rf"{operation} .* : tensor<\d+x(\w+)>", ttir)) == {"i32"}
    assert not re.search(r"arith\.(div|rem)[us]i", ttir)
    added = re.findall(r"tt\.addptr .* : tensor<.*>, tensor<\d+x(\w+)>", ttir)
    # Computed for each way through the kernel, with and without a mask.
    assert added == ["i64"] * 2 * (KERNELS[name].reads + KERNELS[name].writes)


@every_compiled("float32")
def test_the_cache_is_asked_to_hold_an_input_that_is_kept(compiled, name, dtype, capability):
    ptx = compiled(name, dtype, capability)["ptx"]
    held = [line for line in _instructions(ptx) if "ld.global" in line and "evict_last" in line]
    loads = [line for line in _instructions(ptx) if "ld.global" in line]
    assert held == (loads if name == "value_of_kept" else [])


@every_compiled("float32")
@pytest.mark.parametrize("layout", [DENSE, ROWS])
def test_parameters_are_those_that_the_extension_passes(compiled, name, dtype, capability, layout):
    # Pointers and numbers, then at most four pointers of Triton's own, 8 bytes each.
    ptx = compiled(name, dtype, capability, layout)["ptx"]
    entry = ptx[ptx.index(".entry") : ptx.index("\n{")]
    parameters = re.findall(r"\.param \.(\w+)", entry)
    tensors = [torch.zeros(8, 16)[:, ::2] for _ in range(KERNELS[name].reads)]
    tensors += [torch.zeros(8, 8) for _ in range(KERNELS[name].writes)]
    numbers = elementwise.call_of(KERNELS[name], tuple(tensors)).numbers
    passed = len(tensors) + (len(numbers) if layout == ROWS else 1)
    assert set(parameters) == {"u64"}
    assert passed <= len(parameters) <= passed + 4


@pytest.mark.parametrize("count", [1, 16, 1000, 2**31 - 1, 2**31, 2**40])
@pytest.mark.parametrize("offset", [0, 1, 4])
@pytest.mark.parametrize("layout", [DENSE, ROWS])
def test_triton_compiles_nothing_apart_by_itself(count, offset, layout):
    # By its own reading of the arguments: what is compiled apart are the constants, which the
    # extension knows, and neither addresses nor numbers.
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    kernel = KERNELS["backward"]
    function, constants = kernel.compiled_for(layout, 0b111)
    backend = make_backend(GPUTarget("cuda", 90, 32))
    read = create_function_from_signature(function.signature, function.params, backend)
    tensors = tuple(torch.zeros(64)[offset:] for _ in range(3))
    numbers = (count,) if layout == DENSE else (count, 16, 1, 4, 1, 1, 0, 16, 2**31, 5)
    _, specialization, _ = read(*tensors, *numbers, block_size=1024, **constants)
    given = 3 + len(numbers)
    assert [kind for kind, _ in specialization[:given]] == ["*fp32"] * 3 + ["i64"] * len(numbers)
    assert not any(value for _, value in specialization[:given])
    assert {kind for kind, _ in specialization[given:]} == {"constexpr"}


def test_kernels_have_names_of_their_own(compiled):
    names = {
        re.search(r"\.entry (\w+)", compiled(name, "float32", 90)["ptx"])[1] for name in KERNELS
    }
    # The two that differ in what they ask of the cache have one name.
    assert names == {f"fused_sigmoid_{work}" for work in KERNELS if work != "value_of_kept"}


@every_compiled(*DTYPES)
def test_machine_code_keeps_everything_in_registers(compiled, name, dtype, capability):
    asm = compiled(name, dtype, capability)
    assert not re.search(r"\b(LDL|STL)\b", asm["sass"])
    used = static.resources(asm["cubin"])
    assert used["STACK"] == used["LOCAL"] == used["SHARED"] == 0
    # 32 registers leave room for all 64 warps, 40 for 48 of them.
    in_float32 = name in ("value", "value_of_kept") and dtype != "float64"
    assert used["REG"] <= (32 if in_float32 else 40)


@every_compiled(*DTYPES)
def test_machine_code_reads_and_writes_128_bits_at_a_time(compiled, name, dtype, capability):
    kernel = KERNELS[name]
    block = static.whole_block(compiled(name, dtype, capability)["sass"])
    accesses = static.elements(dtype) * DTYPES[dtype].itemsize // 16
    for operation, tensors in (("LDG", kernel.reads), ("STG", kernel.writes)):
        found = [line for line in block if re.match(rf"(@!?P\d )?{operation}", line)]
        assert len(found) == tensors * accesses
        assert all(re.search(r"\.128\b", line) for line in found)


@pytest.mark.parametrize(
    ("name", "dtype"), parameters.chosen(itertools.product(BACKWARD, DTYPES), _is_one_of_two)
)
def test_a_gradient_of_one_number_is_loaded_once(compiled, name, dtype):
    asm = compiled(name, dtype, 90, OF_ONE)
    block = static.whole_block(asm["sass"])
    accesses = static.elements(dtype) * DTYPES[dtype].itemsize // 16
    loads = [line for line in block if "LDG" in line]
    wide = [line for line in loads if re.search(r"\.128\b", line)]
    assert (len(wide), len(loads)) == (accesses, accesses + 1)
    assert len(re.findall(r"STG\.\S*128", "\n".join(block))) == accesses
    assert static.resources(asm["cubin"])["LOCAL"] == 0
    assert not re.search(r"\b(LDL|STL)\b", asm["sass"])


@every_compiled("float32", "float16", "bfloat16")
def test_machine_code_has_no_float64(compiled, name, dtype, capability):
    sass = compiled(name, dtype, capability)["sass"]
    assert not re.search(r"\b(D(ADD|FMA|MUL|SETP|MNMX)|MUFU\.\w+64H|F2F\.F64)", sass)


# Instructions executed for one element of a whole block. Seen are up to 23.8, 24.5, 26.6, 25.4,
# 10.0, 4.9, 10.1 and 11.0; float64, which has more of a polynomial and two elements to share its
# addresses, up to 78.
INSTRUCTIONS = {
    "value": 24,
    "value_of_kept": 24.5,
    "value_and_derivative": 27,
    "backward": 25.5,
    "backward_from_output": 10.5,
    "backward_from_derivative": 5,
    "backward_before_bce": 10.5,
    "backward_before_float32_bce": 11,
}


@every_compiled("float32", "float16", "bfloat16")
def test_instructions_per_element(compiled, name, dtype, capability):
    block = static.whole_block(compiled(name, dtype, capability)["sass"])
    assert sum(line.startswith("MUFU") for line in block) == (
        static.elements(dtype) if ARITHMETIC[name].div else 0
    )
    assert len(block) <= static.elements(dtype) * INSTRUCTIONS[name]
    # Of the whole block: past the tail of the tensor, and to no slow path of a division.
    assert sum("BRA" in line or "CALL" in line for line in block) == 1


# An H100 issues 132 multiprocessors x 128 lanes x 1.755 GHz = 29.6 T instructions a second; while
# an element's bytes move at the 3.35 TB/s of its data sheet it can execute so many.
@every_kernel
@every_dtype
def test_memory_is_the_bound_on_an_h100(compiled, name, dtype):
    kernel = KERNELS[name]
    moved = (kernel.reads + kernel.writes) * DTYPES[dtype].itemsize
    free = 132 * 128 * 1.755e9 * moved / 3.35e12
    block = static.whole_block(compiled(name, dtype, 90)["sass"])
    assert len(block) / static.elements(dtype) < 0.8 * free


@every_kernel_and_dtype
def test_whole_rows_are_read_and_written_128_bits_at_a_time(compiled, name, dtype):
    kernel = KERNELS[name]
    asm = compiled(name, dtype, 90, ROWS)
    block = static.whole_block(asm["sass"])
    accesses = static.elements(dtype) * DTYPES[dtype].itemsize // 16
    for operation, tensors in (("LDG", kernel.reads), ("STG", kernel.writes)):
        found = [line for line in block if re.match(rf"(@!?P\d )?{operation}", line)]
        assert len(found) == tensors * accesses
        assert all(re.search(r"\.128\b", line) for line in found)
    used = static.resources(asm["cubin"])
    assert used["STACK"] == used["LOCAL"] == used["SHARED"] == 0
    # Rows are divided out once for 16 bytes of each tensor; seen are up to 24 instructions.
    dense = static.whole_block(compiled(name, dtype, 90)["sass"])
    assert len(block) <= len(dense) + 24 * accesses


@pytest.mark.parametrize(
    ("name", "dtype"),
    parameters.chosen(
        itertools.product(
            ["value", "value_and_derivative", "backward", "backward_from_derivative"],
            ["float32", "bfloat16"],
        ),
        lambda name, dtype: dtype == "bfloat16" and name != "backward_from_derivative",
    ),
)
def test_what_is_not_whole_goes_by_elements_without_shared_memory(compiled, name, dtype):
    kernel, bits = KERNELS[name], 8 * DTYPES[dtype].itemsize
    results = sum(1 << i for i in range(kernel.reads, kernel.reads + kernel.writes))
    for layout in (DENSE, ROWS):
        # Wide are all results or nothing: see call_of in csrc/gpu_launch.cpp.
        for wide in (0, *(results | operand for operand in range(2**kernel.reads - 1))):
            asm = compiled(name, dtype, 90, layout, wide)
            used = static.resources(asm["cubin"])
            assert used["STACK"] == used["LOCAL"] == used["SHARED"] == 0
            for kind, tensors in (
                ("ld", range(kernel.reads)),
                ("st", range(kernel.reads, kernel.reads + kernel.writes)),
            ):
                whole = sum(width for width in _widths(asm["ptx"], kind) if width >= 128)
                expected = sum(wide >> i & 1 for i in tensors) * static.elements(dtype) * bits
                assert whole == expected


@pytest.mark.parametrize(
    "name", [pytest.param("value", marks=pytest.mark.slow), "value_and_derivative", "backward"]
)
@every_dtype
def test_small_blocks_compile(name, dtype, compiled):
    small = elementwise.blocks_for(DTYPES[dtype], 1).size
    found = static.compile_kernel(KERNELS[name], dtype, 90, size=small)
    bits = small // 128 * 8 * DTYPES[dtype].itemsize
    assert bits in _widths(found.asm["ptx"], "ld")
    assert found.metadata.shared == 0


# AMD.


@pytest.fixture(scope="module")
def for_amd(tmp_path_factory):
    """Compiles a kernel of the module as a torch for AMD loads it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.version, "hip", "6.4")
        module = private_kernels.load("kernels_for_amd")

    def compile_for(name, dtype, architecture, layout=DENSE):
        kernel = module.KERNELS["sigmoid", name]
        return static.compile_kernel(kernel, dtype, ("hip", architecture, 64), layout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield compile_for


@pytest.mark.parametrize(
    ("name", "dtype", "architecture"),
    parameters.chosen(
        itertools.product(KERNELS, DTYPES, ["gfx90a", "gfx942"]),
        lambda name, dtype, architecture: (
            architecture == "gfx942" or (name == "backward" and dtype == "bfloat16")
        ),
    ),
)
def test_kernels_compile_for_amd_with_the_rounded_division(for_amd, name, dtype, architecture):
    found = for_amd(name, dtype, architecture)
    code = found.asm["amdgcn"]
    suffix = "f64" if dtype == "float64" else "f32"
    divisions = re.findall(rf"^\s+v_div_fixup_{suffix}", code, re.MULTILINE)
    elements = static.block_size(dtype) // 256  # of a thread
    # Some compilers join the ways with and without a mask.
    assert len(divisions) in ((elements, 2 * elements) if ARITHMETIC[name].div else (0,))
    # The hardware's reciprocal is where the division begins, and nowhere else.
    assert len(re.findall(r"^\s+v_rcp_", code, re.MULTILINE)) == len(divisions)
    assert not re.search(r"^\s+(v_(exp|log)_f|scratch_|ds_)", code, re.MULTILINE)
    assert "_spill_count: 0" in code
    assert not re.search(r"_spill_count: *[1-9]", code)
    assert found.metadata.shared == 0


@pytest.mark.parametrize("name", ["value", "backward"])
@pytest.mark.parametrize("architecture", ["gfx90a", "gfx942"])
def test_rows_compile_for_amd(for_amd, name, architecture):
    found = for_amd(name, "float32", architecture, ROWS)
    code = found.asm["amdgcn"]
    assert "global_load_dwordx4" in code
    assert "global_store_dwordx4" in code
    assert found.metadata.shared == 0


@every_dtype
@pytest.mark.parametrize("key", elementwise.KERNELS, ids="_".join)
def test_every_function_compiles_to_wide_accesses_and_no_calls(compiled, key, dtype):
    function, name = key
    kernel = elementwise.KERNELS[key]
    ptx = compiled(name, dtype, 90, function=function)["ptx"]
    bits = 8 * DTYPES[dtype].itemsize
    for kind, tensors in (("ld", kernel.reads), ("st", kernel.writes)):
        whole = [width for width in _widths(ptx, kind) if width >= 128]
        assert sum(whole) == tensors * static.elements(dtype) * bits
    assert not [line for line in _instructions(ptx) if re.match(r"call|(ld|st)\.local", line)]
