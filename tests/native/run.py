"""Builds the kernels without torch, under sanitizers, with a driver, and runs it; or the arithmetic
of the GPU's quotient alone. Called by `make sanitize`, `make arm`, `make fuzz`, `make check-full`.

    python -m tests.native.run sanitize [--one-in 8 | --write]
    python -m tests.native.run arm [--write]
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
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
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
    machine: str = platform.machine()  # that the compiler compiles for
    emulator: tuple[str, ...] = ()  # the command that runs the program elsewhere
    one_in: int = 1  # how many trials of a sweep there are to each that is run


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
# As shipped, on this machine: what ARM has to agree with.
BITS = Variant(HERE / "bits.cpp", GXX, ("-O3",), ("-O2",))
ARM_GXX = os.environ.get("ARM_CXX", "aarch64-linux-gnu-g++")
ARM_EMULATOR = os.environ.get("ARM_EMULATOR", "qemu-aarch64 -L /usr/aarch64-linux-gnu")


def on_arm(variant: Variant, one_in: int = 1) -> Variant:
    """The same for a 64-bit ARM, by emulation."""
    emulator = tuple(shlex.split(ARM_EMULATOR))
    return variant._replace(compiler=ARM_GXX, machine="aarch64", emulator=emulator, one_in=one_in)


# An emulator takes 10 to 20 times as long. ThreadSanitizer does not run in one.
ARM = {
    "address and undefined behaviour": on_arm(SANITIZE["address and undefined behaviour"], 64),
    "guard pages, as shipped": on_arm(SANITIZE["guard pages, as shipped"], 16),
    "threads": on_arm(Variant(HERE / "threads.cpp", GXX, ("-O3",), ("-O2",))),
    "the same bits as here": on_arm(BITS),
}
FUZZ = Variant(
    *(HERE / "fuzz.cpp", CLANG, ("-O2", "-g1", "-fsanitize=fuzzer-no-link", *MEMORY)),
    *(("-O2", "-g1", "-fsanitize=fuzzer-no-link", *MEMORY, POISON), ("-fsanitize=fuzzer", *MEMORY)),
)


def shipped(machine: str = platform.machine()) -> tuple[list[str], dict[str, list[str]]]:
    """The flags of setup.py, without the optimisation, and those of each instruction set."""
    with mock.patch("setuptools.setup"):
        names = runpy.run_path(str(ROOT / "setup.py"))
    flags, sets = names["flags_for"](machine)
    return [flag for flag in flags if not flag.startswith(("-O", "-g"))], sets


def build(name: str, variant: Variant, csrc: Path) -> Path:
    """Compiles the kernels in ``csrc`` and the driver; returns the program."""
    folder = BUILD / re.sub(r"\W+", "-", name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    flags, sets = shipped(variant.machine)
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


def environment(is_emulated: bool = False) -> dict[str, str]:
    """A sanitizer's last word is SIGABRT, at which a driver prints the call it died in."""
    # The search for leaks traces the process as a debugger does, which an emulator cannot.
    leaks = ":detect_leaks=0" if is_emulated else ""
    options = {
        "ASAN_OPTIONS": f"abort_on_error=1{leaks}",
        "UBSAN_OPTIONS": "abort_on_error=1:print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1:abort_on_error=1",
    }
    return os.environ | options


def figures(output: str) -> dict[str, Any]:
    """What a driver prints at its end."""
    line = next(line for line in reversed(output.splitlines()) if line.startswith("{"))
    found: dict[str, Any] = json.loads(line)
    return found


