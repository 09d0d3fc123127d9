"""Builds the kernels without torch, under sanitizers, with a driver, and runs it; or the arithmetic
of the GPU's quotient alone. Called by `make sanitize`, `make fuzz` and `make check-full`.

    python -m tests.native.run sanitize [--write]
    python -m tests.native.run fuzz --executions 10000000 [--write]
    python -m tests.native.run properties [--write]
    python -m tests.native.run quotient [--step 1021]

Depends on setup.py for the flags, so that what is tried is compiled as what is shipped, and on
bench/results.py for the record.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests/native"
BUILD = ROOT / "build/native"
RECORD = ROOT / "bench/results/reliability.json"
SECONDS = 1800


class Variant(NamedTuple):
    """A driver and how the kernels under it are compiled."""

    driver: Path
    compiler: str
    kernel_flags: tuple[str, ...]
    driver_flags: tuple[str, ...]
    link_flags: tuple[str, ...] = ()


MEMORY = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
POISON = "-DFUSED_SIGMOID_TRIAL_ASAN"
GXX = os.environ.get("CXX", "g++")
CLANG = os.environ.get("CLANGXX", "clang++")
SANITIZE = {
    "address and undefined behaviour": Variant(
        # The driver itself uninstrumented: a fifth faster, and it is not what is tried.
        *(HERE / "sweep.cpp", GXX, ("-O1", "-g1", *MEMORY), ("-O2", POISON), MEMORY),
    ),
    "guard pages, as shipped": Variant(HERE / "sweep.cpp", GXX, ("-O3",), ("-O2",)),
    "threads": Variant(
        *(HERE / "threads.cpp", GXX, ("-O1", "-g1", "-fsanitize=thread")),
        *(("-O1", "-g1", "-fsanitize=thread"), ("-fsanitize=thread",)),
    ),
}
FUZZ = Variant(
    *(HERE / "fuzz.cpp", CLANG, ("-O2", "-g1", "-fsanitize=fuzzer-no-link", *MEMORY)),
    *(("-O2", "-g1", "-fsanitize=fuzzer-no-link", *MEMORY, POISON), ("-fsanitize=fuzzer", *MEMORY)),
)


def shipped() -> tuple[list[str], dict[str, list[str]]]:
    """The flags of setup.py, without the optimisation, and those of each instruction set."""
    with mock.patch("setuptools.setup"):
        names = runpy.run_path(str(ROOT / "setup.py"))
    flags = [flag for flag in names["FLAGS"] if not flag.startswith(("-O", "-g"))]
    sets = names["INSTRUCTION_SETS"] if names["IS_X86"] else {}
    return flags, sets


def build(name: str, variant: Variant, csrc: Path) -> Path:
    """Compiles the kernels in ``csrc`` and the driver; returns the program."""
    folder = BUILD / re.sub(r"\W+", "-", name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    flags, sets = shipped()
    flags += ["-std=c++17", "-Wall", "-Wextra", "-pthread"]
    # clang has no such names as the two warnings of g++ that setup.py turns off.
    flags += ["-Wno-unknown-warning-option"] if "clang" in variant.compiler else []
    sources = {
        csrc / "cpu/instruction_set.cpp": variant.kernel_flags,
        csrc / "cpu/kernels_default.cpp": variant.kernel_flags,
        csrc / "cpu/streaming.cpp": variant.kernel_flags,
        csrc / "cpu/strided.cpp": variant.kernel_flags,
        variant.driver: variant.driver_flags,
    }
    for instruction_set, own in sets.items():
        sources[csrc / f"cpu/kernels_{instruction_set}.cpp"] = (*variant.kernel_flags, *own)
    objects = {source: folder / f"{source.stem}.o" for source in sources}

    def compile(source: Path) -> None:
        command = [variant.compiler, *flags, *sources[source], "-c", source, "-o", objects[source]]
        subprocess.run(command, check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile, sources))
    program = folder / variant.driver.stem
    subprocess.run(
        [variant.compiler, *variant.link_flags, "-pthread", *objects.values(), "-o", program],
        check=True,
    )
    return program


def environment() -> dict[str, str]:
    """A sanitizer's last word is SIGABRT, at which a driver prints the call it died in."""
    options = {
        "ASAN_OPTIONS": "abort_on_error=1",
        "UBSAN_OPTIONS": "abort_on_error=1:print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1:abort_on_error=1",
    }
    return os.environ | options


def figures(output: str) -> dict[str, Any]:
    """What a driver prints at its end."""
    line = next(line for line in reversed(output.splitlines()) if line.startswith("{"))
    found: dict[str, Any] = json.loads(line)
    return found


def run(program: Path, shares: Iterable[Sequence[str]]) -> list[dict[str, Any]]:
    """The figures of one process for each of the ``shares``, which run at the same time."""
    processes = [
        subprocess.Popen([program, *share], stdout=subprocess.PIPE, env=environment(), text=True)
        for share in shares
    ]
    try:
        outputs = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        raise SystemExit(f"{program.name} failed; see above")
    return [figures(output) for output in outputs]


