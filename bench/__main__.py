"""The command line: ``python -m bench``. Fills in defaults, runs, prints, writes JSON, CSV and
pictures.

Depends on every other file of the bench; holds no measuring and no drawing of its own.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

import torch

from bench import compare, figures, goals, machine, memory, report, results, runs, static, sweep
from bench.peers import DEFAULT_PEERS, PEERS
from bench.results import COPY, Result, Task
from bench.runs import Options, Patience
from bench.timing import Effort
from bench.works import DEFAULT_WORKS, DTYPES, LAYOUTS, WORKS

RESULTS = Path(__file__).resolve().parent / "results"

CPU_SIZES = (1, 2**10, 2**14, 2**16, 2**18, 2**20, 2**22, 2**24, 2**26)
CUDA_SIZES = (1, 2**10, 2**14, 2**16, 2**18, 2**20, 2**22, 2**24, 2**26, 2**28)
SWEEP_SIZES = tuple(2**exponent for exponent in range(27))
SWEEP_WORKS = ("forward", "forward-fresh", "training")
SAVED = ("auto", "derivative", "input", "output")

QUICK_SIZES = {
    "float32": (1, 2**10, 2**16, 2**20, 2**24),
    "bfloat16": (2**10, 2**18),
}
# The forward pass is a part of the step, and another cell of it leaves other rows no time.
QUICK_WORKS = tuple(work for work in DEFAULT_WORKS if work != "loss-forward")
QUICK_EFFORT = Effort(rounds=7, minimum_rounds=3, sample_seconds=5e-4, row_seconds=0.15)
# Leaves room below a minute for importing torch, for the last row and for drawing.
QUICK_TIME_LIMIT = 46.0

FULL_EFFORT = Effort()
# Thousands of cells: a glance at each, and a long look where the glance found no clear gain.
SWEEP_EFFORT = Effort(rounds=3, minimum_rounds=1, sample_seconds=2e-4, row_seconds=0.02)
SWEEP_AGAIN = Effort(rounds=21, minimum_rounds=5, sample_seconds=5e-4, row_seconds=0.4)
# Three rounds are often off by so much.
SWEEP_DOUBTFUL_BELOW = 1.05

Value = TypeVar("Value")


def main(arguments: Sequence[str] | None = None) -> int:
    start = time.perf_counter()
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser()
    chosen = parser.parse_args(given)
    if chosen.compare:
        try:
            before, after = (results.read(path) for path in chosen.compare)
        except (OSError, ValueError) as error:
            parser.error(f"argument --compare: {error}")
        print(compare.terminal(before, after))
        return 0
    if chosen.static:
        print(static.run(chosen.output))
        return 0
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: torch sees no CUDA device here; accepted is: cpu")
    try:
        import fused_sigmoid  # noqa: F401
    except ImportError as error:
        parser.error(f"fused_sigmoid cannot be imported ({error}); build it with pip install -e .")

    kind = "goals" if chosen.goals else "sweep" if chosen.sweep else "bench"
    tasks = _tasks(chosen)
    result = Result(
        machine=machine.describe(chosen.device),
        source=machine.commit(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "bench", *_without_output(given)]),
        kind=kind,
    )
    name = "result.json" if kind == "bench" else f"{kind}.json"
    file = (chosen.output or _default_folder(chosen.device, chosen.quick, name)) / name
    if chosen.resume:
        file = chosen.resume
        try:
            result = _resumed(file, result)
        except (OSError, ValueError) as error:
            parser.error(f"argument --resume: {error}")
        tasks = runs.remaining(tasks, result)
    elif chosen.output and (lost := _lost(file, tasks)):
        parser.error(f"argument --output: {file} {lost}; name another folder, or --resume FILE")
    before = result.elapsed_seconds
    try:
        runs.run(
            tasks,
            _patience(chosen),
            result,
            QUICK_TIME_LIMIT if chosen.quick and chosen.time_limit is None else chosen.time_limit,
            show_progress=not chosen.no_progress,
            save=lambda: results.write(result, file),
        )
    except KeyboardInterrupt:
        result.interrupted = True
        print("\ninterrupted; writing what was measured", file=sys.stderr)
    if chosen.device == "cuda" and kind == "goals" and not result.interrupted:
        result.peak_memory = memory.measure()
    result.elapsed_seconds = round(before + time.perf_counter() - start, 1)

    text = {"goals": lambda: goals.terminal(result.rows), "sweep": lambda: sweep.terminal(result)}
    print(text.get(kind, lambda: report.terminal(result))())
    if result.peak_memory:
        print(f"\n{memory.table(result.peak_memory, 'simple')}")
    print()
    results.write(result, file)
    results.write_csv(result, file.with_suffix(".csv"))
    written = [file, file.with_suffix(".csv")]
    if result.rows and kind == "bench" and not chosen.no_pictures:
        written += figures.draw([result], file.parent)
    for path in written:
        print(f"wrote {path}")
    print(f"{len(result.rows)} rows, {time.perf_counter() - start:.0f} s")
    if result.interrupted:
        return 130
    return 1 if any(skip.peer == results.OURS for skip in result.skips) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Time fused_sigmoid against its peers, in pairs, and beside a copy.",
        epilog="works: "
        + "; ".join(f"{work.name}: {work.meaning}" for work in WORKS.values())
        + ". layouts: "
        + "; ".join(f"{layout.name}: {layout.meaning}" for layout in LAYOUTS.values()),
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default=_default_device())
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--quick", action="store_true", help="less: under a minute on two cores")
    what.add_argument(
        "--goals",
        action="store_true",
        help="the rows that have a goal on this device: met or missed",
    )
    what.add_argument(
        "--sweep",
        action="store_true",
        help="never slower than torch? all sizes, dtypes, layouts and saved, worst first",
    )
    what.add_argument(
        "--compare", type=Path, nargs=2, metavar=("A.json", "B.json"), help="two result files"
    )
    what.add_argument(
        "--static", action="store_true", help="what the GPU kernels compile to; needs no GPU"
    )
    what.add_argument("--plan", type=Path, metavar="FILE", help="the cells and peers in this file")
    add("--sizes", nargs="+", type=_size, metavar="N", help="elements: 1000, 64Ki, 16Mi")
    add("--dtypes", nargs="+", choices=tuple(DTYPES))
    add("--work", "--works", nargs="+", choices=tuple(WORKS))
    add("--layouts", nargs="+", choices=tuple(LAYOUTS), help="default: contiguous; --sweep: all")
    add("--saved", nargs="+", choices=SAVED, help="of training; default: auto; --sweep: all")
    add("--peers", nargs="+", choices=tuple(PEERS))
    add("--threads", nargs="+", type=_count, metavar="N", help="default: 1 and all; --quick: 1")
    add(
        "--cache",
        choices=("warm", "rotating"),
        help="one input set, or more sets than the last cache holds;"
        " default: warm on the CPU, rotating on the GPU",
    )
    add("--output", type=Path, metavar="FOLDER", help="default: bench/results/<device>-<date>/")
    add("--resume", type=Path, metavar="FILE", help="add what is missing to this result file")
    add("--rounds", type=_count, metavar="N", help="A B B A rounds for a row, at most")
    add("--minimum-rounds", type=_count, metavar="N", help="and at least")
    add("--sample-seconds", type=float, metavar="S", help="shortest sample of a round")
    add("--row-seconds", type=float, metavar="S", help="no further round of a row past this")
    add("--time-limit", type=float, metavar="S", help="no further row past this")
    add("--no-pictures", action="store_true")
    add("--no-progress", action="store_true")
    return parser


def _patience(chosen: argparse.Namespace) -> Patience:
    base = QUICK_EFFORT if chosen.quick else SWEEP_EFFORT if chosen.sweep else FULL_EFFORT
    names = ("rounds", "minimum_rounds", "sample_seconds", "row_seconds")
    given = {name: getattr(chosen, name) for name in names}
    effort = replace(base, **{name: value for name, value in given.items() if value is not None})
    return Patience(effort, SWEEP_DOUBTFUL_BELOW, SWEEP_AGAIN) if chosen.sweep else Patience(effort)


def _tasks(chosen: argparse.Namespace) -> list[Task]:
    if chosen.plan:
        return runs.read_plan(chosen.plan)
    every_thread = torch.get_num_threads()
    if chosen.device == "cuda":
        threads: tuple[int, ...] = (every_thread,)
    else:
        # One thread is the count that a busy machine disturbs least.
        threads = (1,) if chosen.quick else (1, every_thread)
    threads = _once(chosen.threads or threads)
    if chosen.goals:
        return [task for task in map(_narrowed(chosen), goals.plan(threads, chosen.device)) if task]
    sweeping = chosen.sweep
    options = Options(
        device=chosen.device,
        sizes=_sizes(chosen),
        works=_once(chosen.work or _default_works(chosen)),
        peers=_once(chosen.peers or DEFAULT_PEERS),
        threads=threads,
        cache=chosen.cache or ("rotating" if chosen.device == "cuda" else "warm"),
        layouts=_once(chosen.layouts or (LAYOUTS if sweeping else ("contiguous",))),
        saved=_once(chosen.saved or (SAVED if sweeping else ("auto",))),
    )
    return sweep.plan(runs.cells(options)) if sweeping else runs.plan(options)


def _default_works(chosen: argparse.Namespace) -> tuple[str, ...]:
    if chosen.sweep:
        return SWEEP_WORKS
    return QUICK_WORKS if chosen.quick else DEFAULT_WORKS


def _narrowed(chosen: argparse.Namespace) -> Callable[[Task], Task | None]:
    """A task without what the command line left out, or None."""

    def narrow(task: Task) -> Task | None:
        cell = task.cell
        wanted = (
            (chosen.sizes, cell.size),
            (chosen.dtypes, cell.dtype),
            (chosen.work, cell.work),
            (chosen.layouts, cell.layout),
        )
        if not all(values is None or value in values for values, value in wanted):
            return None
        peers = (peer for peer in task.peers if peer in (COPY, *(chosen.peers or PEERS)))
        return Task(cell, tuple(peers))

    return narrow


def _lost(file: Path, tasks: Iterable[Task]) -> str | None:
    """What a file there holds that the tasks would not measure anew."""
    if not file.exists():
        return None
    try:
        found = results.read(file)
    except ValueError:
        return "is no result that this version reads"
    measured = {(task.cell, peer) for task in tasks for peer in task.peers}
    lost = sum((row.cell, row.peer) not in measured for row in found.rows)
    return f"holds {lost} rows that this run does not measure" if lost else None


def _resumed(file: Path, now: Result) -> Result:
    """The result in the file, if measuring on would not mix what must not be compared."""
    found = results.read(file)
    for name in ("name", "versions", "settings"):
        if found.machine[name] != now.machine[name]:
            raise ValueError(f"{file} has {name} {found.machine[name]}; now {now.machine[name]}")
    if (found.kind, found.source) != (now.kind, now.source):
        was, is_now = (found.kind, found.source), (now.kind, now.source)
        raise ValueError(f"{file} is of {was}; this run of {is_now}")
    found.interrupted = False
    return found


def _sizes(chosen: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    every = CUDA_SIZES if chosen.device == "cuda" else CPU_SIZES
    if chosen.sweep:
        every = SWEEP_SIZES
    quick = QUICK_SIZES if chosen.quick else {}
    dtypes = _once(chosen.dtypes or quick or DTYPES)
    fallback = QUICK_SIZES["float32"] if chosen.quick else every
    return {
        dtype: _once(chosen.sizes) if chosen.sizes else quick.get(dtype, fallback)
        for dtype in dtypes
    }


def _once(values: Iterable[Value]) -> tuple[Value, ...]:
    return tuple(dict.fromkeys(values))


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _default_folder(device: str, quick: bool, name: str) -> Path:
    """Where no file of that name is yet: a result, its goals and its sweep lie side by side."""
    if quick:
        return RESULTS / "quick"
    base = machine.folder_name(device)
    folder, count = RESULTS / base, 1
    while (folder / name).exists():
        count += 1
        folder = RESULTS / f"{base}-{count}"
    return folder


def _size(text: str) -> int:
    parsed = re.fullmatch(r"(\d+) ?(Ki|Mi|Gi)?", text)
    prefixes = {None: 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    size = int(parsed[1]) * prefixes[parsed[2]] if parsed else 0
    if size < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size; accepted are whole numbers from 1, as 1000, 64Ki, 16Mi or 1Gi"
        )
    return size


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: accepted are whole numbers from 1")
    return int(text)


def _without_output(given: Sequence[str]) -> list[str]:
    """Where a result was written says nothing about it, and would show the user's folders."""
    kept, skip = [], False
    for word in given:
        if not skip and word != "--output" and not word.startswith("--output="):
            kept.append(word)
        skip = word == "--output"
    return kept


if __name__ == "__main__":
    sys.exit(main())
