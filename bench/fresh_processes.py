"""Is a call slower than torch's in a process that does nothing else? What malloc does with freed
memory depends on all that the process did before, so that each side is alone in fresh processes.

    python -m bench.fresh_processes [--processes 8] [--allocators glibc jemalloc ...]

Keeps what it found in fresh_processes.json and exits with 1 if a row misses the goal. Depends on
the standard library and tabulate; what it measures with is imported when it measures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Any

from tabulate import tabulate

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

Row = dict[str, Any]


def measure(allocator: str, processes: int) -> list[Row]:
    """The works, sizes and numbers of threads; sides in turn, so that a slower machine is so for
    both."""
    rows = [
        {"allocator": allocator, "work": work, "elements": elements, "threads": threads}
        for work, elements, threads in product(WORKS, ELEMENTS, THREADS)
    ]
    found: list[Row] = [{**row, "ours": [], "torch": []} for row in rows]
    for _, row in product(range(processes), found):
        for side in ("torch", "ours"):
            row[side].append(_in_a_process(row, side))
    return found


def _in_a_process(row: Row, side: str) -> dict[str, float]:
    words = (side, row["work"], str(row["elements"]), str(row["threads"]))
    done = subprocess.run(
        (sys.executable, "-m", "bench.alone", *words),
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


def ratio(row: Row) -> float:
    """The time of torch over ours, medians of the processes' medians."""
    return _seconds(row, "torch") / _seconds(row, "ours")


def fast_processes(row: Row) -> int:
    """How many processes of ours are not slower than torch's median, but for noise; nor is one that
    ran while the machine was slow, so that torch's just before it was as slow."""
    median = _seconds(row, "torch")
    return sum(
        ours["seconds"] <= max(median, before["seconds"]) * (1 + NOISE)
        for ours, before in zip(row["ours"], row["torch"], strict=True)
    )


def is_met(row: Row) -> bool:
    return fast_processes(row) == len(row["ours"])


def _seconds(row: Row, side: str) -> float:
    return statistics.median(one["seconds"] for one in row[side])


def markdown() -> str:
    document = json.loads(RECORD.read_text(encoding="utf-8"))
    runs = document["allocators"].items()
    made = "; ".join(f"{name} on {run['date']}, commit {run['commit'][:12]}" for name, run in runs)
    rows = [row for _, run in runs for row in run["rows"]]
    return f"{table(rows, 'pipe')}\n\n{document['cpu']}, torch {document['torch']}; {made}."


def table(rows: Sequence[Row], form: str) -> str:
    """A line for each work, size and number of threads, a column for each allocator."""
    lines: dict[tuple[str, str, int], dict[str, str]] = {}
    for row in rows:
        key = (row["work"], f"{row['elements'] >> 10:,} Ki", row["threads"])
        lines.setdefault(key, {})[row["allocator"]] = _cell(row)
    names = list(dict.fromkeys(row["allocator"] for row in rows))
    head = ("work", "elements", "threads", *names)
    body = [[*key, *(line.get(name, "") for name in names)] for key, line in lines.items()]
    aligned = ("left", "right", "right", *("right" for _ in names))
    return tabulate(body, headers=head, tablefmt=form, colalign=aligned, disable_numparse=True)


def _cell(row: Row) -> str:
    faults = [statistics.median(one["page_faults"] for one in row[s]) for s in ("ours", "torch")]
    return (
        f"{ratio(row):.2f}, {fast_processes(row)} of {len(row['ours'])},"
        f" {faults[0]:,.0f} / {faults[1]:,.0f}"
    )


def keep(allocator: str, rows: Sequence[Row]) -> None:
    """In the record, beside the other allocators' rows."""
    from bench import machine

    document = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    document["cpu"] = machine.device_name("cpu")
    document["torch"] = machine.versions(("torch",))["torch"]
    run = {"date": datetime.now(timezone.utc).date().isoformat(), **machine.commit(), "rows": rows}
    kept = {**document.get("allocators", {}), allocator: run}
    document["allocators"] = {name: kept[name] for name in ALLOCATORS if name in kept}
    RECORD.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.fresh_processes",
        description="Compare with torch in processes that do nothing else.",
    )
    add = parser.add_argument
    add("--processes", type=int, default=8, metavar="N", help="of each side, for a row")
    add("--allocators", nargs="+", choices=ALLOCATORS, default=["glibc"])
    chosen = parser.parse_args(arguments)
    missed = 0
    for allocator in chosen.allocators:
        rows = measure(allocator, chosen.processes)
        keep(allocator, rows)
        print(table(rows, "simple"))
        missed += sum(not is_met(row) for row in rows)
    print(f"{missed} rows missed: a process of ours took over {1 + NOISE:.2f} of torch's time")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
