"""The most GPU memory that a training step of one layer takes, beside nn.Sigmoid's.

Depends on torch and the package; times nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

# Far above what the allocator rounds to.
SIZE = 16 << 20
DTYPES = ("float32", "bfloat16")
# How many tensors more than nn.Sigmoid each may keep.
MOST_MORE = {"output": 0, "input": 1, "derivative": 1}


def measure() -> list[dict[str, Any]]:
    """For each dtype and ``saved``, the peaks in bytes beyond what the step was given."""
    from fused_sigmoid import FusedSigmoid

    found = []
    for name in DTYPES:
        dtype = getattr(torch, name)
        torchs = peak(nn.Sigmoid(), dtype)
        found += [
            {
                "dtype": name,
                "saved": saved,
                "tensor_bytes": SIZE * dtype.itemsize,
                "ours": peak(FusedSigmoid(saved=saved), dtype),
                "torch": torchs,
            }
            for saved in MOST_MORE
        ]
    return found


def peak(module: nn.Module, dtype: torch.dtype) -> int:
    """Of the second step, when everything is compiled. The input is a fresh product, as the layer
    before gives it: nobody else keeps it."""
    weight = torch.ones(SIZE, dtype=dtype, device="cuda", requires_grad=True)
    grad = torch.ones(SIZE, dtype=dtype, device="cuda")
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


def table(found: Sequence[dict[str, Any]], form: str) -> str:
    """In tensors, and the verdict: a thousandth of one is what the allocator rounds to."""
    lines = []
    for row in found:
        ours, torchs = (row[name] / row["tensor_bytes"] for name in ("ours", "torch"))
        most = MOST_MORE[row["saved"]]
        verdict = "met" if ours - torchs <= most + 1e-3 else "missed"
        lines.append([row["dtype"], row["saved"], f"{ours:.2f}", f"{torchs:.2f}", most, verdict])
    head = ["dtype", "saved", "peak, tensors", "nn.Sigmoid", "goal: more", "verdict"]
    aligned = ["left", "left", "right", "right", "right", "left"]
    return tabulate(lines, headers=head, tablefmt=form, disable_numparse=True, colalign=aligned)
