"""Results as text on the terminal: rows, goals, a sweep, two results beside each other. Depends on
results, goals and tabulate; measures nothing.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from itertools import groupby

from tabulate import tabulate

from bench import goals
from bench.results import Cell, Result, Row, Skip, Spread

PREFIXES = ((2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki"))
# Columns of words; the others are numbers, aligned at the right.
WORDS = ("peer", "verdict", "row")
# Of a sweep; the file holds all.
SHOWN = 40

Line = dict[str, str]


def size_text(size: int) -> str:
    """1024 as '1 Ki'; sizes that are no whole number of a prefix in full."""
    for factor, prefix in PREFIXES:
        if size >= factor and size % factor == 0:
            return f"{size // factor} {prefix}"
    return f"{size:,}"


def seconds_text(seconds: float) -> str:
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _ratio(ratio: Spread, name: str = "peer / ours") -> Line:
    quartiles = f"[{ratio.first_quartile:.2f}, {ratio.third_quartile:.2f}]"
    return {name: f"{ratio.median:.2f}", "quartiles": quartiles}


def threads_text(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def work_text(cell: Cell) -> str:
    kept = "" if cell.saved == "auto" else f" saved={cell.saved}"
    return cell.work + kept + f" {cell.layout}" * (cell.layout != "contiguous")


def place_text(cell: Cell) -> str:
    return threads_text(cell.threads) if cell.device == "cpu" else f"{cell.clock} time"


def cell_text(cell: Cell) -> str:
    """All that tells a cell from its neighbours, short."""
    return f"{cell.dtype} {work_text(cell)} of {size_text(cell.size)}, {place_text(cell)}"


def table(lines: Sequence[Line], droppable: Sequence[str] = ()) -> str:
    """As wide as the terminal: columns go, the first of ``droppable`` first, until the rest fits;
    what is too wide still is cut."""
    if not lines:
        return "no rows"
    kept, width = list(lines[0]), terminal_width()
    for dropped in (None, *droppable):
        kept = [name for name in kept if name != dropped]
        shown = tabulate(
            [[line[name] for name in kept] for line in lines],
            headers=kept,
            colalign=["left" if name in WORDS else "right" for name in kept],
            disable_numparse=True,
        ).splitlines()
        if max(map(len, shown)) <= width:
            break
    return _cut("\n".join(shown))


def _cut(text: str) -> str:
    width = terminal_width()
    lines = text.splitlines()
    return "\n".join(line if len(line) <= width else line[: width - 2] + ".." for line in lines)


def terminal_width() -> int:
    if "COLUMNS" in os.environ or sys.stdout.isatty():
        return shutil.get_terminal_size().columns
    return sys.maxsize


def rows_text(result: Result) -> str:
    """Every row, a table for each dtype, work and thread count; then what was skipped."""
    tables: dict[str, list[Line]] = {}
    for row in sorted(result.rows, key=lambda row: row.cell.size):
        cell, of_copy = row.cell, row.copy_fraction
        title = f"{cell.dtype} {work_text(cell)}, {cell.device}, {place_text(cell)}, {cell.cache}"
        line = {
            "size": size_text(cell.size),
            "peer": row.peer,
            "ours": seconds_text(row.ours.median),
            "peer's": seconds_text(row.theirs.median),
            **_ratio(row.ratio),
            "ours GB/s": f"{row.bytes_moved / row.ours.median / 1e9:.3g}",
            "of copy_": "" if of_copy is None else f"{100 * of_copy:.0f} %",
        }
        tables.setdefault(f"{title} cache", []).append(line)
    droppable = ("ours GB/s", "of copy_", "quartiles", "peer's", "ours")
    parts = [f"{title}\n{table(lines, droppable)}" for title, lines in tables.items()]
    return _with_skips(result.skips, *parts)


def _with_skips(skips: Sequence[Skip], *parts: str) -> str:
    return "\n\n".join([*parts, *([skipped(skips)] if skips else [])])


def skipped(skips: Sequence[Skip]) -> str:
    """A line or two for a peer and a reason, with the cells it covers."""

    def by(skip: Skip) -> tuple[str, str]:
        return skip.peer, skip.reason

    lines = ["skipped:"]
    for (peer, reason), group in groupby(sorted(skips, key=by), key=by):
        cells = [skip.cell for skip in group]
        works, dtypes = ({getattr(c, name): 1 for c in cells} for name in ("work", "dtype"))
        sizes = sorted({cell.size for cell in cells})
        span = " to ".join(size_text(size) for size in dict.fromkeys((sizes[0], sizes[-1])))
        count = f"{len(cells)} row{'s' * (len(cells) > 1)}"
        where = f"{count} of {', '.join(works)}; {', '.join(dtypes)}; {span}"
        line = f"{peer}: {reason} ({where})"
        lines.append(textwrap.fill(line, min(terminal_width(), 100), subsequent_indent="    "))
    return "\n".join(lines)


def goals_text(rows: Sequence[Row], skips: Sequence[Skip] = ()) -> str:
    about = goals.judged(rows)
    lines = []
    for row in about.to_dict("records"):
        cell = Cell(**{each.name: row[each.name] for each in fields(Cell)})
        quartiles = Spread(*(row[f"ratio {each.name}"] for each in fields(Spread)))
        line = {"verdict": "met" if row["met"] else "missed", "goal": f"{row['goal']:.2f}"}
        lines.append(line | _ratio(quartiles) | {"peer": row["peer"], "row": cell_text(cell)})
    counted = f"{table(lines, ('quartiles',))}\n{sum(about['met'])} of {len(about)} met"
    return _with_skips(skips, counted)


def sweep_text(result: Result) -> str:
    """The worst rows beside torch, and how many are slower."""
    rows = [row for row in result.rows if row.peer == "torch"]
    rows.sort(key=lambda row: row.ratio.median)
    worst = [
        {
            **_ratio(row.ratio, "torch / ours"),
            "verdict": _verdict(row),
            "row": cell_text(row.cell),
            "ours": seconds_text(row.ours.median),
            "torch": seconds_text(row.theirs.median),
            "rounds": str(row.rounds),
        }
        for row in rows[:SHOWN]
    ]
    slower = sum(_verdict(row) == "slower" for row in rows)
    verdict = f"{slower} of {len(rows)} rows slower than torch"
    shown = table(worst, ("rounds", "torch", "ours", "quartiles"))
    return _with_skips(result.skips, shown, verdict)


def is_slower(third_quartile: float) -> bool:
    """By the ratio's: only where three quarters of the rounds say so."""
    return third_quartile < 1


