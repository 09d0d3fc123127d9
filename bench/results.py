"""What a run found, and its JSON and CSV files: rows, skips, machine, command.

Depends on the standard library only, so that figures can be drawn where torch is not.
"""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

SCHEMA = 1
OURS = "fused_sigmoid"
COPY = "copy_"


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of one quantity over the rounds."""

    first_quartile: float
    median: float
    third_quartile: float


@dataclass(frozen=True)
class Cell:
    """One point of the grid. ``clock`` is wall (host time) or device (graph or events)."""

    # The fields with a default came later than files that are still read.

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
    for stored, row in zip(document["rows"], result.rows, strict=True):
        stored["gigabytes_per_second"] = row.gigabytes_per_second
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_one_row_a_line(_rounded(document)), encoding="utf-8")


def _rounded(value: Any) -> Any:
    """Without the digits that no clock has measured."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _one_row_a_line(document: dict[str, Any]) -> str:
    """JSON, so that a sweep of thousands of cells stays readable and small."""

    def text(value: Any) -> str:
        if not isinstance(value, list) or not value:
            return json.dumps(value)
        return "[\n" + ",\n".join(json.dumps(item) for item in value) + "\n]"

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
    document["rows"] = [_row(stored) for stored in document["rows"]]
    document["skips"] = [
        Skip(Cell(**stored["cell"]), stored["peer"], stored["reason"])
        for stored in document["skips"]
    ]
    return Result(**document)


def _row(stored: dict[str, Any]) -> Row:
    stored.pop("gigabytes_per_second")  # derived; written for whoever reads the file alone
    for name in ("ours", "theirs", "ratio"):
        stored[name] = Spread(**stored[name])
    stored["cell"] = Cell(**stored["cell"])
    return Row(**stored)
