"""A record of figures in a file: written, read, printed and drawn by the command of its bench.
Depends on machine for where it was made."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

Row = TypeVar("Row")


def write(path: Path, rows: Sequence[Any]) -> None:
    from bench import machine

    document = {**machine.origin(), "rows": [asdict(row) for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read(path: Path, row: Callable[..., Row]) -> tuple[dict[str, Any], list[Row]]:
    """Where it was measured, and the rows."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return document, [row(**values) for values in document.pop("rows")]


def save(figure: Any, path: Path) -> None:
    """A picture of a record, by matplotlib."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # No software version in the file: the same record gives the same bytes.
    figure.savefig(path, dpi=130, metadata={"Software": None})


class Chosen(NamedTuple):
    measure: bool
    output: Path | None


def parse(
    arguments: Sequence[str] | None, command: str, description: str, measures: str, path: Path
) -> Chosen:
    parser = argparse.ArgumentParser(prog=f"python -m {command}", description=description)
    add = parser.add_argument
    add("--measure", action="store_true", help=f"{measures} anew and record it in {path.name}")
    add("--output", type=Path, metavar="PICTURE.png", help="draw the record into this file")
    chosen = parser.parse_args(arguments)
    return Chosen(chosen.measure, chosen.output)
