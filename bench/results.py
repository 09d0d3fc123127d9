"""What a run found, and its file: rows, what was left out and why, machine, commit, command.

One file a run, JSON with a line for each row; ``.json.gz`` is the same, compressed. Depends on
pandas where rows become a frame.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 3
OURS = "fused_sigmoid"
COPY = "copy_"
STREAMED_COPY = "copy, non-temporal"
COPIES = (COPY, STREAMED_COPY)
# What reading another file than a result raises.
NO_RESULT = (ValueError, TypeError, AttributeError, LookupError, EOFError, OSError, zlib.error)
FOLDER = Path(__file__).resolve().parent / "results"


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


@dataclass(frozen=True)
class Skip:
    """A row that is missing, and why."""

    cell: Cell
    peer: str
    reason: str


@dataclass
class Result:
    machine: dict[str, Any]  # see machine.describe
    source: dict[str, Any]  # see machine.commit
    date: str
    command: str
    kind: str = "grid"  # or goals, sweep
    elapsed_seconds: float = 0.0
    interrupted: bool = False
    rows: list[Row] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)


def frame(found: Sequence[Row] | Sequence[Skip]) -> pd.DataFrame:
    """A column for each field; those of the cell by their own names, "ours median" and so on."""
    import pandas as pd

    lines = [
        {key.removeprefix("cell "): value for key, value in _flat(asdict(each)).items()}
        for each in found
    ]
    return pd.DataFrame(lines)


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in nested.items():
        inner = isinstance(value, dict)
        found |= _flat(value, f"{prefix}{name} ") if inner else {prefix + name: value}
    return found


def write(result: Result, path: Path) -> None:
    document = {
        "schema": SCHEMA,
        **{each.name: getattr(result, each.name) for each in fields(Result)},
    }
    lines = []
    for key, value in document.items():
        if key in ("rows", "skips"):
            value = frame(value).to_dict(orient="split", index=False)
            rows = ",\n".join(json.dumps(_rounded(row)) for row in value["data"])
            lines.append(
                f'"{key}": {{"columns": {json.dumps(value["columns"])}, "data": [\n{rows}\n]}}'
            )
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    # No time in the compressed file: the same result gives the same bytes.
    data = text.encode()
    replace(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def replace_json(path: Path, document: dict[str, Any]) -> None:
    replace(path, json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n")


def replace(path: Path, data: bytes) -> None:
    """At once: a full disk or the end of the process leaves the file that was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_bytes(data)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _rounded(row: Sequence[Any]) -> list[Any]:
    """Without the digits that no clock has measured; None where there is no number."""
    return [
        (None if value != value else float(f"{value:.5g}")) if isinstance(value, float) else value
        for value in row
    ]


def read(path: Path) -> Result:
    """ValueError says what is wrong with the file."""
    data = path.read_bytes()
    try:
        document = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
        schema = document.pop("schema")
        if schema != SCHEMA:
            raise ValueError(f"its schema is {schema!r}, and this version reads {SCHEMA}")
        for name, kind in (("rows", Row), ("skips", Skip)):
            table = document[name]
            document[name] = [
                _unflat(kind, dict(zip(table["columns"], line, strict=True)))
                for line in table["data"]
            ]
        return Result(**document)
    except NO_RESULT as error:
        raise ValueError(f"{path} is no result of this benchmark: {error}") from error


def _unflat(kind: type, line: dict[str, Any]) -> Any:
    cell = Cell(**{each.name: line.pop(each.name) for each in fields(Cell)})
    quartiles = [each.name for each in fields(Spread)]
    spreads = {
        of: Spread(*(line.pop(f"{of} {name}") for name in quartiles))
        for of in ("ours", "theirs", "ratio")
        if f"{of} median" in line
    }
    return kind(cell=cell, **spreads, **line)


def write_record(path: Path, command: str, **content: Any) -> None:
    """Figures that are no rows of a run, with where they come from: date, commit, CPU, torch."""
    from bench import machine

    document = {**machine.origin(), "command": command, **content}
    replace_json(path, document)


def record_section(path: Path, section: str, figures: dict[str, Any]) -> None:
    """Keeps the figures of one long check in a file, beside those of the others."""
    from bench import machine

    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    document[section] = {
        "date": machine.today(),
        **machine.commit(),
        "cpu": machine.cpu_model(),
        "logical_cpus": os.cpu_count(),
        "versions": machine.versions(("torch", "triton", "hypothesis")),
        "figures": figures,
    }
    replace_json(path, dict(sorted(document.items())))
