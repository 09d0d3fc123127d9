"""Instructions per element of each CPU kernel: counted by executing it, whatever the machine's
speed and load; recorded in instructions.json, which a test holds the kernels to.

    python -m bench.instructions [--write]

Compiles the kernels with the flags of setup.py, without torch; depends on tabulate.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
RECORD = Path(__file__).resolve().parent / "instructions.json"

# The counts are exact with the compiler that they were recorded with; another C library may take a
# step more in its fma. One operation more in the longest kernel, 200 instructions, is 0.005.
MARGIN = 0.003

DTYPES = ("float32", "bfloat16", "float16", "float64")
Counts = dict[str, float]  # by "instruction set, work, dtype, memory"


class CannotCountError(Exception):
    """Why kernels cannot be counted here."""


def compiler() -> str:
    """Name and release of the C++ compiler: another release schedules and counts differently."""
    command = os.environ.get("CXX", "g++")
    if shutil.which(command) is None:
        raise CannotCountError(f"there is no C++ compiler {command}")
    shown = subprocess.run((command, "--version"), capture_output=True, text=True, check=True)
    release = re.search(r"\d+\.\d+", shown.stdout)
    kind = "clang" if "clang" in shown.stdout else "g++"
    return f"{kind} {release[0] if release else 'unknown'}"


def count(sources: Path = ROOT / "csrc") -> Counts:
    """Compiles the kernels in ``sources`` and executes each; instructions per element."""
    if platform.system() != "Linux" or platform.machine().lower() not in ("x86_64", "amd64"):
        raise CannotCountError("instructions are counted on Linux on x86-64")
    with tempfile.TemporaryDirectory() as folder:
        program = _build(sources, Path(folder))
        ran = subprocess.run((program,), capture_output=True, text=True, check=False)
    if ran.returncode:
        raise CannotCountError(ran.stderr.strip() or f"the counter ended with {ran.returncode}")
    counts = {}
    for line in ran.stdout.splitlines():
        *name, elements, instructions = line.split()
        counts[" ".join(name)] = int(instructions) / int(elements)
    return counts


def _build(sources: Path, folder: Path) -> Path:
    command = os.environ.get("CXX", "g++")
    settings = _build_settings()
    common = [*settings["FLAGS"], "-fPIE", f"-I{sources}", "-std=c++17"]
    flags: dict[Path, list[str]] = {
        sources / f"cpu/kernels_{name}.cpp": special
        for name, special in settings["INSTRUCTION_SETS"].items()
    }
    flags[sources / "cpu/kernels_default.cpp"] = []
    flags[sources / "cpu/instruction_set.cpp"] = []
    flags[sources / "cpu/strided.cpp"] = []
    flags[Path(__file__).with_name("count_instructions.cpp")] = []

    def build(source: Path) -> Path:
        made = folder / f"{source.stem}.o"
        _compile([command, *common, *flags[source], "-c", str(source), "-o", str(made)])
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(build, flags))
    program = folder / "count_instructions"
    _compile([command, *map(str, objects), "-o", str(program)])
    return program


def _compile(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotCountError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")


def _build_settings() -> dict[str, Any]:
    with mock.patch("setuptools.setup"), mock.patch("os.getcwd", return_value=str(ROOT)):
        return runpy.run_path(str(ROOT / "setup.py"))


def recorded() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return document


def changes(before: Mapping[str, float], now: Mapping[str, float]) -> list[str]:
    """The kernels whose count left the margin around the recorded one, the worst first."""
    relative = {name: now[name] / before[name] - 1 for name in now if name in before}
    moved = [name for name in relative if abs(relative[name]) > MARGIN]
    lines = [
        f"{name}: {before[name]:.3f} to {now[name]:.3f} instructions per element"
        for name in sorted(moved, key=lambda name: -relative[name])
    ]
    return lines + [f"{name}: not recorded" for name in now if name not in before]


def markdown() -> str:
    """Contiguous memory: a line for each instruction set and work, a column for each dtype."""
    return _table(recorded()["instructions_per_element"], "pipe")


def _table(counts: Mapping[str, float], form: str) -> str:
    lines: dict[tuple[str, str, str], dict[str, float]] = {}
    for name, per_element in counts.items():
        instruction_set, work, dtype, memory = name.split()
        lines.setdefault((instruction_set, work, memory), {})[dtype] = per_element
    head = ("instruction set", "work", "memory", *DTYPES)
    table = [[*key, *(f"{line[dtype]:.2f}" for dtype in DTYPES)] for key, line in lines.items()]
    aligned = ("left",) * 3 + ("right",) * len(DTYPES)
    return tabulate(table, headers=head, tablefmt=form, colalign=aligned, disable_numparse=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.instructions", description="Count the kernels' instructions."
    )
    parser.add_argument("--write", action="store_true", help=f"record them in {RECORD.name}")
    chosen = parser.parse_args(arguments)
    try:
        made_by, counts = compiler(), count()
    except CannotCountError as error:
        parser.error(str(error))
    before = recorded() if RECORD.exists() else {"instructions_per_element": {}}
    print(_table(counts, "simple"))
    if before["instructions_per_element"]:
        print("\n".join(changes(before["instructions_per_element"], counts)))
    if chosen.write:
        # What this CPU cannot run keeps its record.
        kept = {**before["instructions_per_element"], **counts}
        rounded = {name: round(kept[name], 4) for name in sorted(kept)}
        document = {"compiler": made_by, "instructions_per_element": rounded}
        RECORD.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {RECORD}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
