"""Which variant of the GPU kernels is the fastest, and whether it gives the present ones' bits.

    python -m bench.gpu_variants [--json FILE] [--seconds S]     on a GPU; needs no built extension
    python -m bench.gpu_variants --steps [...]                   training steps alone
    python -m bench.gpu_variants --offline                       compiles every variant, on no GPU

A variant is the text of fused_sigmoid/triton with one passage replaced: what is timed is the real
source but for that. Device times are of replayed CUDA graphs over several input sets,
which from 1 Mi elements on exceed the last cache. Variants take turns within each round; the median
over the rounds counts. What is known is printed and written to the file at once.

Depends on torch, Triton and the text of the files that it reads; of the bench on works, static
and timing.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from bench import static
from bench.timing import no_garbage_collection
from bench.works import DTYPES

SOURCE = Path(__file__).resolve().parent.parent / "fused_sigmoid" / "triton"

MI = 2**20
# A forward pass and its backward pass, with what of the next layer lies between them.
NOTHING, COPIED, PRODUCT = STEP_WORKS = (
    "step",
    "step with a copy between",
    "step with a product between",
)
KERNELS = {"forward": "value", "pair": "value_and_derivative", "backward": "backward"}

LARGE_BYTES = 128 * MI  # of one tensor
# Of one tensor, of which a step has four; the cache of an H100 has 50 MB.
STEP_BYTES = (4 * MI, 8 * MI, 12 * MI, 16 * MI, 24 * MI, 32 * MI, 64 * MI)
LAYER_WIDTH = 1024
SMALL_SIZES = (2**10, 2**16, 2**20)
# From here on a single call is long beside what the launch of a graph takes.
LONG_SIZE = 4 * MI
CACHES_FILLED = 4
MOST_INPUT_SETS = 24
CALLS_IN_A_GRAPH = 50
LONG_CALLS_IN_A_GRAPH = 8
ROUNDS = 9
BITS_AT_A_TIME = 2**28

# What stands for the import of the extension.
WITHOUT_EXTENSION = """from types import SimpleNamespace
forward = ("value", 1, 1), ("value_of_kept", 1, 1), ("value_and_derivative", 1, 2)
works = *forward, ("backward", 2, 1)
extension = SimpleNamespace(functions=lambda: ("sigmoid",), works=lambda: works)"""

CORRECTION = "tl.fma(tl.fma(minus(sum), quotient, numerator), reciprocal, quotient)"
# Where the dtypes are chosen in which the reciprocal is corrected, by a step that ptxas has in its
# division for operands in the middle of the range.
REFINED = "        if dtype == tl.float32:\n            reciprocal ="
EXPONENTIAL = """    if x.dtype != tl.float64:
        power = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [a * -1.44269504], tl.float32, True, 1
        )
        return power * _reciprocal(1.0 + power)
    shifted = tl.fma("""
STORE = "tl.store(pointers, block, mask=mask"
POLICY = '"evict_last" if operands == _KEPT_INPUT else ""'
# By name: each passage of the source that is replaced, and by what.
SOURCES: dict[str, tuple[tuple[str, str], ...]] = {
    "present": (),
    "rounded division": (("elif _IS_NVIDIA:", "elif False:"),),
    "entries by selection": (("    if _IS_NVIDIA:", "    if False:"),),
    "refined reciprocal": ((REFINED, REFINED.replace("dtype == tl.float32", "True")),),
    "unrefined reciprocal": ((REFINED, REFINED.replace("dtype == tl.float32", "False")),),
    # Wrong bits, for the time alone: what the correction costs, and the whole exponential.
    "no correction": ((CORRECTION, "quotient"),),
    "hardware exponential": (("    shifted = tl.fma(", EXPONENTIAL),),
    "stores .cs": ((STORE + ")", STORE + ', cache_modifier=".cs")'),),
    "loads evict-first": ((POLICY, POLICY.replace('""', '"evict_first"')),),
}
# The forward pass of a training step, whose input the backward pass reads again.
STEPS = {"present": "value_of_kept", "input not kept in the cache": "value"}
SAME_BITS = ("rounded division", "refined reciprocal", "entries by selection")


class Variant(NamedTuple):
    source: str
    block_size: int = 1024
    warps: int = 4
    most_registers: int | None = None

    def __str__(self) -> str:
        limit = f", {self.most_registers} registers" if self.most_registers else ""
        return f"{self.source}, {self.block_size}/{self.warps}{limit}"

    def options(self) -> dict[str, Any]:
        limit = {"maxnreg": self.most_registers} if self.most_registers else {}
        return {"num_warps": self.warps, "enable_fp_fusion": False, **limit}


LARGE = (
    Variant("present"),
    Variant("present", most_registers=32),
    Variant("present", 2048, 8),
    Variant("present", 2048, 4),
    Variant("present", 512, 4),
    Variant("present", 512, 2),
    Variant("present", 4096, 8),
    Variant("rounded division"),
    Variant("refined reciprocal"),
    Variant("unrefined reciprocal"),
    Variant("entries by selection"),
    Variant("no correction"),
    Variant("hardware exponential"),
    Variant("stores .cs"),
    Variant("loads evict-first"),
)
SMALL = (
    Variant("present"),
    Variant("present", 512, 4),
    Variant("present", 256, 4),
    Variant("present", 256, 2),
    Variant("present", 128, 4),
    Variant("present", 128, 1),
    Variant("rounded division"),
    Variant("rounded division", 256, 4),
    Variant("entries by selection", 256, 4),
)

# In float64, whose division no variant changes, a thread's elements divide one after another.
FLOAT64 = (
    Variant("present", 1024, 4),
    Variant("present", 1024, 8),
    Variant("present", 512, 4),
    Variant("present", 512, 2),
    Variant("present", 256, 4),
    Variant("present", 256, 2),
    Variant("present", 128, 4),
    Variant("entries by selection", 256, 4),
)

Call = Callable[[], Any]


@triton.jit
def copy_kernel(source, target, block_size: tl.constexpr):  # type: ignore[no-untyped-def]
    """A copy by a kernel of the shape of ours."""
    at = tl.program_id(0).to(tl.int64) * block_size + tl.arange(0, block_size)
    tl.store(target + at, tl.load(source + at))


@triton.jit
def empty_kernel(source, target):  # type: ignore[no-untyped-def]
    """What a launch takes that does nothing."""


def load(edits: Sequence[tuple[str, str]], folder: Path) -> types.ModuleType:
    """The module ``elementwise`` of the kernels with their edits, as a package of its own without
    the extension."""
    edits = (
        ("from .._extension import extension", WITHOUT_EXTENSION),
        # Of a kernel that has no variant.
        ("from ..functions.sigmoid import FLOOR_OF_BCE", "FLOOR_OF_BCE = 0.0"),
        *edits,
    )
    texts = {file.name: file.read_text(encoding="utf-8") for file in SOURCE.glob("*.py")}
    for old, new in edits:
        if not any(old in text for text in texts.values()):
            raise ValueError(f"the kernels' source no longer has {old!r}")
        texts = {name: text.replace(old, new) for name, text in texts.items()}
    package = folder / f"variant_{len(list(folder.iterdir()))}"
    package.mkdir()
    for name, text in texts.items():
        (package / name).write_text(text, encoding="utf-8")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    importlib.invalidate_caches()
    return importlib.import_module(f"{package.name}.elementwise")


def _kernel(module: types.ModuleType, work: str) -> Any:
    return module.KERNELS["sigmoid", work]


Modules = dict[str, types.ModuleType]


def compile_all(modules: Modules) -> Iterator[str]:
    """What each variant compiles to for compute capability 9.0; needs no GPU."""
    for work, name in KERNELS.items():
        for dtype in static.DTYPES:
            for variant in dict.fromkeys((*LARGE, *SMALL, *FLOAT64)):
                kernel = _kernel(modules[variant.source], name)
                target = ("cuda", 90, 32)
                compiled = static.compile_with(
                    kernel, dtype, target, variant.block_size, variant.options()
                )
                code = compiled.asm["sass"]
                lines = sum(line.rstrip().endswith(";") for line in code.splitlines())
                spills = "LDL" in code or "STL" in code
                yield f"{work:9} {dtype:9} {variant!s:38} {lines:5} lines, spills: {spills}"


def differences(modules: Modules) -> Iterator[dict[str, Any]]:
    """Of every number: how many values and derivatives differ from the present kernel's."""
    for name, dtype in DTYPES.items():
        if dtype == torch.float64:  # has more numbers than can be tried
            continue
        integers = torch.int32 if dtype == torch.float32 else torch.int16
        total = 2 ** (8 * dtype.itemsize)
        step = min(total, BITS_AT_A_TIME)
        for source in SAME_BITS:
            counts = [0, 0]
            for low in range(-total // 2, total // 2, step):
                patterns = torch.arange(low, low + step, device="cuda", dtype=torch.int64)
                x = patterns.to(integers).view(dtype)
                del patterns
                pairs = [_pair(modules[which], x) for which in ("present", source)]
                for i, (ours, other) in enumerate(zip(*pairs, strict=True)):
                    if not torch.equal(ours.view(integers), other.view(integers)):
                        differ = ours.view(integers) != other.view(integers)
                        differ &= ~(ours.isnan() & other.isnan())
                        counts[i] += int(differ.count_nonzero())
            yield {
                "bits_of": name,
                "source": source,
                "numbers": total,
                "values": counts[0],
                "derivatives": counts[1],
            }


def _pair(module: types.ModuleType, x: torch.Tensor) -> list[torch.Tensor]:
    results = [torch.empty_like(x) for _ in range(2)]
    _bind(_kernel(module, "value_and_derivative"), Variant("present"), [x, *results])()
    return results


def _bind(kernel: Any, variant: Variant, tensors: Sequence[torch.Tensor]) -> Call:
    count, wide = tensors[-1].numel(), 2 ** len(tensors) - 1
    function, constants = kernel.compiled_for(static.DENSE, wide)
    launch = function[(triton.cdiv(count, variant.block_size),)]
    options = variant.options() | constants | {"block_size": variant.block_size}
    first, second, third = (*tensors, None)[:3]
    return lambda: launch(first, second, third, count, **options)


def measure(
    modules: Modules, work: str, dtype: str, size: int, variants: Sequence[Variant]
) -> dict[str, Any]:
    """Microseconds of a call of each variant and of what they are to be compared with."""
    place: dict[str, Any] = {"device": "cuda", "dtype": DTYPES[dtype]}
    present = _kernel(modules["present"], KERNELS[work])
    moved = (present.reads + present.writes) * size * DTYPES[dtype].itemsize
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    count = min(MOST_INPUT_SETS, 1 + CACHES_FILLED * cache // moved)
    sets = [
        [torch.randn(size, **place) * 3 for _ in range(present.reads)]
        + [torch.empty(size, **place) for _ in range(present.writes)]
        for _ in range(count)
    ]
    half = moved // 2 // DTYPES[dtype].itemsize
    copies = [[torch.zeros(half, **place), torch.empty(half, **place)] for _ in range(count)]
    calls: dict[str, list[Call]] = {"copy_": [_copy(*pair) for pair in copies]}
    if half % 1024 == 0:
        calls["copy kernel, 1024/4"] = [_copy_kernel(*pair) for pair in copies]
    calls["empty kernel"] = [_empty_kernel(*pair) for pair in copies]
    if work != "pair":
        calls["torch"] = [_torch(work, tensors) for tensors in sets]
    for variant in variants:
        kernel = _kernel(modules[variant.source], KERNELS[work])
        calls[str(variant)] = [_bind(kernel, variant, tensors) for tensors in sets]

    return _timed(work, dtype, size, moved, calls)


def measure_step(modules: Modules, work: str, dtype: str, size: int) -> dict[str, Any]:
    """Microseconds of a forward pass with the backward pass after it, which reads the input again
    and torch's the output; with nothing between them, or the next layer: a copy of the output, or
    its product with a matrix and that of a gradient with it."""
    place: dict[str, Any] = {"device": "cuda", "dtype": DTYPES[dtype]}
    moved = {NOTHING: 5, COPIED: 7, PRODUCT: 9}[work] * size * DTYPES[dtype].itemsize
    matrix = torch.randn(LAYER_WIDTH, LAYER_WIDTH, **place)
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    calls: dict[str, list[Call]] = {"torch": [], **{name: [] for name in STEPS}}
    for _ in range(min(MOST_INPUT_SETS, 1 + 2 * CACHES_FILLED * cache // moved)):
        input, grad = (torch.randn(size, **place) * 3 for _ in range(2))
        value, grad_input, next_input = (torch.empty(size, **place) for _ in range(3))
        between = {
            NOTHING: [],
            COPIED: [_copy(value, next_input)],
            PRODUCT: [_product(value, matrix, next_input), _product(next_input, matrix, grad)],
        }[work]
        torchs = _torch("forward", [input, value]), _torch("backward", [grad, value, grad_input])
        calls["torch"].append(_in_turn(torchs[0], *between, torchs[1]))
        for name, forward_work in STEPS.items():
            present, module = Variant("present"), modules["present"]
            forward = _bind(_kernel(module, forward_work), present, [input, value])
            backward = _bind(_kernel(module, "backward"), present, [grad, input, grad_input])
            calls[name].append(_in_turn(forward, *between, backward))
    return _timed(work, dtype, size, moved, calls)


def _in_turn(*calls: Call) -> Call:
    def run() -> None:
        for call in calls:
            call()

    return run


def _timed(
    work: str, dtype: str, size: int, moved: int, calls: dict[str, list[Call]]
) -> dict[str, Any]:
    count = len(next(iter(calls.values())))
    captured = LONG_CALLS_IN_A_GRAPH if size >= LONG_SIZE else CALLS_IN_A_GRAPH
    passes = max(1, round(captured / count))
    graphs = {}
    for name, several in calls.items():
        try:
            graphs[name] = _captured(several, passes)
        except Exception as error:  # one that fails is a line, not the end of a run
            print(f"{work} {dtype} {size} {name}: {type(error).__name__}: {error}"[:200])
    times = _race(graphs, replays=1 if size >= LONG_SIZE else 4)
    return {
        "work": work,
        "dtype": dtype,
        "size": size,
        "bytes_moved": moved,
        "input_sets": count,
        "microseconds": {name: time / (passes * count) for name, time in times.items()},
    }


def _copy(source: torch.Tensor, target: torch.Tensor) -> Call:
    return lambda: target.copy_(source)


def _product(source: torch.Tensor, matrix: torch.Tensor, target: torch.Tensor) -> Call:
    rows, result = source.view(-1, LAYER_WIDTH), target.view(-1, LAYER_WIDTH)
    return lambda: torch.mm(rows, matrix, out=result)


def _copy_kernel(source: torch.Tensor, target: torch.Tensor) -> Call:
    grid = (source.numel() // 1024,)
    return lambda: copy_kernel[grid](source, target, block_size=1024, num_warps=4)


def _empty_kernel(source: torch.Tensor, target: torch.Tensor) -> Call:
    return lambda: empty_kernel[(1,)](source, target)


def _torch(work: str, tensors: Sequence[torch.Tensor]) -> Call:
    if work == "forward":
        input, out = tensors
        return lambda: torch.sigmoid(input, out=out)
    grad, output, grad_input = tensors
    backward = torch.ops.aten.sigmoid_backward.grad_input
    return lambda: backward(grad, output, grad_input=grad_input)


def _captured(calls: Sequence[Call], passes: int) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    # The collector must not free an earlier graph while this one is captured.
    gc.collect()
    graph = torch.cuda.CUDAGraph()
    with no_garbage_collection(), torch.cuda.graph(graph):
        for _ in range(passes):
            for call in calls:
                call()
    return graph


def _race(graphs: dict[str, torch.cuda.CUDAGraph], replays: int) -> dict[str, float]:
    """Microseconds of a replay: the median over rounds in which all take turns."""
    seen: dict[str, list[float]] = {name: [] for name in graphs}
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    names = list(graphs)
    for _ in range(ROUNDS):
        for name in names:
            graphs[name].replay()
            begin.record()
            for _ in range(replays):
                graphs[name].replay()
            end.record()
            end.synchronize()
            seen[name].append(begin.elapsed_time(end) * 1e3 / replays)
        names.reverse()
    return {name: statistics.median(times) for name, times in seen.items()}


def lines(found: dict[str, Any]) -> Iterator[str]:
    """A measurement, or a count of differences, in words."""
    if "bits_of" in found:
        yield (
            f"bits      {found['bits_of']:9} {found['source']}: of {found['numbers']}"
            f" values differ {found['values']}, derivatives {found['derivatives']}"
        )
        return
    times = found["microseconds"]
    beside = "copy_" if "copy_" in times else "torch"
    for name, time_ in times.items():
        rate = found["bytes_moved"] / time_ / 1e6
        yield (
            f"{found['work']:25} {found['dtype']:9} {found['size']:10} {name:38} {time_:9.2f} us"
            f" {rate:6.3f} TB/s {times[beside] / time_:6.3f} of {beside}"
        )


def steps(modules: Modules) -> Iterator[dict[str, Any]]:
    for work in STEP_WORKS:
        # Products of float32 take so long that nothing else shows.
        for dtype in ("float32", "bfloat16") if work != PRODUCT else ("bfloat16",):
            for size in STEP_BYTES:
                yield measure_step(modules, work, dtype, size // DTYPES[dtype].itemsize)


def measurements(modules: Modules) -> Iterator[dict[str, Any]]:
    """All of them, the most telling first."""
    for work in KERNELS:
        for dtype in ("bfloat16", "float32", "float64"):
            variants = FLOAT64 if dtype == "float64" else LARGE
            yield measure(modules, work, dtype, LARGE_BYTES // DTYPES[dtype].itemsize, variants)
    yield from steps(modules)
    for work in ("forward", "backward"):
        for dtype in ("float32", "bfloat16", "float64"):
            for size in SMALL_SIZES:
                variants = FLOAT64 if dtype == "float64" else SMALL
                yield measure(modules, work, dtype, size, variants)
    yield measure(modules, "forward", "float16", LARGE_BYTES // 2, LARGE)


def commit() -> str | None:
    """The one checked out, where this is a repository."""
    try:
        command = ("git", "rev-parse", "HEAD")
        done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Times variants of the GPU kernels.")
    parser.add_argument("--offline", action="store_true", help="compile them all; needs no GPU")
    parser.add_argument("--steps", action="store_true", help="whole training steps alone")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--seconds", type=float, default=90.0, help="start nothing past these")
    chosen = parser.parse_args(arguments)
    start = time.perf_counter()
    document: dict[str, Any] = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": os.environ.get("SOURCE_COMMIT") or commit(),
        "gpu": None if chosen.offline else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "found": [],
    }

    def keep(entry: dict[str, Any]) -> None:
        document["found"].append(entry)
        for line in lines(entry):
            print(line, flush=True)
        if chosen.json:
            # At once, so that whoever copies the file finds a whole one.
            new = chosen.json.with_suffix(".new")
            new.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            new.replace(chosen.json)

    with tempfile.TemporaryDirectory() as folder:
        modules = {name: load(edits, Path(folder)) for name, edits in SOURCES.items()}
        if chosen.offline:
            for line in compile_all(modules):
                print(line)
            return 0
        found = (
            steps(modules) if chosen.steps else chain(differences(modules), measurements(modules))
        )
        for entry in found:
            keep(entry)
            torch.cuda.empty_cache()
            if time.perf_counter() - start > chosen.seconds:
                print("no time is left")
                break
    print(f"{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
