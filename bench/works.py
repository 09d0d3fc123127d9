"""What is timed: the works, their buffers in memory, the bytes they move, when a result is
right.

Depends on torch only; knows nothing of peers or of clocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

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


@dataclass(frozen=True)
class Work:
    """One thing to time; ``accesses``: how often an element is read or written at the least."""

    name: str
    title: str
    accesses: int
    meaning: str


WORKS = {
    work.name: work
    for work in (
        Work("forward", "forward, out= given", 2, "reads x, writes the value to a given tensor"),
        Work("forward-fresh", "forward, fresh output", 2, "reads x, writes the value to a new one"),
        Work("pair", "value and derivative", 3, "reads x, writes value and derivative, both new"),
        Work("training", "forward + backward", 5, "reads x, writes y; reads two, writes x.grad"),
        Work("bce", "forward + BCELoss + backward", 10, "x and labels to x.grad by nn.BCELoss"),
        Work("backward", "backward alone", 3, "reads two, writes x.grad; no autograd"),
        Work("loss", "mean loss + backward", 3, "reads logits and labels, writes x.grad"),
        Work("loss-forward", "mean loss alone", 2, "reads logits and labels; no gradient"),
        Work("loss-none", "losses + backward", 7, "reads two, writes losses; x.grad from three"),
    )
}
# The binary cross entropy of logits.
LOSS_WORKS = ("loss", "loss-forward", "loss-none")
# What is measured unless it is asked for: a training step shows the backward pass as well, and what
# nn.BCELoss takes is not ours.
DEFAULT_WORKS = tuple(name for name in WORKS if name not in ("bce", "backward", "loss-none"))

GRADIENT_WORKS = ("training", "bce", "loss", "loss-none")
LABELLED_WORKS = ("bce", *LOSS_WORKS)
# Those whose backward pass is given a gradient for every element.
GRADED_WORKS = ("training", "backward", "loss-none")


@dataclass(frozen=True)
class Layout:
    """How an input lies in memory: a view with as many elements as asked for."""

    name: str
    span: int  # elements of memory for one of the view
    view: Callable[[torch.Tensor], torch.Tensor]
    meaning: str


def _factors(size: int, most: int) -> tuple[int, int]:
    """Two factors of the size, the first at most ``most`` and as near to it as can be."""
    first = next(factor for factor in range(min(most, size), 0, -1) if size % factor == 0)
    return first, size // first


def _matrix(size: int) -> tuple[int, int]:
    return _factors(size, math.isqrt(size))


def _channels_last(memory: torch.Tensor) -> torch.Tensor:
    # 64 channels, as in the early layers of many a network for images.
    channels, pixels = _factors(memory.numel(), 64)
    return memory.view(1, *_matrix(pixels), channels).permute(0, 3, 1, 2)


def _chunk(memory: torch.Tensor) -> torch.Tensor:
    rows, columns = _matrix(memory.numel() // 2)
    return memory.view(rows, 2 * columns).chunk(2, dim=1)[1]


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("contiguous", 1, lambda memory: memory, "one dimension"),
        Layout("channels_last", 1, _channels_last, "an image of 64 channels, channels last"),
        Layout("transposed", 1, lambda m: m.view(_matrix(m.numel())).t(), "a matrix, transposed"),
        Layout("chunk", 2, _chunk, "half of each row of a matrix, as a gate after Linear"),
        Layout("slice", 2, lambda memory: memory[::2], "every second element"),
    )
}


def is_distinct(layout: str, size: int) -> bool:
    """Whether the layout differs from contiguous at this size."""
    memory = torch.empty(LAYOUTS[layout].span * size, device="meta")
    return layout == "contiguous" or not LAYOUTS[layout].view(memory).is_contiguous()


@dataclass
class Buffers:
    """The tensors of one work; ours and the peer share them, so neither has luckier pages."""

    input: torch.Tensor
    value: torch.Tensor
    grad_output: torch.Tensor
    labels: torch.Tensor  # 0 or 1
    copy_source: torch.Tensor
    copy_target: torch.Tensor


def bytes_moved(work: str, size: int, dtype: str) -> int:
    """The bytes the work has to move: 2 to 10 accesses of each element."""
    return WORKS[work].accesses * size * DTYPES[dtype].itemsize


def make_buffers(
    work: str, size: int, dtype: str, device: str, layout: str = "contiguous", copy: bool = True
) -> Buffers:
    """Random input, outputs laid out as the input asks for, and a copy of as many bytes."""
    place: dict[str, Any] = {"dtype": DTYPES[dtype], "device": device}
    values = LAYOUTS[layout].view(_random(LAYOUTS[layout].span * size, place))
    values.mul_(INPUT_STANDARD_DEVIATION)
    if work == "bce":
        values.clamp_(-LARGEST_LOGIT, LARGEST_LOGIT)
    given = {"forward": torch.zeros_like, "backward": torch.sigmoid}.get(work)
    nothing = torch.empty(0, **place)
    # copy_ reads and writes each element once; hence half the work's accesses in elements.
    copied = -(-WORKS[work].accesses * size // 2) if copy else 0
    grad_output = _random_like(values) if work in GRADED_WORKS else nothing
    labels = _random_like(values).clamp_(0, 1).round_() if work in LABELLED_WORKS else nothing
    return Buffers(
        value=given(values) if given else nothing,
        input=values.requires_grad_(work in GRADIENT_WORKS),
        grad_output=grad_output,
        labels=labels,
        # As random as what is computed with: constant data switches fewer bits.
        copy_source=_random(copied, place),
        copy_target=torch.zeros(copied, **place),
    )


def _random(size: int, place: dict[str, Any]) -> torch.Tensor:
    block = torch.randn(min(size, RANDOM_BLOCK), **place)
    return block.repeat(-(-size // RANDOM_BLOCK))[:size]


def _random_like(values: torch.Tensor) -> torch.Tensor:
    place = {"dtype": values.dtype, "device": values.device}
    return torch.empty_like(values).copy_(_random(values.numel(), place).view(values.shape))


@dataclass(frozen=True)
class Compared:
    """Something that a work gave, and what it is to be in float64 at the two ends. ``unit`` is how
    large a number counts as one; every error is allowed that such a number may have."""

    name: str
    found: Any
    reference: torch.Tensor
    shape: torch.Size
    unit: float = 1.0


def wrongness(work: str, buffers: Buffers, result: Any) -> str | None:
    """Says how ``result`` differs from float64 by more than the tolerance, or None."""
    dtype = buffers.input.dtype
    for compared in _compared(work, buffers, result):
        name, found, shape = compared.name, compared.found, compared.shape
        if not isinstance(found, torch.Tensor):
            # The other conversions know no bfloat16.
            found = torch.from_dlpack(found)
        if found.shape != shape or found.dtype != dtype:
            return f"{name} is {list(found.shape)} x {found.dtype}, not {list(shape)} x {dtype}"
        # A gradient is scaled by grad_output, which may exceed 1.
        scale = max(compared.unit, float(compared.reference.abs().max()))
        allowed = TOLERANCE_IN_EPSILONS * torch.finfo(dtype).eps * scale + _smallest(dtype)
        error = float((_ends(found) - compared.reference).abs().max())
        if not error <= allowed:  # a NaN must fail as well
            return f"{name} is off by {error:.3g}, more than {allowed:.3g}"
    return None


def _compared(work: str, buffers: Buffers, result: Any) -> list[Compared]:
    shape = buffers.input.shape
    if work in LOSS_WORKS:
        return _compared_losses(work, buffers, result)
    ends = _ends(buffers.input)
    value = torch.sigmoid(ends)
    derivative = value * torch.sigmoid(-ends)
    if work == "pair":
        return [
            Compared("value", result[0], value, shape),
            Compared("derivative", result[1], derivative, shape),
        ]
    if work == "bce":
        return [Compared("gradient", result, value - _ends(buffers.labels), shape)]
    if work in ("training", "backward"):
        return [Compared("gradient", result, derivative * _ends(buffers.grad_output), shape)]
    return [Compared("value", result, value, shape)]


def _compared_losses(work: str, buffers: Buffers, result: Any) -> list[Compared]:
    shape, size = buffers.input.shape, buffers.input.numel()
    logits, labels = _ends(buffers.input), _ends(buffers.labels)
    gradient = (1 - labels) * torch.sigmoid(logits) - labels * torch.sigmoid(-logits)
    if work == "loss-none":
        return [
            Compared("loss", result[0], _losses(logits, labels), shape),
            Compared("gradient", result[1], gradient * _ends(buffers.grad_output), shape),
        ]
    mean, number = _mean_loss(buffers), torch.Size()
    if work == "loss-forward":
        return [Compared("loss", result, mean, number)]
    return [
        Compared("loss", result[0], mean, number),
        # An element has its share of the mean.
        Compared("gradient", result[1], gradient / size, shape, unit=1 / size),
    ]


def _losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Without a difference, so that what is small keeps its digits on both sides."""
    rest = torch.log1p(torch.exp(-logits.abs()))
    return (1 - labels) * logits.clamp(min=0) + labels * (-logits).clamp(min=0) + rest


def _mean_loss(buffers: Buffers) -> torch.Tensor:
    """Of all elements."""
    flat = (each.detach().flatten().split(MEAN_PART) for each in (buffers.input, buffers.labels))
    sums = [_losses(x.double(), labels.double()).sum() for x, labels in zip(*flat, strict=True)]
    return torch.stack(sums).sum().div(buffers.input.numel()).reshape(1).cpu()


def _smallest(dtype: torch.dtype) -> float:
    """The distance of its numbers near 0, where the gradient of a mean in float16 is."""
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


def _ends(tensor: torch.Tensor) -> torch.Tensor:
    """The first and last elements along the longest dimension, in the order of the indices."""
    found = tensor.detach()
    if found.numel() > 2 * CHECKED_AT_EACH_END:
        longest = max(range(found.dim()), key=lambda dim: found.shape[dim])
        length = found.shape[longest]
        kept = max(1, CHECKED_AT_EACH_END * length // found.numel())
        found = torch.cat(
            (found.narrow(longest, 0, kept), found.narrow(longest, length - kept, kept))
        )
    return found.to(device="cpu", dtype=torch.float64).flatten()
