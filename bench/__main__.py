"""The command line: ``python -m bench``. Fills in defaults, runs, prints, writes JSON and pictures.

Depends on every other file of the bench; holds no measuring and no drawing of its own.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

import torch

from bench import figures, goals, machine, report, results, runs
from bench.peers import DEFAULT_PEERS, PEERS
from bench.results import Result
from bench.runs import Options
from bench.timing import Effort
from bench.works import DTYPES, WORKS

RESULTS = Path(__file__).resolve().parent / "results"

CPU_SIZES = (1, 2**10, 2**14, 2**16, 2**18, 2**20, 2**22, 2**24, 2**26)
CUDA_SIZES = (1, 2**10, 2**14, 2**16, 2**18, 2**20, 2**22, 2**24, 2**26, 2**28)

QUICK_SIZES = {
    "float32": (1, 2**10, 2**16, 2**20, 2**24),
    "bfloat16": (2**10, 2**18),
}
QUICK_EFFORT = Effort(rounds=7, minimum_rounds=3, sample_seconds=5e-4, row_seconds=0.15)
# Leaves room below a minute for importing torch, for the last row and for drawing.
QUICK_TIME_LIMIT = 46.0

FULL_EFFORT = Effort()

Value = TypeVar("Value")


def main(arguments: Sequence[str] | None = None) -> int:
    start = time.perf_counter()
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser()
    chosen = parser.parse_args(given)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: torch sees no CUDA device here; accepted is: cpu")
    try:
        import fused_sigmoid  # noqa: F401
    except ImportError as error:
        parser.error(f"fused_sigmoid cannot be imported ({error}); build it with pip install -e .")

    options = _options(chosen)
    result = Result(
        machine=machine.describe(options.device),
        source=machine.commit(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "bench", *_without_output(given)]),
    )
    try:
        runs.run(options, result, show_progress=not chosen.no_progress)
    except KeyboardInterrupt:
        result.interrupted = True
        print("\ninterrupted; writing what was measured", file=sys.stderr)
    result.elapsed_seconds = round(time.perf_counter() - start, 1)

    folder = chosen.output or _default_folder(options.device, chosen.quick)
    print(goals.terminal(result.rows) if chosen.goals else report.terminal(result))
    print()
    written = [folder / "result.json"]
    results.write(result, written[0])
    if result.rows and not chosen.no_pictures:
        written += figures.draw([result], folder)
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
        epilog="works: " + "; ".join(f"{work.name}: {work.meaning}" for work in WORKS.values()),
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default=_default_device())
    add("--quick", action="store_true", help="less of everything: under a minute on two cores")
    add("--goals", action="store_true", help="show the goals for a CPU, met or missed, alone")
    add("--sizes", nargs="+", type=_size, metavar="N", help="elements: 1000, 64Ki, 16Mi")
    add("--dtypes", nargs="+", choices=tuple(DTYPES))
    add("--work", nargs="+", choices=tuple(WORKS), default=list(WORKS))
    add("--peers", nargs="+", choices=tuple(PEERS), default=list(DEFAULT_PEERS))
    add("--threads", nargs="+", type=_count, metavar="N", help="default: 1 and all; --quick: 1")
    add(
        "--cache",
        choices=("warm", "rotating"),
        help="one input set, or more sets than the last cache holds;"
        " default: warm on the CPU, rotating on the GPU",
    )
    add("--output", type=Path, metavar="FOLDER", help="default: bench/results/<device>-<date>/")
    add("--rounds", type=_count, metavar="N", help="A B B A rounds for a row, at most")
    add("--minimum-rounds", type=_count, metavar="N", help="and at least")
    add("--sample-seconds", type=float, metavar="S", help="shortest sample of a round")
    add("--row-seconds", type=float, metavar="S", help="no further round of a row past this")
    add("--time-limit", type=float, metavar="S", help="no further row past this")
    add("--no-pictures", action="store_true")
    add("--no-progress", action="store_true")
    return parser


def _options(chosen: argparse.Namespace) -> Options:
    base = QUICK_EFFORT if chosen.quick else FULL_EFFORT
    names = ("rounds", "minimum_rounds", "sample_seconds", "row_seconds")
    given = {name: getattr(chosen, name) for name in names}
    effort = Effort(
        **{name: getattr(base, name) if value is None else value for name, value in given.items()}
    )
    limit = chosen.time_limit
    if limit is None and chosen.quick:
        limit = QUICK_TIME_LIMIT
    every_thread = torch.get_num_threads()
    if chosen.device == "cuda":
        threads: tuple[int, ...] = (every_thread,)
    else:
        # One thread is the count that a busy machine disturbs least.
        threads = (1,) if chosen.quick else (1, every_thread)
    return Options(
        device=chosen.device,
        sizes=_sizes(chosen),
        works=_once(chosen.work),
        peers=_once(chosen.peers),
        threads=_once(chosen.threads or threads),
        cache=chosen.cache or ("rotating" if chosen.device == "cuda" else "warm"),
        effort=effort,
        time_limit=limit,
    )


def _sizes(chosen: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    every = CUDA_SIZES if chosen.device == "cuda" else CPU_SIZES
    if chosen.goals:
        every = tuple(sorted({size for goal in goals.GOALS for size in goal.sizes}))
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


def _default_folder(device: str, quick: bool) -> Path:
    if quick:
        return RESULTS / "quick"
    base = machine.folder_name(device)
    folder, count = RESULTS / base, 1
    while folder.exists():
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
