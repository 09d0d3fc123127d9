"""Is a call slower than torch's in a process that does nothing else? What malloc does with freed
memory depends on all that the process did before, so that each side is alone in fresh processes.

    python -m bench.fresh_processes [--processes 8] [--allocators glibc jemalloc ...]

Keeps what it found in bench/results/fresh_processes.json and exits with 1 if a row misses the goal.
Depends on torch, and imports the package in the process of our side only: torch's is torch's alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "bench/results/fresh_processes.json"

WORKS = ("forward", "pair", "training")
ELEMENTS = (2**18, 2**20, 2**22, 2**24)
THREADS = (1, 2)
# As Debian names their libraries; the system's own needs none.
ALLOCATORS = {
    "glibc": "",
    "jemalloc": "libjemalloc.so.2",
    "tcmalloc": "libtcmalloc_minimal.so.4",
    "mimalloc": "libmimalloc.so.2",
}
# A process of ours that takes this much longer than torch's is not slower: processes of one side
# differ by as much.
NOISE = 0.05
# The first dozen calls get memory at ever new addresses and touch it for the first time. Larger
# outputs, of which each is mapped anew, have no such beginning.
WARM_UP_CALLS, WARM_UP_SECONDS = 20, 1.0
LEAST_CALLS, SECONDS = 7, 0.15

Row = dict[str, Any]
Call = Callable[[], Any]


# In the process of one side.


def call_of(side: str, work: str, elements: int) -> Call:
    import torch

    if side == "torch":
        forward, module = torch.sigmoid, torch.nn.Sigmoid()

        def pair(x: torch.Tensor) -> Any:
            value = torch.sigmoid(x)
            return value, value * (1 - value)
    else:
        import fused_sigmoid

        forward, pair = fused_sigmoid.sigmoid, fused_sigmoid.sigmoid_with_derivative
        module = fused_sigmoid.FusedSigmoid()
    # Nothing larger than they are was freed before: that would raise glibc's thresholds.
    x = torch.randn(elements, requires_grad=work == "training")
    grad = torch.randn(elements) if work == "training" else None

    def step() -> None:
        x.grad = None
        y = module(x)
        y.backward(grad)

    return {"forward": lambda: forward(x), "pair": lambda: pair(x), "training": step}[work]


def measure_alone(call: Call) -> dict[str, float]:
    """The median time of a call and its page faults."""
    _repeat(call, most=WARM_UP_CALLS, seconds=WARM_UP_SECONDS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    times = _repeat(call, least=LEAST_CALLS, seconds=SECONDS)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {"seconds": statistics.median(times), "page_faults": faults / len(times)}


def _repeat(call: Call, seconds: float, least: int = 1, most: float = float("inf")) -> list[float]:
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < least or (len(times) < most and time.perf_counter() - begin < seconds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


# In the process that starts them.


def measure(allocator: str, processes: int) -> list[Row]:
    """The works, sizes and numbers of threads; sides in turn, so that a slower machine is so for
    both."""
    found: list[Row] = [
        {"allocator": allocator, "work": work, "elements": elements, "threads": threads}
        | {"ours": [], "torch": []}
        for work, elements, threads in product(WORKS, ELEMENTS, THREADS)
    ]
    for _, row in product(range(processes), found):
        for side in ("torch", "ours"):
            row[side].append(in_a_process(row, side))
    return found


def in_a_process(row: Row, side: str) -> dict[str, float]:
    words = (side, row["work"], str(row["elements"]), str(row["threads"]))
    done = subprocess.run(
        (sys.executable, "-m", "bench.fresh_processes", "--alone", *words),
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": ALLOCATORS[row["allocator"]]},
        capture_output=True,
        text=True,
        check=False,
    )
    # A library that the loader does not find is a message, and glibc's malloc is measured.
    if done.returncode or "LD_PRELOAD" in done.stderr:
        raise RuntimeError(f"{' '.join(words)} with {row['allocator']}: {done.stderr.strip()}")
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def median(row: Row, side: str, quantity: str) -> float:
    """Of the processes' seconds or page faults."""
    return statistics.median(one[quantity] for one in row[side])


def fast_processes(row: Row) -> int:
    """How many processes of ours are not slower than torch's median, but for noise; nor is one that
    ran while the machine was slow, so that torch's just before it was as slow."""
    torchs = median(row, "torch", "seconds")
    return sum(
        ours["seconds"] <= max(torchs, before["seconds"]) * (1 + NOISE)
        for ours, before in zip(row["ours"], row["torch"], strict=True)
    )


def table(rows: Sequence[Row]) -> str:
    from bench import report

    lines = []
    for row in rows:
        seconds, faults = (
            [median(row, side, quantity) for side in ("torch", "ours")]
            for quantity in ("seconds", "page_faults")
        )
        line = {name: str(row[name]) for name in ("allocator", "work", "threads")}
        line |= {"elements": report.size_text(row["elements"])}
        line |= {"torch / ours": f"{seconds[0] / seconds[1]:.2f}"}
        line |= {"fast processes": f"{fast_processes(row)} of {len(row['ours'])}"}
        lines.append(line | {"page faults, ours / torch": f"{faults[1]:,.0f} / {faults[0]:,.0f}"})
    return report.table(lines, ("page faults, ours / torch",))


def keep(allocator: str, rows: Sequence[Row]) -> None:
    """In the record, beside the other allocators' rows."""
    from bench import machine, results

    document = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    made = {**machine.origin(), "rows": rows}
    kept = {**document.get("allocators", {}), allocator: made}
    document["allocators"] = {name: kept[name] for name in ALLOCATORS if name in kept}
    results.replace_json(RECORD, document)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.fresh_processes",
        description="Compare with torch in processes that do nothing else.",
    )
    add = parser.add_argument
    add("--processes", type=int, default=8, metavar="N", help="of each side, for a row")
    add("--allocators", nargs="+", choices=ALLOCATORS, default=["glibc"])
    add("--alone", nargs=4, metavar=("SIDE", "WORK", "ELEMENTS", "THREADS"), help="one side, here")
    chosen = parser.parse_args(arguments)
    if chosen.alone:
        import torch

        side, work, elements, threads = chosen.alone
        torch.set_num_threads(int(threads))
        print(json.dumps(measure_alone(call_of(side, work, int(elements)))))
        return 0
    if chosen.processes < 1:
        parser.error("argument --processes: accepted are whole numbers from 1")
    missed = 0
    for allocator in chosen.allocators:
        rows = measure(allocator, chosen.processes)
        keep(allocator, rows)
        print(table(rows))
        missed += sum(fast_processes(row) < len(row["ours"]) for row in rows)
    print(f"{missed} rows missed: a process of ours took over {1 + NOISE:.2f} of torch's time")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
