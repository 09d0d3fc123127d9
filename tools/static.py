"""What the GPU kernels compile to, read without a GPU: ``python -m bench --static``.

Triton compiles them for three architectures and brings the disassembler. The bounds are arithmetic
on counts and data sheets, not measurements. Depends on the kernels, Triton and tabulate.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

RECORD = Path(__file__).resolve().parent.parent / "docs/figures/static.json"

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}
MOST_TENSORS = 3
DENSE, ROWS = 0, 2  # of the kernels' layouts
# What is read in rows as well, 16 bytes or an element at a time, by the architecture that was
# measured.
IN_ROWS = ("sigmoid_value", "sigmoid_value_and_derivative", "sigmoid_backward")
ROWS_CAPABILITY = 90
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}

# By the first letters of an instruction's name, the first that fits. What is none of them
# computes addresses, moves and compares integers, or steers.
KINDS = {
    "load": r"LDG",
    "store": r"STG",
    "local": r"LDL|STL",
    "special": r"MUFU",
    "conversion": r"F2F|F2I|I2F",
    "float64": r"D(ADD|FMA|MUL|SETP|MNMX)",
    "float": r"F|H(ADD|FMA|MUL|MNMX|SET)",
    "control": r"BRA|BSSY|BSYNC|CALL|RET|EXIT|WARPSYNC|NOP|BMOV",
    "integer": r"",
}


@dataclass(frozen=True)
class Architecture:
    """One GPU of a compute capability, from its data sheet; lanes a clock and multiprocessor from
    the table of arithmetic throughput in NVIDIA's CUDA programming guide."""

    gpu: str
    multiprocessors: int
    clock: float  # Hz; of the H100 under load, of the others the highest
    bandwidth: float  # bytes a second
    lanes: dict[str, int]


ISSUE = "issue"  # four schedulers, a warp instruction a clock each
ARCHITECTURES = {
    80: Architecture(
        "A100 80 GB",
        *(108, 1.41e9, 2.04e12),
        {ISSUE: 128, "float": 64, "float64": 32, "special": 16, "conversion": 64, "integer": 64},
    ),
    90: Architecture(
        "H100 SXM",
        *(132, 1.755e9, 3.35e12),
        {ISSUE: 128, "float": 128, "float64": 64, "special": 16, "conversion": 64, "integer": 64},
    ),
    100: Architecture(
        "B200",
        *(148, 1.965e9, 8.0e12),
        {ISSUE: 128, "float": 128, "float64": 64, "special": 16, "conversion": 64, "integer": 64},
    ),
}

# Of every one of the three: the registers of a multiprocessor, a quarter to a scheduler, given to
# warps in pieces; its warps.
REGISTERS, REGISTER_PIECE, MOST_WARPS, SCHEDULERS = 65536, 256, 64, 4


@dataclass(frozen=True)
class Code:
    """A compiled kernel; instructions for one element of a whole block, by kind."""

    kernel: str
    dtype: str
    capability: int
    instructions: dict[str, float]
    registers: int
    spilled_bytes: int
    warps: int  # that registers leave room for on one multiprocessor
    loads_in_flight: int  # bytes that these warps ask for before the first of them waits
    bandwidth_seconds: float  # of one element, on the architecture's GPU
    arithmetic_seconds: float
    arithmetic: str  # what takes these: instructions of a kind, or of all

    @property
    def bound(self) -> str:
        return "bandwidth" if self.bandwidth_seconds >= self.arithmetic_seconds else self.arithmetic

    @property
    def total(self) -> float:
        return sum(self.instructions.values())


def compile_kernel(
    kernel: Any, dtype: str, capability: int, layout: int = DENSE, wide: int | None = None
) -> Any:
    """As its launch compiles it for large tensors of a layout, all of them wide unless said."""
    from fused_sigmoid.triton.elementwise import LAUNCH_OPTIONS

    target = ("cuda", capability, 32)
    return compile_with(
        kernel, dtype, target, block_size(dtype), dict(LAUNCH_OPTIONS), layout, wide
    )


