"""Instructions per element of each CPU kernel: counted by executing it, whatever the machine's
speed and load. A test holds the kernels to the counts in bench/results/instructions.json.

    python -m tools.instructions [--write]

Depends on tests/native/run.py for compiling the kernels as they are shipped, without torch.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bench import results
from tests.native import run

CSRC = run.ROOT / "csrc"
RECORD = results.FOLDER / "instructions.json"

# The counts are exact with the compiler that they were recorded with; another C library may take a
# step more in its fma. One operation more in the longest kernel, 200 instructions, is 0.005.
MARGIN = 0.003

DTYPES = ["float32", "bfloat16", "float16", "float64"]
Counts = dict[str, float]  # by "instruction set, work, dtype, memory"


class CannotCountError(Exception):
    """Why kernels cannot be counted here."""


def compiler() -> str:
    """Name and release of the C++ compiler: another release schedules and counts differently."""
    if shutil.which(run.GXX) is None:
        raise CannotCountError(f"there is no C++ compiler {run.GXX}")
    shown = subprocess.run((run.GXX, "--version"), capture_output=True, text=True, check=True)
    release = re.search(r"\d+\.\d+", shown.stdout)
    kind = "clang" if "clang" in shown.stdout else "g++"
    return f"{kind} {release[0] if release else 'unknown'}"


def count(csrc: Path = CSRC) -> Counts:
    """Compiles the kernels in ``csrc`` and executes each; instructions per element."""
    if platform.system() != "Linux" or platform.machine().lower() not in ("x86_64", "amd64"):
        raise CannotCountError("instructions are counted on Linux on x86-64")
    flags = ("-O3", "-g0", "-fPIE")
    counter = Path(__file__).with_name("count_instructions.cpp")
    variant = run.Variant(counter, run.GXX, flags, (*flags, f"-I{csrc}"))
    program = run.build("instructions", variant, csrc)
    ran = subprocess.run((program,), capture_output=True, text=True, check=False)
    if ran.returncode:
        raise CannotCountError(ran.stderr.strip() or f"the counter ended with {ran.returncode}")
    counts = {}
    for line in ran.stdout.splitlines():
        *name, elements, instructions = line.split()
        counts[" ".join(name)] = int(instructions) / int(elements)
    return counts


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


def table(counts: Counts) -> str:
    names = pd.MultiIndex.from_tuples(
        [tuple(name.split()) for name in counts],
        names=("instruction set", "work", "dtype", "memory"),
    )
    found = pd.Series(list(counts.values()), names).unstack("dtype")
    return found[DTYPES].to_string(float_format="{:.2f}".format, sparsify=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.instructions", description="Count the kernels' instructions."
    )
    parser.add_argument("--write", action="store_true", help=f"record them in {RECORD.name}")
    chosen = parser.parse_args()
    try:
        made_by, counts = compiler(), count()
    except CannotCountError as error:
        parser.error(str(error))
    before = recorded()["instructions_per_element"]
    print(table(counts), *changes(before, counts), sep="\n")
    if chosen.write:
        # What this CPU cannot run keeps its record.
        kept = before | counts
        rounded = {name: round(kept[name], 4) for name in sorted(kept)}
        command = "python -m tools.instructions --write"
        results.write_record(RECORD, command, compiler=made_by, instructions_per_element=rounded)
        print(f"wrote {RECORD}")


if __name__ == "__main__":
    main()
