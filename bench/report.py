"""Results as text: the table on the terminal and the tables a Markdown page shows.

Depends on results and tabulate; measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from tabulate import tabulate

from bench import roofline
from bench.results import COPIES, COPY, OURS, STREAMED_COPY, Cell, Result, Row, Skip, Spread

PREFIXES = ((2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki"))


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


def ratio_text(ratio: Spread) -> str:
    return f"{ratio.median:.2f} [{ratio.first_quartile:.2f}, {ratio.third_quartile:.2f}]"


def threads_text(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def cell_text(cell: Cell) -> str:
    """All that tells a cell from its neighbours, short."""
    place = threads_text(cell.threads) if cell.device == "cpu" else f"{cell.clock} clock"
    parts = [cell.dtype, work_text(cell), f"of {size_text(cell.size)}"]
    if cell.layout != "contiguous":
        parts.insert(2, cell.layout)
    return f"{' '.join(parts)}, {place}"


def work_text(cell: Cell) -> str:
    return cell.work if cell.saved == "auto" else f"{cell.work} saved={cell.saved}"


def terminal(result: Result) -> str:
    """Every row, a table for each dtype, work and thread count; then what was skipped."""
    parts = []
    shares = roofline.shares(result.rows)
    for title, rows in groups(result.rows).items():
        lines = [
            (
                size_text(row.cell.size),
                row.peer,
                seconds_text(row.ours.median),
                seconds_text(row.theirs.median),
                ratio_text(row.ratio),
                f"{row.gigabytes_per_second:.3g}",
                _percent(row.copy_fraction),
                shares[row.cell].binds if row.cell in shares else "",
            )
            for row in sorted(rows, key=lambda row: row.cell.size)
        ]
        head = ("size", "peer", "ours", "peer's", "peer / ours", "ours GB/s", "of copy_", "binds")
        aligned = ("right", "left", *("right",) * 5, "left")
        table = tabulate(lines, headers=head, colalign=aligned, disable_numparse=True)
        parts.append(f"{title}\n{table}")
    if result.skips:
        parts.append("skipped\n" + skipped(result.skips))
    return "\n\n".join(parts)


def groups(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows that belong in one table or one panel's story, in the order they were asked for."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        cell = row.cell
        title = (
            f"{cell.dtype}, {work_text(cell)}, {cell.layout}, {threads_text(cell.threads)},"
            f" {cell.device} ({cell.clock} clock, {cell.cache} cache)"
        )
        found.setdefault(title, []).append(row)
    return found


def skipped(skips: Sequence[Skip]) -> str:
    """One line for a peer and a reason, with the cells it covers."""

    def by(skip: Skip) -> tuple[str, str]:
        return skip.peer, skip.reason

    lines = []
    for (peer, reason), found in groupby(sorted(skips, key=by), key=by):
        lines.append((peer, _covered(list(found)), reason))
    return tabulate(lines, headers=("peer", "where", "why"), maxcolwidths=(None, 48, 60))


def _covered(skips: Sequence[Skip]) -> str:
    def values(of: Callable[[Skip], Any]) -> list[Any]:
        return list(dict.fromkeys(of(skip) for skip in skips))

    works, dtypes = values(lambda s: s.cell.work), values(lambda s: s.cell.dtype)
    sizes = sorted(values(lambda s: s.cell.size))
    span = size_text(sizes[0])
    if len(sizes) > 1:
        span += f" to {size_text(sizes[-1])}"
    return f"{len(skips)} rows: {', '.join(works)}; {', '.join(dtypes)}; {span}"


def markdown_speed(rows: Sequence[Row]) -> str:
    """Peer / ours for every size, one column a peer."""
    rows = [row for row in rows if row.peer not in COPIES]
    peers = list(dict.fromkeys(row.peer for row in rows))
    lines: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in rows:
        line = lines.setdefault(_key(row), {})
        line[row.peer] = f"{row.ratio.median:.2f}"
        line.setdefault(OURS, seconds_text(row.ours.median))
    return _markdown(lines, (OURS, *peers), {OURS: "ours"})


def markdown_roofline(rows: Sequence[Row]) -> str:
    """Time of ours, bytes a second, how much of a copy's speed that is, and what binds it."""
    lines: dict[tuple[Any, ...], dict[str, str]] = {}
    shares = roofline.shares(rows)
    streamed = roofline.streamed_fractions(rows)
    for row in rows:
        if row.peer != COPY:
            continue
        share = shares[row.cell]
        lines[_key(row)] = {
            "ours": seconds_text(row.ours.median),
            "GB/s": f"{row.gigabytes_per_second:.3g}",
            "of copy_": _percent(row.copy_fraction),
            f"of {STREAMED_COPY}": _percent(streamed.get(row.cell)),
            "of fastest size": _percent(share.arithmetic),
            "page faults": "" if row.page_faults is None else f"{row.page_faults:,.0f}",
            "binds": share.binds,
        }
    columns = list(next(iter(lines.values()), ()))
    for optional in (f"of {STREAMED_COPY}", "page faults"):
        if not any(line[optional] for line in lines.values()):
            columns.remove(optional)
    return _markdown(lines, columns, {})


def markdown_machine(results: Sequence[Result]) -> str:
    """Where, with what and when each result was measured."""
    lines = []
    for result in results:
        versions = result.machine["versions"]
        commit = (result.source["commit"] or "none")[:12]
        if result.source["dirty"]:
            commit += " with changes"
        lines.append(
            (
                result.machine["name"],
                result.machine["cpu_capability"],
                ", ".join(f"{name} {versions[name]}" for name in versions),
                commit,
                result.date[:10],
                f"`{result.command}`",
            )
        )
    head = ("device", "CPU capability", "versions", "commit", "date", "command")
    return tabulate(lines, headers=head, tablefmt="pipe", disable_numparse=True)


def origin_text(document: Mapping[str, Any], command: str) -> str:
    """Where a record comes from (machine.origin), as a sentence below its table."""
    commit = (document["commit"] or "none")[:12] + " with changes" * bool(document["dirty"])
    return (
        f"{document['cpu']}, one thread, torch {document['torch']}; commit {commit},"
        f" {document['date']}; `{command}`."
    )


def _key(row: Row) -> tuple[Any, ...]:
    cell = row.cell
    return (
        cell.device,
        cell.clock,
        threads_text(cell.threads),
        work_text(cell),
        cell.layout,
        cell.dtype,
        cell.size,
    )


def _markdown(
    lines: dict[tuple[Any, ...], dict[str, str]], columns: Sequence[str], names: dict[str, str]
) -> str:
    """A table that leads with what tells its lines apart; what all share is left out."""
    labels = ("device", "clock", "threads", "work", "layout", "dtype", "size")
    stories = list(dict.fromkeys(key[:-1] for key in lines))
    order = sorted(lines, key=lambda key: (stories.index(key[:-1]), key[-1]))
    last = len(labels) - 1
    differing = [at for at in range(last) if len({key[at] for key in lines}) > 1] + [last]
    table = [
        [size_text(key[at]) if at == last else key[at] for at in differing]
        + [line.get(column, "") for column in columns]
        for key, line in ((key, lines[key]) for key in order)
    ]
    head = [labels[at] for at in differing] + [names.get(column, column) for column in columns]
    aligned = ["left"] * (len(differing) - 1) + ["right"]
    aligned += ["left" if column == "binds" else "right" for column in columns]
    return tabulate(table, headers=head, tablefmt="pipe", colalign=aligned, disable_numparse=True)


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.0f} %"
