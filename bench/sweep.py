"""Never slower than torch: the order in which a sweep walks its cells, and what it found, worst
first.

Depends on results, and on report's texts; measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from bench.report import cell_text, ratio_text, seconds_text, work_text
from bench.results import Cell, Result, Row, Task

PEER = "torch"
# What a terminal shows; the file holds all.
SHOWN = 40


def plan(cells: Sequence[Cell]) -> list[Task]:
    """A few sizes across the whole range first, then those between: wherever a time limit ends the
    walk, every work, dtype and layout has been met."""
    sizes = sorted({cell.size for cell in cells})

    def order(cell: Cell) -> tuple[int, int]:
        at = sizes.index(cell.size)
        # 0, 16, 8, 24, 4, 12, 20, 28, 2, ...: by the power of two that divides the place.
        return (-(at & -at) if at else -len(sizes), at)

    return [Task(cell, (PEER,)) for cell in sorted(cells, key=order)]


def verdict(row: Row) -> str:
    """Slower only where three quarters of the rounds say so."""
    if row.ratio.median >= 1:
        return ""
    return "slower" if row.ratio.third_quartile < 1 else "as fast"


def terminal(result: Result) -> str:
    worst = _worst_first(result.rows)
    lines = [
        (
            ratio_text(row.ratio),
            verdict(row),
            cell_text(row.cell),
            seconds_text(row.ours.median),
            seconds_text(row.theirs.median),
            row.rounds,
        )
        for row in worst[:SHOWN]
    ]
    head = (f"{PEER} / ours", "", "worst first", "ours", PEER, "rounds")
    slower = sum(verdict(row) == "slower" for row in worst)
    reasons = {skip.reason for skip in result.skips}
    missing = f"; {len(result.skips)} not measured ({'; '.join(sorted(reasons))})"
    return (
        f"{tabulate(lines, headers=head, disable_numparse=True)}\n\n"
        f"{_table(worst, 'simple')}\n\n"
        f"{slower} of {len(worst)} slower than {PEER}{missing if reasons else ''}"
    )


def markdown(rows: Sequence[Row]) -> str:
    """The worst of every work and layout."""
    return _table(_worst_first(rows), "pipe")


def _worst_first(rows: Sequence[Row]) -> list[Row]:
    return sorted((row for row in rows if row.peer == PEER), key=lambda row: row.ratio.median)


def _table(worst: Sequence[Row], form: str) -> str:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in worst:
        groups.setdefault((work_text(row.cell), row.cell.layout), []).append(row)
    lines = [
        (
            work,
            layout,
            len(rows),
            sum(verdict(row) == "slower" for row in rows),
            ratio_text(rows[0].ratio),
            cell_text(rows[0].cell),
        )
        for (work, layout), rows in groups.items()
    ]
    head = ("work", "layout", "cells", "slower", "worst", "where")
    aligned = ("left", "left", "right", "right", "right", "left")
    return tabulate(lines, headers=head, tablefmt=form, colalign=aligned, disable_numparse=True)
