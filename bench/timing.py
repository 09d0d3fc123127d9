"""How two callables are timed against each other: A B B A rounds and the median of their ratios.

Depends on torch for CUDA events and graphs, and on results for Spread.
"""

from __future__ import annotations

import gc
import math
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import torch

from bench.results import Spread

Call = Callable[[], Any]

# A first pass that long is not mistaken for a short one by what it warms up.
LONG_SAMPLES = 20

# Enough captured calls that the few microseconds a graph launch costs do not show in one call; for
# large ones fewer do, and more would only take longer.
CALLS_IN_A_GRAPH = 50
BYTES_IN_A_GRAPH = 2e9


@dataclass(frozen=True)
class Pairing:
    """Seconds a call of both, and the ratio theirs / ours: above 1, ours is the faster."""

    ours: Spread
    theirs: Spread
    ratio: Spread
    rounds: int


@dataclass(frozen=True)
class Effort:
    """How long to measure: up to ``rounds``, fewer (not below the minimum) past ``row_seconds``."""

    rounds: int = 31
    minimum_rounds: int = 7
    sample_seconds: float = 1e-3
    row_seconds: float = 1.5


@dataclass(frozen=True)
class Sampler:
    """``seconds(passes)`` runs that many passes of ``calls`` calls each and times them together."""

    seconds: Callable[[int], float]
    calls: int


def spread(values: Sequence[float]) -> Spread:
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def wall_sampler(
    calls: Sequence[Call],
    clock: Callable[[], int] = time.perf_counter_ns,
    finish: Callable[[], object] | None = None,
    lead_in: bool = False,
) -> Sampler:
    """Host time; ``finish`` (a device synchronisation) is within the time.

    ``lead_in`` makes one call before the clock starts, as the other side has just had the cache.
    """

    def seconds(passes: int) -> float:
        if lead_in:
            calls[0]()
        if finish is not None:
            finish()
        loop = chain.from_iterable(repeat(calls, passes))
        start = clock()
        for call in loop:
            call()
        if finish is not None:
            finish()
        return (clock() - start) / 1e9

    return Sampler(seconds, len(calls))


def event_sampler(calls: Sequence[Call]) -> Sampler:
    """Device time between two CUDA events; where the host is the slower, the host's time."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def seconds(passes: int) -> float:
        torch.cuda.synchronize()
        begin.record()
        for _ in range(passes):
            # Kept for a pass: the allocator would give the next call the block still in cache.
            kept = [call() for call in calls]
            del kept
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    return Sampler(seconds, len(calls))


def graph_sampler(calls: Sequence[Call], bytes_moved: int) -> Sampler:
    """Device time of a replayed CUDA graph: kernels without the host between them. ``bytes_moved``:
    by one call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            calls[0]()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()

    # A graph of an earlier row, which the collector frees while this one is captured, would end it.
    gc.collect()
    graph = torch.cuda.CUDAGraph()
    enough = min(CALLS_IN_A_GRAPH, math.ceil(BYTES_IN_A_GRAPH / bytes_moved))
    captured = max(1, math.ceil(enough / len(calls)))
    with no_garbage_collection(), torch.cuda.graph(graph):
        for _ in range(captured):
            kept = [call() for call in calls]
    del kept
    replays = event_sampler([graph.replay])
    return Sampler(replays.seconds, captured * len(calls))


def measure_pair(
    ours: Sampler,
    theirs: Sampler,
    effort: Effort,
    elapsed: Callable[[], float] = time.perf_counter,
) -> Pairing:
    """Rounds of ours, theirs, theirs, ours: a machine that slows steadily favours neither."""
    with no_garbage_collection():
        our_passes = _calibrate(ours, effort.sample_seconds)
        their_passes = _calibrate(theirs, effort.sample_seconds)
        our_calls, their_calls = 2 * our_passes * ours.calls, 2 * their_passes * theirs.calls
        our_times: list[float] = []
        their_times: list[float] = []
        start = elapsed()
        while len(our_times) < effort.rounds:
            if len(our_times) >= effort.minimum_rounds and elapsed() - start > effort.row_seconds:
                break
            first = ours.seconds(our_passes)
            between = theirs.seconds(their_passes) + theirs.seconds(their_passes)
            last = ours.seconds(our_passes)
            our_times.append((first + last) / our_calls)
            their_times.append(between / their_calls)
    ratios = [theirs / ours for ours, theirs in zip(our_times, their_times, strict=True)]
    return Pairing(spread(our_times), spread(their_times), spread(ratios), len(ratios))


def _calibrate(sampler: Sampler, at_least: float) -> int:
    """Passes for a sample of that length; the passes tried on the way are the warm-up."""
    passes = 1
    if sampler.seconds(passes) > LONG_SAMPLES * at_least:
        return passes
    while (seconds := sampler.seconds(passes)) < at_least:
        # A coarse clock reads 0 for one pass; at most tenfold, in case this sample was a hiccup.
        growth = at_least / seconds if seconds > 0 else 10.0
        passes = max(passes + 1, math.ceil(passes * min(10.0, 1.2 * growth)))
    return passes


class PageFaults:
    """Counts the page faults of what it samples, outside the time."""

    def __init__(self, sampled: Sampler) -> None:
        self.sampler = Sampler(self._seconds, sampled.calls)
        self._sampled = sampled
        self._faults = self._calls = 0

    def _seconds(self, passes: int) -> float:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        seconds = self._sampled.seconds(passes)
        self._faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        self._calls += passes * self._sampled.calls
        return seconds

    def of_a_call(self) -> float:
        return round(self._faults / self._calls, 3)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
