"""What a run found, and its JSON and CSV files: rows, skips, machine, command.

Depends on the standard library only, so that figures can be drawn where torch is not.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

SCHEMA = 2
OURS = "fused_sigmoid"
COPY = "copy_"
STREAMED_COPY = "copy, non-temporal"
COPIES = (COPY, STREAMED_COPY)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of one quantity over the rounds."""

    first_quartile: float
    median: float
    third_quartile: float


@dataclass(frozen=True)
class Cell:
    """One point of the grid. ``clock`` is wall (host time) or device (graph or events)."""

    device: str
    dtype: str
    work: str
    size: int
    threads: int
    clock: str
    cache: str
    layout: str = "contiguous"
    saved: str = "auto"


class Task(NamedTuple):
    """A cell and the names of the peers to measure in it."""

    cell: Cell
    peers: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """Ours beside one peer in one cell. Times are seconds per call; ratio is peer / ours."""

    cell: Cell
    peer: str
    ours: Spread
    theirs: Spread
    ratio: Spread
    rounds: int
    timer: str
    process: str
    input_sets: int
    bytes_moved: int
    copy_seconds: float | None
    copy_fraction: float | None
    page_faults: float | None = None  # of a call of ours

    @property
    def gigabytes_per_second(self) -> float:
        return self.bytes_moved / self.ours.median / 1e9


@dataclass(frozen=True)
class Skip:
    """A row that is missing, and why."""

    cell: Cell
    peer: str
    reason: str


@dataclass
class Result:
    machine: dict[str, Any]
    source: dict[str, Any]
    date: str
    command: str
    rows: list[Row] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    elapsed_seconds: float = 0.0
    interrupted: bool = False
    kind: str = "bench"
    peak_memory: list[dict[str, Any]] = field(default_factory=list)  # see memory.py


def write(result: Result, path: Path) -> None:
    document = {"schema": SCHEMA, **asdict(result)}
    document["rows"] = _by_columns(document["rows"])
    document["skips"] = _by_columns(document["skips"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_one_row_a_line(_rounded(document)), encoding="utf-8")


def _by_columns(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The names once, and once the values that are the same in every row: a sweep has thousands."""
    flat = [_flat(row) for row in rows]
    names = list(flat[0]) if flat else []
    same = [name for name in names if all(row[name] == flat[0][name] for row in flat)]
    columns = [name for name in names if name not in same]
    return {
        "count": len(flat),
        "in_every_row": {name: flat[0][name] for name in same},
        "columns": columns,
        "rows": [[row[name] for name in columns] for row in flat],
    }


def _from_columns(table: dict[str, Any]) -> list[dict[str, Any]]:
    if len(table["rows"]) != table["count"]:
        raise ValueError(f"{len(table['rows'])} rows where {table['count']} were written")
    return [
        table["in_every_row"] | dict(zip(table["columns"], row, strict=True))
        for row in table["rows"]
    ]


def _rounded(value: Any) -> Any:
    """Without the digits that no clock has measured."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _one_row_a_line(document: dict[str, Any]) -> str:
    """JSON that stays readable and, of two versions, comparable."""

    def text(value: Any, indent: str = "") -> str:
        if isinstance(value, dict) and "columns" in value:
            inner = (f"{indent} {json.dumps(key)}: {text(value[key], ' ')}" for key in value)
            return "{\n" + ",\n".join(inner) + f"\n{indent}}}"
        if not isinstance(value, list) or not value or not isinstance(value[0], (list, dict)):
            return json.dumps(value)
        return "[\n" + ",\n".join(json.dumps(item) for item in value) + f"\n{indent}]"

    lines = (f"{json.dumps(key)}: {text(value)}" for key, value in document.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write_csv(result: Result, path: Path) -> None:
    """The rows alone, one a line; a column for each quartile."""
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        flat = [_flat(asdict(row)) for row in result.rows]
        lines.writerow(flat[0] if flat else [field.name for field in fields(Row)])
        lines.writerows(line.values() for line in flat)


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in nested.items():
        if name == "cell":
            found.update(_flat(value))
        elif isinstance(value, dict):
            found.update(_flat(value, f"{name} "))
        else:
            found[prefix + name] = value
    return found


def read(path: Path) -> Result:
    document = json.loads(path.read_text(encoding="utf-8"))
    schema = document.pop("schema", None)
    if schema != SCHEMA:
        raise ValueError(f"{path}: schema is {schema!r}; this version reads {SCHEMA}")
    document["rows"] = [_row(stored) for stored in _from_columns(document["rows"])]
    document["skips"] = [
        Skip(_cell(stored), **stored) for stored in _from_columns(document["skips"])
    ]
    return Result(**document)


def _cell(stored: dict[str, Any]) -> Cell:
    """Takes its columns out of the row."""
    return Cell(**{name.name: stored.pop(name.name) for name in fields(Cell)})


def _spread(stored: dict[str, Any], of: str) -> Spread:
    return Spread(**{name.name: stored.pop(f"{of} {name.name}") for name in fields(Spread)})


def _row(stored: dict[str, Any]) -> Row:
    cell = _cell(stored)
    spreads = {of: _spread(stored, of) for of in ("ours", "theirs", "ratio")}
    return Row(cell, **spreads, **stored)
