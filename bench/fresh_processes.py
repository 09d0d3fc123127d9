"""Is a call slower than torch's in a process that does nothing else? What malloc does with freed
memory depends on all that the process did before, so that each side is alone in fresh processes.

    python -m bench.fresh_processes [--processes 5] [--allocators glibc jemalloc ...]

Keeps what it found in bench/results/fresh_processes.json and exits with 1 if a row misses the goal.
tests/test_fresh_processes.py is a short form of it.
Depends on torch, and imports the package in the process of our side only: torch's is torch's alone.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "bench/results/fresh_processes.json"


class Allocator(NamedTuple):
    """A library as Debian names it, and the package that has it."""

    library: str
    package: str


SIDES = ("torch", "ours")
WORKS = ("forward-fresh", "pair", "training", "loss")
ELEMENTS = (2**18, 2**20, 2**22, 2**24)
ALLOCATORS = {
    "glibc": Allocator("", ""),  # The system's own.
    "jemalloc": Allocator("libjemalloc.so.2", "libjemalloc2"),
    "tcmalloc": Allocator("libtcmalloc_minimal.so.4", "libtcmalloc-minimal4"),
    "mimalloc": Allocator("libmimalloc.so.2", "libmimalloc2.0"),
}
# A process of ours that takes this much longer than torch's is not slower: processes of one side
# differ by as much.
NOISE = 0.05
# One that seems to is measured again beside torch's, so many times in all: what malloc did to it
# stays, what the machine does passes.
MOST_TIMES, PAUSE_SECONDS = 4, 0.5
# The first dozen calls get memory at ever new addresses and touch it for the first time. Larger
# outputs, of which each is mapped anew, have no such beginning. The seconds are the process's own
# of the processors, so that there are as many calls beside other work.
WARM_UP_CALLS, WARM_UP_SECONDS = 20, 1.0
LEAST_CALLS, SECONDS = 5, 0.2

Row = dict[str, Any]
Call = Callable[[], Any]
Measured = dict[str, float]


# In the process of one side.


def answer(side: str, work: str, elements: int, threads: int) -> None:
    """Measures once for each line that it reads, and says before that it is ready."""
    import torch

    torch.set_num_threads(threads)
    call = call_of(side, work, elements)
    print(json.dumps({}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure_alone(call)), flush=True)


def call_of(side: str, work: str, elements: int) -> Call:
    import torch

    if side == "torch":
        from torch.nn.functional import binary_cross_entropy_with_logits as loss

        forward, module = torch.sigmoid, torch.nn.Sigmoid()

        def pair(x: torch.Tensor) -> Any:
            value = torch.sigmoid(x)
            return value, value * (1 - value)
    else:
        import fused_sigmoid

        forward, pair = fused_sigmoid.sigmoid, fused_sigmoid.sigmoid_with_derivative
        module = fused_sigmoid.FusedSigmoid()
        loss = fused_sigmoid.binary_cross_entropy_with_logits
    # Nothing larger than they are was freed before: that would raise glibc's thresholds.
    x = torch.randn(elements, requires_grad=work in ("training", "loss"))
    # The gradient that comes in, or the labels.
    beside = torch.rand(elements) if x.requires_grad else None

    def training() -> None:
        x.grad = None
        y = module(x)
        y.backward(beside)

    def loss_step() -> None:
        x.grad = None
        mean = loss(x, beside)
        mean.backward()

    return {
        "forward-fresh": lambda: forward(x),
        "pair": lambda: pair(x),
        "training": training,
        "loss": loss_step,
    }[work]


def measure_alone(call: Call) -> Measured:
    """The median time of a call and its page faults."""
    _repeat(call, most=WARM_UP_CALLS, seconds=WARM_UP_SECONDS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    times = _repeat(call, least=LEAST_CALLS, seconds=SECONDS)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {"seconds": statistics.median(times), "page_faults": faults / len(times)}


def _repeat(call: Call, seconds: float, least: int = 1, most: float = float("inf")) -> list[float]:
    times: list[float] = []
    begin = time.process_time()
    while len(times) < least or (len(times) < most and time.process_time() - begin < seconds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


# In the process that starts them.


def measure(allocator: str, processes: int) -> list[Row]:
    """The works and sizes, again and again, so that a slower machine is so for all rows."""
    # Two threads make a call shorter, but none of its page faults: with other allocators than
    # glibc's they were slow in each row in which one thread was.
    threads_of = (1, 2) if allocator == "glibc" else (2,)
    found: list[Row] = [
        {"allocator": allocator, "work": work, "elements": elements, "threads": threads}
        | {side: [] for side in SIDES}
        for work, elements, threads in product(WORKS, ELEMENTS, threads_of)
    ]
    for _, row in product(range(processes), found):
        for side, measured in zip(SIDES, measure_beside(row), strict=True):
            row[side].append(measured)
    return found


def measure_beside(row: Row) -> list[Measured]:
    """Of a process of torch's and of one of ours, the faster measurement of each."""
    best: list[Measured] = []
    with alone(*((row, side) for side in SIDES)) as sides:
        for time_again in range(MOST_TIMES):
            if time_again:
                time.sleep(PAUSE_SECONDS)
            found = [side() for side in sides]
            best = [min(two, key=_seconds) for two in zip(best or found, found, strict=True)]
            torchs, ours = map(_seconds, best)
            if ours <= torchs * (1 + NOISE):
                break
    return best


