"""One dtype on one device: every kernel over every input, in chunks, to rows of figures. Depends on
the other files of the check, except for report's tables."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._extension import extension
from ..functions.sigmoid import FUNCTION
from . import reference
from .figures import Distinct, Judge, Tally, Total, differing
from .functions import (
    ERROR_BOUNDS,
    FIRST,
    HALVES,
    INCREASING,
    LOSS,
    PAIR_VALUE,
    SECOND,
    Order,
    function_of,
    mirrored,
    sign_of_logits,
    wrong_special_values,
)
from .inputs import Magnitudes
from .reference import Reference
from .report import Figure, Row

OURS, TORCH = "ours", "torch"

# Magnitudes at a time: what the second-level cache of a core holds (of 2^14 to 2^18, 2^16 and 2^17
# took least); what keeps a GPU busy.
CPU_CHUNK = 2**16
CUDA_CHUNK = 2**23

# What mpmath computes of float64, for each sign, quantity and instruction set.
WORST = 100

# What is counted of torch's results as well.
COUNTED_OF_TORCH = ("misrounded", "zeroed", "decreasing", "misplaced_nan", "outside_range")

# Of one result: whose (the kernels' name, or TORCH), quantity, sign of the inputs.
Side = tuple[str, str, int]


@dataclass
class Chunk:
    """A part of the magnitudes, and what was found for it."""

    magnitude: Tensor
    results: dict[Side, Tensor] = field(default_factory=dict)
    tallies: dict[Side, Tally] = field(default_factory=dict)
    counts: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)


class Sweep:
    """``run`` gives the rows, once; ``seconds`` says afterwards how long each part took."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, magnitudes: Magnitudes, order: Order
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.magnitudes = magnitudes
        self.order = order
        self.seconds: Counter[str] = Counter()
        self._dtype_name = str(dtype).removeprefix("torch.")
        self.title = f"{device} {self._dtype_name} {order.title}".rstrip()
        # Long double is on the CPU.
        self._home = torch.device("cpu") if dtype == torch.float64 else device
        self._kernels = _kernels(device)
        self._totals: dict[tuple[str, str], Total] = {}
        self._all_by_mpmath = dtype == torch.float64 and reference.long_double_is_narrow()
        self._keep = WORST if dtype == torch.float64 else 0
        if self._all_by_mpmath:
            self._keep = magnitudes.count

    def run(self, advance: Callable[[int], object]) -> list[Row]:
        """``advance`` is called with the number of inputs that are done, again and again."""
        size = CPU_CHUNK if self._home.type == "cpu" else CUDA_CHUNK
        starts = range(0, self.magnitudes.count, size)
        with _workers(self.device) as (map_over, count):
            for first in range(0, len(starts), count):
                chunks = [self._chunk(start, size) for start in starts[first : first + count]]
                for name in self._kernels:
                    # No worker is still busy with the set before.
                    _select(self.device, name)
                    with self._timed(f"kernels {name}"):
                        map_over(lambda chunk, name=name: self._compute(chunk, name), chunks)
                with self._timed("torch, reference and figures"):
                    map_over(self._judge, chunks)
                    for chunk in chunks:
                        self._add(chunk)
                        advance(2 * len(chunk.magnitude))
        if self._keep:
            with self._timed("mpmath"):
                for (_, quantity), total in self._totals.items():
                    total.refine(function_of(quantity))
        if self.order is not SECOND:
            self._count_special_values()
        return [
            self._row(name, quantity)
            for name, quantity in self._totals
            if name != TORCH and quantity != PAIR_VALUE
        ]

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start  # type: ignore[assignment]

    def _chunk(self, start: int, size: int) -> Chunk:
        stop = min(start + size, self.magnitudes.count)
        return Chunk(self.magnitudes.part(start, stop).to(self._home))

    def _compute(self, chunk: Chunk, name: str) -> None:
        function = self.order.torch if name == TORCH else self.order.ours
        for sign in (1, -1):
            x = (chunk.magnitude * sign).to(self.device)
            for quantity, result in function(x).items():
                chunk.results[name, quantity, sign] = result.to(self._home)

    def _judge(self, chunk: Chunk) -> None:
        self._compute(chunk, TORCH)
        references = self.order.references(chunk.magnitude)
        # One for both signs of an even function and for both targets, whose references are one.
        distinct = {
            (whose, id(exact)): Distinct(self._judge_of(chunk.magnitude, exact, sign, whose))
            for (_, sign), exact in references.items()
            for whose in (OURS, TORCH)
        }
        for (name, quantity, sign), result in chunk.results.items():
            exact = references[function_of(quantity), sign]
            whose = TORCH if name == TORCH else OURS
            chunk.tallies[name, quantity, sign] = distinct[whose, id(exact)].tally(result)
        for name, quantity, sign in chunk.results:
            if name != TORCH:
                counts = chunk.counts.setdefault((name, quantity), Counter())
                self._compare(chunk, (name, quantity, sign), counts)
        chunk.results.clear()

    def _judge_of(self, magnitude: Tensor, exact: Reference, sign: int, whose: str) -> Judge:
        records = [
            side.error
            for (name, quantity), total in self._totals.items()
            if (name == TORCH) == (whose == TORCH) and function_of(quantity) == exact.name
            for side in total.sides.values()
        ]
        direction = sign if exact.name in INCREASING else 0
        return Judge(magnitude, exact, direction, min(records, default=-1.0), self._keep)

    def _compare(self, chunk: Chunk, side: Side, counts: Counter[str]) -> None:
        name, quantity, sign = side
        function = function_of(quantity)

        def unlike(*other: Any) -> int:
            if chunk.tallies[side] is chunk.tallies[other]:
                return 0
            return differing(chunk.results[side], chunk.results[other])

        counts["unlike_first_set"] += unlike(self._kernels[0], quantity, sign)
        if self.order is FIRST:
            pair = PAIR_VALUE if function == "value" else "derivative"
            counts["unlike_pair"] += unlike(name, pair, sign)
        if self.order is LOSS:
            counts["asymmetric"] += unlike(name, mirrored(quantity), sign)
        if function == "derivative" and sign > 0:
            counts["asymmetric"] += unlike(name, quantity, -sign)

    def _add(self, chunk: Chunk) -> None:
        for (name, quantity, sign), tally in chunk.tallies.items():
            total = self._totals.setdefault((name, quantity), Total())
            direction = sign if function_of(quantity) in INCREASING else 0
            total.sides[sign].add(tally, direction, self._keep)
        for key, counts in chunk.counts.items():
            self._totals[key].counts.update(counts)

    def _count_special_values(self) -> None:
        for name in self._kernels:
            _select(self.device, name)
            for quantity, wrong in wrong_special_values(
                self.order, self.device, self.dtype
            ).items():
                self._totals[name, quantity].counts["special_values"] += wrong

    def _row(self, name: str, quantity: str) -> Row:
        function = function_of(quantity)
        total = self._totals[name, quantity]
        peer = self._totals.get((TORCH, quantity)) or self._totals[TORCH, function]
        sign = sign_of_logits(quantity)
        (error, at), (torch_error, torch_at) = total.error(sign), peer.error(sign)
        bound = ERROR_BOUNDS.get((self.dtype, function))
        figures = {"error": Figure(error, bound, at, torch_error, torch_at)}
        for figure in self._counted(quantity):
            of_torch = peer.count(figure) if figure in COUNTED_OF_TORCH else None
            figures[figure] = Figure(total.count(figure), self._bound(figure), torch=of_torch)
        return Row(
            device=str(self.device),
            kernels=name,
            dtype=self._dtype_name,
            quantity=quantity,
            inputs=2 * self.magnitudes.count,
            reference=self._reference(),
            unit="relative" if self.order is SECOND else "ulp",
            figures=figures,
        )

    def _counted(self, quantity: str) -> Iterator[str]:
        yield "misplaced_nan"
        if self.order is SECOND:
            return
        if not self._all_by_mpmath:  # where the nearest number is not known
            yield from ("misrounded", "zeroed")
        if function_of(quantity) in INCREASING:
            yield "decreasing"
        if function_of(quantity) != "value":
            yield "asymmetric"
        if self.order is FIRST and quantity != "derivative":
            yield "unlike_pair"
        yield from ("outside_range", "special_values", "unlike_first_set")

    def _bound(self, figure: str) -> float | None:
        if figure in ("misrounded", "decreasing"):
            return 0 if self.dtype in HALVES else None
        if figure == "unlike_first_set":
            return None if self.dtype == torch.float64 else 0
        return 0

    def _reference(self) -> str:
        if self.dtype != torch.float64:
            return "float64"
        mpmath = f"mpmath with {reference.DIGITS} digits"
        if self._all_by_mpmath:
            return mpmath
        return f"long double ({reference.LONG_DOUBLE_BITS} bits), the {2 * WORST} worst by {mpmath}"


def _kernels(device: torch.device) -> Sequence[str]:
    if device.type == "cpu":
        return extension.instruction_sets()
    return ("formula",) if FUNCTION.kernel("value") is None else ("triton",)


def _select(device: torch.device, name: str) -> None:
    if device.type == "cpu":
        extension.select_instruction_set(name)


@contextmanager
def _workers(device: torch.device) -> Iterator[tuple[Callable[..., list[Any]], int]]:
    """A map over as many workers as torch has threads, of one thread each, and how many that are.
    With threads inside of each operation they wait for each other after every one, 40 µs to 5 ms as
    soon as the cores have other work. A GPU has one worker."""
    if device.type != "cpu":
        yield (lambda function, items: [function(item) for item in items]), 1
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield (lambda function, items: list(pool.map(function, items))), threads
    finally:
        torch.set_num_threads(threads)
