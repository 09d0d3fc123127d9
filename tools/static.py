"""What the GPU kernels compile to, read without a GPU: Triton compiles them for three architectures
and brings the disassembler. The bounds are arithmetic on counts and data sheets, not measurements.

    python -m tools.static [--write]        `python -m bench --static` shows the same

Depends on the kernels, on Triton and tabulate.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from tabulate import tabulate
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.results import FOLDER, write_record
from fused_sigmoid.triton.elementwise import BLOCKS, KERNELS, LAUNCH_OPTIONS, Layout

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}
MOST_TENSORS = 3
# What is read in rows as well, 16 bytes or an element at a time, by the architecture that was
# measured.
IN_ROWS = ("sigmoid_value", "sigmoid_value_and_derivative", "sigmoid_backward")
MEASURED = 90

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


class Architecture(NamedTuple):
    """One GPU of a compute capability, from its data sheet; lanes a clock and multiprocessor from
    the table of arithmetic throughput in NVIDIA's CUDA programming guide."""

    gpu: str
    multiprocessors: int
    clock: float  # Hz; of the H100 under load, of the others the highest
    bandwidth: float  # bytes a second
    lanes: dict[str, int]


ISSUE = "issue"  # four schedulers, a warp instruction a clock each
OTHERS = {"special": 16, "conversion": 64, "integer": 64}
SLOW = {ISSUE: 128, "float": 64, "float64": 32, **OTHERS}
FAST = {ISSUE: 128, "float": 128, "float64": 64, **OTHERS}
ARCHITECTURES = {
    80: Architecture("A100 80 GB", 108, 1.41e9, 2.04e12, SLOW),
    90: Architecture("H100 SXM", 132, 1.755e9, 3.35e12, FAST),
    100: Architecture("B200", 148, 1.965e9, 8.0e12, FAST),
}

# Of every one of the three: the registers of a multiprocessor, a quarter to a scheduler, given to
# warps in pieces; its warps.
REGISTERS, REGISTER_PIECE, MOST_WARPS, SCHEDULERS = 65536, 256, 64, 4


def compile_kernel(
    kernel: Any,
    dtype: str,
    target: int | tuple[str, str, int],
    layout: int = Layout.DENSE,
    wide: int | None = None,
    size: int | None = None,
) -> Any:
    """As its launch compiles it, for a compute capability or another backend's target: for tensors
    of a layout, all of them wide and large unless said."""
    tensors = kernel.reads + kernel.writes
    function, constants = kernel.compiled_for(layout, 2**tensors - 1 if wide is None else wide)
    constants = constants | {"block_size": size or block_size(dtype)}
    signature = dict.fromkeys(function.arg_names, "i64")
    for i, name in enumerate(function.arg_names[:MOST_TENSORS]):
        signature[name] = f"*{DTYPES[dtype]}"
        if i >= tensors:
            constants[name] = None
    signature |= dict.fromkeys(constants, "constexpr")
    for_gpu = GPUTarget("cuda", target, 32) if isinstance(target, int) else GPUTarget(*target)
    source = ASTSource(function, signature, constants)
    return triton.compile(source, target=for_gpu, options=dict(LAUNCH_OPTIONS))


def block_size(dtype: str) -> int:
    """Of large tensors."""
    return BLOCKS[getattr(torch, dtype)][-1].size


def elements(dtype: str) -> int:
    """Of each thread."""
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
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", done.stdout + done.stderr)
    return {name: int(number) for name, number in found}


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


def read(name: str, kernel: Any, dtype: str, capability: int, compiled: Any) -> dict[str, Any]:
    """Instructions are for one element of a whole block, seconds for one on the capability's GPU;
    warps are those of a multiprocessor, and loads in flight the bytes that all of these ask for
    before the first of them waits."""
    block, used = whole_block(compiled.asm["sass"]), resources(compiled.asm["cubin"])
    each = {kind: number / elements(dtype) for kind, number in count(block).items()}
    gpu, warps = ARCHITECTURES[capability], resident_warps(used["REG"])
    total = sum(each.values())
    executed = each | {ISSUE: total}
    lanes = gpu.multiprocessors * gpu.clock
    seconds = {what: executed[what] / (width * lanes) for what, width in gpu.lanes.items()}
    slowest = max(seconds, key=seconds.__getitem__)
    moved = (kernel.reads + kernel.writes) * getattr(torch, dtype).itemsize / gpu.bandwidth
    return {
        "kernel": name,
        "dtype": dtype,
        "capability": capability,
        "instructions": each,
        "registers": used["REG"],
        "spilled_bytes": used["STACK"] + used["LOCAL"],
        "warps": warps,
        "loads_in_flight": 32 * warps * loads_before_waiting(block),
        "bandwidth_seconds": moved,
        "arithmetic_seconds": seconds[slowest],
        "arithmetic": slowest,
        "total": total,
        "bound": "bandwidth" if moved >= seconds[slowest] else slowest,
    }


def every_code() -> Iterator[dict[str, Any]]:
    kernels = {kernel.name: kernel for kernel in KERNELS.values()}
    for capability in ARCHITECTURES:
        for name, kernel in kernels.items():
            for dtype in DTYPES:
                compiled = compile_kernel(kernel, dtype, capability)
                yield read(name, kernel, dtype, capability, compiled)
    for name in IN_ROWS:
        kernel = kernels[name]
        written = sum(1 << i for i in range(kernel.reads, kernel.reads + kernel.writes))
        for what, wide in (("rows", None), ("rows by elements", written)):
            for dtype in DTYPES:
                compiled = compile_kernel(kernel, dtype, MEASURED, Layout.ROWS, wide)
                yield read(f"{name}, {what}", kernel, dtype, MEASURED, compiled)


def table(codes: Sequence[dict[str, Any]]) -> str:
    """What decides, by the architecture that was measured."""
    shown = ("kernel", "dtype", "total", "registers", "warps", "bound")
    lines = [
        {
            **{name: code[name] for name in shown},
            "KiB in flight": code["loads_in_flight"] / 1024,
            "arithmetic / bandwidth": code["arithmetic_seconds"] / code["bandwidth_seconds"],
        }
        for code in codes
        if code["capability"] == MEASURED
    ]
    return tabulate(lines, headers="keys", floatfmt=("", "", ".1f", "", "", "", ".0f", ".2f"))


def run(folder: Path | None) -> str:
    """The table for a terminal; everything as static.json in the folder, if one is given."""
    codes = list(every_code())
    text = table(codes)
    if folder is not None:
        document = {
            "triton": triton.__version__,
            "elements_of_a_thread": {dtype: elements(dtype) for dtype in DTYPES},
            "architectures": {name: gpu._asdict() for name, gpu in ARCHITECTURES.items()},
            "kernels": codes,
        }
        file = folder / "static.json"
        write_record(file, "python -m tools.static --write", **document)
        text += f"\n\nwrote {file}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.static", description="What the GPU kernels compile to."
    )
    parser.add_argument("--write", action="store_true", help="record it in static.json")
    print(run(FOLDER if parser.parse_args().write else None))


if __name__ == "__main__":
    main()