def _seconds(measured: Measured) -> float:
    return measured["seconds"]


@contextmanager
def alone(*started: tuple[Row, str]) -> Iterator[list[Callable[[], Measured]]]:
    """A process for each row and side, which measures when it is called and sleeps otherwise. They
    are started together, since to import torch takes longer than all the rest."""
    with ExitStack() as stack:
        asked = [stack.enter_context(_process(row, side)) for row, side in started]
        for ask in asked:
            ask("")
        yield [lambda ask=ask: ask("\n") for ask in asked]


@contextmanager
def _process(row: Row, side: str) -> Iterator[Callable[[str], Measured]]:
    code = "import sys; from bench.fresh_processes import answer; "
    code += f"answer({side!r}, {row['work']!r}, {row['elements']}, {row['threads']})"
    with subprocess.Popen(
        (sys.executable, "-c", code),
        cwd=ROOT,
        env=_environment(row["allocator"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        to, answers = process.stdin, process.stdout

        def ask(text: str) -> Measured:
            to.write(text)
            to.flush()
            line = answers.readline()
            if not line:
                raise RuntimeError(f"{code}: ended with status {process.wait()}")
            measured: Measured = json.loads(line)
            return measured

        yield ask


def _environment(allocator: str) -> dict[str, str]:
    return {**os.environ, "LD_PRELOAD": ALLOCATORS[allocator].library}


def is_installed(allocator: str) -> bool:
    """A library that the loader does not find is a message, and glibc's malloc is taken."""
    done = subprocess.run(
        (sys.executable, "-c", ""),
        env=_environment(allocator),
        capture_output=True,
        text=True,
        check=True,
    )
    return "LD_PRELOAD" not in done.stderr


def median(row: Row, side: str, quantity: str) -> float:
    """Of the processes' seconds or page faults."""
    return statistics.median(one[quantity] for one in row[side])


def fast_processes(row: Row) -> int:
    """How many processes of ours are not slower than torch's median, but for noise; nor is one that
    ran while the machine was slow, so that torch's beside it was as slow."""
    torchs = median(row, "torch", "seconds")
    return sum(
        ours["seconds"] <= max(torchs, beside["seconds"]) * (1 + NOISE)
        for ours, beside in zip(row["ours"], row["torch"], strict=True)
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
    from fused_sigmoid._terminal import Parser

    parser = Parser(
        prog="python -m bench.fresh_processes",
        description="Compare with torch in processes that do nothing else.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--processes", type=int, default=5, metavar="N", help="of each side, for a row; default 5")
    add("--allocators", nargs="+", choices=ALLOCATORS, help="default: all that are installed")
    chosen = parser.parse_args(arguments)
    if chosen.processes < 1:
        parser.error("argument --processes: accepted are whole numbers from 1")
    asked = list(dict.fromkeys(chosen.allocators or ALLOCATORS))
    measured = [allocator for allocator in asked if is_installed(allocator)]
    absent = [allocator for allocator in asked if allocator not in measured]
    for allocator in absent:
        library, package = ALLOCATORS[allocator]
        print(f"{allocator} is not measured: no {library} here; Debian has it in {package}")
    missed = 0
    for allocator in measured:
        rows = measure(allocator, chosen.processes)
        keep(allocator, rows)
        print(table(rows), flush=True)
        missed += sum(fast_processes(row) < len(row["ours"]) for row in rows)
    print(
        f"{missed} rows missed: a process of ours took over {1 + NOISE:.2f} of torch's median "
        f"and of the time of torch's process beside it, in up to {MOST_TIMES} measurements"
    )
    return 1 if missed or (absent and chosen.allocators) else 0


if __name__ == "__main__":
    sys.exit(main())
