"""The command line: ``python -m bench``. Refuses what it cannot do, fills in defaults, runs, writes
the result and prints it.

Imports the rest of the bench only when it is needed: ``--help`` works without torch and the extra.
"""

from __future__ import annotations

import argparse
import codecs
import importlib
import math
import os
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from bench import results
from bench.layouts import LAYOUTS
from bench.peers import DEFAULT_PEERS, PEERS
from bench.results import COPY, FOLDER, Result, Task
from bench.works import DEFAULT_WORKS, DTYPES, WORKS

if TYPE_CHECKING:
    from bench.runs import Run

CPU_SIZES = (1, 2**10, 2**14, 2**16, 2**18, 2**20, 2**22, 2**24, 2**26)
CUDA_SIZES = (*CPU_SIZES, 2**28)
SWEEP_SIZES = tuple(2**exponent for exponent in range(27))
SWEEP_WORKS = ("forward", "forward-fresh", "training")
SAVED = ("auto", "derivative", "input", "output")

QUICK_SIZES = {"float32": (1, 2**10, 2**16, 2**20, 2**24), "bfloat16": (2**10, 2**18)}
# The forward pass is a part of the step, and another cell of it leaves other rows no time.
QUICK_WORKS = tuple(work for work in DEFAULT_WORKS if work != "loss-forward")
# Leaves room below a minute for importing torch and for the last row.
QUICK_TIME_LIMIT = 46.0

# See timing.Effort.
QUICK_EFFORT = {"rounds": 7, "minimum_rounds": 3, "sample_seconds": 5e-4, "row_seconds": 0.15}
# Thousands of cells: a glance at each, and a long look where the glance found no clear gain: three
# rounds are often off by so much.
SWEEP_EFFORT = {"rounds": 3, "minimum_rounds": 1, "sample_seconds": 2e-4, "row_seconds": 0.02}
SWEEP_AGAIN = {"rounds": 21, "minimum_rounds": 5, "sample_seconds": 5e-4, "row_seconds": 0.4}
SWEEP_DOUBTFUL_BELOW = 1.05

NEEDED = ("torch", "pandas", "tabulate", "tqdm")
CLOSED_PIPE = 141  # as a shell says of a program that SIGPIPE ended
PLAIN = {"µ": "u", "σ": "sigma", "′": "'", "×": "x"}

Value = TypeVar("Value")


