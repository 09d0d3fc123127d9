"""Which cells are measured, in what order, and the measuring of one: checked first, then timed.

Depends on works, peers, timing, results, report's names; prints nothing but the progress bar.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench import machine, results
from bench.peers import PEERS, Bind, CannotRunError, Copy, FusedSigmoid, Peer, TorchHugePages
from bench.report import size_text, threads_text
from bench.results import OURS, Cell, Result, Row, Skip
from bench.timing import (
    Effort,
    Sampler,
    event_sampler,
    graph_sampler,
    measure_pair,
    wall_sampler,
)
from bench.works import DTYPES, Buffers, bytes_moved, make_buffers, wrongness

# A GPU's launch costs show below this size; above, the host is always ahead of the device.
LARGEST_LATENCY_SIZE = 65_536

# Rotating buffers must together exceed the cache, or the first set is still there on its return.
CACHES_FILLED = 2
MOST_INPUT_SETS = 64

# What a step costs before its first sample, seen on two cores: a first torch.compile with cold
# caches, a later one, and a process that imports torch. Used to stop before a time limit.
FIRST_COMPILE_SECONDS = 20.0
LATER_COMPILE_SECONDS = 2.5
NEW_PROCESS_SECONDS = 8.0


@dataclass(frozen=True)
class Options:
    """What the command line asked for, with every default filled in."""

    device: str
    sizes: dict[str, tuple[int, ...]]  # by dtype
    works: tuple[str, ...]
    peers: tuple[str, ...]
    threads: tuple[int, ...]
    cache: str
    effort: Effort
    time_limit: float | None = None


class Deadline:
    def __init__(self, limit: float | None) -> None:
        self.start = time.perf_counter()
        self.limit = limit
        self.reserve = 0.0

    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    def allows(self, seconds: float) -> bool:
        return self.limit is None or seconds < self.left()

    def left(self) -> float:
        """Seconds until the limit, less those kept for a later step."""
        assert self.limit is not None
        return self.limit - self.reserve - self.elapsed()


def cells(options: Options) -> list[Cell]:
    """The grid, small sizes first: a time limit then drops the largest, not a work or a dtype.

    A GPU has two clocks: the device's at every size, and the host's at small ones.
    """
    found = []
    every_size = sorted({size for sizes in options.sizes.values() for size in sizes})
    for threads, size, dtype, work in product(
        options.threads, every_size, options.sizes, options.works
    ):
        if size not in options.sizes[dtype]:
            continue
        cell = Cell(options.device, dtype, work, size, threads, "wall", options.cache)
        if options.device == "cuda":
            found.append(replace(cell, clock="device"))
            if size <= LARGEST_LATENCY_SIZE:
                found.append(replace(cell, cache="warm"))
        else:
            found.append(cell)
    return found


def run(options: Options, result: Result, show_progress: bool = True) -> None:
    """Measures into ``result``, so that what was measured survives an interruption."""
    deadline = Deadline(options.time_limit)
    grid = cells(options)
    chosen = [PEERS[name] for name in options.peers]
    alone = [peer for peer in chosen if isinstance(peer, TorchHugePages)]
    eager = [peer for peer in chosen if not peer.compiles and peer not in alone]
    compiled = [peer for peer in chosen if peer.compiles]
    total = len(grid) * (1 + len(chosen))
    with tqdm(total=total, unit="row", disable=not show_progress, dynamic_ncols=True) as bar:
        # What takes longest to start keeps its share of the time, however busy the machine is.
        compiling = FIRST_COMPILE_SECONDS if compiled else 0.0
        deadline.reserve = compiling + NEW_PROCESS_SECONDS * len(alone)
        _run_cells(grid, [Copy(), *eager], options, result, deadline, bar)
        deadline.reserve = compiling
        for peer in alone:
            _run_huge_pages(grid, peer, options, result, deadline, bar)
        deadline.reserve = 0.0
        if compiled:
            _run_cells(grid, compiled, options, result, deadline, bar)
        bar.set_description("done")


def _run_cells(
    grid: Sequence[Cell],
    peers: Sequence[Peer],
    options: Options,
    result: Result,
    deadline: Deadline,
    bar: tqdm[Any],
) -> None:
    threads_before = torch.get_num_threads()
    try:
        for cell in grid:
            torch.set_num_threads(cell.threads)
            for outcome in _measure_cell(cell, peers, options, result, deadline, bar):
                if isinstance(outcome, Row):
                    result.rows.append(outcome)
                else:
                    result.skips.append(outcome)
    finally:
        torch.set_num_threads(threads_before)


def _measure_cell(
    cell: Cell,
    peers: Sequence[Peer],
    options: Options,
    result: Result,
    deadline: Deadline,
    bar: tqdm[Any],
) -> Iterator[Row | Skip]:
    sets: list[Buffers] | None = None
    ours: Bind | None = None
    copy = next((row for row in result.rows if row.cell == cell and row.peer == results.COPY), None)
    for peer in peers:
        bar.set_description(f"{describe_cell(cell)}: {peer.name}")
        try:
            # Refusals come before the buffers and the deadline: they are cheap and say more.
            bind = None if peer.compiles else peer.prepare(cell)
            if not deadline.allows(_cost(peer, result)):
                raise CannotRunError(f"the time limit of {options.time_limit:g} s")
            if sets is None:
                sets = _buffers(cell)
                ours = FusedSigmoid().prepare(cell)
                _check(cell, sets[0], FusedSigmoid(), ours)
            assert ours is not None
            row = _measure_row(cell, peer, bind or peer.prepare(cell), ours, sets, options, copy)
            copy = row if row.peer == results.COPY else copy
            yield row
        except CannotRunError as reason:
            yield Skip(cell, peer.name, str(reason))
        except OursIsWrongError as reason:
            yield Skip(cell, OURS, str(reason))
            bar.update(len(peers) - peers.index(peer))
            return
        except Exception as error:  # a peer that fails is a line in a list, not the end of a run
            yield Skip(cell, peer.name, _one_line(error))
        bar.update()


class OursIsWrongError(Exception):
    """Our own result is beyond the tolerance: nothing in the cell is worth timing."""


def _measure_row(
    cell: Cell,
    peer: Peer,
    bind: Bind,
    ours: Bind,
    sets: Sequence[Buffers],
    options: Options,
    copy: Row | None,
) -> Row:
    if not isinstance(peer, Copy):
        _check(cell, sets[0], peer, bind)
    fused = FusedSigmoid()
    timer, samplers = _samplers(cell, ((fused, ours), (peer, bind)), sets)
    pairing = measure_pair(*samplers, options.effort)
    copy_seconds: float | None = None
    copy_fraction: float | None = None
    if isinstance(peer, Copy):
        copy_seconds, copy_fraction = pairing.theirs.median, pairing.ratio.median
    elif copy is not None:
        copy_seconds, copy_fraction = copy.copy_seconds, copy.copy_fraction
    return Row(
        cell=cell,
        peer=peer.name,
        ours=pairing.ours,
        theirs=pairing.theirs,
        ratio=pairing.ratio,
        rounds=pairing.rounds,
        timer=timer,
        process="shared",
        input_sets=len(sets),
        bytes_moved=bytes_moved(cell.work, cell.size, cell.dtype),
        copy_seconds=copy_seconds,
        copy_fraction=copy_fraction,
    )


def _samplers(
    cell: Cell, pairs: Sequence[tuple[Peer, Bind]], sets: Sequence[Buffers]
) -> tuple[str, tuple[Sampler, Sampler]]:
    """One kind of clock for both: where either cannot be captured, both are timed by events."""
    bound = [[bind(buffers) for buffers in sets] for _, bind in pairs]
    if cell.clock == "wall":
        finish = torch.cuda.synchronize if cell.device == "cuda" else None
        moved = bytes_moved(cell.work, cell.size, cell.dtype)
        fits = moved <= machine.last_level_cache(cell.device)
        lead_in = cell.cache == "warm" and fits
        timer = "wall"
        made = [wall_sampler(calls, finish=finish, lead_in=lead_in) for calls in bound]
    else:
        try:
            made = []
            for (peer, _), calls in zip(pairs, bound, strict=True):
                with peer.active():
                    made.append(graph_sampler(calls))
            timer = "graph"
        except RuntimeError:
            timer, made = "events", [event_sampler(calls) for calls in bound]
    ours, theirs = (
        Sampler(_within(peer, sampler), sampler.calls)
        for (peer, _), sampler in zip(pairs, made, strict=True)
    )
    return timer, (ours, theirs)


def _within(peer: Peer, sampler: Sampler) -> Callable[[int], float]:
    def seconds(passes: int) -> float:
        with peer.active():
            return sampler.seconds(passes)

    return seconds


def _check(cell: Cell, buffers: Buffers, peer: Peer, bind: Bind) -> None:
    with peer.active():
        wrong = wrongness(cell.work, buffers, bind(buffers)())
    if wrong:
        kind = OursIsWrongError if peer.name == OURS else CannotRunError
        raise kind(f"wrong result: {wrong}")


def _buffers(cell: Cell) -> list[Buffers]:
    """One set where the cache stays warm, as after the layer before; else more than it holds."""
    count = 1
    if cell.cache == "rotating":
        filled = CACHES_FILLED * machine.last_level_cache(cell.device)
        moved = bytes_moved(cell.work, cell.size, cell.dtype)
        count = min(MOST_INPUT_SETS, 1 + filled // moved)
    return [make_buffers(cell.work, cell.size, cell.dtype, cell.device) for _ in range(count)]


def _cost(peer: Peer, result: Result) -> float:
    if isinstance(peer, TorchHugePages):
        return NEW_PROCESS_SECONDS
    if not peer.compiles:
        return 0.0
    compiled = any(row.peer == peer.name for row in result.rows)
    return LATER_COMPILE_SECONDS if compiled else FIRST_COMPILE_SECONDS


def _run_huge_pages(
    grid: Sequence[Cell],
    peer: TorchHugePages,
    options: Options,
    result: Result,
    deadline: Deadline,
    bar: tqdm[Any],
) -> None:
    """torch and ours, both in one new process that has the variable set; compared there."""
    bar.set_description(f"{peer.name}: in a new process with {peer.variable}=1")
    fitting = [cell for cell in grid if _huge_pages_matter(cell)]
    no_matter = "huge pages are for fresh CPU outputs of 2 MiB and more"
    result.skips += [Skip(cell, peer.name, no_matter) for cell in grid if cell not in fitting]
    reason: str | None = None
    if machine.huge_pages() in (None, "never"):
        reason = "transparent huge pages are not to be had on this system"
    elif os.environ.get(peer.variable):
        reason = f"{peer.variable} is set for this whole run already"
    elif not deadline.allows(NEW_PROCESS_SECONDS):
        reason = f"the time limit of {options.time_limit:g} s"
    if reason is None and fitting:
        try:
            child = _huge_pages_result(fitting, peer, options, deadline)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            reason = _one_line(error)
        else:
            wanted = set(fitting)
            process = f"its own, with {peer.variable}=1, ours in it as well"
            result.rows += [
                replace(row, peer=peer.name, process=process)
                for row in child.rows
                if row.peer == "torch" and row.cell in wanted
            ]
            result.skips += [
                replace(skip, peer=peer.name) for skip in child.skips if skip.cell in wanted
            ]
    if reason is not None:
        result.skips += [Skip(cell, peer.name, reason) for cell in fitting]
    bar.update(len(grid))


def _huge_pages_matter(cell: Cell) -> bool:
    output = cell.size * DTYPES[cell.dtype].itemsize
    fresh = cell.work != "forward"
    return cell.device == "cpu" and fresh and output >= TorchHugePages.smallest_bytes


def _huge_pages_result(
    fitting: Sequence[Cell], peer: TorchHugePages, options: Options, deadline: Deadline
) -> Result:
    def chosen(name: str) -> list[str]:
        return [str(value) for value in dict.fromkeys(getattr(cell, name) for cell in fitting)]

    effort = options.effort
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "bench", "--device", options.device),
            *("--output", folder, "--peers", "torch", "--cache", options.cache),
            *("--no-pictures", "--no-progress"),
            *("--rounds", str(effort.rounds), "--row-seconds", str(effort.row_seconds)),
            *("--minimum-rounds", str(effort.minimum_rounds)),
            *("--sample-seconds", str(effort.sample_seconds)),
            *("--sizes", *chosen("size"), "--dtypes", *chosen("dtype")),
            *("--work", *chosen("work"), "--threads", *chosen("threads")),
        ]
        if deadline.limit is not None:
            left = max(1.0, deadline.left() - NEW_PROCESS_SECONDS)
            command += ["--time-limit", f"{left:.0f}"]
        environment = {**os.environ, peer.variable: "1"}
        done = subprocess.run(
            command, cwd=machine.ROOT, env=environment, capture_output=True, text=True, check=False
        )
        file = Path(folder) / "result.json"
        if not file.exists():
            last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
            raise ValueError(f"the process ended with {done.returncode}: {last}")
        return results.read(file)


def describe_cell(cell: Cell) -> str:
    where = threads_text(cell.threads) if cell.device == "cpu" else f"{cell.clock} clock"
    return f"{cell.dtype} {cell.work} of {size_text(cell.size)}, {where}"


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
