"""What the kernels are to reach on a CPU, and whether a result reached it.

Depends on results, and on report's texts; measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate

from bench.report import ratio_text, size_text, threads_text
from bench.results import COPY, Row

HALVES = ("bfloat16", "float16")
KI, MI = 2**10, 2**20


@dataclass(frozen=True)
class Goal:
    """The peer's time is to be at least ``ratio`` of ours."""

    work: str
    dtypes: tuple[str, ...]
    sizes: tuple[int, ...]
    peer: str
    ratio: float


# One element may take 1.10 of nn.Sigmoid's time; everything else is to be faster by something.
LATENCY = 1 / 1.10
GOALS = (
    Goal("forward", ("float32",), (64 * KI, MI), "torch", 1.5),
    Goal("forward", HALVES, (64 * KI, MI), "torch", 2.0),
    Goal("forward", ("float64",), (64 * KI, MI), "torch", 1.0),
    Goal("forward", ("float32",), (16 * MI, 64 * MI), "torch", 1.1),
    Goal("forward", ("float32",), (16 * MI, 64 * MI), COPY, 0.95),
    Goal("forward-fresh", ("float32",), (16 * MI,), "torch", 4.0),
    Goal("forward-fresh", ("float32",), (16 * MI,), "torch+thp", 1.2),
    Goal("pair", ("float32", *HALVES), (64 * KI, MI), "torch", 2.0),
    Goal("pair", ("float64",), (64 * KI, MI), "torch", 1.4),
    Goal("pair", ("float32",), (16 * MI,), "torch", 6.0),
    Goal("training", ("float32", *HALVES), (64 * KI,), "torch", 1.2),
    Goal("training", ("float64",), (64 * KI,), "torch", 1.0),
    Goal("forward-fresh", ("float32",), (1,), "torch", LATENCY),
    Goal("training", ("float32",), (1,), "torch", LATENCY),
)


def markdown(rows: Sequence[Row]) -> str:
    """Every row that a goal is about, with the quartiles and the verdict on the median."""
    return _table(rows, "pipe")


def terminal(rows: Sequence[Row]) -> str:
    judged = [_met(row, goal) for goal, row in _pairs(rows)]
    return f"{_table(rows, 'simple')}\n{sum(judged)} of {len(judged)} met"


def _pairs(rows: Sequence[Row]) -> list[tuple[Goal, Row]]:
    return [
        (goal, row)
        for goal in GOALS
        for row in rows
        if row.cell.device == "cpu"
        and (row.cell.work, row.peer) == (goal.work, goal.peer)
        and row.cell.dtype in goal.dtypes
        and row.cell.size in goal.sizes
    ]


def _met(row: Row, goal: Goal) -> bool:
    return row.ratio.median >= goal.ratio


def _table(rows: Sequence[Row], form: str) -> str:
    lines = [
        (
            goal.work,
            row.cell.dtype,
            size_text(row.cell.size),
            threads_text(row.cell.threads),
            goal.peer,
            f"{goal.ratio:.2f}",
            ratio_text(row.ratio),
            "met" if _met(row, goal) else "missed",
        )
        for goal, row in _pairs(rows)
    ]
    head = ("work", "dtype", "size", "threads", "peer", "goal", "peer / ours", "verdict")
    aligned = ("left", "left", "right", "left", "left", "right", "right", "left")
    return tabulate(lines, headers=head, tablefmt=form, colalign=aligned, disable_numparse=True)