def run(
    program: Path, shares: Iterable[Sequence[str]], emulator: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The figures of one process for each of the ``shares``, which run at the same time."""
    variables = environment(is_emulated=bool(emulator))
    processes = [
        subprocess.Popen(
            [*emulator, program, *share], stdout=subprocess.PIPE, env=variables, text=True
        )
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


# float64's portable fma takes the longest; the two shares take about as long.
SHARES = (("float64", "bfloat16"), ("float32", "float16"))


def try_driver(name: str, variant: Variant, csrc: Path) -> list[dict[str, Any]]:
    """The figures of each process, with the seconds that it took to build and run them all."""
    began = time.monotonic()
    program = build(name, variant, csrc)
    built = time.monotonic()
    shares: Sequence[Sequence[str]] = {
        "sweep": [(str(variant.one_in), *share) for share in SHARES],
        "bits": SHARES,
    }.get(variant.driver.stem, [()])
    parts = run(program, shares, variant.emulator)
    seconds = {
        "build_seconds": round(built - began, 1),
        "seconds": round(time.monotonic() - built, 1),
    }
    return [part | seconds for part in parts]


def summed(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of all processes."""
    keys = [key for key in ("kernel_executions", "elements") if key in parts[0]]
    return parts[0] | {key: sum(part[key] for part in parts) for key in keys}


def sanitize(csrc: Path, names: Sequence[str], one_in: int) -> dict[str, Any]:
    """The named checks of SANITIZE; the process ends with the first that fails."""
    found = {}
    for name in names:
        found[name] = summed(try_driver(name, SANITIZE[name]._replace(one_in=one_in), csrc))
        print(f"{name}: {found[name]}", flush=True)
    return found


def digests(parts: Sequence[dict[str, Any]], machine: str) -> dict[str, dict[str, str]]:
    """What bits.cpp printed, by instruction set and machine, then by dtype and work."""
    sets: dict[str, dict[str, str]] = {}
    for part in parts:
        for name, kernels in part["digests"].items():
            sets.setdefault(f"{name} on {machine}", {}).update(kernels)
    return sets


def differences(sets: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The kernels whose digest is not that of the first set, a line each."""
    first, *others = sets
    return [
        f"{name}, {kernel}: other bits than {first}"
        for name in others
        for kernel in sorted(sets[name].keys() | sets[first].keys())
        if sets[name].get(kernel) != sets[first].get(kernel)
    ]


def same_bits(csrc: Path) -> dict[str, Any]:
    """The digests of all kernels on ARM, which have to be those of this machine's."""
    here = try_driver("bits", BITS, csrc)
    there = try_driver("arm bits", on_arm(BITS), csrc)
    sets = digests(here, BITS.machine) | digests(there, f"emulated {on_arm(BITS).machine}")
    if different := differences(sets):
        raise SystemExit("\n".join(different))
    kernels = len(next(iter(sets.values())))
    figures = {key: value for key, value in summed(there).items() if key != "digests"}
    return {"instruction_sets": ", ".join(sets), "kernels": kernels} | figures


def arm(csrc: Path, names: Sequence[str]) -> dict[str, Any]:
    """The named checks of ARM; the process ends with the first that fails."""
    needed = (ARM_GXX, *shlex.split(ARM_EMULATOR)[:1])
    if missing := [name for name in needed if shutil.which(name) is None]:
        raise SystemExit(
            f"{' and '.join(missing)} missing: apt-get install g++-aarch64-linux-gnu qemu-user; "
            "ARM_CXX and ARM_EMULATOR name others"
        )
    found = {}
    for name in names:
        variant = ARM[name]
        found[name] = (
            same_bits(csrc)
            if variant.driver == BITS.driver
            else summed(try_driver(f"arm {name}", variant, csrc))
        )
        print(f"{name}: {found[name]}", flush=True)
    return found


def try_target(program: Path, *arguments: str) -> str:
    """What libFuzzer said."""
    process = subprocess.run(
        [program, *arguments], env=environment(), stderr=subprocess.PIPE, text=True, check=False
    )
    if process.returncode:
        print(process.stderr[-5000:], file=sys.stderr)
        raise SystemExit("the fuzz target failed; see above")
    return process.stderr


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
    # An input goes to each instruction set that this machine has.
    sets = figures(try_target(program, "-runs=1"))["instruction_sets"].split()
    began = time.monotonic()
    said = try_target(
        program,
        str(corpus),
        f"-runs={-(-executions // len(sets))}",
        "-max_len=4096",
        "-print_final_stats=1",
        f"-artifact_prefix={BUILD}/",
    )
    covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", said)[-1]
    found = figures(said)
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
    add("what", choices=("sanitize", "arm", "fuzz", "properties", "quotient"))
    add("--executions", type=int, default=1_000_000, help="of kernels, by the fuzz target")
    add("--step", type=int, default=1, help="of the float32 that a quotient is tried with")
    add("--only", action="append", choices=list(SANITIZE | ARM), help="this check")
    add("--one-in", type=int, default=1, help="of how many trials of a sweep one is run")
    add("--csrc", type=Path, default=ROOT / "csrc", help="other kernels, such as broken ones")
    add("--write", action="store_true", help=f"record the figures in {RECORD.name}")
    chosen = parser.parse_args()
    csrc = chosen.csrc.resolve()
    if unknown := set(chosen.only or ()) - (ARM if chosen.what == "arm" else SANITIZE).keys():
        parser.error(f"{chosen.what} has no check {' or '.join(sorted(unknown))}")
    if chosen.one_in < 1:
        parser.error("argument --one-in: accepted are whole numbers from 1")
    if chosen.write and (chosen.only or chosen.one_in > 1):
        parser.error("argument --write: what is recorded is the whole of a check")
    checks = {
        "sanitize": lambda: sanitize(csrc, chosen.only or list(SANITIZE), chosen.one_in),
        "arm": lambda: arm(csrc, chosen.only or list(ARM)),
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
