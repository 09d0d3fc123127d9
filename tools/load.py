"""Long runs as a training job's: many threads at once, calls and steps without end, a model trained
with either module. Ends with an error if a result is wrong or memory grows; a quarter of an hour.

    python -m tools.load [--seconds 600] [--small-calls 1000000] [--large-steps 1000]
        [--training-steps 10000] [--write]

Depends on tests/oracle.py for right results.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench import results
from fused_sigmoid import FusedSigmoid, replace_sigmoid, sigmoid, sigmoid_, sigmoid_with_derivative
from tests import oracle

RECORD = results.FOLDER / "reliability.json"
# Around vectors and their tails, the share of a thread and the sizes where `saved` changes.
SIZES = (1, 7, 33, 257, 1024, 4099, 32_768, 65_537, 300_001)
# In ulp, of the value and the derivative; docs/numerics.md.
BOUNDS = {torch.float64: 3.5, torch.float32: 2.9, torch.float16: 0.501, torch.bfloat16: 0.501}
# One byte in each of 10⁶ calls, a quarter of one tensor of the large steps.
ALLOWED_GROWTH = 1 << 20
# One step rounds to 6e-8; a curve that fell a hundredfold over 10⁴ of them may part by more.
ALLOWED_DIFFERENCE = 1e-3


def forward_and_backward(input: Tensor, saved: str) -> tuple[Tensor, ...]:
    leaf = input.detach().requires_grad_()
    value = sigmoid(leaf, saved=saved)
    return value, *torch.autograd.grad(value, leaf, torch.ones_like(value))


def with_gradient_of_both(input: Tensor) -> None:
    leaf = input.detach().requires_grad_()
    value, derivative = sigmoid_with_derivative(leaf)
    torch.autograd.grad(value.sum() + derivative.sum(), leaf)


def refused(input: Tensor) -> None:
    with contextlib.suppress(ValueError):
        sigmoid(input, saved="nonsense")


# Ways to get the value, or the value and the derivative.
WAYS: tuple[Callable[[Tensor], tuple[Tensor, ...]], ...] = (
    *(partial(forward_and_backward, saved=saved) for saved in ("auto", "derivative", "input")),
    lambda x: (FusedSigmoid()(x),),
    lambda x: (sigmoid_(x.clone()),),
    lambda x: (sigmoid(x, out=torch.empty_like(x)),),
    lambda x: (sigmoid(torch.stack([x, x], -1)[:, 1]),),
    sigmoid_with_derivative,
)
# What a reference may be lost by; the error's way out holds on to nothing either.
SMALL_CALLS = (*WAYS, with_gradient_of_both, refused)


class Expected:
    """One input with what every way has to give for it, bit for bit: judged once by the oracle."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.input = oracle.both_tails(size, dtype)
        self.results = sigmoid_with_derivative(self.input)
        exact = oracle.exact(self.input)
        references = oracle.value(exact), oracle.derivative(exact)
        for result, reference in zip(self.results, references, strict=True):
            assert oracle.largest_error_in_ulp(result, reference) <= BOUNDS[dtype]

    def is_met(self, way: int) -> bool:
        found = WAYS[way % len(WAYS)](self.input)
        return all(map(torch.equal, found, self.results))


def threads(count: int, seconds: float) -> dict[str, Any]:
    """``count`` Python threads, each going through all sizes and dtypes in an order of its own."""
    cases = [Expected(size, dtype) for size in SIZES for dtype in oracle.DTYPES]
    began = time.monotonic()

    def work(thread: int) -> dict[str, int]:
        found = {"calls": 0, "elements": 0, "wrong": 0}
        while found["calls"] == 0 or time.monotonic() - began < seconds:
            call = thread + found["calls"]
            # The step is a prime, so that each thread meets every case in every way.
            case = cases[call * 7 % len(cases)]
            found["wrong"] += not case.is_met(call // len(cases) + thread)
            found["elements"] += case.input.numel()
            found["calls"] += 1
        return found

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(work, range(count)))
    totals = {key: sum(each[key] for each in found) for key in found[0]}
    took = round(time.monotonic() - began, 1)
    return {"threads": count, "sizes": len(SIZES), **totals, "seconds": took}


