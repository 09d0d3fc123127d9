"""What is timed: the four works, their buffers, the bytes they move, when a result is right.

Depends on torch only; knows nothing of peers or of clocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

# Activations before a sigmoid are mostly within +-10; both tails and the middle are met.
INPUT_STANDARD_DEVIATION = 3.0

# A row must not time a wrong function, but must admit y * (1 - y) and approximate exponentials:
# accuracy is the tests' business. The bound is on the absolute error, in units of the dtype's eps.
TOLERANCE_IN_EPSILONS = 8

# Errors of partition and of tail loops show at the two ends; checking all of a large output would
# take longer than timing it.
CHECKED_AT_EACH_END = 65_536


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
    )
}


@dataclass
class Buffers:
    """The tensors of one work; ours and the peer share them, so neither has luckier pages."""

    input: torch.Tensor
    value: torch.Tensor
    grad_output: torch.Tensor
    copy_source: torch.Tensor
    copy_target: torch.Tensor


def bytes_moved(work: str, size: int, dtype: str) -> int:
    """The bytes the work has to move: 2, 2, 3 or 5 accesses of each element."""
    return WORKS[work].accesses * size * DTYPES[dtype].itemsize


def make_buffers(work: str, size: int, dtype: str, device: str) -> Buffers:
    """Fresh random input, and a copy of as many bytes as the work moves."""
    place: dict[str, Any] = {"dtype": DTYPES[dtype], "device": device}
    values = torch.randn(size, **place).mul_(INPUT_STANDARD_DEVIATION)
    training = work == "training"
    # copy_ reads and writes each element once; hence half the work's accesses in elements.
    copied = -(-WORKS[work].accesses * size // 2)
    return Buffers(
        input=values.requires_grad_(training),
        value=torch.zeros(size if work == "forward" else 0, **place),
        grad_output=torch.randn(size if training else 0, **place),
        copy_source=torch.ones(copied, **place),
        copy_target=torch.zeros(copied, **place),
    )


def wrongness(work: str, buffers: Buffers, result: Any) -> str | None:
    """Says how ``result`` differs from float64 by more than the tolerance, or None."""
    ends = _ends(buffers.input)
    value = torch.sigmoid(ends)
    derivative = value * torch.sigmoid(-ends)
    if work == "pair":
        expected = {"value": (result[0], value), "derivative": (result[1], derivative)}
    elif work == "training":
        expected = {"gradient": (result, derivative * _ends(buffers.grad_output))}
    else:
        expected = {"value": (result, value)}
    size, dtype = buffers.input.numel(), buffers.input.dtype
    for name, (got, reference) in expected.items():
        found = torch.as_tensor(got)
        if found.numel() != size or found.dtype != dtype:
            return f"{name} is {found.numel()} x {found.dtype}, not {size} x {dtype}"
        # The gradient is scaled by grad_output, which may exceed 1.
        scale = max(1.0, float(reference.abs().max()))
        allowed = TOLERANCE_IN_EPSILONS * torch.finfo(dtype).eps * scale
        error = float((_ends(found) - reference).abs().max())
        if not error <= allowed:  # a NaN must fail as well
            return f"{name} is off by {error:.3g}, more than {allowed:.3g}"
    return None


def _ends(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().reshape(-1)
    if flat.numel() > 2 * CHECKED_AT_EACH_END:
        flat = torch.cat((flat[:CHECKED_AT_EACH_END], flat[-CHECKED_AT_EACH_END:]))
    return flat.to(device="cpu", dtype=torch.float64)
