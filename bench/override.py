"""What a block of override() costs the calls in it, beside no block and beside a mode of torch that
does nothing; recorded in bench/results/override.json.

    python -m bench.override [--write]

Depends on torch, on the package and on timing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from bench import report, results, timing
from fused_sigmoid import override

ROUNDS = 41
# The size of the LSTM: small enough that the calls show, as they do where override() is a question.
STEPS, BATCH, WIDTH = 20, 8, 32

Call = Callable[[], object]


class Empty(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def works() -> dict[str, Call]:
    """What is timed, by the name it has in the table."""
    x, a = torch.ones(1), torch.ones(1)
    inputs = torch.randn(STEPS, BATCH, WIDTH)
    weights = [torch.randn(WIDTH, 4 * WIDTH).mul_(0.1).requires_grad_() for _ in range(2)]

    def training_step() -> None:
        hidden = cell = torch.zeros(BATCH, WIDTH)
        for given in inputs:
            gates = (given @ weights[0] + hidden @ weights[1]).chunk(4, 1)
            opened, forgotten, shown = (torch.sigmoid(gate) for gate in gates[:3])
            cell = forgotten * cell + opened * torch.tanh(gates[3])
            hidden = shown * torch.tanh(cell)
        hidden.sum().backward()
        for weight in weights:
            weight.grad = None

    lstm = f"LSTM written by hand, a training step of {STEPS} x {BATCH} x {WIDTH}"
    return {"`x + a`": lambda: x + a, "`x.shape`": lambda: x.shape, lstm: training_step}


def measure() -> dict[str, dict[str, float]]:
    """Median seconds a call with and without, and median ratios of rounds; on one thread."""

    def sampler(call: Call, block: Callable[[], AbstractContextManager[Any]]) -> timing.Sampler:
        plain = timing.wall_sampler([call])

        def seconds(passes: int) -> float:
            with block():
                return plain.seconds(passes)

        return timing.Sampler(seconds, 1)

    effort = timing.Effort(rounds=ROUNDS, minimum_rounds=ROUNDS, sample_seconds=5e-3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    try:
        for name, call in works().items():
            inside = sampler(call, override)
            without = timing.measure_pair(sampler(call, nullcontext), inside, effort)
            empty = timing.measure_pair(sampler(call, Empty), inside, effort)
            found[name] = {
                "without": without.ours.median,
                "empty": empty.ours.median,
                "inside": without.theirs.median,
                "inside / without": without.ratio.median,
                "inside / empty": empty.ratio.median,
            }
    finally:
        torch.set_num_threads(threads)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.override", description="Time calls inside and outside of override()."
    )
    parser.add_argument("--write", action="store_true", help="record them in override.json")
    chosen = parser.parse_args(arguments)
    found = measure()
    print("Microseconds a call, and ratios of them.")
    print(report.table([{"call": name, **_texts(one)} for name, one in found.items()]))
    if chosen.write:
        file = results.FOLDER / "override.json"
        results.write_record(file, "python -m bench.override --write", seconds_a_call=found)
        print(f"wrote {file}")
    return 0


def _texts(one: dict[str, float]) -> dict[str, str]:
    return {key: f"{value if '/' in key else value * 1e6:,.2f}" for key, value in one.items()}


if __name__ == "__main__":
    sys.exit(main())
