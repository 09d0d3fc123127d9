"""Which resource binds a row, decided from what was measured beside it.

Depends on results only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bench.results import COPY, STREAMED_COPY, Cell, Row

# Up to here a call's fixed cost is all there is: a vector or two of arithmetic.
LARGEST_OVERHEAD_SIZE = 64
# A resource that explains so much of the time is what binds it; of overhead, which hides behind
# nothing, half is enough.
EXPLAINED = 0.75
OVERHEAD_SHARE = 0.5

CALL, ARITHMETIC, MEMORY = "call overhead", "arithmetic in cache", "memory bandwidth"
PAGE_FAULTS, NOTHING, NOT_DECIDED = "page faults", "none alone", "none of the measured"


@dataclass(frozen=True)
class Shares:
    """The parts of a call's time that each resource would take alone; None where not measured."""

    overhead: float | None
    arithmetic: float
    memory: float | None
    page_faults: float | None

    @property
    def binds(self) -> str:
        """Overhead first, as a copy has its own; then what explains the time, the larger first;
        what neither explains is page faults where there were any."""
        if self.overhead is not None and self.overhead >= OVERHEAD_SHARE:
            return CALL
        most, name = max((self.arithmetic, ARITHMETIC), (self.memory or 0.0, MEMORY))
        if most >= EXPLAINED:
            return name
        if self.page_faults is None:
            return NOT_DECIDED
        return PAGE_FAULTS if self.page_faults >= 1 else NOTHING


def streamed_fractions(rows: Sequence[Row]) -> dict[Cell, float]:
    """How much of the speed of a copy past the caches ours has, where there is one beside it."""
    return {row.cell: row.ratio.median for row in rows if row.peer == STREAMED_COPY}


def shares(rows: Sequence[Row]) -> dict[Cell, Shares]:
    """Of every cell with a copy beside it: the plateau is the fewest ns per element at any size of
    the same work, the overhead the time of the smallest, memory what the faster copy takes."""
    streamed = streamed_fractions(rows)
    copies = [row for row in rows if row.peer == COPY]
    stories: dict[Cell, list[Row]] = {}
    for row in copies:
        stories.setdefault(replace(row.cell, size=0), []).append(row)
    return {
        row.cell: _shares(row, stories[replace(row.cell, size=0)], streamed.get(row.cell))
        for row in copies
    }


def _shares(row: Row, story: Iterable[Row], streamed: float | None) -> Shares:
    times = {other.cell.size: other.ours.median for other in story}
    seconds, size, copy = row.ours.median, row.cell.size, row.copy_fraction
    smallest = min(times)
    plateau = min(time / elements for elements, time in times.items())
    return Shares(
        overhead=times[smallest] / seconds if smallest <= LARGEST_OVERHEAD_SIZE else None,
        arithmetic=plateau * size / seconds,
        memory=copy if copy is None or streamed is None else min(copy, streamed),
        page_faults=row.page_faults,
    )
