"""Tables of what bench/gpu_report.sh finds beside the rows of a result: the variants of the
kernels, a training step by them, and what the extension's launch saves. Measures nothing.

Depends on results and report's texts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench import report, results
from bench.results import Cell, Row

FOLDER = Path(__file__).resolve().parent / "results/cuda-h100"
# What is larger is so large that a tensor's bytes, not its elements, name it.
LARGEST_SMALL_SIZE = 2**20
# Of an element.
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def variants() -> str:
    """Time of every variant at each size, in microseconds; works and dtypes are the columns."""
    document = json.loads((FOLDER / "variants.json").read_text(encoding="utf-8"))
    works = [
        entry
        for entry in document["found"]
        if "microseconds" in entry and not entry["work"].startswith("step")
    ]
    tables = [
        _times(title, chosen, with_size)
        for title, chosen, with_size in (
            ("128 MiB a tensor", [e for e in works if e["size"] > LARGEST_SMALL_SIZE], False),
            ("small tensors", [e for e in works if e["size"] <= LARGEST_SMALL_SIZE], True),
        )
    ]
    lines = [
        [
            entry["source"],
            entry["bits_of"],
            *(f"{entry[key]:,}" for key in ("numbers", "values", "derivatives")),
        ]
        for entry in document["found"]
        if "bits_of" in entry
    ]
    head = ["bits of", "dtype", "numbers", "values that differ", "derivatives that differ"]
    tables.append(_markdown(head, lines, texts=2))
    made = (
        f"{_origin(document, 'python -m bench.gpu_variants')}"
        " In microseconds, of replayed graphs; with the elements of a block / its warps."
    )
    return "\n\n".join([*tables, made])


def steps() -> str:
    """Torch's time / ours of a forward and a backward pass, for each variant of the forward."""
    document = json.loads((FOLDER / "steps.json").read_text(encoding="utf-8"))
    found = document["found"]
    names = [name for name in found[0]["microseconds"] if name != "torch"]
    lines = []
    for entry in found:
        times = entry["microseconds"]
        tensor = entry["size"] * BYTES[entry["dtype"]] // 2**20
        ratios = [f"{times['torch'] / times[name]:.2f}" for name in names]
        lines.append([entry["work"], entry["dtype"], f"{tensor} MiB", *ratios])
    head = ["torch's time / ours", "dtype", "a tensor", *names]
    table = _markdown(head, lines, texts=2)
    return f"{table}\n\n{_origin(document, 'python -m bench.gpu_variants --steps')}"


def _origin(document: dict[str, Any], command: str) -> str:
    commit = (document["commit"] or "none")[:12]
    return (
        f"{document['gpu']}, torch {document['torch']}, Triton {document['triton']}; commit "
        f"{commit}, {document['date']}; `{command}`."
    )


def _times(title: str, chosen: list[dict[str, Any]], with_size: bool) -> str:
    names = list(dict.fromkeys(name for entry in chosen for name in entry["microseconds"]))
    head = [title]
    for entry in chosen:
        size = f" {report.size_text(entry['size'])}" if with_size else ""
        head.append(f"{entry['work']} {entry['dtype']}{size}")
    lines = [[name, *(_time(entry, name) for entry in chosen)] for name in names]
    return _markdown(head, lines)


def _time(entry: dict[str, Any], name: str) -> str:
    times = entry["microseconds"]
    return f"{times[name]:.2f}" if name in times else ""


def launches() -> str:
    """What a call takes the host beside torch's, launched by the extension and by Triton; each
    beside torch's own time in the same process, since hosts differ from run to run."""
    found = [results.read(FOLDER / name).rows for name in ("result.json", "by-triton.json")]
    lines = []
    for row in found[1]:
        cell = row.cell
        if row.peer == "torch" and cell.clock == "wall":
            same = next(r for r in found[0] if (r.cell, r.peer) == (cell, row.peer))
            lines.append([_what(cell), *(_beside(one) for one in (same, row))])
    return _markdown(["torch's time / ours", "the extension launches", "Triton launches"], lines)


def _beside(row: Row) -> str:
    times = [report.seconds_text(time.median) for time in (row.theirs, row.ours)]
    return f"{row.ratio.median:.2f} ({' / '.join(times)})"


def _what(cell: Cell) -> str:
    return f"{report.work_text(cell)}, {cell.dtype}, {report.size_text(cell.size)}"


def _markdown(head: list[str], lines: list[list[str]], texts: int = 1) -> str:
    aligned = ["left"] * texts + ["right"] * (len(head) - texts)
    return tabulate(lines, headers=head, tablefmt="pipe", disable_numparse=True, colalign=aligned)
