"""Which cells are measured, in what order, and the measuring of one: checked first, then timed.

Depends on peers, buffers, timing, results, report's names; prints nothing but the progress bar.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from tqdm import tqdm

from bench import machine
from bench.buffers import Buffers, make_buffers, wrongness
from bench.layouts import is_distinct
from bench.peers import COPY_PEER, FUSED_SIGMOID, PEERS, Bind, CannotRunError, Peer
from bench.report import cell_text
from bench.results import COPIES, COPY, OURS, Cell, Result, Row, Skip, Task
from bench.timing import (
    Effort,
    PageFaults,
    Sampler,
    event_sampler,
    graph_sampler,
    measure_pair,
    wall_sampler,
)
from bench.works import DTYPES, bytes_moved

# A GPU's launch costs show below this size; above, the host is always ahead of the device.
LARGEST_LATENCY_SIZE = 65_536

# Rotating buffers must together exceed the cache, or the first set is still there on its return. On
# a GPU they exceed it by far, so that a copy, which has two tensors where a work has more, finds no
# more of them in the cache than the work does. Small tensors stay in it: there are too few sets.
CACHES_FILLED = {"cpu": 2, "cuda": 8}
MOST_INPUT_SETS = 64

# What a step costs before its first sample, seen on two cores: a first torch.compile with cold
# caches, a later one, a process that imports torch, and a call that moves a gigabyte, with its
# buffers and checks. Used to stop before a time limit.
FIRST_COMPILE_SECONDS = 20.0
LATER_COMPILE_SECONDS = 2.5
NEW_PROCESS_SECONDS = 8.0
SECONDS_OF_A_GIGABYTE = 4.0

# The largest share of the free memory that a cell may take: the system must not start to swap.
LARGEST_MEMORY_SHARE = 0.8
# Besides what the work itself reads and writes: what the layout skips, and float64 while checking.
TENSORS_BESIDE = 3

# A run that is killed loses no more than this. On a GPU rows take less time.
SAVED_EVERY_SECONDS = {"cpu": 60.0, "cuda": 10.0}

# The reason of a skip starts so: what the limit left out is what a resumed run still has to do.
TIME_LIMIT = "the time limit"


def cells(
    device: str,
    sizes: Mapping[str, Sequence[int]],  # by dtype
    works: Sequence[str],
    threads: Sequence[int],
    cache: str,
    layouts: Sequence[str] = ("contiguous",),
    saved: Sequence[str] = ("auto",),
) -> list[Cell]:
    """The grid, small sizes first: a time limit then drops the largest, not a work or a dtype.

    A GPU has two clocks: the device's at every size, and the host's at small ones. Where a layout
    is the contiguous one, it is left out; ``saved`` is for training alone.
    """
    found = []
    every_size = sorted({size for some in sizes.values() for size in some})
    for count, size, dtype, work, layout in product(threads, every_size, sizes, works, layouts):
        if size not in sizes[dtype] or not is_distinct(layout, size):
            continue
        for kept in saved if work == "training" else ("auto",):
            cell = Cell(device, dtype, work, size, count, "wall", cache, layout, kept)
            if device == "cpu":
                found.append(cell)
                continue
            found.append(replace(cell, clock="device"))
            if size <= LARGEST_LATENCY_SIZE:
                found.append(replace(cell, cache="warm"))
    return found


def by_halves(cells: Sequence[Cell]) -> list[Cell]:
    """A few sizes across the whole range first, then those between: wherever a time limit ends the
    walk, every work, dtype and layout has been met."""
    sizes = sorted({cell.size for cell in cells})

    def order(cell: Cell) -> tuple[int, int]:
        at = sizes.index(cell.size)
        # 0, 16, 8, 24, 4, 12, 20, 28, 2, ...: by the power of two that divides the place.
        return (-(at & -at) if at else -len(sizes), at)

    return sorted(cells, key=order)


def remaining(tasks: Sequence[Task], result: Result) -> list[Task]:
    """What of the tasks the result has not measured, nor skipped for a reason of its own; what the
    time limit left out is dropped from the skips."""
    result.skips = [skip for skip in result.skips if not skip.reason.startswith(TIME_LIMIT)]
    done = {(found.cell, found.peer) for found in (*result.rows, *result.skips)}
    return _only(tasks, lambda cell, peer: (cell, peer) not in done)


def _only(tasks: Sequence[Task], wanted: Callable[[Cell, str], bool]) -> list[Task]:
    kept = [Task(cell, tuple(p for p in peers if wanted(cell, p))) for cell, peers in tasks]
    return [task for task in kept if task.peers]


class OursIsWrongError(Exception):
    """Our own result is beyond the tolerance: nothing in the cell is worth timing."""


@dataclass
class Run:
    """Measures into ``result``, so that what was measured survives an interruption. A row whose
    ratio comes out below ``doubtful_below`` is measured ``again``, and that measurement counts."""

    result: Result
    effort: Effort
    doubtful_below: float = 0.0
    again: Effort | None = None
    time_limit: float | None = None
    show_progress: bool = True
    save: Callable[[], None] = lambda: None

    def measure(self, tasks: Sequence[Task]) -> None:
        self.start = self.saved_at = time.perf_counter()
        peers = {name: PEERS.get(name, COPY_PEER) for task in tasks for name in task.peers}
        alone = [peer for peer in peers.values() if peer.environment]
        compiles = any(peer.compiles for peer in peers.values())
        with tqdm(
            total=sum(len(task.peers) for task in tasks),
            unit="row",
            disable=not self.show_progress,
            dynamic_ncols=True,
        ) as self.bar:
            # What takes longest to start keeps its share of the time, however busy the machine is.
            for_compiling = FIRST_COMPILE_SECONDS if compiles else 0.0
            starting = sum(
                any(peer.name in names and not peer.refusal(cell) for cell, names in tasks)
                for peer in alone
            )
            self.reserve = for_compiling + NEW_PROCESS_SECONDS * starting
            shared = [name for name, p in peers.items() if not p.compiles and not p.environment]
            self._measure_here(_only(tasks, lambda cell, name: name in shared))
            self.reserve = for_compiling
            for peer in alone:
                self._measure_alone(peer, [task.cell for task in tasks if peer.name in task.peers])
            self.reserve = 0.0
            self._measure_here(_only(tasks, lambda cell, name: peers[name].compiles))
            self.bar.set_description("done")

    def _left(self) -> float:
        """Seconds until the limit, less those kept for a later step."""
        limit = float("inf") if self.time_limit is None else self.time_limit
        return limit - self.reserve - (time.perf_counter() - self.start)

    def _past_limit(self) -> str:
        return f"{TIME_LIMIT} of {self.time_limit:g} s"

    def _skip(self, cell: Cell, peer: str, reason: str) -> None:
        self.result.skips.append(Skip(cell, peer, reason))

    def _measure_here(self, tasks: Sequence[Task]) -> None:
        threads_before = torch.get_num_threads()
        try:
            for task in tasks:
                torch.set_num_threads(task.cell.threads)
                self._measure_cell(task)
                now = time.perf_counter()
                if now - self.saved_at > SAVED_EVERY_SECONDS[task.cell.device]:
                    self.saved_at = now
                    self.save()
        finally:
            torch.set_num_threads(threads_before)

    def _measure_cell(self, task: Task) -> None:
        cell = task.cell
        sets: list[Buffers] = []
        for at, name in enumerate(task.peers):
            peer = PEERS.get(name, COPY_PEER)
            self.bar.set_description(f"{cell_text(cell)}: {name}")
            try:
                # Refusals come before the buffers and the limit: they are cheap and say more.
                if reason := peer.refusal(cell):
                    raise CannotRunError(reason)
                if self._cost(cell, peer) >= self._left():
                    raise CannotRunError(self._past_limit())
                if not sets:
                    made = _buffers(cell, not set(COPIES).isdisjoint(task.peers))
                    ours = FUSED_SIGMOID.prepare(cell)
                    _check(cell, made[0], FUSED_SIGMOID, ours)
                    sets = made
                self.result.rows.append(self._row(cell, peer, peer.prepare(cell), ours, sets))
            except OursIsWrongError as reason:
                self._skip(cell, OURS, str(reason))
                self.bar.update(len(task.peers) - at)
                return
            except CannotRunError as reason:
                self._skip(cell, name, str(reason))
            except Exception as error:  # a peer that fails is a line in a list, not a run's end
                self._skip(cell, name, _one_line(error))
            self.bar.update()

    def _cost(self, cell: Cell, peer: Peer) -> float:
        # A GPU moves a gigabyte in less than a millisecond.
        gigabytes = bytes_moved(cell.work, cell.size, cell.dtype) / 1e9
        cost = SECONDS_OF_A_GIGABYTE * gigabytes if cell.device == "cpu" else 0.0
        if peer.compiles:
            compiled = any(row.peer == peer.name for row in self.result.rows)
            cost += LATER_COMPILE_SECONDS if compiled else FIRST_COMPILE_SECONDS
        return cost

    def _row(self, cell: Cell, peer: Peer, bind: Bind, ours: Bind, sets: list[Buffers]) -> Row:
        if peer.name not in COPIES:
            _check(cell, sets[0], peer, bind)
        timer, our_sampler, their_sampler = _samplers(cell, ours, peer, bind, sets)
        faults = PageFaults(our_sampler)
        pairing = measure_pair(faults.sampler, their_sampler, self.effort)
        if self.again and pairing.ratio.median < self.doubtful_below:
            pairing = measure_pair(faults.sampler, their_sampler, self.again)
        seconds, fraction = pairing.theirs.median, pairing.ratio.median
        if peer.name != COPY:
            copies = (row for row in self.result.rows if (row.cell, row.peer) == (cell, COPY))
            copy = next(copies, None)
            seconds = copy.copy_seconds if copy else None
            fraction = copy.copy_fraction if copy else None
        return Row(
            *(cell, peer.name, pairing.ours, pairing.theirs, pairing.ratio, pairing.rounds),
            timer=timer,
            process="shared",
            input_sets=len(sets),
            bytes_moved=bytes_moved(cell.work, cell.size, cell.dtype),
            copy_seconds=seconds,
            copy_fraction=fraction,
            page_faults=faults.of_a_call() if cell.device == "cpu" else None,
        )

    def _measure_alone(self, peer: Peer, cells: Sequence[Cell]) -> None:
        """torch and ours, both in one new process that has the settings; compared there."""
        settings = " ".join(f"{name}={value}" for name, value in peer.environment.items())
        self.bar.set_description(f"{peer.name}: in a new process with {settings}")
        refusals = {cell: peer.refusal(cell) for cell in cells}
        fitting = [cell for cell in cells if not refusals[cell]]
        already = [name for name in peer.environment if os.environ.get(name)]
        reason = f"{already[0]} is set for this whole run already" if already else None
        if self._left() <= NEW_PROCESS_SECONDS:
            reason = reason or self._past_limit()
        if fitting and not reason:
            try:
                child = _result_alone(self, peer.environment, fitting)
            except Exception as error:
                reason = _one_line(error)
            else:
                process = f"its own, with {settings}, ours in it as well"
                rows = [row for row in child.rows if row.peer == "torch"]
                self.result.rows += [replace(r, peer=peer.name, process=process) for r in rows]
                self.result.skips += [replace(skip, peer=peer.name) for skip in child.skips]
        for cell in cells:
            if why := refusals[cell] or reason:
                self._skip(cell, peer.name, why)
        self.bar.update(len(cells))


def _result_alone(run: Run, environment: Mapping[str, str], cells: Sequence[Cell]) -> Result:
    limit = None if run.time_limit is None else max(1.0, run._left() - NEW_PROCESS_SECONDS)
    tasks = [Task(cell, (COPY, "torch")) for cell in cells]
    # Started anew, not forked, so that it reads the settings.
    anew = multiprocessing.get_context("spawn")
    os.environ.update(environment)
    try:
        with ProcessPoolExecutor(1, anew) as process:
            return process.submit(_measured, run.effort, limit, tasks).result()
    finally:
        for name in environment:
            del os.environ[name]


def _measured(effort: Effort, limit: float | None, tasks: Sequence[Task]) -> Result:
    run = Run(Result({}, {}, "", ""), effort, time_limit=limit, show_progress=False)
    run.measure(tasks)
    return run.result


def _samplers(
    cell: Cell, ours: Bind, peer: Peer, bind: Bind, sets: Sequence[Buffers]
) -> tuple[str, Sampler, Sampler]:
    """One kind of clock for both: where either cannot be captured, both are timed by events."""
    moved = bytes_moved(cell.work, cell.size, cell.dtype)
    active = (FUSED_SIGMOID.active, peer.active)
    bound = [[each(buffers) for buffers in sets] for each in (ours, bind)]
    if cell.clock == "wall":
        timer, finish = "wall", torch.cuda.synchronize if cell.device == "cuda" else None
        lead_in = cell.cache == "warm" and moved <= machine.last_level_cache(cell.device)
        made = [wall_sampler(calls, finish=finish, lead_in=lead_in) for calls in bound]
    else:
        try:
            timer, made = "graph", []
            for entered, calls in zip(active, bound, strict=True):
                with entered():
                    made.append(graph_sampler(calls, moved))
        except RuntimeError:
            timer, made = "events", [event_sampler(calls) for calls in bound]
    return timer, *map(_within, active, made)


def _within(active: Callable[[], Any], sampler: Sampler) -> Sampler:
    def seconds(passes: int) -> float:
        with active():
            return sampler.seconds(passes)

    return Sampler(seconds, sampler.calls)


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
    if cell.device == "cpu" and (free := machine.free_memory()) is not None:
        needed = count * moved * (1 + copy) + TENSORS_BESIDE * cell.size * DTYPES[cell.dtype]
        if needed > LARGEST_MEMORY_SHARE * free:
            raise CannotRunError(f"needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free")
    return [make_buffers(cell, copy) for _ in range(count)]


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