def main(arguments: Sequence[str] | None = None) -> int:
    start = time.perf_counter()
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser()
    chosen = parser.parse_args(given)
    _require_all(parser, chosen)
    if chosen.compare:
        from bench import report

        print(report.compared(*(_read(parser, "--compare", path) for path in chosen.compare)))
        return 0
    if chosen.static:
        from tools import static

        if chosen.output:
            _require_writable(parser, chosen.output / "static.json")
        print(static.run(chosen.output))
        return 0

    tasks = _tasks(chosen)
    result, file = _place(parser, chosen, given)
    if chosen.resume:
        from bench import runs

        tasks = runs.remaining(tasks, result)
    if chosen.time_limit == 0:
        print(f"{sum(len(task.peers) for task in tasks)} rows; a time limit of 0 measures none")
        return 0
    if chosen.output and file.exists():
        parser.error(f"argument --output: {file} is there; name another folder, or --resume FILE")
    _require_writable(parser, file)

    before = result.elapsed_seconds
    try:
        _run(chosen, result, file).measure(tasks)
    except KeyboardInterrupt:
        result.interrupted = True
        print("\ninterrupted; writing what was measured", file=sys.stderr)
    finally:  # Whatever ends the run, such as a reader that closed the pipe of the progress.
        result.elapsed_seconds = round(before + time.perf_counter() - start, 1)
        results.write(result, file)
    print(_text(result))
    print(f"\nwrote {file}\n{len(result.rows)} rows, {time.perf_counter() - start:.0f} s")
    if result.interrupted:
        return 130
    return 1 if any(skip.peer == results.OURS for skip in result.skips) else 0


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser() -> Parser:
    def described(rows: Iterable[Any]) -> str:
        return "".join(f"\n  {row.name:<15}{row.meaning}" for row in rows)

    parser = Parser(
        prog="python -m bench",
        description="Time fused_sigmoid against its peers, in pairs, and beside a copy.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"works:{described(WORKS.values())}\n\nlayouts:{described(LAYOUTS.values())}\n\n"
        f"peers:\n  {', '.join(PEERS)}",
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what is run", "one of; without, the default grid")
    only = what.add_mutually_exclusive_group()
    mode = only.add_argument
    mode("--quick", action="store_true", help="less: under a minute on two cores")
    mode("--goals", action="store_true", help="the rows that have a goal here: met or missed")
    mode("--sweep", action="store_true", help="is anything slower than torch? the worst first")
    mode("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two result files")
    mode("--static", action="store_true", help="what the GPU kernels compile to; needs no GPU")

    add = parser.add_argument_group("which rows").add_argument
    names = {"nargs": "+", "metavar": "NAME"}
    add("--device", choices=("cpu", "cuda"), help="default: cuda where torch sees one")
    add("--sizes", nargs="+", type=_size, metavar="N", help="elements: 1000, 64Ki, 16Mi")
    add("--dtypes", **names, choices=tuple(DTYPES), help=", ".join(DTYPES))
    add("--work", "--works", **names, choices=tuple(WORKS), help="see below")
    add("--layouts", **names, choices=tuple(LAYOUTS), help="default: contiguous; --sweep: all")
    add("--saved", **names, choices=SAVED, help="of training: auto, or as --sweep: all of them")
    add("--peers", **names, choices=tuple(PEERS), help="see below")
    add("--threads", nargs="+", type=_threads, metavar="N", help="default: 1, all; --quick: 1")
    add(
        *("--cache",),
        choices=("warm", "rotating"),
        help="one input set, or more than the last cache holds; default: warm on a CPU",
    )
    add = parser.add_argument_group("how long").add_argument
    add("--rounds", type=_count, metavar="N", help="A B B A rounds for a row, at most")
    add("--minimum-rounds", type=_count, metavar="N", help="and at least")
    add("--sample-seconds", type=_seconds, metavar="S", help="shortest sample of a round")
    add("--row-seconds", type=_seconds, metavar="S", help="no further round of a row past this")
    add("--time-limit", type=_limit, metavar="S", help="no further row past this")
    add = parser.add_argument_group("where to").add_argument
    add(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="default: bench/results/<device>-<name>-<date>/",
    )
    add("--resume", type=Path, metavar="FILE", help="add what is missing to this result file")
    add("--no-progress", action="store_true")
    return parser


# What arguments are made of; ArgumentTypeError's text follows the option's name.


def _size(text: str) -> int:
    parsed = re.fullmatch(r"(\d+) ?(Ki|Mi|Gi)?", text)
    prefixes = {None: 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    size = int(parsed[1]) * prefixes[parsed[2]] if parsed else 0
    if size < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size; accepted are whole numbers from 1, as 1000, 64Ki, 16Mi or 1Gi"
        )
    return size


def _count(text: str, most: float = math.inf) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= most:
        to = "" if most == math.inf else f" to {most}, the CPUs that are there"
        raise argparse.ArgumentTypeError(f"{text!r}: accepted are whole numbers from 1{to}")
    return int(text)


def _threads(text: str) -> int:
    has_affinity = hasattr(os, "sched_getaffinity")
    return _count(text, len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1)


def _limit(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: accepted are seconds, as 0.5 or 30")
    return seconds


def _seconds(text: str) -> float:
    if (seconds := _limit(text)) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: accepted are seconds above 0")
    return seconds


# What is refused before anything is measured.


def _require_all(parser: Parser, chosen: argparse.Namespace) -> None:
    """Everything that a run needs; sets the default device."""
    root = Path(__file__).resolve().parent.parent
    if not all((root / name).exists() for name in ("setup.py", "fused_sigmoid")):
        parser.error(f"runs in a checkout of fused_sigmoid alone; {root} is none")
    for name in ("tabulate",) if chosen.compare else NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            parser.error(f"{name} is not installed ({error}): pip install -e '.[bench]'")
    if chosen.compare or chosen.static:
        return
    unused = {"--goals": ("saved", "cache"), "--sweep": ("peers",), "--resume": ("output",)}
    for option, names in unused.items():
        for name in names:
            if getattr(chosen, option[2:]) and getattr(chosen, name):
                parser.error(f"argument --{name}: not allowed with argument {option}")
    import torch

    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: torch sees no CUDA device here; accepted is: cpu")
    chosen.device = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        import fused_sigmoid  # noqa: F401
    except ImportError as error:
        parser.error(f"fused_sigmoid cannot be imported ({error}); build it with pip install -e .")


def _require_writable(parser: Parser, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=file.parent).close()
        if file.exists():
            file.open("r+b").close()
    except OSError as error:
        parser.error(f"argument --output: cannot write {file}: {error.strerror}")


def _read(parser: Parser, option: str, path: Path) -> Result:
    try:
        return results.read(path)
    except OSError as error:
        parser.error(f"argument {option}: {path}: {error.strerror}")
    except ValueError as error:
        parser.error(f"argument {option}: {error}")


def _place(parser: Parser, chosen: argparse.Namespace, given: Sequence[str]) -> tuple[Result, Path]:
    """A new result and its file, or those to resume, if measuring on would not mix what must not be
    compared."""
    from bench import machine

    # Where it is written says nothing about a result, and would show the user's folders.
    words = [
        word
        for word, before in zip(given, ("", *given), strict=False)
        if "--output" not in (word, before) and not word.startswith("--output=")
    ]
    result = Result(
        machine=machine.describe(chosen.device),
        source=machine.commit(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "bench", *words]),
        kind="goals" if chosen.goals else "sweep" if chosen.sweep else "grid",
    )
    if not chosen.resume:
        name = f"{result.kind}.json" + ".gz" * chosen.sweep
        folder = chosen.output or (FOLDER / "quick" if chosen.quick else None)
        return result, (folder or _new_folder(machine.folder_name(chosen.device), name)) / name
    found = _read(parser, "--resume", chosen.resume)
    was_all, now_all = ({**each.machine, **vars(each)} for each in (found, result))
    for name in ("name", "versions", "settings", "kind", "source"):
        if (was := was_all.get(name)) != (now := now_all[name]):
            parser.error(f"argument --resume: {chosen.resume} has {name} {was}; now it is {now}")
    found.interrupted = False
    return found, chosen.resume


def _new_folder(base: str, name: str) -> Path:
    """Where no file of that name is yet: a grid, its goals and its sweep lie side by side."""
    folder, count = FOLDER / base, 1
    while (folder / name).exists():
        count += 1
        folder = FOLDER / f"{base}-{count}"
    return folder


# What is measured, how, and how it is shown.


def _tasks(chosen: argparse.Namespace) -> list[Task]:
    import torch

    from bench import goals, runs

    on_gpu, sweep, quick = chosen.device == "cuda", chosen.sweep, chosen.quick
    every_thread = torch.get_num_threads()
    # One thread is the count that a busy machine disturbs least.
    threads = (every_thread,) if on_gpu else (1,) if quick else (1, every_thread)
    threads = _once(chosen.threads or threads)
    if chosen.goals:
        return _narrowed(goals.plan(threads, chosen.device), chosen)
    sizes = SWEEP_SIZES if sweep else CUDA_SIZES if on_gpu else CPU_SIZES
    sizes = QUICK_SIZES["float32"] if quick else sizes
    by_dtype = QUICK_SIZES if quick else dict.fromkeys(DTYPES, sizes)
    works = SWEEP_WORKS if sweep else QUICK_WORKS if quick else DEFAULT_WORKS
    found = runs.cells(
        device=chosen.device,
        sizes={
            dtype: _once(chosen.sizes or by_dtype.get(dtype, sizes))
            for dtype in chosen.dtypes or by_dtype
        },
        works=_once(chosen.work or works),
        threads=threads,
        cache=chosen.cache or ("rotating" if on_gpu else "warm"),
        layouts=_once(chosen.layouts or (LAYOUTS if sweep else ("contiguous",))),
        saved=_once(chosen.saved or (SAVED if sweep else ("auto",))),
    )
    if sweep:
        return [Task(cell, ("torch",)) for cell in runs.by_halves(found)]
    return [Task(cell, (COPY, *_once(chosen.peers or DEFAULT_PEERS))) for cell in found]


def _once(values: Iterable[Value]) -> tuple[Value, ...]:
    return tuple(dict.fromkeys(values))


def _narrowed(tasks: Iterable[Task], chosen: argparse.Namespace) -> list[Task]:
    """Those of the goals' tasks that the command line names."""
    given = {"size": chosen.sizes, "dtype": chosen.dtypes, "work": chosen.work}
    given |= {"layout": chosen.layouts}
    peers = (COPY, *(chosen.peers or PEERS))
    return [
        Task(task.cell, tuple(peer for peer in task.peers if peer in peers))
        for task in tasks
        if all(not names or getattr(task.cell, of) in names for of, names in given.items())
    ]


def _run(chosen: argparse.Namespace, result: Result, file: Path) -> Run:
    from bench.runs import Run
    from bench.timing import Effort

    base = Effort(**(QUICK_EFFORT if chosen.quick else SWEEP_EFFORT if chosen.sweep else {}))
    given = {name: getattr(chosen, name) for name in vars(base)}
    limit = chosen.time_limit or (QUICK_TIME_LIMIT if chosen.quick else None)
    run = Run(
        result,
        replace(base, **{name: value for name, value in given.items() if value is not None}),
        time_limit=limit,
        show_progress=not chosen.no_progress,
        save=lambda: results.write(result, file),
    )
    if chosen.sweep:
        run.doubtful_below, run.again = SWEEP_DOUBTFUL_BELOW, Effort(**SWEEP_AGAIN)
    return run


def _text(result: Result) -> str:
    from bench import report

    if result.kind == "sweep":
        return report.sweep_text(result)
    if result.kind == "grid":
        return report.rows_text(result)
    return report.goals_text(result.rows, result.skips)


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    found = error.object[error.start : error.end]
    return "".join(PLAIN.get(letter, "?") for letter in found), error.end


def run() -> int:
    """``main`` as a program: in a terminal that shows ASCII alone, before a reader that leaves."""
    codecs.register_error("plain", _plain)
    names = (os.environ.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    # Python itself takes C to mean UTF-8.
    is_ascii = next(filter(None, names), "") in ("C", "POSIX")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="plain", **({"encoding": "ascii"} if is_ascii else {}))
    # A batch system's way to end a run keeps what was measured, too.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE


if __name__ == "__main__":
    sys.exit(run())
