"""What is timed: a row for each work and dtype. Depends on nothing, so that the command line's help
needs no torch; buffers.py makes the tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}  # bytes of an element


@dataclass(frozen=True)
class Work:
    """One thing to time; ``accesses``: how often an element is read or written at the least."""

    name: str
    accesses: int
    meaning: str
    is_default: bool = True


# A training step shows the backward pass as well, and what nn.BCELoss takes is not ours: such works
# are measured only where they are asked for.
WORKS = {
    work.name: work
    for work in (
        Work("forward", 2, "reads x, writes the value to a given tensor"),
        Work("forward-fresh", 2, "reads x, writes the value to a new tensor"),
        Work("pair", 3, "reads x, writes value and derivative to new tensors"),
        Work("training", 5, "forward and backward pass: x to x.grad"),
        Work("bce", 10, "x and labels to x.grad by a sigmoid and nn.BCELoss", is_default=False),
        Work("backward", 3, "reads two tensors, writes x.grad; no autograd", is_default=False),
        Work("loss", 3, "mean loss of logits: logits and labels to x.grad"),
        Work("loss-forward", 2, "mean loss of logits alone, without a gradient"),
        Work("loss-none", 7, "each loss of logits: logits and labels to x.grad", is_default=False),
    )
}
DEFAULT_WORKS = tuple(work.name for work in WORKS.values() if work.is_default)
# The binary cross entropy of logits.
LOSS_WORKS = ("loss", "loss-forward", "loss-none")


def bytes_moved(work: str, size: int, dtype: str) -> int:
    """The bytes that the work has to move."""
    return WORKS[work].accesses * size * DTYPES[dtype]