def resident_bytes() -> int:
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory(
    calls: int, elements: int, warm_up: int, steps: Sequence[Callable[[Tensor], object]]
) -> dict[str, Any]:
    """Resident memory after ``warm_up`` calls, of each step in turn, and after ``calls`` more."""
    input = oracle.both_tails(elements, torch.float32)
    for call in range(warm_up):
        steps[call % len(steps)](input)
    before, began = resident_bytes(), time.monotonic()
    for call in range(calls):
        steps[call % len(steps)](input)
    seconds = round(time.monotonic() - began, 1)
    return {
        "calls": calls,
        "elements": elements,
        "resident_bytes_before": before,
        "resident_bytes_after": resident_bytes(),
        "seconds": seconds,
    }


# By what the output is given to: an ordinary consumer, or the loss that divides by 1 - y.
CRITERIA = {"training": nn.MSELoss(), "training_before_bce": nn.BCELoss()}


def large_step(input: Tensor) -> None:
    _, grad = forward_and_backward(input, "auto")
    input.add_(grad, alpha=-1e-6)


def loss_curve(is_ours: bool, criterion: nn.Module, steps: int) -> list[float]:
    """Of a smooth function: activations stay where the tails do not matter."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 1), nn.Sigmoid())
    if is_ours:
        assert replace_sigmoid(model) == 2
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(1))
    y = (x.square().mean(1, keepdim=True) / 3).clamp(0.05, 0.95)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def training(criterion: nn.Module, steps: int) -> dict[str, Any]:
    """The loss with the modules replaced beside that with nn.Sigmoid."""
    began = time.monotonic()
    ours, torchs = loss_curve(True, criterion, steps), loss_curve(False, criterion, steps)
    differences = [abs(a - b) / b for a, b in zip(ours, torchs, strict=True)]
    return {
        "steps": steps,
        "first_loss": ours[0],
        "last_loss": ours[-1],
        "last_loss_of_torch": torchs[-1],
        "largest_relative_difference": max(differences),
        "seconds": round(time.monotonic() - began, 1),
    }


def failures(found: dict[str, Any]) -> list[str]:
    """What the figures say is wrong."""
    reasons = []
    if found["threads"]["wrong"] or not found["threads"]["calls"]:
        reasons.append(f"threads got wrong results: {found['threads']}")
    for name in ("small_calls", "large_steps"):
        grown = found[name]["resident_bytes_after"] - found[name]["resident_bytes_before"]
        if grown > ALLOWED_GROWTH:
            reasons.append(f"{name}: resident memory grew by {grown:,} bytes")
    for name in CRITERIA:
        curve = found[name]
        if not curve["largest_relative_difference"] <= ALLOWED_DIFFERENCE:
            reasons.append(f"{name}: the loss curves part: {curve}")
        if not curve["last_loss"] < curve["first_loss"]:
            reasons.append(f"{name}: the loss does not fall: {curve}")
    return reasons


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.load", description="Long runs, with their results checked."
    )
    add = parser.add_argument
    add("--threads", type=int, default=16)
    add("--seconds", type=float, default=600)
    add("--small-calls", type=int, default=1_000_000)
    add("--large-steps", type=int, default=1_000)
    add("--training-steps", type=int, default=10_000)
    add("--write", action="store_true", help=f"record the figures in {RECORD.name}")
    chosen = parser.parse_args()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "small_calls": lambda: memory(chosen.small_calls, 8, 20_000, SMALL_CALLS),
        "large_steps": lambda: memory(chosen.large_steps, 1 << 20, 20, [large_step]),
        **{
            name: partial(training, criterion, chosen.training_steps)
            for name, criterion in CRITERIA.items()
        },
        "threads": lambda: threads(chosen.threads, chosen.seconds),
    }
    found: dict[str, Any] = {}
    for name, run in parts.items():
        found[name] = run()
        print(f"{name}: {found[name]}", flush=True)
    if reasons := failures(found):
        raise SystemExit("\n".join(reasons))
    if chosen.write:
        results.record_section(RECORD, "load", found)


if __name__ == "__main__":
    main()
