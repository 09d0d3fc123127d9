"""The most memory that a training step of a layer takes on a GPU, which ``--goals`` asks for; what
a step of the loss holds and allocates on a CPU, beside torch's.

    python -m bench.memory [--write]        the loss; recorded in bench/results/loss_memory.json

Depends on torch and the package when it measures; times nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import accumulate, product
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from bench import report, results, works
from bench.buffers import make_buffers

DTYPES = ("float32", "bfloat16")
# Of a layer on a GPU: far above what the allocator rounds to.
SIZE = 16 << 20
# How many tensors more than nn.Sigmoid each ``saved`` may keep.
MOST_MORE = {"output": 0, "input": 1, "derivative": 1}
LOSS_SIZES = (2**16, 2**20)


def of_layer() -> list[dict[str, Any]]:
    """For each dtype and ``saved``, the peaks in bytes beyond what the step was given."""
    from fused_sigmoid import FusedSigmoid

    found = []
    for dtype, saved in product(DTYPES, MOST_MORE):
        peaks = {
            "ours": _peak(FusedSigmoid(saved=saved), dtype),
            "torch": _peak(nn.Sigmoid(), dtype),
        }
        tensor_bytes = SIZE * works.DTYPES[dtype]
        found.append({"dtype": dtype, "saved": saved, "tensor_bytes": tensor_bytes, **peaks})
    return found


def _peak(module: nn.Module, dtype: str) -> int:
    """Of the second step, when everything is compiled. The input is a fresh product, as the layer
    before gives it: nobody else keeps it."""
    weight, grad = (torch.ones(SIZE, dtype=getattr(torch, dtype), device="cuda") for _ in range(2))
    weight.requires_grad_()
    used = 0
    for _ in range(2):
        weight.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        module(weight * 1).backward(grad)
        torch.cuda.synchronize()
        used = torch.cuda.max_memory_allocated() - before
    return used


def layer_text(found: Sequence[dict[str, Any]]) -> str:
    """In tensors, and the verdict: a thousandth of one is what the allocator rounds to."""
    lines = []
    for row in found:
        ours, torchs = (row[name] / row["tensor_bytes"] for name in ("ours", "torch"))
        most = MOST_MORE[row["saved"]]
        line = {"dtype": row["dtype"], "saved": row["saved"], "peak, tensors": f"{ours:.2f}"}
        line |= {"nn.Sigmoid": f"{torchs:.2f}", "goal: more": str(most)}
        lines.append(line | {"verdict": "met" if ours - torchs <= most + 1e-3 else "missed"})
    return report.table(lines)


def of_loss(sizes: Sequence[int] = LOSS_SIZES) -> list[dict[str, Any]]:
    """Bytes beyond the logits, the labels and, of ``none``, the gradient that comes in: kept after
    the forward pass, without the losses, and the peak at any time of the step."""
    from fused_sigmoid import binary_cross_entropy_with_logits as ours

    losses = {"ours": ours, "torch": F.binary_cross_entropy_with_logits}
    rows: list[dict[str, Any]] = []
    for dtype, reduction, size in product(DTYPES, ("mean", "none"), sizes):
        cell = results.Cell("cpu", dtype, "loss-none", size, 1, "wall", "warm")
        rows.append({"dtype": dtype, "reduction": reduction, "elements": size})
        rows[-1]["tensor_bytes"] = size * works.DTYPES[dtype]
        for side, loss in losses.items():
            kept, peak = _kept_and_peak(loss, cell, reduction)
            rows[-1] |= {f"{side}_kept": kept, f"{side}_peak": peak}
    return rows


def _kept_and_peak(
    loss: Callable[..., torch.Tensor], cell: results.Cell, reduction: str
) -> tuple[int, int]:
    buffers = make_buffers(cell, copy=False)
    given = buffers.grad_output if reduction == "none" else None

    def forward() -> torch.Tensor:
        return loss(buffers.input, buffers.labels, reduction=reduction)

    def step() -> None:
        forward().backward(given)

    step()  # What is made at a first call is no part of the step.
    buffers.input.grad = None
    found: list[torch.Tensor] = []
    kept = sum(allocations(lambda: found.append(forward())))
    return kept - found[0].nbytes, max(accumulate(allocations(step)))


def allocations(call: Callable[[], object]) -> list[int]:
    """The bytes that a call allocates, and below 0 those that it frees, in the order of time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = profiled.profiler.kineto_results.events()
    found = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    return [event.nbytes() for event in found]


def loss_text(rows: Sequence[dict[str, Any]]) -> str:
    """In tensors of the logits' size and dtype; numbers by themselves are less than a hundredth."""
    counted = ("ours_kept", "torch_kept", "ours_peak", "torch_peak")
    lines = []
    for row in rows:
        tensors = {name.replace("_", ", "): row[name] / row["tensor_bytes"] for name in counted}
        line = {"dtype": row["dtype"], "reduction": row["reduction"]}
        line |= {"size": report.size_text(row["elements"])}
        lines.append(line | {name: f"{value:.2f}" for name, value in tensors.items()})
    return report.table(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description="Memory of a loss.")
    parser.add_argument("--write", action="store_true", help="record it in loss_memory.json")
    chosen = parser.parse_args(arguments)
    rows = of_loss()
    print(loss_text(rows))
    if chosen.write:
        file = results.FOLDER / "loss_memory.json"
        results.write_record(file, "python -m bench.memory --write", rows=rows)
        print(f"wrote {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
