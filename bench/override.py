"""What a block of override() costs the calls in it, beside no block and beside a mode of torch that
does nothing; recorded in override.json, from which docs/performance.md is filled.

    python -m bench.override [--write]

Depends on torch and on timing when it measures, on the standard library and tabulate for the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench import report

RECORD = Path(__file__).resolve().parent / "override.json"
ROUNDS = 41
# The size of the LSTM: small enough that the calls show, as they do where override() is a question.
STEPS, BATCH, WIDTH = 20, 8, 32

Call = Callable[[], object]


def works() -> dict[str, Call]:
    """What is timed, by the name it has in the table."""
    import torch
    from torch import Tensor

    x, a = torch.ones(1), torch.ones(1)
    inputs = torch.randn(STEPS, BATCH, WIDTH)
    weights = [torch.randn(WIDTH, 4 * WIDTH).mul_(0.1).requires_grad_() for _ in range(2)]

    def training_step() -> None:
        hidden = cell = torch.zeros(BATCH, WIDTH)
        for given in inputs:
            gates: list[Tensor] = list((given @ weights[0] + hidden @ weights[1]).chunk(4, 1))
            opened, forgotten, shown = (torch.sigmoid(gate) for gate in gates[:3])
            cell = forgotten * cell + opened * torch.tanh(gates[3])
            hidden = shown * torch.tanh(cell)
        hidden.sum().backward()
        for weight in weights:
            weight.grad = None

    return {
        "`x + a`": lambda: x + a,
        "`x.shape`": lambda: x.shape,
        f"LSTM written by hand, a training step of {STEPS} x {BATCH} x {WIDTH}": training_step,
    }


def measure() -> dict[str, dict[str, float]]:
    """Median seconds a call with and without, and median ratios of rounds; on one thread."""
    import torch
    from torch.overrides import TorchFunctionMode

    from bench import timing
    from fused_sigmoid import override

    class Empty(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return func(*args, **(kwargs or {}))

    def sampler(call: Call, block: Callable[[], AbstractContextManager[Any]]) -> timing.Sampler:
        def seconds(passes: int) -> float:
            with block():
                start = time.perf_counter()
                for _ in range(passes):
                    call()
                return time.perf_counter() - start

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


def markdown() -> str:
    document = json.loads(RECORD.read_text(encoding="utf-8"))
    made = report.origin_text(document, "python -m bench.override --write")
    return f"{_table(document['seconds_a_call'], 'pipe')}\n\n{made}"


def _table(found: Mapping[str, Mapping[str, float]], form: str) -> str:
    lines = [
        [
            name,
            *(f"{one[place] * 1e6:,.2f}" for place in ("without", "empty", "inside")),
            *(f"{one[ratio]:.2f}" for ratio in ("inside / without", "inside / empty")),
        ]
        for name, one in found.items()
    ]
    times = ("no block (µs)", "empty mode (µs)", "override() (µs)")
    head = ("call", *times, "over no block", "over empty mode")
    aligned = ("left", *("right",) * 5)
    return tabulate(lines, headers=head, tablefmt=form, colalign=aligned, disable_numparse=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.override", description="Time calls inside and outside of override()."
    )
    parser.add_argument("--write", action="store_true", help=f"record them in {RECORD.name}")
    chosen = parser.parse_args(arguments)
    found = measure()
    print(_table(found, "simple"))
    if chosen.write:
        from bench import machine

        document = {**machine.origin(), "seconds_a_call": found}
        RECORD.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {RECORD}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
