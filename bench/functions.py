"""Every function of the package beside torch's own of the same name: forward, value and derivative,
and a training step, in pairs. Prints a table, and keeps nothing.

    python -m bench.functions [--size 65536 1048576] [--dtype float32 ...] [--threads 1]

Depends on timing, and on works for the dtypes. Its rows are the functions that the package has.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
from tabulate import tabulate
from torch import Tensor

from bench.report import ratio_text, seconds_text, size_text
from bench.timing import Call, Effort, measure_pair, wall_sampler
from bench.works import DTYPES, INPUT_STANDARD_DEVIATION
from fused_sigmoid.functions import FUNCTIONS, PUBLIC
from fused_sigmoid.functions.function import Function


def _train(call: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> None:
    call(x).backward(grad)
    x.grad = None  # else the next backward would add to it


def _torchs_pair(function: Function, x: Tensor, ones: Tensor) -> tuple[Tensor, Tensor]:
    value = function.original(x)
    return value, function.backward_from_output(ones, value)


def works(function: Function, size: int, dtype: torch.dtype) -> Iterator[tuple[str, Call, Call]]:
    """The name of each work, ours and torch's."""
    x = (INPUT_STANDARD_DEVIATION * torch.randn(size)).to(dtype)
    ones, leaf = torch.ones_like(x), x.clone().requires_grad_()
    ours, pair = PUBLIC[function.name], PUBLIC[f"{function.name}_with_derivative"]
    yield "forward", partial(ours, x), partial(function.original, x)
    yield "pair", partial(pair, x), partial(_torchs_pair, function, x, ones)
    yield (
        "training",
        partial(_train, ours, leaf, ones),
        partial(_train, function.original, leaf, ones),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Time every function beside torch's own.")
    parser.add_argument("--size", type=int, nargs="+", default=[2**16, 2**20])
    parser.add_argument("--dtype", nargs="+", choices=tuple(DTYPES), default=list(DTYPES))
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    lines = []
    for function in FUNCTIONS:
        for dtype in chosen.dtype:
            for size in chosen.size:
                for name, ours, theirs in works(function, size, DTYPES[dtype]):
                    samplers = wall_sampler([ours]), wall_sampler([theirs])
                    pairing = measure_pair(*samplers, Effort())
                    seconds = seconds_text(pairing.ours.median)
                    row = (function.name, name, dtype, size_text(size), seconds)
                    lines.append((*row, ratio_text(pairing.ratio)))
    head = ("function", "work", "dtype", "size", "ours", "torch / ours")
    print(tabulate(lines, headers=head, disable_numparse=True))


if __name__ == "__main__":
    main()
