"""What a training step holds and allocates, counted in tensors, is what the README's table and
docs/performance.md say."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

import fused_sigmoid

SIZE = 2**16
LOSSES = {
    "ours": fused_sigmoid.binary_cross_entropy_with_logits,
    "torch": F.binary_cross_entropy_with_logits,
}


def allocations(call: Callable[[], object]) -> list[int]:
    """The bytes that a call allocates, and below 0 those that it frees, in the order of time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = profiled.profiler.kineto_results.events()
    found = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    return [event.nbytes() for event in found]


def test_allocations_are_those_of_the_call() -> None:
    def twice() -> None:
        held = [torch.empty(1000), torch.empty(10)]
        held.pop()
        torch.empty(500)

    assert allocations(twice) == [4000, 40, -40, 2000, -2000, -4000]


@pytest.mark.parametrize(
    ("side", "dtype", "reduction", "kept", "peak"),
    [
        ("ours", torch.float32, "mean", 1, 1),
        ("ours", torch.bfloat16, "mean", 1, 1),
        ("ours", torch.float32, "none", 1, 2),
        ("torch", torch.float32, "mean", 0, 2),
        ("torch", torch.bfloat16, "mean", 0, 4),
        ("torch", torch.float32, "none", 0, 2),
    ],
)
def test_a_loss_holds_its_gradient(
    side: str, dtype: torch.dtype, reduction: str, kept: int, peak: int
) -> None:
    """In tensors of the logits, beside logits, labels, losses and the gradient that comes in."""
    logits = torch.randn(SIZE, dtype=dtype).requires_grad_()
    labels = torch.rand(SIZE).to(dtype)
    given = torch.ones_like(labels) if reduction == "none" else None
    found: list[torch.Tensor] = []

    def forward() -> torch.Tensor:
        found.append(LOSSES[side](logits, labels, reduction=reduction))
        return found[-1]

    def step() -> None:
        forward().backward(given)
        found.clear()

    step()  # What is made at a first call is no part of the step.
    logits.grad = None
    held = sum(allocations(forward)) - found.pop().nbytes
    # Numbers by themselves are less than a hundredth of a tensor.
    assert held / labels.nbytes == pytest.approx(kept, abs=0.01)
    assert max(accumulate(allocations(step))) / labels.nbytes == pytest.approx(peak, abs=0.01)
