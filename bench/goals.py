"""What the kernels are to reach on a CPU and on a GPU, the rows to measure for it, and whether a
result reached it.

Depends on results, and on report's texts; measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from tabulate import tabulate

from bench.report import ratio_text, size_text, threads_text
from bench.results import COPY, Cell, Row, Task

HALVES = ("bfloat16", "float16")
EVERY_DTYPE = ("float32", *HALVES, "float64")
KI, MI = 2**10, 2**20


@dataclass(frozen=True)
class Goal:
    """The peer's time is to be at least ``ratio`` of ours; of a CPU's goals, some are for one
    thread and others for several."""

    work: str
    dtypes: tuple[str, ...]
    sizes: tuple[int, ...]
    peer: str
    ratio: float
    layout: str = "contiguous"
    device: str = "cpu"
    clock: str = "wall"
    cache: str = "warm"
    threads: str = "any"  # "one", "several"

    def is_about(self, threads: int) -> bool:
        return self.threads in ("any", "one" if threads == 1 else "several")


def _by_threads(
    work: str,
    dtypes: tuple[str, ...],
    sizes: tuple[int, ...],
    one: float,
    several: float,
    peer: str = "torch",
) -> tuple[Goal, ...]:
    return (
        Goal(work, dtypes, sizes, peer, one, threads="one"),
        Goal(work, dtypes, sizes, peer, several, threads="several"),
    )


def _laid_out(layout: str, forward: float) -> tuple[Goal, ...]:
    """At the size of a layer's activations all dtypes; float32 also where threads matter. A
    training step in a dense layout is to reach what it is to reach when contiguous."""
    training = 1.0 if forward == 1 else 1.2
    return tuple(
        Goal(work, dtypes, (size,), "torch", ratio, layout)
        for work, dtypes, size, ratio in (
            ("forward", EVERY_DTYPE, 64 * KI, forward),
            ("forward", ("float32",), MI, forward),
            ("training", ("float32", *HALVES), 64 * KI, training),
            ("training", ("float64",), 64 * KI, 1.0),
            ("training", ("float32",), MI, training),
        )
    )


# One element may take 1.10 of nn.Sigmoid's time; everything else is to be faster by something.
LATENCY = 1 / 1.10
# In cache those of the table of eight are for AVX-512, and were set on a Zen 5: of a processor that
# divides more slowly beside its other operations less is to be had (docs/performance.md).
IN_CACHE = (64 * KI, MI)
# Those of the loss were set on a Zen 5 with AVX-512, too.
LOSS_DTYPES = ("float32", "bfloat16")
GOALS = (
    *_by_threads("forward", ("float32",), IN_CACHE, 2.2, 1.7),
    *_by_threads("forward", ("bfloat16",), IN_CACHE, 3.7, 2.6),
    *_by_threads("forward", ("float16",), IN_CACHE, 2.4, 2.0),
    *_by_threads("forward", ("float64",), IN_CACHE, 1.9, 1.7),
    Goal("forward", ("float32",), (16 * MI, 64 * MI), "torch", 1.1),
    Goal("forward", ("float32",), (16 * MI, 64 * MI), COPY, 0.95),
    Goal("forward-fresh", ("float32",), (16 * MI,), "torch", 4.0),
    Goal("forward-fresh", ("float32",), (16 * MI,), "torch+thp", 1.2),
    Goal("pair", ("float32",), IN_CACHE, "torch", 3.3, threads="one"),
    Goal("pair", ("bfloat16",), IN_CACHE, "torch", 4.6, threads="one"),
    Goal("pair", ("float16",), IN_CACHE, "torch", 3.1, threads="one"),
    Goal("pair", ("float64",), IN_CACHE, "torch", 2.6, threads="one"),
    Goal("pair", ("float32", *HALVES), IN_CACHE, "torch", 2.0, threads="several"),
    Goal("pair", ("float64",), IN_CACHE, "torch", 1.4, threads="several"),
    Goal("pair", ("float32",), (16 * MI,), "torch", 6.0),
    *_by_threads("training", ("float32",), (64 * KI,), 1.35, 1.2),
    *_by_threads("training", HALVES, (64 * KI,), 1.5, 1.25),
    *_by_threads("training", ("float64",), (64 * KI,), 1.3, 1.15),
    Goal("bce", EVERY_DTYPE, IN_CACHE, "torch", 0.98),
    Goal("forward-fresh", ("float32",), (1,), "torch", LATENCY),
    Goal("training", ("float32",), (1,), "torch", LATENCY),
    Goal("bce", ("float32",), (1,), "torch", LATENCY),
    *_by_threads("forward", ("float32",), IN_CACHE, 2.0, 1.2, "torch+avx2"),
    *_by_threads("forward", ("bfloat16",), IN_CACHE, 3.5, 1.2, "torch+avx2"),
    Goal("forward", ("float16",), IN_CACHE, "torch+avx2", 1.2),
    Goal("pair", ("float32", *HALVES), IN_CACHE, "torch+avx2", 1.2),
    Goal("loss", LOSS_DTYPES, (1,), "torch", 1.3),
    Goal("loss", LOSS_DTYPES, (64 * KI,), "torch", 3.5, threads="one"),
    Goal("loss", LOSS_DTYPES, (MI,), "torch", 3.0, threads="one"),
    Goal("loss", ("float32",), (16 * MI,), "torch", 4.0),
    Goal("loss", LOSS_DTYPES, IN_CACHE, "torch.compile", 3.0),
    Goal("loss-forward", LOSS_DTYPES, (64 * KI,), "torch", 4.5),
    Goal("loss-forward", LOSS_DTYPES, (MI, 16 * MI), "torch", 10.0),
    *_laid_out("channels_last", 1.3),
    *_laid_out("transposed", 1.0),
    *_laid_out("chunk", 1.0),
    *_laid_out("slice", 1.0),
)


def _on_device(*goal: Any) -> Goal:
    """Device time, with more input sets than the last cache holds."""
    return Goal(*goal, device="cuda", clock="device", cache="rotating")


def _eager_latency(*goal: Any) -> Goal:
    return Goal(*goal, device="cuda")


# On an H100. Of what moves 64 MiB and more in each tensor a copy is the limit; torch's own sigmoid
# is near it too, so that a training step can only be as fast, and what torch.compile makes moves
# the same bytes as ours.
LARGE = {"float32": 16 * MI, "bfloat16": 32 * MI, "float16": 32 * MI, "float64": 8 * MI}
# Latency first: what is cheap is not to fall to a time limit.
GPU_GOALS = (
    _eager_latency("forward-fresh", ("float32", "bfloat16"), (KI,), "torch", 1 / 1.15),
    _eager_latency("training", ("float32", "bfloat16"), (KI,), "torch", 1 / 1.15),
    _eager_latency("bce", ("float32", "bfloat16"), (KI,), "torch", 1 / 1.15),
    _eager_latency("loss", LOSS_DTYPES, (KI,), "torch", 1.0),
    *(
        _on_device(work, (dtype,), (LARGE[dtype], 256 * MI), COPY, 0.95)
        for work in ("forward", "pair", "backward")
        for dtype in ("float32", *HALVES)
    ),
    *(_on_device("loss", (d,), (LARGE[d], 256 * MI), COPY, 0.90) for d in LOSS_DTYPES),
    *(_on_device("pair", (d,), (LARGE[d],), "torch", 2.2) for d in ("float32", *HALVES)),
    *(
        _on_device(work, (dtype,), (LARGE[dtype],), "torch.compile", 0.98)
        for work in ("pair", "training")
        for dtype in ("float32", *HALVES)
    ),
    *(
        _on_device("training", EVERY_DTYPE, (size,), "torch", 0.98)
        for size in (KI, 64 * KI, MI, 4 * MI, 16 * MI, 256 * MI)
    ),
    _on_device("bce", EVERY_DTYPE, (MI, 16 * MI), "torch", 0.98),
    _on_device("forward-fresh", ("float64",), (LARGE["float64"],), "torch", 0.98),
    *(
        _on_device(work, ("float32", "bfloat16"), (16 * MI,), "torch", 0.98, layout)
        for work in ("forward", "training")
        for layout in ("chunk", "slice", "transposed")
    ),
)


def plan(threads: Sequence[int], device: str = "cpu") -> list[Task]:
    """Every row that a goal is about, and the copy beside it; nothing else."""
    peers: dict[Cell, list[str]] = {}
    for count, goal in product(threads, GPU_GOALS if device == "cuda" else GOALS):
        if not goal.is_about(count):
            continue
        for dtype, size in product(goal.dtypes, goal.sizes):
            cell = Cell(
                *(goal.device, dtype, goal.work, size, count),
                *(goal.clock, goal.cache, goal.layout),
            )
            names = peers.setdefault(cell, [COPY])
            if goal.peer not in names:
                names.append(goal.peer)
    return [Task(cell, tuple(names)) for cell, names in peers.items()]


def markdown(rows: Sequence[Row]) -> str:
    """Every row that a goal is about, with the quartiles and the verdict on the median."""
    return _table(rows, "pipe")


def terminal(rows: Sequence[Row]) -> str:
    judged = [_met(row, goal) for goal, row in _pairs(rows)]
    return f"{_table(rows, 'simple')}\n{sum(judged)} of {len(judged)} met"


def _pairs(rows: Sequence[Row]) -> list[tuple[Goal, Row]]:
    return [
        (goal, row)
        for goal in (*GOALS, *GPU_GOALS)
        for row in rows
        if (row.cell.device, row.cell.clock) == (goal.device, goal.clock)
        and (row.cell.work, row.peer) == (goal.work, goal.peer)
        and row.cell.layout == goal.layout
        and goal.is_about(row.cell.threads)
        and row.cell.dtype in goal.dtypes
        and row.cell.size in goal.sizes
    ]


def _met(row: Row, goal: Goal) -> bool:
    return row.ratio.median >= goal.ratio


def _table(rows: Sequence[Row], form: str) -> str:
    lines = [
        (
            goal.work,
            goal.layout,
            row.cell.dtype,
            size_text(row.cell.size),
            threads_text(row.cell.threads) if goal.device == "cpu" else f"{goal.clock} time",
            goal.peer,
            f"{goal.ratio:.2f}",
            ratio_text(row.ratio),
            "met" if _met(row, goal) else "missed",
        )
        for goal, row in _pairs(rows)
    ]
    head = ("work", "layout", "dtype", "size", "threads", "peer", "goal", "peer / ours", "verdict")
    aligned = ("left",) * 3 + ("right", "left", "left", "right", "right", "left")
    return tabulate(lines, headers=head, tablefmt=form, colalign=aligned, disable_numparse=True)
