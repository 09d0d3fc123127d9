"""Which cells are measured, in what order, and the measuring of one: checked first, then timed.

Depends on works, peers, timing, results, report's names; prints nothing but the progress bar.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench import machine, results
from bench.peers import PEERS, Bind, CannotRunError, Copy, FusedSigmoid, OwnProcess, Peer
from bench.report import cell_text
from bench.results import COPIES, COPY, OURS, Cell, Result, Row, Skip, Task
from bench.timing import (
    Effort,
    Sampler,
    event_sampler,
    graph_sampler,
    measure_pair,
    wall_sampler,
)
from bench.works import Buffers, bytes_moved, is_distinct, make_buffers, wrongness

# A GPU's launch costs show below this size; above, the host is always ahead of the device.
LARGEST_LATENCY_SIZE = 65_536

# Rotating buffers must together exceed the cache, or the first set is still there on its return. On
# a GPU they exceed it by far, so that a copy, which has two tensors where a work has more, finds no
# more of them in the cache than the work does. Small tensors stay in it: there are too few sets.
CACHES_FILLED = {"cpu": 2, "cuda": 8}
MOST_INPUT_SETS = 64

# What a step costs before its first sample, seen on two cores: a first torch.compile with cold
# caches, a later one, and a process that imports torch. Used to stop before a time limit.
FIRST_COMPILE_SECONDS = 20.0
LATER_COMPILE_SECONDS = 2.5
NEW_PROCESS_SECONDS = 8.0


# The largest share of the free memory that a cell may take: the system must not start to swap.
LARGEST_MEMORY_SHARE = 0.8
# Besides what the work itself reads and writes: what the layout skips, and float64 while checking.
TENSORS_BESIDE = 3

# A run that is killed loses no more than this. On a GPU rows take less time.
SAVED_EVERY_SECONDS = {"cpu": 60.0, "cuda": 10.0}

# What a call that moves a gigabyte takes until it is measured, with its buffers and checks, seen on
# two cores: the limit is to hold for the largest cells too.
SECONDS_OF_A_GIGABYTE = 4.0

# The reason of a skip starts so: what the limit left out is what a resumed run still has to do.
TIME_LIMIT = "the time limit"


@dataclass(frozen=True)
class Options:
    """A grid, with every default filled in."""

    device: str
    sizes: dict[str, tuple[int, ...]]  # by dtype
    works: tuple[str, ...]
    peers: tuple[str, ...]
    threads: tuple[int, ...]
    cache: str
    layouts: tuple[str, ...] = ("contiguous",)
    saved: tuple[str, ...] = ("auto",)


@dataclass(frozen=True)
class Patience:
    """How long a row is measured; one whose ratio comes out below ``doubtful_below`` is measured
    ``again``, and that second measurement is the one that counts."""

    effort: Effort
    doubtful_below: float = 0.0
    again: Effort | None = None


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

    A GPU has two clocks: the device's at every size, and the host's at small ones. Where a layout
    is the contiguous one, it is left out; ``saved`` is for training alone.
    """
    found = []
    every_size = sorted({size for sizes in options.sizes.values() for size in sizes})
    for threads, size, dtype, work, layout in product(
        options.threads, every_size, options.sizes, options.works, options.layouts
    ):
        if size not in options.sizes[dtype] or not is_distinct(layout, size):
            continue
        for saved in options.saved if work == "training" else ("auto",):
            cell = Cell(
                options.device, dtype, work, size, threads, "wall", options.cache, layout, saved
            )
            if options.device == "cuda":
                found.append(replace(cell, clock="device"))
                if size <= LARGEST_LATENCY_SIZE:
                    found.append(replace(cell, cache="warm"))
            else:
                found.append(cell)
    return found


def plan(options: Options) -> list[Task]:
    return [Task(cell, (COPY, *options.peers)) for cell in cells(options)]


def write_plan(tasks: Sequence[Task], path: Path) -> None:
    path.write_text(json.dumps([(asdict(task.cell), task.peers) for task in tasks]))


def read_plan(path: Path) -> list[Task]:
    return [Task(Cell(**cell), tuple(peers)) for cell, peers in json.loads(path.read_text())]


def remaining(tasks: Sequence[Task], result: Result) -> list[Task]:
    """What of the tasks the result has not measured, nor skipped for a reason of its own; what the
    time limit left out is dropped from the skips."""
    result.skips = [skip for skip in result.skips if not skip.reason.startswith(TIME_LIMIT)]
    done = {(row.cell, row.peer) for row in result.rows}
    done |= {(skip.cell, skip.peer) for skip in result.skips}
    left = [
        Task(task.cell, tuple(peer for peer in task.peers if (task.cell, peer) not in done))
        for task in tasks
    ]
    return [task for task in left if task.peers]


