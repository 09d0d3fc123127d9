"""Long runs as a training job's: many threads at once, calls and steps without end, a model trained
with either module. Called by `make load`; ends with an error if a result is wrong or memory grows.

    python -m tests.load [--seconds 600] [--small-calls 1000000] [--large-steps 1000]
        [--training-steps 10000] [--record FILE.json]

Depends on tests/oracle.py for right results and on bench.reliability for the file of figures.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fused_sigmoid
from fused_sigmoid import FusedSigmoid, sigmoid, sigmoid_, sigmoid_with_derivative
from tests import oracle

SAVED = ("auto", "derivative", "input")
# Around vectors and their tails, the share of a thread and the sizes where `saved` changes.
SIZES = (1, 7, 33, 257, 1024, 4099, 32_768, 65_537, 300_001)
# One byte in each of 10⁶ calls, a quarter of one tensor of the large steps.
ALLOWED_GROWTH = 1 << 20


def resident_bytes() -> int:
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# In ulp, of the value and the derivative; docs/numerics.md.
BOUNDS = {torch.float64: 3.5, torch.float32: 2.9, torch.float16: 0.501, torch.bfloat16: 0.501}


class Expected:
    """One input with what every call has to give for it, bit for bit: judged once by the oracle."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.input = oracle.both_tails(size, dtype)
        exact = oracle.exact(self.input)
        self.value, self.derivative = sigmoid_with_derivative(self.input)
        for result, reference in (
            (self.value, oracle.value(exact)),
            (self.derivative, oracle.derivative(exact)),
        ):
            assert oracle.largest_error_in_ulp(result, reference) <= BOUNDS[dtype]

    def is_met(self, call: int) -> bool:
        """Forward and backward, in place, `out=`, strided, or the pair, in turn."""
        kind = call % 5
        if kind == 0:
            leaf = self.input.detach().requires_grad_()
            value = sigmoid(leaf, saved=SAVED[call // 5 % len(SAVED)])
            (grad,) = torch.autograd.grad(value, leaf, torch.ones_like(value))
            return torch.equal(value, self.value) and torch.equal(grad, self.derivative)
        if kind == 1:
            return torch.equal(sigmoid_(self.input.clone()), self.value)
        if kind == 2:
            return torch.equal(sigmoid(self.input, out=torch.empty_like(self.input)), self.value)
        if kind == 3:
            strided = torch.stack([self.input, self.input], -1)[:, 1]
            return torch.equal(sigmoid(strided), self.value)
        value, derivative = sigmoid_with_derivative(self.input)
        return torch.equal(value, self.value) and torch.equal(derivative, self.derivative)


def threads(count: int, seconds: float) -> dict[str, Any]:
    """``count`` Python threads, each going through all sizes and dtypes in an order of its own."""
    cases = [Expected(size, dtype) for size in SIZES for dtype in oracle.DTYPES]
    totals = {"calls": 0, "elements": 0, "wrong": 0}
    lock = threading.Lock()
    end = time.monotonic() + seconds

    def work(thread: int) -> None:
        own = {"calls": 0, "elements": 0, "wrong": 0}
        call = thread
        try:
            while time.monotonic() < end:
                # The step is a prime, so that each thread meets every case and kind.
                case = cases[call * 7 % len(cases)]
                met = case.is_met(call // len(cases) + thread)
                own["calls"] += 1
                own["elements"] += case.input.numel()
                own["wrong"] += not met
                call += 1
        except BaseException:
            own["wrong"] += 1
            raise
        finally:
            with lock:
                for key, amount in own.items():
                    totals[key] += amount

    began = time.monotonic()
    running = [threading.Thread(target=work, args=(thread,)) for thread in range(count)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return {
        "threads": count,
        "sizes": len(SIZES),
        **totals,
        "seconds": round(time.monotonic() - began, 1),
    }


def memory(
    calls: int, elements: int, warm_up: int, step: Callable[[Tensor], None]
) -> dict[str, Any]:
    """Resident memory after ``warm_up`` calls and after ``calls`` more."""
    input = oracle.both_tails(elements, torch.float32).requires_grad_()
    for _ in range(warm_up):
        step(input)
    before = resident_bytes()
    began = time.monotonic()
    for _ in range(calls):
        step(input)
    seconds = time.monotonic() - began
    return {
        "calls": calls,
        "elements": elements,
        "resident_bytes_before": before,
        "resident_bytes_after": resident_bytes(),
        "seconds": round(seconds, 1),
    }


class SmallCalls:
    """Every function in turn, so that a reference that any of them loses shows."""

    def __init__(self) -> None:
        self.at = 0
        self.module = FusedSigmoid()
        self.out = torch.empty(0)

    def __call__(self, input: Tensor) -> None:
        kind = self.at % 6
        self.at += 1
        if kind == 0:
            torch.autograd.grad(self.module(input).sum(), input)
        elif kind == 1:
            torch.autograd.grad(sigmoid(input, saved="derivative").sum(), input)
        elif kind == 2:
            sigmoid_(input.detach().clone())
        elif kind == 3:
            sigmoid(input.detach(), out=self.out)
        elif kind == 4:
            value, derivative = sigmoid_with_derivative(input)
            torch.autograd.grad(value.sum() + derivative.sum(), input)
        else:
            # The error's way out holds on to nothing either.
            with contextlib.suppress(ValueError):
                sigmoid(input, saved="nonsense")


def large_step(input: Tensor) -> None:
    value = sigmoid(input)
    (grad,) = torch.autograd.grad(value, input, torch.ones_like(value))
    with torch.no_grad():
        input.add_(grad, alpha=-1e-6)


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 1), nn.Sigmoid())


def loss_curve(model: nn.Module, steps: int) -> list[float]:
    """Regression on a smooth function: activations stay where the tails do not matter."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(256, 8, generator=generator)
    y = (x.square().mean(1, keepdim=True) / 3).clamp(0.05, 0.95)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def training(steps: int) -> dict[str, Any]:
    """The loss with the modules replaced beside that with nn.Sigmoid."""
    began = time.monotonic()
    replaced = _model()
    assert fused_sigmoid.replace_sigmoid(replaced) == 2
    ours, torchs = loss_curve(replaced, steps), loss_curve(_model(), steps)
    differences = [abs(a - b) / b for a, b in zip(ours, torchs, strict=True)]
    return {
        "steps": steps,
        "first_loss": ours[0],
        "last_loss": ours[-1],
        "last_loss_of_torch": torchs[-1],
        "largest_relative_difference": max(differences),
        "seconds": round(time.monotonic() - began, 1),
    }


# One step rounds to 6e-8; a curve that fell a hundredfold over 10⁴ of them may part by more.
ALLOWED_DIFFERENCE = 1e-3


def failures(found: dict[str, Any]) -> list[str]:
    """What the figures say is wrong."""
    reasons = []
    if found["threads"]["wrong"] or not found["threads"]["calls"]:
        reasons.append(f"threads got wrong results: {found['threads']}")
    for name in ("small_calls", "large_steps"):
        grown = found[name]["resident_bytes_after"] - found[name]["resident_bytes_before"]
        if grown > ALLOWED_GROWTH:
            reasons.append(f"{name}: resident memory grew by {grown:,} bytes")
    curve = found["training"]
    if not curve["largest_relative_difference"] <= ALLOWED_DIFFERENCE:
        reasons.append(f"training: the loss curves part: {curve}")
    if not curve["last_loss"] < curve["first_loss"]:
        reasons.append(f"training: the loss does not fall: {curve}")
    return reasons


def main() -> None:
    parser = argparse.ArgumentParser(description="Long runs, with their results checked.")
    add = parser.add_argument
    add("--threads", type=int, default=16)
    add("--seconds", type=float, default=600)
    add("--small-calls", type=int, default=1_000_000)
    add("--large-steps", type=int, default=1_000)
    add("--training-steps", type=int, default=10_000)
    add("--record", type=Path, metavar="FILE.json", help="keep the figures in this file")
    chosen = parser.parse_args()
    found: dict[str, Any] = {}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "small_calls": lambda: memory(chosen.small_calls, 8, 20_000, SmallCalls()),
        "large_steps": lambda: memory(chosen.large_steps, 1 << 20, 20, large_step),
        "training": lambda: training(chosen.training_steps),
        "threads": lambda: threads(chosen.threads, chosen.seconds),
    }
    for name, run in parts.items():
        found[name] = run()
        print(f"{name}: {found[name]}", flush=True)
    if reasons := failures(found):
        raise SystemExit("\n".join(reasons))
    if chosen.record:
        from bench import reliability

        reliability.record(chosen.record, "load", found)


if __name__ == "__main__":
    main()