def compile_with(
    kernel: Any,
    dtype: str,
    target: tuple[str, int | str, int],
    block_size: int,
    options: dict[str, Any],
    layout: int = DENSE,
    wide: int | None = None,
) -> Any:
    """For a backend, its architecture and its threads in a warp, with blocks and options of one's
    choice; needs the kernel alone."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tensors = kernel.reads + kernel.writes
    function, constants = kernel.compiled_for(layout, 2**tensors - 1 if wide is None else wide)
    constants = constants | {"block_size": block_size}
    signature = dict.fromkeys(function.arg_names, "i64")
    for i, name in enumerate(function.arg_names[:MOST_TENSORS]):
        signature[name] = f"*{DTYPES[dtype]}"
        if i >= tensors:
            constants[name] = None
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(function, signature, constants)
    return triton.compile(source, target=GPUTarget(*target), options=options)


def kernels() -> dict[str, Any]:
    """By their names."""
    from fused_sigmoid.triton.elementwise import KERNELS

    return {kernel.name: kernel for kernel in KERNELS.values()}


def block_size(dtype: str) -> int:
    """Of large tensors."""
    import torch

    from fused_sigmoid.triton.elementwise import BLOCKS

    return BLOCKS[getattr(torch, dtype)][-1].size


def elements(dtype: str) -> int:
    """Of each thread."""
    from fused_sigmoid.triton.elementwise import LAUNCH_OPTIONS

    return block_size(dtype) // (32 * LAUNCH_OPTIONS["num_warps"])


def whole_block(sass: str) -> list[str]:
    """What is executed for a block without a mask: to the first exit, without the calls of the
    division's rare path, which are jumped over."""
    lines = [line.split("\t", 1)[-1].strip() for line in sass.splitlines()]
    found: list[str] = []
    at = 0
    while at < len(lines):
        if lines[at].endswith(";"):
            found.append(lines[at])
            if found[-1].startswith("EXIT"):
                return found
            jump = re.match(r"@!?P\d BRA (\w+);", found[-1])
            if jump and f"{jump[1]}:" in lines[at:]:
                target = lines.index(f"{jump[1]}:", at)
                passed = {line.split(" ")[0].rstrip(";").split(".")[0] for line in lines[at:target]}
                # The jump to the masked end of a tensor passes an exit too.
                if "CALL" in passed and "EXIT" not in passed:
                    at = target
        at += 1
    raise ValueError("the machine code has no exit")


def kind(instruction: str) -> str:
    """Of an instruction as nvdisasm writes it, with or without a predicate."""
    name = re.sub(r"^@!?U?P\w+ ", "", instruction)
    if re.match(r"HFMA2\S* R\d+, -RZ, RZ,", name):  # moves a constant
        return "integer"
    return next(kind for kind, pattern in KINDS.items() if re.match(pattern, name))


