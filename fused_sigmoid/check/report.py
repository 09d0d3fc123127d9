"""What ``check`` found: rows of figures with their bounds, as text and as JSON. Depends on tabulate
and the standard library; measures nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from tabulate import tabulate

from .._terminal import paragraph

SCHEMA = 1

# Every figure but the error counts inputs. The words stand in a verdict.
FIGURES = {
    "error": "error",
    "misrounded": "misrounded",
    "zeroed": "zeroed",
    "decreasing": "falling",
    "misplaced_nan": "NaN",
    "outside_range": "range",
    "asymmetric": "symmetry",
    "special_values": "special values",
    "unlike_pair": "unlike the pair",
    "unlike_first_set": "unlike the first set",
}
# Those with a column of their own, beside torch's.
COUNTED = ("misrounded", "zeroed", "decreasing")
COLUMNS = (
    *("dtype", "quantity", "largest error", "bound", "torch's"),
    *("misrounded", "zeroed", "falling", "kernels", "at x", "missed"),
)
TEXTS = ("dtype", "quantity", "kernels", "missed")
# What narrow terminals do without, first the first.
LEAST_NEEDED = ("at x", "falling", "misrounded", "zeroed", "kernels")
# Rows that are shown when all bounds hold: float32 has so many.
NEAREST = 6
# Kinds of missed bounds in the verdict; the table has all.
NAMED = 3

NOTE_WIDTH = 100
NOTE = """\
Pairs are ours / torch's. misrounded: not the nearest number. zeroed: 0 where that is not 0.
falling: a step in the wrong direction from the input before. t: the target of a loss. There are
bounds as well on: NaN for NaN and nothing else; σ in [0, 1], σ' in [0, 1/4], no loss below 0; σ'
even to the last bit, and the loss of t = 1 at -x that of t = 0 at x; the results at ±0, ±inf and
the largest numbers; the same bits from every function and every instruction set."""


@dataclass(frozen=True)
class Figure:
    """One thing measured. ``at`` is the input with the largest error; ``bound`` None means that
    the figure is for information."""

    ours: float
    bound: float | None = None
    at: float | None = None
    torch: float | None = None
    torch_at: float | None = None

    @property
    def passed(self) -> bool:
        return self.bound is None or self.ours <= self.bound


@dataclass(frozen=True)
class Row:
    """One quantity of one dtype from one device's kernels. ``unit`` is that of the error: "ulp",
    or "relative"."""

    device: str
    kernels: str
    dtype: str
    quantity: str
    inputs: int
    reference: str
    unit: str
    figures: dict[str, Figure]

    @property
    def missed(self) -> list[str]:
        return [name for name, figure in self.figures.items() if not figure.passed]

    @property
    def nearness(self) -> float:
        """The error as a part of its bound; 0 of one that has none."""
        error = self.figures["error"]
        return error.ours / error.bound if error.bound else 0.0

    @property
    def where(self) -> str:
        return f"{self.device} {self.kernels}"


@dataclass
class Report:
    """Rows, and on what and how they were measured. ``seconds`` holds the wall time of each part
    of the work."""

    full: bool
    extent: dict[str, int]
    date: str
    versions: dict[str, str]
    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def missed(self) -> list[str]:
        return [
            f"{row.where}, {row.dtype}, {row.quantity}: {FIGURES[name]}"
            for row in self.rows
            for name in row.missed
        ]

    @property
    def passed(self) -> bool:
        return not self.missed


def document(report: Report) -> dict[str, Any]:
    """The whole report, ready for strict JSON: infinite errors are the string "inf"."""
    rows = []
    for row in report.rows:
        stored = asdict(row) | {"passed": not row.missed}
        for name, figure in row.figures.items():
            entries = asdict(figure) | {"passed": figure.passed}
            stored["figures"][name] = {key: _strict(entry) for key, entry in entries.items()}
        rows.append(stored)
    return {
        "schema": SCHEMA,
        "passed": report.passed,
        "missed": report.missed,
        "full": report.full,
        "extent": report.extent,
        "date": report.date,
        "versions": report.versions,
        "machine": report.machine,
        "seconds": {name: round(seconds, 2) for name, seconds in report.seconds.items()},
        "rows": rows,
    }


def text(report: Report, every: bool = False, width: int | None = None) -> str:
    """The verdict in a sentence, then the rows that miss a bound or are nearest to one, or every
    row. Tables leave out columns that do not fit into ``width``, where there is one."""
    parts = _every(report.rows, width) if every else _worst(report, width)
    return "\n\n".join([paragraph(verdict(report), width), *parts])


def verdict(report: Report) -> str:
    """Whether all bounds hold, or which do not; of how many results, and where."""
    names = {"cpu": report.machine["cpu"]}
    names |= {f"cuda:{index}": name for index, name in enumerate(report.machine["cuda"])}
    devices = [
        f"{names[device]} ({', '.join(kernels)})"
        for device, kernels in _kernels(report.rows).items()
    ]
    results = sum(row.inputs for row in report.rows)
    seconds = sum(report.seconds.values())
    checked = f"{results:,} results checked on {' and '.join(devices)} in {seconds:.0f} s"
    if report.passed:
        return f"All bounds hold: {checked}."
    missed: dict[str, list[Row]] = {}
    for row in report.rows:
        for name in row.missed:
            missed.setdefault(f"{row.dtype} {row.quantity}: {FIGURES[name]}", []).append(row)
    which = [f"{what} ({_where(rows)})" for what, rows in missed.items()]
    if len(which) > NAMED:
        which[NAMED:] = [f"and {len(which) - NAMED} more"]
    count = len(report.missed)
    found = "1 bound does not hold" if count == 1 else f"{count} bounds do not hold"
    return f"{found}: {'; '.join(which)}. {checked}."


def _every(rows: Iterable[Row], width: int | None) -> Iterator[str]:
    tables: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        title = f"{row.dtype}: {row.inputs:,} inputs against {row.reference}"
        tables.setdefault(title, []).append({"kernels": row.where} | _error(row) | _pairs(row))
    for title, lines in tables.items():
        yield f"{paragraph(title, width)}\n{_table(lines, width)}"
    yield paragraph(NOTE, min(width or NOTE_WIDTH, NOTE_WIDTH))


def _worst(report: Report, width: int | None) -> Iterator[str]:
    yield _table(_nearest(report.rows), width)
    yield (
        f"Zero where that is not right: {_sums(report.rows, 'zeroed')}.\n"
        f"Not the nearest number, in 16 bits: {_sums(report.rows, 'misrounded')}."
    )
    yield "--all shows every row" + ("." if report.full else "; --full checks all of float32.")


def _nearest(rows: Iterable[Row]) -> list[dict[str, str]]:
    """The rows that miss a bound, and the ``NEAREST`` nearest to theirs; rows whose figures are the
    same, though at another x, in one."""
    alike: dict[tuple[str, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (not row.missed, -row.nearness)):
        figures = _error(row) | {"quantity": "", "at x": ""}
        alike.setdefault((row.dtype, *figures.values()), []).append(row)
    lines: list[dict[str, str]] = []
    for found in alike.values():
        first = found[0]
        if first.missed or (first.nearness and len(lines) < NEAREST):
            names = dict.fromkeys(row.quantity for row in found)
            if len(names) > 1:  # what all ways to save have in common is named once
                names = dict.fromkeys(name.partition(", saved=")[0] for name in names)
            line = {"kernels": _where(found), "dtype": first.dtype} | _error(first)
            lines.append(line | {"quantity": "; ".join(names)})
    return lines


def _kernels(rows: Iterable[Row]) -> dict[str, list[str]]:
    """The names of the kernels by device, each once."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        found.setdefault(row.device, {})[row.kernels] = None
    return {device: list(names) for device, names in found.items()}


