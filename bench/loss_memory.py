"""What a training step of the binary cross entropy of logits holds for its backward pass on a CPU,
and the most that it allocates, beside torch's; recorded in loss_memory.json, from which
docs/performance.md is filled.

    python -m bench.loss_memory [--write]

Depends on torch and on works when it measures, on record and tabulate for the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench import record, report

RECORD = Path(__file__).resolve().parent / "loss_memory.json"
DTYPES = ("float32", "bfloat16")
REDUCTIONS = ("mean", "none")
SIZES = (2**16, 2**20)


@dataclass
class Row:
    """Bytes beyond the logits, the labels and, of ``none``, the gradient that comes in."""

    dtype: str
    reduction: str
    elements: int
    tensor_bytes: int
    ours_kept: int  # after the forward pass, without the losses
    torch_kept: int
    ours_peak: int  # at any time of the step
    torch_peak: int


def measure(sizes: Sequence[int] = SIZES) -> list[Row]:
    import torch

    from fused_sigmoid import binary_cross_entropy_with_logits

    losses = (
        binary_cross_entropy_with_logits,
        torch.nn.functional.binary_cross_entropy_with_logits,
    )
    rows = []
    for dtype, reduction, size in product(DTYPES, REDUCTIONS, sizes):
        bytes_of = [_measure(loss, dtype, reduction, size) for loss in losses]
        (ours_kept, ours_peak), (torch_kept, torch_peak) = bytes_of
        tensor_bytes = size * getattr(torch, dtype).itemsize
        rows.append(
            Row(
                *(dtype, reduction, size, tensor_bytes),
                *(ours_kept, torch_kept, ours_peak, torch_peak),
            )
        )
    return rows


def _measure(loss: Callable[..., Any], dtype: str, reduction: str, size: int) -> tuple[int, int]:
    """What is kept, and the peak."""
    import torch

    from bench.works import make_buffers

    buffers = make_buffers("loss-none", size, dtype, "cpu", copy=False)
    logits = buffers.input
    given = buffers.grad_output if reduction == "none" else None

    def forward() -> torch.Tensor:
        return loss(logits, buffers.labels, reduction=reduction)

    def step() -> None:
        forward().backward(given)

    step()  # What is made at a first call is no part of the step.
    logits.grad = None
    found: list[torch.Tensor] = []
    kept = sum(allocations(lambda: found.append(forward())))
    peak = max(accumulate(allocations(step)))
    return kept - found[0].nbytes, peak


def allocations(call: Callable[[], object]) -> list[int]:
    """The bytes that a call allocates, and below 0 those that it frees, in the order of time."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return [event["args"]["Bytes"] for event in _in_time(events)]


def _in_time(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted((e for e in events if e["name"] == "[memory]"), key=lambda event: event["ts"])


def markdown() -> str:
    document, rows = record.read(RECORD, Row)
    made = report.origin_text(document, "python -m bench.loss_memory --write")
    return f"{table(rows, 'pipe')}\n\n{made}"


def table(rows: Sequence[Row], form: str) -> str:
    """In tensors of the logits' size and dtype; numbers by themselves are less than a hundredth."""
    lines = []
    for row in rows:
        quantities = (row.ours_kept, row.torch_kept, row.ours_peak, row.torch_peak)
        tensors = (f"{bytes_of / row.tensor_bytes:.2f}" for bytes_of in quantities)
        lines.append((row.dtype, row.reduction, report.size_text(row.elements), *tensors))
    head = ("dtype", "reduction", "size", "ours holds", "torch holds", "ours, peak", "torch, peak")
    aligned = ("left", "left", *("right",) * 5)
    return tabulate(lines, headers=head, tablefmt=form, colalign=aligned, disable_numparse=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.loss_memory", description="Memory of a loss's training step."
    )
    parser.add_argument("--write", action="store_true", help=f"record it in {RECORD.name}")
    chosen = parser.parse_args(arguments)
    rows = measure()
    print(table(rows, "simple"))
    if chosen.write:
        record.write(RECORD, rows)
        print(f"wrote {RECORD}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