def run(
    tasks: Sequence[Task],
    patience: Patience,
    result: Result,
    time_limit: float | None = None,
    show_progress: bool = True,
    save: Callable[[], None] = lambda: None,
) -> None:
    """Measures into ``result``, so that what was measured survives an interruption."""
    deadline = Deadline(time_limit)
    chosen = {name: PEERS[name] for task in tasks for name in task.peers if name != COPY}
    alone = [peer for peer in chosen.values() if isinstance(peer, OwnProcess)]
    compiled = [name for name, peer in chosen.items() if peer.compiles]
    eager = [COPY, *(name for name in chosen if name not in compiled)]
    eager = [name for name in eager if name not in [peer.name for peer in alone]]
    total = sum(len(task.peers) for task in tasks)
    with tqdm(total=total, unit="row", disable=not show_progress, dynamic_ncols=True) as bar:
        session = Session(patience, result, deadline, bar, save)
        # What takes longest to start keeps its share of the time, however busy the machine is.
        compiling = FIRST_COMPILE_SECONDS if compiled else 0.0
        deadline.reserve = compiling + NEW_PROCESS_SECONDS * len(alone)
        _run_tasks(_only(tasks, eager), session)
        for peer in alone:
            deadline.reserve = compiling
            _run_alone([task.cell for task in _only(tasks, [peer.name])], peer, session)
        deadline.reserve = 0.0
        _run_tasks(_only(tasks, compiled), session)
        bar.set_description("done")


@dataclass
class Session:
    """What every step of a run writes to or asks."""

    patience: Patience
    result: Result
    deadline: Deadline
    bar: tqdm[Any]
    save: Callable[[], None]
    saved_at: float = 0.0

    def save_now_and_then(self, device: str) -> None:
        if self.deadline.elapsed() - self.saved_at > SAVED_EVERY_SECONDS[device]:
            self.saved_at = self.deadline.elapsed()
            self.save()

    def past_limit(self) -> str:
        return f"{TIME_LIMIT} of {self.deadline.limit:g} s"


def _only(tasks: Sequence[Task], peers: Sequence[str]) -> list[Task]:
    kept = [Task(task.cell, tuple(p for p in task.peers if p in peers)) for task in tasks]
    return [task for task in kept if task.peers]


def _run_tasks(tasks: Sequence[Task], session: Session) -> None:
    threads_before = torch.get_num_threads()
    result = session.result
    try:
        for task in tasks:
            torch.set_num_threads(task.cell.threads)
            for outcome in _measure_cell(task, session):
                if isinstance(outcome, Row):
                    result.rows.append(outcome)
                else:
                    result.skips.append(outcome)
            session.save_now_and_then(task.cell.device)
    finally:
        torch.set_num_threads(threads_before)


def _measure_cell(task: Task, session: Session) -> Iterator[Row | Skip]:
    cell, result, bar = task.cell, session.result, session.bar
    peers = [Copy() if name == COPY else PEERS[name] for name in task.peers]
    sets: list[Buffers] | None = None
    ours: Bind | None = None
    copy = _copy_row(cell, result)
    for peer in peers:
        bar.set_description(f"{cell_text(cell)}: {peer.name}")
        try:
            # Refusals come before the buffers and the deadline: they are cheap and say more.
            bind = None if peer.compiles else peer.prepare(cell)
            if not session.deadline.allows(_cost(cell, peer, result)):
                raise CannotRunError(session.past_limit())
            if sets is None:
                sets = _buffers(cell, not set(COPIES).isdisjoint(task.peers))
                ours = FusedSigmoid().prepare(cell)
                _check(cell, sets[0], FusedSigmoid(), ours)
            assert ours is not None
            bind = bind or peer.prepare(cell)
            row = _measure_row(cell, peer, bind, ours, sets, session.patience, copy)
            copy = row if row.peer == COPY else copy
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


def _copy_row(cell: Cell, result: Result) -> Row | None:
    return next((row for row in result.rows if (row.cell, row.peer) == (cell, COPY)), None)


class OursIsWrongError(Exception):
    """Our own result is beyond the tolerance: nothing in the cell is worth timing."""


def _measure_row(
    cell: Cell,
    peer: Peer,
    bind: Bind,
    ours: Bind,
    sets: Sequence[Buffers],
    patience: Patience,
    copy: Row | None,
) -> Row:
    if not isinstance(peer, Copy):
        _check(cell, sets[0], peer, bind)
    fused = FusedSigmoid()
    timer, samplers = _samplers(cell, ((fused, ours), (peer, bind)), sets)
    faults = PageFaults(samplers[0])
    samplers = (faults.sampler, samplers[1])
    pairing = measure_pair(*samplers, patience.effort)
    if patience.again and pairing.ratio.median < patience.doubtful_below:
        pairing = measure_pair(*samplers, patience.again)
    copy_seconds: float | None = None
    copy_fraction: float | None = None
    if peer.name == COPY:
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
        page_faults=faults.of_a_call() if cell.device == "cpu" else None,
    )


