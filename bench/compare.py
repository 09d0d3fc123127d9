"""Two result files side by side: what a change did to every row, the worst first.

Depends on results, and on report's texts; measures nothing.
"""

from __future__ import annotations

from tabulate import tabulate

from bench.report import cell_text, ratio_text, seconds_text
from bench.results import Cell, Result, Row


def terminal(before: Result, after: Result) -> str:
    """Sorted by the change of the paired ratio, which a machine's mood moves less than a time."""
    earlier, later = _rows(before), _rows(after)
    both = [(earlier[key], later[key]) for key in earlier if key in later]
    both.sort(key=lambda pair: pair[1].ratio.median / pair[0].ratio.median)
    lines = [
        (
            f"{b.ratio.median / a.ratio.median:.2f}",
            ratio_text(a.ratio),
            ratio_text(b.ratio),
            seconds_text(a.ours.median),
            seconds_text(b.ours.median),
            f"{a.ours.median / b.ours.median:.2f}",
            b.peer,
            cell_text(b.cell),
        )
        for a, b in both
    ]
    head = ("B / A", "A: peer / ours", "B: peer / ours", "ours A", "ours B", "A / B", "peer", "row")
    table = tabulate(lines, headers=head, disable_numparse=True)
    alone = (
        f"{len(both)} rows in both, {len(earlier) - len(both)} in A alone,"
        f" {len(later) - len(both)} in B alone"
    )
    return f"{_described('A', before)}\n{_described('B', after)}\n\n{table}\n\n{alone}"


def _rows(result: Result) -> dict[tuple[Cell, str], Row]:
    return {(row.cell, row.peer): row for row in result.rows}


def _described(letter: str, result: Result) -> str:
    commit = (result.source["commit"] or "none")[:12] + " with changes" * bool(
        result.source["dirty"]
    )
    return f"{letter}: {result.machine['name']}, {commit}, {result.date}: {result.command}"
