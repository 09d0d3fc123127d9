"""The tensors of a work, and whether what a peer computed of them is right.

Depends on works and layouts; knows nothing of peers or of clocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from bench.layouts import LAYOUTS
from bench.results import Cell
from bench.works import LOSS_WORKS, WORKS

# Longer inputs repeat this many random numbers: drawing 64 Mi takes longer than timing them.
RANDOM_BLOCK = 2**20
# Activations before a sigmoid are mostly within +-10; both tails and the middle are met.
INPUT_STANDARD_DEVIATION = 3.0
# Before BCELoss: past it nn.Sigmoid's gradient is wrong in the halves.
LARGEST_LOGIT = 5.0
# A row must not time a wrong function, but must admit y * (1 - y) and approximate exponentials:
# accuracy is the tests' business. The bound is on the absolute error, in units of the dtype's eps.
TOLERANCE_IN_EPSILONS = 8
# Errors of partition and of tail loops show at the two ends; checking all of a large output would
# take longer than timing it.
CHECKED_AT_EACH_END = 65_536
# A mean is of all elements, in parts: whole tensors of float64 take six times as long.
MEAN_PART = 2**20


@dataclass
class Buffers:
    """The tensors of one work; ours and the peer share them, so neither has luckier pages."""

    input: torch.Tensor
    value: torch.Tensor  # to be written, or given to the backward pass
    grad_output: torch.Tensor
    labels: torch.Tensor  # 0 or 1
    copy_source: torch.Tensor
    copy_target: torch.Tensor


def make_buffers(cell: Cell, copy: bool = True) -> Buffers:
    """Random input, outputs laid out as the input asks for, and a copy of as many bytes."""
    work, layout = cell.work, LAYOUTS[cell.layout]
    place: dict[str, Any] = {"dtype": getattr(torch, cell.dtype), "device": cell.device}
    values = layout.view(_random(layout.span * cell.size, place)).mul_(INPUT_STANDARD_DEVIATION)
    if work == "bce":
        values.clamp_(-LARGEST_LOGIT, LARGEST_LOGIT)

    def given(*works: str) -> torch.Tensor:
        """Random numbers, for the works that are given such a tensor."""
        wanted = values if work in works else values[:0]
        return torch.empty_like(wanted).copy_(_random(wanted.numel(), place).view(wanted.shape))

    make_value = {"forward": torch.zeros_like, "backward": torch.sigmoid}.get(work)
    # copy_ reads and writes each element once; hence half the work's accesses in elements.
    copied = -(-WORKS[work].accesses * cell.size // 2) if copy else 0
    return Buffers(
        value=make_value(values) if make_value else given(),
        grad_output=given("training", "backward", "loss-none"),
        labels=given("bce", *LOSS_WORKS).clamp_(0, 1).round_(),
        # As random as what is computed with: constant data switches fewer bits.
        copy_source=_random(copied, place),
        copy_target=torch.zeros(copied, **place),
        input=values.requires_grad_(work in ("training", "bce", "loss", "loss-none")),
    )


def _random(size: int, place: dict[str, Any]) -> torch.Tensor:
    block = torch.randn(min(size, RANDOM_BLOCK), **place)
    return block.repeat(-(-size // RANDOM_BLOCK))[:size]


def wrongness(work: str, buffers: Buffers, result: Any) -> str | None:
    """Says how ``result`` differs from float64 by more than the tolerance, or None."""
    numbers = torch.finfo(buffers.input.dtype)
    several = result if isinstance(result, (tuple, list)) else (result,)
    for (name, expected), found in zip(_expected(work, buffers).items(), several, strict=True):
        if not isinstance(found, torch.Tensor):
            # The other conversions know no bfloat16.
            found = torch.from_dlpack(found)
        shape = buffers.input.shape if expected.dim() else torch.Size()
        if found.shape != shape or found.dtype != buffers.input.dtype:
            asked = f"{list(shape)} x {buffers.input.dtype}"
            return f"{name} is {list(found.shape)} x {found.dtype}, not {asked}"
        # An element has its share of a mean. A gradient is scaled by grad_output, which may exceed
        # 1. The distance of the numbers near 0 is where a mean's gradient in float16 is.
        unit = 1 / found.numel() if (work, name) == ("loss", "gradient") else 1.0
        scale = max(unit, float(expected.abs().max()))
        allowed = TOLERANCE_IN_EPSILONS * numbers.eps * scale
        allowed += numbers.smallest_normal * numbers.eps
        error = float((_ends(found) - expected).abs().max())
        if not error <= allowed:  # a NaN must fail as well
            return f"{name} is off by {error:.3g}, more than {allowed:.3g}"
    return None


def _expected(work: str, buffers: Buffers) -> dict[str, torch.Tensor]:
    """What the work gives, in its order: in float64, at the two ends, and of a mean the number."""
    logits, labels, grad = map(_ends, (buffers.input, buffers.labels, buffers.grad_output))
    value = torch.sigmoid(logits)
    derivative = value * torch.sigmoid(-logits)
    if work in ("forward", "forward-fresh"):
        return {"value": value}
    if work == "pair":
        return {"value": value, "derivative": derivative}
    if work in ("training", "backward"):
        return {"gradient": derivative * grad}
    if work == "bce":
        return {"gradient": value - labels}
    if work == "loss-none":
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return {"loss": losses, "gradient": (value - labels) * grad}
    size = buffers.input.numel()
    whole = (each.detach().flatten().split(MEAN_PART) for each in (buffers.input, buffers.labels))
    sums = [
        F.binary_cross_entropy_with_logits(x.double(), label.double(), reduction="sum")
        for x, label in zip(*whole, strict=True)
    ]
    mean = torch.stack(sums).sum().div(size).cpu()
    return {"loss": mean} | ({"gradient": (value - labels) / size} if work == "loss" else {})


def _ends(tensor: torch.Tensor) -> torch.Tensor:
    """The first and last elements along the longest dimension, in the order of the indices."""
    found = tensor.detach()
    if found.numel() > 2 * CHECKED_AT_EACH_END:
        longest = max(range(found.dim()), key=lambda dim: found.shape[dim])
        length = found.shape[longest]
        kept = max(1, CHECKED_AT_EACH_END * length // found.numel())
        parts = (found.narrow(longest, 0, kept), found.narrow(longest, length - kept, kept))
        found = torch.cat(parts)
    return found.to(device="cpu", dtype=torch.float64).flatten()