class PageFaults:
    """Counts the page faults of what it samples, outside the time."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = Sampler(self._seconds, sampler.calls)
        self._sampled = sampler
        self._faults = 0
        self._calls = 0

    def _seconds(self, passes: int) -> float:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        seconds = self._sampled.seconds(passes)
        self._faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        self._calls += passes * self._sampled.calls
        return seconds

    def of_a_call(self) -> float:
        return round(self._faults / self._calls, 3)


def _samplers(
    cell: Cell, pairs: Sequence[tuple[Peer, Bind]], sets: Sequence[Buffers]
) -> tuple[str, tuple[Sampler, Sampler]]:
    """One kind of clock for both: where either cannot be captured, both are timed by events."""
    bound = [[bind(buffers) for buffers in sets] for _, bind in pairs]
    moved = bytes_moved(cell.work, cell.size, cell.dtype)
    if cell.clock == "wall":
        finish = torch.cuda.synchronize if cell.device == "cuda" else None
        fits = moved <= machine.last_level_cache(cell.device)
        lead_in = cell.cache == "warm" and fits
        timer = "wall"
        made = [wall_sampler(calls, finish=finish, lead_in=lead_in) for calls in bound]
    else:
        try:
            made = []
            for (peer, _), calls in zip(pairs, bound, strict=True):
                with peer.active():
                    made.append(graph_sampler(calls, moved))
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


def _buffers(cell: Cell, copy: bool) -> list[Buffers]:
    """One set where the cache stays warm, as after the layer before; else more than it holds."""
    count = 1
    moved = bytes_moved(cell.work, cell.size, cell.dtype)
    if cell.cache == "rotating":
        filled = CACHES_FILLED[cell.device] * machine.last_level_cache(cell.device)
        count = min(MOST_INPUT_SETS, 1 + filled // moved)
    if cell.device == "cpu":
        output = bytes_moved("forward", cell.size, cell.dtype) // 2
        needed = count * moved * (1 + copy) + TENSORS_BESIDE * output
        free = machine.free_memory()
        if free is not None and needed > LARGEST_MEMORY_SHARE * free:
            raise CannotRunError(f"needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free")
    return [
        make_buffers(cell.work, cell.size, cell.dtype, cell.device, cell.layout, copy)
        for _ in range(count)
    ]


def _cost(cell: Cell, peer: Peer, result: Result) -> float:
    # A GPU moves a gigabyte in less than a millisecond.
    gigabytes = bytes_moved(cell.work, cell.size, cell.dtype) / 1e9 if cell.device == "cpu" else 0
    cost = SECONDS_OF_A_GIGABYTE * gigabytes
    if peer.compiles:
        compiled = any(row.peer == peer.name for row in result.rows)
        cost += LATER_COMPILE_SECONDS if compiled else FIRST_COMPILE_SECONDS
    return cost


def _run_alone(cells: Sequence[Cell], peer: OwnProcess, session: Session) -> None:
    """torch and ours, both in one new process that has the variables set; compared there."""
    result, bar = session.result, session.bar
    settings = " ".join(f"{name}={value}" for name, value in peer.environment.items())
    bar.set_description(f"{peer.name}: in a new process with {settings}")
    refusals = {cell: peer.refusal(cell) for cell in cells}
    fitting = [cell for cell, reason in refusals.items() if reason is None]
    result.skips += [Skip(cell, peer.name, reason) for cell, reason in refusals.items() if reason]
    reason: str | None = None
    already = [name for name in peer.environment if os.environ.get(name)]
    if already:
        reason = f"{already[0]} is set for this whole run already"
    elif not session.deadline.allows(NEW_PROCESS_SECONDS):
        reason = session.past_limit()
    if reason is None and fitting:
        try:
            child = _result_alone(fitting, peer, session)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            reason = _one_line(error)
        else:
            process = f"its own, with {settings}, ours in it as well"
            result.rows += [
                replace(row, peer=peer.name, process=process)
                for row in child.rows
                if row.peer == "torch"
            ]
            result.skips += [replace(skip, peer=peer.name) for skip in child.skips]
    if reason is not None:
        result.skips += [Skip(cell, peer.name, reason) for cell in fitting]
    bar.update(len(cells))


def _result_alone(fitting: Sequence[Cell], peer: OwnProcess, session: Session) -> Result:
    effort = session.patience.effort
    with tempfile.TemporaryDirectory() as folder:
        write_plan([Task(cell, (COPY, "torch")) for cell in fitting], Path(folder) / "plan.json")
        command = [
            *(sys.executable, "-m", "bench", "--plan", f"{folder}/plan.json"),
            *("--output", folder, "--no-pictures", "--no-progress"),
            *("--rounds", str(effort.rounds), "--row-seconds", str(effort.row_seconds)),
            *("--minimum-rounds", str(effort.minimum_rounds)),
            *("--sample-seconds", str(effort.sample_seconds)),
        ]
        if session.deadline.limit is not None:
            left = max(1.0, session.deadline.left() - NEW_PROCESS_SECONDS)
            command += ["--time-limit", f"{left:.0f}"]
        done = subprocess.run(
            command,
            cwd=machine.ROOT,
            env={**os.environ, **peer.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        file = Path(folder) / "result.json"
        if not file.exists():
            last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
            raise ValueError(f"the process ended with {done.returncode}: {last}")
        return results.read(file)


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
