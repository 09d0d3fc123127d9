"""One work of one side in a process that does nothing else; bench.fresh_processes starts it.

    python -m bench.alone SIDE WORK ELEMENTS THREADS

Prints the median time of a call and its page faults, as JSON. Depends on torch, and imports the
package for its own side only: torch's process is torch's alone.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

Call = Callable[[], Any]

# The first dozen calls get memory at ever new addresses and touch it for the first time. Larger
# outputs, of which each is mapped anew, have no such beginning.
WARM_UP_CALLS, WARM_UP_SECONDS = 20, 1.0
LEAST_CALLS, SECONDS = 7, 0.15


def call_of(side: str, work: str, elements: int) -> Call:
    if side == "torch":
        forward, pair, module = torch.sigmoid, _torchs_pair, torch.nn.Sigmoid()
    else:
        import fused_sigmoid

        forward, pair = fused_sigmoid.sigmoid, fused_sigmoid.sigmoid_with_derivative
        module = fused_sigmoid.FusedSigmoid()
    # Nothing larger than they are was freed before: that would raise glibc's thresholds.
    x = torch.randn(elements)
    if work != "training":
        return {"forward": lambda: forward(x), "pair": lambda: pair(x)}[work]
    grad = torch.randn(elements)
    x.requires_grad_()

    def step() -> None:
        x.grad = None
        y = module(x)
        y.backward(grad)

    return step


def _torchs_pair(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    value = torch.sigmoid(x)
    return value, value * (1 - value)


def measure(call: Call) -> dict[str, float]:
    _repeat(call, most=WARM_UP_CALLS, seconds=WARM_UP_SECONDS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    times = _repeat(call, least=LEAST_CALLS, seconds=SECONDS)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {"seconds": statistics.median(times), "page_faults": faults / len(times)}


def _repeat(call: Call, seconds: float, least: int = 1, most: float = float("inf")) -> list[float]:
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < least or (len(times) < most and time.perf_counter() - begin < seconds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    side, work, elements, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print(json.dumps(measure(call_of(side, work, int(elements)))))