def _where(rows: Iterable[Row]) -> str:
    return "; ".join(f"{device} {', '.join(names)}" for device, names in _kernels(rows).items())


def _sums(rows: Iterable[Row], name: str) -> str:
    """The counts of all rows that may have none."""
    figures = [row.figures[name] for row in rows if name in row.figures]
    bounded = [figure for figure in figures if figure.bound == 0]
    ours = sum(figure.ours for figure in bounded)
    of_torch = sum(figure.torch or 0 for figure in bounded)
    return f"{ours:,.0f} of ours, {of_torch:,.0f} of torch's"


def _error(row: Row) -> dict[str, str]:
    error = row.figures["error"]
    counts = {
        name: "" if name == "error" else f" {_count(row.figures[name].ours)}" for name in row.missed
    }
    return {
        "quantity": row.quantity,
        "largest error": _number(error.ours),
        "at x": "" if error.at is None else f"{error.at:.6g}",
        "bound": "nearest" if error.bound is None else f"{error.bound:g} {row.unit}",
        "torch's": _number(error.torch),
        "missed": ", ".join(f"{FIGURES[name]}{count}" for name, count in counts.items()),
    }


def _pairs(row: Row) -> dict[str, str]:
    figures = {name: row.figures[name] for name in COUNTED if name in row.figures}
    return {
        FIGURES[name]: f"{_count(figure.ours)} / {_count(figure.torch)}"
        for name, figure in figures.items()
    }


def _table(lines: list[dict[str, str]], width: int | None) -> str:
    """Of the columns that are not empty; without those least needed, if it is too wide."""
    columns = {name: [line.get(name, "") for line in lines] for name in COLUMNS}
    columns = {name: entries for name, entries in columns.items() if any(entries)}
    table = _aligned(columns)
    for name in LEAST_NEEDED:
        if width is not None and max(map(len, table.splitlines()), default=0) > width:
            columns.pop(name, None)
            table = _aligned(columns)
    return table


def _aligned(columns: dict[str, list[str]]) -> str:
    alignment = ["left" if name in TEXTS else "right" for name in columns]
    return tabulate(columns, headers="keys", colalign=alignment, disable_numparse=True)


def _number(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:.3f}" if 0.001 <= number < 1000 else f"{number:.3g}"


def _count(number: float | None) -> str:
    if number is None:
        return "-"
    return f"{number:,.0f}" if number < 1e6 else f"{number:.3g}"


def _strict(entry: Any) -> Any:
    return str(entry) if isinstance(entry, float) and not math.isfinite(entry) else entry
