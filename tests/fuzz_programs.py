"""Runs many random programs with our sigmoid and with torch's: tensors changed in place around it,
eager and compiled (tests/inplace_programs.py), checkpoints (tests/checkpoint_programs.py), and
outputs given to losses (tests/company_programs.py).
Called by `make fuzz`; prints every program that goes wrong, and ends with an error.

    python -m tests.fuzz_programs [--programs 10000] [--compiled 400] [--inductor 100] [--first 0]
        [--write]

A program depends on its number alone: --first NUMBER --programs 1 runs it again.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests import checkpoint_programs, company_programs, inplace_programs

RECORD = Path(__file__).resolve().parents[1] / "bench/results/reliability.json"
# Programs that one process takes on at a time, and that one function is compiled of.
SHARE = 100
COMPILED_TOGETHER = 20
COMPILED = ("aot_eager", "inductor")


class Found(NamedTuple):
    tally: Counter[str]
    failures: list[str]


def in_place(seeds: Iterable[int]) -> Found:
    return _each(seeds, inplace_programs.write, inplace_programs.try_program)


def checkpoints(seeds: Iterable[int]) -> Found:
    return _each(seeds, checkpoint_programs.write, checkpoint_programs.try_program)


def company(seeds: Iterable[int]) -> Found:
    return _each(seeds, company_programs.write, company_programs.try_program)


def _each(
    seeds: Iterable[int], write: Callable[[int], Any], attempt: Callable[[Any, Counter[str]], None]
) -> Found:
    found = Found(Counter(), [])
    with inplace_programs.quietly():
        for seed in seeds:
            program = write(seed)
            found.tally["programs"] += 1
            try:
                attempt(program, found.tally)
            except inplace_programs.Different as difference:
                found.failures.append(f"{difference}\n{program}")
    return found


def compiled(seeds: Iterable[int], backend: str) -> Found:
    """The programs of all the numbers, compiled as one function."""
    programs = [inplace_programs.write(seed, backend) for seed in seeds]
    found = Found(Counter(programs=len(programs)), [])
    with inplace_programs.quietly():
        try:
            inplace_programs.try_compiled(programs, found.tally)
        except inplace_programs.Different as difference:
            found.failures.append(str(difference))
    return found


def run(part: Callable[[Iterable[int]], Found], seeds: range, share: int) -> dict[str, Any]:
    """The figures of all the programs, in as many processes as there are CPUs."""
    began = time.monotonic()
    shares = [seeds[at : at + share] for at in range(0, len(seeds), share)]
    tally: Counter[str] = Counter()
    failures: list[str] = []
    with ProcessPoolExecutor(
        os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)
    ) as pool:
        for found in pool.map(part, shares):
            tally += found.tally
            failures += found.failures
            for failure in found.failures:
                print(failure, end="\n\n", flush=True)
    return {
        **tally,
        "failures": len(failures),
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Random programs, with ours and with torch's.")
    add = parser.add_argument
    add(
        "--programs",
        type=int,
        default=10_000,
        help="that change tensors, with checkpoints, with losses",
    )
    add("--compiled", type=int, default=400, help="compiled by AOTAutograd alone")
    add("--inductor", type=int, default=100, help="compiled by Inductor")
    add("--first", type=int, default=0, metavar="NUMBER", help="the first program's")
    add("--only", choices=("in place", *COMPILED, "checkpoints", "company"))
    add("--write", action="store_true", help=f"record the figures in {RECORD.name}")
    chosen = parser.parse_args()
    parts: dict[str, tuple[Callable[[Iterable[int]], Found], int, int]] = {
        "in place": (in_place, chosen.programs, SHARE),
        "aot_eager": (partial(compiled, backend="aot_eager"), chosen.compiled, COMPILED_TOGETHER),
        "inductor": (partial(compiled, backend="inductor"), chosen.inductor, COMPILED_TOGETHER),
        "checkpoints": (checkpoints, chosen.programs, SHARE),
        "company": (company, chosen.programs, SHARE),
    }
    figures = {}
    for name, (part, count, share) in parts.items():
        if chosen.only in (None, name):
            figures[name] = run(part, range(chosen.first, chosen.first + count), share)
            print(f"{name}: {figures[name]}", flush=True)
    if any(found["failures"] for found in figures.values()):
        raise SystemExit("ours does not do what torch's program does; see above")
    if chosen.write:
        from bench import results

        results.record_section(RECORD, "programs", figures)


if __name__ == "__main__":
    main()