def sanitize(csrc: Path, names: Sequence[str]) -> dict[str, Any]:
    """The named checks of SANITIZE; the process ends with the first that fails."""
    found = {}
    for name in names:
        variant = SANITIZE[name]
        began = time.monotonic()
        program = build(name, variant, csrc)
        built = time.monotonic()
        # float64's portable fma takes the longest; the two shares take about as long.
        halves = (("float64", "bfloat16"), ("float32", "float16"))
        parts = run(program, halves if variant.driver.stem == "sweep" else ((),))
        found[name] = parts[0] | {
            key: sum(part[key] for part in parts)
            for key in ("kernel_executions", "elements")
            if key in parts[0]
        }
        found[name]["build_seconds"] = round(built - began, 1)
        found[name]["seconds"] = round(time.monotonic() - built, 1)
        print(f"{name}: {found[name]}", flush=True)
    return found


def fuzz(csrc: Path, executions: int) -> dict[str, Any]:
    """The coverage-guided target, from the corpus of earlier runs."""
    if shutil.which(FUZZ.compiler) is None:
        raise SystemExit(
            f"{FUZZ.compiler} is missing: libFuzzer comes with clang (apt-get install clang); "
            "CLANGXX names another"
        )
    program = build("fuzz", FUZZ, csrc)
    corpus = BUILD.parent / "corpus"
    corpus.mkdir(exist_ok=True)
    _, sets = shipped()
    inputs = -(-executions // (len(sets) + 1))
    began = time.monotonic()
    command = [program, corpus, f"-runs={inputs}", "-max_len=4096", "-print_final_stats=1"]
    command.append(f"-artifact_prefix={BUILD}/")
    process = subprocess.run(
        command, env=environment(), stderr=subprocess.PIPE, text=True, check=False
    )
    if process.returncode:
        print(process.stderr[-5000:], file=sys.stderr)
        raise SystemExit("the fuzz target failed; see above")
    covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", process.stderr)[-1]
    found = figures(process.stderr)
    found |= dict(zip(("covered_edges", "features", "corpus"), map(int, covered), strict=True))
    found["compiler"] = subprocess.run(
        [FUZZ.compiler, "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    found["seconds"] = round(time.monotonic() - began, 1)
    print(found)
    return found


def properties() -> dict[str, Any]:
    """The property tests of the Python face, with the long profile of conftest.py."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_properties.py"]
    command += ["--hypothesis-profile=fuzz", "--hypothesis-show-statistics"]
    process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if process.returncode:
        print(process.stdout[-5000:])
        raise SystemExit("a property does not hold; see above")
    counts = re.findall(r"(\d+) passing, 0 failing, and (\d+) invalid", process.stdout)
    found = {
        "tests": len(counts),
        "examples": sum(int(passing) for passing, _ in counts),
        "invalid": sum(int(invalid) for _, invalid in counts),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(found)
    return found


def quotient(step: int) -> dict[str, dict[str, int]]:
    """By dtype the numbers tried, and how many results differ from the rounded division's for each
    error of the reciprocal."""
    folder = BUILD / "quotient"
    folder.mkdir(parents=True, exist_ok=True)
    flags, _ = shipped()
    # With the hardware's fma where there is one; libm's is right too, but slow.
    flags += ["-std=c++17", "-O3", "-march=native", "-Wall", "-Wextra"]
    program = folder / "quotient"
    source = HERE / "quotient.cpp"
    subprocess.run([GXX, *flags, source, "-o", program], check=True)
    shares = os.cpu_count() or 1
    parts = run(program, [(str(step), str(share), str(shares)) for share in range(shares)])
    found = {
        dtype: {key: sum(part[dtype][key] for part in parts) for key in parts[0][dtype]}
        for dtype in parts[0]
    }
    for dtype, counts in found.items():
        print(f"{dtype}: {counts}")
    return found


def wrong_quotients(found: dict[str, dict[str, int]]) -> int:
    """How many results differ by a quotient that is corrected."""
    return sum(
        count
        for counts in found.values()
        for way, count in counts.items()
        if way not in ("numbers", "uncorrected")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Try the kernels alone.")
    add = parser.add_argument
    add("what", choices=("sanitize", "fuzz", "properties", "quotient"))
    add("--executions", type=int, default=1_000_000, help="of kernels, by the fuzz target")
    add("--step", type=int, default=1, help="of the float32 that a quotient is tried with")
    add("--only", action="append", choices=list(SANITIZE), help="this sanitizer")
    add("--csrc", type=Path, default=ROOT / "csrc", help="other kernels, such as broken ones")
    add("--write", action="store_true", help=f"record the figures in {RECORD.name}")
    chosen = parser.parse_args()
    csrc = chosen.csrc.resolve()
    checks = {
        "sanitize": lambda: sanitize(csrc, chosen.only or list(SANITIZE)),
        "fuzz": lambda: fuzz(csrc, chosen.executions),
        "properties": properties,
    }
    if chosen.what == "quotient":
        sys.exit(1 if wrong_quotients(quotient(chosen.step)) else 0)
    found = checks[chosen.what]()
    if chosen.write:
        from bench import results  # needs more than these checks do

        results.record_section(RECORD, chosen.what, found)


if __name__ == "__main__":
    main()