def count(instructions: Sequence[str]) -> Counter[str]:
    return Counter(dict.fromkeys(KINDS, 0) | Counter(map(kind, instructions)))


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread (REG), bytes of its stack (STACK) and local memory (LOCAL)."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        )
    found = dict(re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", done.stdout + done.stderr))
    return {name: int(number) for name, number in found.items()}


def resident_warps(registers: int) -> int:
    pieces = -(-registers * 32 // REGISTER_PIECE)
    of_scheduler = REGISTERS // SCHEDULERS // (pieces * REGISTER_PIECE)
    return min(MOST_WARPS, SCHEDULERS * of_scheduler)


def loads_before_waiting(instructions: Sequence[str]) -> int:
    """Bytes of the loads before the first arithmetic in floats behind one, which waits for it."""
    found = 0
    for instruction in instructions:
        if found and kind(instruction) in ("float", "float64", "special", "conversion"):
            break
        if kind(instruction) == "load":
            width = re.search(r"LDG\.E\S*?\.(\d+)", instruction)
            found += int(width[1]) // 8 if width else 4
    return found


def read(
    name: str,
    kernel: Any,
    dtype: str,
    capability: int,
    layout: int = DENSE,
    wide: int | None = None,
) -> Code:
    compiled = compile_kernel(kernel, dtype, capability, layout, wide)
    block = whole_block(compiled.asm["sass"])
    used = resources(compiled.asm["cubin"])
    counted = count(block)
    each = {name: number / elements(dtype) for name, number in counted.items()}
    gpu = ARCHITECTURES[capability]
    lanes = gpu.multiprocessors * gpu.clock
    times = {
        what: (sum(each.values()) if what == ISSUE else each[what]) / (width * lanes)
        for what, width in gpu.lanes.items()
    }
    slowest = max(times, key=lambda what: times[what])
    warps = resident_warps(used["REG"])
    return Code(
        kernel=name,
        dtype=dtype,
        capability=capability,
        instructions=each,
        registers=used["REG"],
        spilled_bytes=used["STACK"] + used["LOCAL"],
        warps=warps,
        loads_in_flight=32 * warps * loads_before_waiting(block),
        bandwidth_seconds=(kernel.reads + kernel.writes) * BYTES[dtype] / gpu.bandwidth,
        arithmetic_seconds=times[slowest],
        arithmetic=slowest,
    )


def every_code() -> Iterator[Code]:
    for capability in ARCHITECTURES:
        for name, kernel in kernels().items():
            for dtype in DTYPES:
                yield read(name, kernel, dtype, capability)
    for name in IN_ROWS:
        kernel = kernels()[name]
        results = sum(1 << i for i in range(kernel.reads, kernel.reads + kernel.writes))
        for what, wide in (("rows", None), ("rows by elements", results)):
            for dtype in DTYPES:
                yield read(f"{name}, {what}", kernel, dtype, ROWS_CAPABILITY, ROWS, wide)


def document(found: Sequence[Code]) -> dict[str, Any]:
    """Ready for JSON: what was counted, and with which assumptions and compiler."""
    import triton

    return {
        "triton": triton.__version__,
        "elements_of_a_thread": {dtype: elements(dtype) for dtype in DTYPES},
        "architectures": {
            str(capability): asdict(gpu) for capability, gpu in ARCHITECTURES.items()
        },
        "kernels": [{**asdict(code), "total": code.total, "bound": code.bound} for code in found],
    }


def table(stored: dict[str, Any], form: str) -> str:
    """One line for each kernel, dtype and capability."""
    names = ("load", "store", "float", "float64", "special", "conversion", "integer", "control")
    lines = []
    for code in stored["kernels"]:
        share = code["arithmetic_seconds"] / code["bandwidth_seconds"]
        counted = code["instructions"]
        lines.append(
            [
                f"{code['capability'] / 10:.1f}",
                code["kernel"],
                code["dtype"],
                *(f"{number:.1f}" if number else "" for number in map(counted.get, names)),
                f"{code['total']:.1f}",
                str(code["registers"]),
                str(code["warps"]),
                f"{code['loads_in_flight'] / 1024:.0f}",
                f"{code['bandwidth_seconds'] * 1e12:.2f}",
                f"{code['arithmetic_seconds'] * 1e12:.2f}",
                f"{100 * share:.0f} %",
                code["bound"],
            ]
        )
    head = ["capability", "kernel", "dtype", *names, "all", "registers", "warps", "KiB in flight"]
    head += ["bandwidth, ps", "arithmetic, ps", "share", "bound"]
    aligned = ["left"] * 3 + ["right"] * (len(head) - 4) + ["left"]
    return tabulate(lines, headers=head, tablefmt=form, disable_numparse=True, colalign=aligned)


def markdown() -> str:
    stored = json.loads(RECORD.read_text(encoding="utf-8"))
    gpus = ", ".join(
        f"{int(capability) / 10:.1f} a {gpu['gpu']} ({gpu['multiprocessors']} multiprocessors, "
        f"{gpu['clock'] / 1e9:g} GHz, {gpu['bandwidth'] / 1e12:g} TB/s)"
        for capability, gpu in stored["architectures"].items()
    )
    elements_ = ", ".join(f"{n} of {name}" for name, n in stored["elements_of_a_thread"].items())
    return (
        f"{table(stored, 'pipe')}\n\nCompiled by Triton {stored['triton']}; elements a thread: "
        f"{elements_}; capability {gpus}."
    )


def run(folder: Path | None) -> str:
    """The table for a terminal; the same as static.json in the folder, if one is given."""
    stored = document(list(every_code()))
    text = table(stored, "simple")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "static.json"
        file.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        text += f"\n\nwrote {file}"
    return text