def _verdict(row: Row) -> str:
    slower = is_slower(row.ratio.third_quartile)
    return "slower" if slower else "as fast" * (row.ratio.median < 1)


def compared(before: Result, after: Result) -> str:
    """What a change did to every row, the worst first: sorted by the change of the paired ratio,
    which a machine's mood moves less than a time."""
    earlier, later = ({(r.cell, r.peer): r for r in each.rows} for each in (before, after))
    both = [(earlier[key], later[key]) for key in earlier if key in later]
    both.sort(key=lambda pair: pair[1].ratio.median / pair[0].ratio.median)
    lines = [
        {
            "B / A": f"{b.ratio.median / a.ratio.median:.2f}",
            **_ratio(a.ratio, "peer / ours: A"),
            **_ratio(b.ratio, "B"),
            "ours A": seconds_text(a.ours.median),
            "ours B": seconds_text(b.ours.median),
            "A / B": f"{a.ours.median / b.ours.median:.2f}",
            "peer": b.peer,
            "row": cell_text(b.cell),
        }
        for a, b in both
    ]
    described = []
    for letter, result in (("A", before), ("B", after)):
        commit = (result.source["commit"] or "none")[:12]
        changed = " with changes" * bool(result.source["dirty"])
        name = result.machine["name"]
        described.append(f"{letter}: {name}, {commit}{changed}, {result.date}: {result.command}")
    only_a, only_b = len(earlier) - len(both), len(later) - len(both)
    counted = f"{len(both)} rows in both, {only_a} in A alone, {only_b} in B alone"
    shown = table(lines, ("A / B", "ours A", "ours B", "quartiles", "peer / ours: A"))
    return "\n".join([*map(_cut, described), "", shown, "", counted])
