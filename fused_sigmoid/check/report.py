"""What ``check`` found: rows of figures with their bounds, as a table and as JSON. Depends on
tabulate and the standard library; measures nothing."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from tabulate import tabulate

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
# Those with a column of their own.
COLUMNS = ("misrounded", "zeroed", "decreasing")

NOTE = """\
Pairs are ours / torch's. misrounded: not the nearest number. zeroed: 0 where that is not 0.
falling: a step in the wrong direction from the input before. t: the target of a loss. A verdict
covers as well: NaN for NaN and nothing else; σ in [0, 1], σ' in [0, 1/4], no loss below 0; σ' even
to the last bit, and the loss of t = 1 at -x that of t = 0 at x; the results at ±0, ±inf and the
largest numbers; the same bits from every function and every instruction set."""


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


def text(report: Report) -> str:
    """A table for each dtype and unit, and the verdict in one line."""
    tables: dict[str, list[Row]] = {}
    for row in report.rows:
        measure = "ulp" if row.unit == "ulp" else "relative error"
        title = f"{row.dtype}, {measure}: {row.inputs:,} inputs against {row.reference}"
        tables.setdefault(title, []).append(row)
    parts = [f"{title}\n{_table(rows)}" for title, rows in tables.items()]
    parts.append(NOTE)
    parts.append(verdict(report))
    return "\n\n".join(parts)


def verdict(report: Report) -> str:
    """Whether all bounds hold, or which do not."""
    seconds = f"{sum(report.seconds.values()):.0f} s"
    if report.passed:
        return f"all bounds hold ({seconds})"
    where: dict[str, list[str]] = {}
    for row in report.rows:
        for name in row.missed:
            what = f"{row.dtype} {row.quantity}: {FIGURES[name]}"
            where.setdefault(what, []).append(row.where)
    count = sum(map(len, where.values()))
    which = "; ".join(f"{what} ({', '.join(places)})" for what, places in where.items())
    return f"{count} {'bound' if count == 1 else 'bounds'} missed ({seconds}): {which}"


def _table(rows: list[Row]) -> str:
    counted = [name for name in COLUMNS if any(name in row.figures for row in rows)]
    bounded = any(row.figures["error"].bound is not None for row in rows)
    head = [
        "kernels",
        "quantity",
        "error",
        "at x",
        *["bound"] * bounded,
        "torch's",
        *[FIGURES[name] for name in counted],
    ]
    lines = []
    for row in rows:
        error = row.figures["error"]
        line = [row.where, row.quantity, _number(error.ours)]
        line.append("" if error.at is None else f"{error.at:.6g}")
        if bounded:
            line.append("" if error.bound is None else f"{error.bound:g}")
        line.append(_number(error.torch))
        for name in counted:
            figure = row.figures.get(name)
            line.append("" if figure is None else f"{_count(figure.ours)} / {_count(figure.torch)}")
        missed = ", ".join(FIGURES[name] for name in row.missed)
        lines.append([*line, f"MISSED: {missed}" if missed else "holds"])
    aligned = ["left", "left", *["right"] * (len(head) - 2), "left"]
    head.append("verdict")
    return tabulate(lines, headers=head, colalign=aligned, disable_numparse=True)


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
