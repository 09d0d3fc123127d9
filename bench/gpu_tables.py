"""Tables of what a visit to a GPU found beside the rows of a result: the variants of the kernels,
and what the extension's launch saves. Measures nothing.

Depends on results and report's texts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench import report, results
from bench.results import Cell

FOLDER = Path(__file__).resolve().parent / "results/cuda-h100"
COPY_KERNEL = "copy kernel, 1024/4"


def variants() -> str:
    """Time of every variant at each size, in microseconds; works and dtypes are the columns."""
    document = json.loads((FOLDER / "variants.json").read_text(encoding="utf-8"))
    measured = [entry for entry in document["found"] if "microseconds" in entry]
    large = max(entry["size"] for entry in measured)
    smallest_large = 4 * 2**20
    tables = []
    for title, chosen in (
        ("128 MiB a tensor", [e for e in measured if e["size"] >= smallest_large]),
        ("small tensors", [e for e in measured if e["size"] < smallest_large]),
    ):
        names = list(dict.fromkeys(name for entry in chosen for name in entry["microseconds"]))
        head = [title, *(_column(entry, entry["size"] < large // 16) for entry in chosen)]
        lines = [[name, *(_time(entry, name) for entry in chosen)] for name in names]
        tables.append(_markdown(head, lines))
    bits = [entry for entry in document["found"] if "bits_of" in entry]
    lines = [
        [
            entry["source"],
            entry["bits_of"],
            *(f"{entry[key]:,}" for key in ("numbers", "values", "derivatives")),
        ]
        for entry in bits
    ]
    head = ["bits of", "dtype", "numbers", "values that differ", "derivatives that differ"]
    tables.append(_markdown(head, lines, texts=2))
    made = (
        f"{document['gpu']}, torch {document['torch']}, Triton {document['triton']}; commit "
        f"{document['commit'][:12]}, {document['date']}; `python bench/gpu_variants.py`. In"
        " microseconds, of replayed graphs; with the elements of a block / its warps."
    )
    return "\n\n".join([*tables, made])


def _column(entry: dict[str, Any], with_size: bool) -> str:
    size = f" {report.size_text(entry['size'])}" if with_size else ""
    return f"{entry['work']} {entry['dtype']}{size}"


def _time(entry: dict[str, Any], name: str) -> str:
    times = entry["microseconds"]
    return f"{times[name]:.2f}" if name in times else ""


def launches() -> str:
    """Host time of a call by the extension's launch, by Triton's, and of torch's."""
    by_extension, by_triton = (
        results.read(FOLDER / name) for name in ("result.json", "by-triton.json")
    )
    lines = []
    for row in by_triton.rows:
        cell = row.cell
        if row.peer != "torch" or cell.clock != "wall":
            continue
        same = next(r for r in by_extension.rows if (r.cell, r.peer) == (cell, row.peer))
        times = (same.ours, row.ours, same.theirs)
        lines.append([_what(cell), *(report.seconds_text(time.median) for time in times)])
    return _markdown(["call", "the extension's", "Triton's", "torch"], lines)


def _what(cell: Cell) -> str:
    return f"{report.work_text(cell)}, {cell.dtype}, {report.size_text(cell.size)}"


def _markdown(head: list[str], lines: list[list[str]], texts: int = 1) -> str:
    aligned = ["left"] * texts + ["right"] * (len(head) - texts)
    return tabulate(lines, headers=head, tablefmt="pipe", disable_numparse=True, colalign=aligned)
